"""JSON and YAML files that may be damaged: one reader, one kind of error."""

import json
from pathlib import Path
from typing import Any

import yaml

from lmkit.config.base import ConfigError

_WORDS = {dict: "an object", list: "a list"}


def read_document(path: Path, kind: type = dict, way_out: str = "fetch it again, or write it anew") -> Any:
    """What a .json or .yaml file holds, of the type `kind` at its top.

    Raises ConfigError, in one line that names the file, where it is missing, cannot be read, is not UTF-8, is cut, or
    holds another type.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} cannot be read: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is damaged: byte {error.start} is not UTF-8; {way_out}") from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        form = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path} is no {form}: {' '.join(str(error).split()):.200}; {way_out}") from error
    if not isinstance(found, kind):
        held = "nothing" if found is None else f"a {type(found).__name__}"
        raise ConfigError(f"{path} holds {held}: it must be {_WORDS.get(kind, kind.__name__)}; {way_out}")
    return found
