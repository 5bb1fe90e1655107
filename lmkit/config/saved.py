"""A model's configuration as a file of a run: model.yaml, the family and every key."""

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from lmkit.config.base import ConfigError, nearest
from lmkit.config.experiment import to_plain
from lmkit.config.families import MODEL_SCHEMAS
from lmkit.config.model import ModelConfig

FAMILIES = {name.removesuffix("_schema"): schema for name, schema in MODEL_SCHEMAS.items()}


def write_model(path: Path, config: ModelConfig) -> None:
    """Writes `family: gpt` and all keys, in one step."""
    family = next(name for name, schema in FAMILIES.items() if schema is type(config))
    tmp = path.with_name(f".{path.name}.tmp")
    tmp.write_text(yaml.safe_dump({"family": family} | to_plain(config), sort_keys=False))
    tmp.replace(path)


def read_model(path: Path) -> ModelConfig:
    """What `write_model` wrote. Raises ConfigError where it is missing, or has a family or key that is not known."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    family = values.pop("family", None)
    if family not in FAMILIES:
        raise ConfigError(f"{path}: family={family!r}; there are {', '.join(FAMILIES)}")
    return _typed(FAMILIES[family], values, path)


def _typed(schema: Any, values: dict[str, Any], path: Path) -> Any:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}.{nearest(unknown[0], fields)}")
    given: dict[str, Any] = {}
    for name, value in values.items():
        kind: Any = fields[name].type
        if dataclasses.is_dataclass(kind):
            value = _typed(kind, value, path)
        elif isinstance(kind, type) and issubclass(kind, Enum):
            if value not in kind.__members__:
                raise ConfigError(f"{path}: {name}={value!r}; there are {', '.join(kind.__members__)}")
            value = kind[value]
        given[name] = value
    return schema(**given)
