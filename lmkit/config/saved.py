"""A model's configuration as a file beside its parameters: `model.yaml`, the family and every key."""

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from lmkit.config.base import ConfigError, nearest
from lmkit.config.experiment import to_plain
from lmkit.config.families import MODEL_SCHEMAS
from lmkit.config.model import ModelConfig

MODEL_FILE = "model.yaml"
FAMILIES = {name.removesuffix("_schema"): schema for name, schema in MODEL_SCHEMAS.items()}
T = TypeVar("T")


def write_model(folder: Path, config: ModelConfig) -> None:
    """Replaces the folder's model.yaml in one step."""
    (family,) = [name for name, schema in FAMILIES.items() if schema is type(config)]
    tmp = folder / f".{MODEL_FILE}.tmp"
    tmp.write_text(yaml.safe_dump({"family": family, "model": to_plain(config)}, sort_keys=False))
    tmp.replace(folder / MODEL_FILE)


def read_model(folder: Path) -> ModelConfig:
    """The configuration there. Raises ConfigError where it is missing, or has a key or a value that is not valid."""
    file = folder / MODEL_FILE
    try:
        saved = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(saved, dict) or saved.get("family") not in FAMILIES:
        family = saved.get("family") if isinstance(saved, dict) else None
        raise ConfigError(f"{file}: no family {family!r}; there are {', '.join(FAMILIES)}")
    return from_plain(FAMILIES[saved["family"]], saved.get("model"), f"{file}: model")


def from_plain(schema: type[T], plain: Any, place: str) -> T:
    """What `to_plain` made plain, typed again. Keys that are not there take their defaults.

    Raises ConfigError for unknown keys and for values of another type, naming both.
    """
    if not isinstance(plain, dict):
        raise ConfigError(f"{place}={plain!r}: expected keys with values")
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for name in plain:
        if name not in fields:
            raise ConfigError(f"{place}: unknown key {name!r}.{nearest(name, fields)}")
    return schema(**{name: _typed(fields[name].type, value, f"{place}.{name}") for name, value in plain.items()})


def _typed(kind: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_plain(kind, value, place)  # type: ignore[arg-type]
    if get_origin(kind) is list and isinstance(value, list):
        return [_typed(get_args(kind)[0], one, place) for one in value]
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in kind.__members__:
            raise ConfigError(f"{place}={value!r}: it must be one of {', '.join(kind.__members__)}")
        return kind[value]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{place}={value!r}: expected {getattr(kind, '__name__', kind)}")
    return value
