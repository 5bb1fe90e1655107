"""Which files a path, a folder or a pattern names, and which of those there are left out."""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.data.sources.files import File, ending, located, patiently
from lmkit.data.sources.roots import inside, is_local
from lmkit.redact import HIDDEN, redact_text

ANY = ("",)  # every suffix
_MAGIC = "*?["
_SHOWN = 6  # kinds of files that a note names

_NEEDS = {
    "hdfs": "hdfs:// needs pyarrow, lmkit[parquet], and Hadoop's libhdfs: set HADOOP_HOME, JAVA_HOME and CLASSPATH",
    "s3": "s3:// needs s3fs: pip install 'lmkit[remote]'",
    "gs": "gs:// needs gcsfs: pip install 'lmkit[remote]'",
}


def expand(
    path: str, suffixes: tuple[str, ...], *, asked: tuple[str, ...] = (), allow_roots: Sequence[str] = (),
    left_out: Counter[str] | None = None,
) -> list[File]:  # fmt: skip
    """The files of a path, folder or pattern; names are relative to the folder or the pattern's fixed part.

    What exists is a path, whatever its name; else `*`, `?` and `[` make a pattern. Suffixes are compared without case.
    A path that names one file may end otherwise. Hidden files of a folder are not read. `left_out` counts, by kind,
    the files that are there and are not read. ANY takes every file except links, which would give a text twice.

    Args:
        asked: suffixes that count where `path` itself ends so.
        allow_roots: where links may lead, besides the folder itself.

    Raises ConfigError for what cannot be read, a link that leads out of the folder, and a name that is not UTF-8.
    """
    if "://" in path and HIDDEN in path:
        raise ConfigError(f"data.paths: {path!r} has lost its credentials, which config.yaml does not keep: write them")
    try:
        system, root = located(path)
    except (ImportError, ValueError, OSError) as error:
        hint = _NEEDS.get(path.partition("://")[0], "the extra lmkit[remote] has gs:// and s3://")
        reason = str(error).partition("\n")[0]  # libhdfs has a line for each place where it looked for Java
        raise ConfigError(f"data.paths: cannot open {path!r}: {reason} ({hint})") from error
    found, base = patiently(f"list data.paths={path!r}", lambda: _found(system, root, is_local(path)))
    suffixes += tuple(one for one in asked if ending(path).endswith(one))
    files = []
    for name, info in sorted(found.items()):
        if info.get("type") == "directory":
            continue
        relative = name[len(base) :].lstrip("/")
        if name != root and (kind := _kind_left_out(name, relative, info, suffixes)):
            if left_out is not None:
                left_out[kind] += 1
            continue
        _check_name(name)
        if name != root and is_local(path) and info.get("islink") and not inside(name, [base, *allow_roots]):
            target = os.path.realpath(name)
            raise ConfigError(
                f"data.paths: the link {name} leads to {target}, outside of {base}: copy the file, or set "
                f"data.allow_roots=[{os.path.dirname(target)}]"
            )
        stamp = info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("md5Hash") or ""
        url = system.unstrip_protocol(name)
        if redact_text(url) != url:
            relative = relative.partition("?")[0]  # a name is kept with the text, and a signature is new each time
        files.append(File(url, relative, int(info["size"] or 0), str(stamp)))
    return files


def matching(
    path: str, suffixes: tuple[str, ...], left_out: Counter[str], *, asked: tuple[str, ...] = (),
    allow_roots: Sequence[str] = (), key: str = "data.paths", only: bool = False,
) -> list[File]:  # fmt: skip
    """The files of a path, as `expand` gives them; `only`: a path that names one file must end so, too.

    Raises ConfigError, naming the configuration's `key`, where there are none; `left_out` gets what is there instead.
    """
    here: Counter[str] = Counter()
    found = expand(path, suffixes, asked=asked, allow_roots=allow_roots, left_out=here)
    found = [file for file in found if not only or ending(file.url).endswith((*suffixes, *asked))]
    if not found:
        there = f" (there are {left_out_note(here)})" if here else ""
        raise ConfigError(f"{key}: {path!r} matches no file with one of {', '.join(suffixes)}{there}")
    left_out += here
    return found


def _found(system: Any, root: str, local: bool) -> tuple[dict[str, Any], str]:
    """What is there by name, and what their names are relative to."""
    if system.isdir(root):
        return system.find(root, detail=True), root
    if system.exists(root):
        return {root: system.info(root)}, root.rpartition("/")[0]
    if not any(c in root for c in _MAGIC):
        return {}, root.rpartition("/")[0]
    if local:
        return _matches(system, root)
    fixed = root[: min(root.find(c) for c in _MAGIC if c in root)]
    return system.glob(root, detail=True), fixed.rpartition("/")[0]


def _matches(system: Any, pattern: str) -> tuple[dict[str, Any], str]:
    """The local files of a pattern, and its fixed part: as much of it as exists, brackets in names or not."""
    steps = pattern.split("/")
    fixed = next(n for n in range(len(steps) - 1, 0, -1) if n == 1 or os.path.lexists("/".join(steps[:n])))
    base, rest = "/".join(steps[:fixed]), "/".join(steps[fixed:])
    names = (f"{base}/{name}" for name in glob.glob(rest, root_dir=base or "/", recursive=True))
    return {name: system.info(name) for name in names if os.path.exists(name)}, base


def _kind_left_out(name: str, relative: str, info: dict[str, Any], suffixes: tuple[str, ...]) -> str:
    """What kind of file this is, where it is not read; "" where it is."""
    linked = bool(info.get("islink"))
    if linked and (suffixes == ANY or not os.path.isfile(name)):
        return "links"
    if not linked and info.get("type") != "file":
        return "special files"
    if suffixes == ANY:
        return ""
    if any(step.startswith(".") for step in relative.split("/")):
        return "hidden"
    return "" if ending(name).endswith(suffixes) else PurePosixPath(name).suffix or "without a suffix"


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise ConfigError(f"data.paths: the file name {shown} is not UTF-8: rename the file") from error


def left_out_note(counts: Counter[str]) -> str:
    """What was left out, in words; "" for nothing."""
    kinds = [f"{count:,} {kind}" for kind, count in counts.most_common(_SHOWN)]
    more = f", {sum(counts.values()) - sum(n for _, n in counts.most_common(_SHOWN)):,} others"
    return ", ".join(kinds) + (more if len(counts) > _SHOWN else "")


def left_out_notes(parts: Mapping[str, Counter[str]]) -> tuple[str, ...]:
    """What the user should know of files that are there and are not read, by part of the mixture."""
    told = ((name, left_out_note(counts)) for name, counts in parts.items() if counts)
    return tuple(f"data {name!r}: files that are not read: {kinds}" for name, kinds in told)
