"""Which files the content of another file may name: those of its folder, and those of data.allow_roots."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from lmkit.config.base import ConfigError

_LOCAL = ("file://", "local://")


def is_local(url: str) -> bool:
    """Whether this is a path of this machine. A path with `::` is one, too: only URLs are chains of fsspec."""
    return "://" not in url or url.lower().startswith(_LOCAL) or os.path.lexists(os.path.expanduser(url))


def local_path(url: str) -> str:
    """The absolute path of what is local."""
    lead = next((one for one in _LOCAL if url.lower().startswith(one)), "")
    return os.path.abspath(url[len(lead) :] if lead else os.path.expanduser(url))


def resolve(value: str, folder: str, allow_roots: Sequence[str] = ()) -> str:
    """The path or URL that `value` names in a file of `folder`; both may be local or URLs.

    A relative path starts from the folder. The result, symbolic links followed, lies in the folder or in one of
    `allow_roots` (folders, URL prefixes). Raises ConfigError for any other, without a place at its beginning.
    """
    scheme = value.partition("://")[0] if "://" in value else ""
    if scheme and f"{scheme.lower()}://" not in _LOCAL:
        found = value
    elif scheme or value.startswith("/") or is_local(folder):
        found = os.path.join(local_path(folder), value[len(scheme) + 3 :] if scheme else value)
    else:
        found = f"{folder.rstrip('/')}/{value}"
    if scheme and "::" in found:
        raise ConfigError(f"{value!r} is a chain of URLs, which only data.paths may name; give one URL")
    if not any(_holds(root, found) for root in (folder, *allow_roots)):
        root = f"{scheme}://{found.split('/')[2]}" if "://" in found else os.path.dirname(_real(found))
        raise ConfigError(
            f"{value!r} lies outside of the file's folder {folder}: move it there, or set data.allow_roots=[{root}]"
        )
    return found if "://" in found else _real(found)


def inside(path: str, roots: Sequence[str]) -> bool:
    """Whether a local path lies in one of these folders, symbolic links followed."""
    return any(_holds(root, path) for root in roots)


def _holds(root: str, found: str) -> bool:
    """Whether a path or URL lies below a root."""
    if "://" not in found:
        return is_local(root) and Path(_real(found)).is_relative_to(_real(local_path(root)))
    if is_local(root) or "::" in found or "\\" in found:
        return False
    path = found.partition("?")[0].partition("#")[0]
    steps = {step for one in (path, unquote(path), unquote(unquote(path))) for step in one.split("/")}
    return not steps & {".", ".."} and path.startswith(root.rstrip("/") + "/")


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (ValueError, OSError) as error:  # a zero byte, a loop of links
        raise ConfigError(f"{path!r} is no path: {error}") from error
