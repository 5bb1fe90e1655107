"""Configurations read back from files: `model.yaml`, `tokenizer.yaml` and `config.yaml` of a run."""

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from lmkit.config.base import ConfigError, nearest
from lmkit.config.documents import read_document
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.sections.families import MODEL_SCHEMAS
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.files import write_text

MODEL_FILE, RUN_FILE = "model.yaml", "config.yaml"
TOKENIZER_FILE, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer.yaml"
FAMILY_SCHEMAS = {name.removesuffix("_schema"): schema for name, schema in MODEL_SCHEMAS.items()}
T = TypeVar("T")


_blocks: set[str] = set()  # what this process was told to import


def trust_blocks(model: ModelConfig) -> None:
    """Lets files name these blocks: code is imported only where the command line, or a program, names it itself."""
    _blocks.update(part.block for part in model.towers().values())


def take_blocks(words: list[str]) -> list[str]:
    """The words of a command line without model.block=, which is trusted: for verbs whose model is in a file."""
    found = [(word, re.fullmatch(r"\+*model\.(?:text\.|vision\.)?block=(.*)", word)) for word in words]
    _blocks.update(match[1] for _, match in found if match)
    return [word for word, match in found if not match]


def write_model(folder: Path, config: ModelConfig) -> None:
    """Replaces the folder's model.yaml in one step."""
    (family,) = [name for name, schema in FAMILY_SCHEMAS.items() if schema is type(config)]
    write_text(folder / MODEL_FILE, yaml.safe_dump({"family": family, "model": to_plain(config)}, sort_keys=False))


def read_model(folder: Path, *, to_build: bool = True) -> ModelConfig:
    """The configuration there. Raises ConfigError where it is missing, or has a key or a value that is not valid.

    Where the model is `to_build`, also for a block of somebody's own that nobody here has named (`trust_blocks`).
    """
    file = folder / MODEL_FILE
    saved = read_document(file)
    family = saved.get("family")
    if not isinstance(family, str) or family not in FAMILY_SCHEMAS:
        raise ConfigError(f"{file}: no family {family!r}; there are {', '.join(FAMILY_SCHEMAS)}")
    config = from_plain(FAMILY_SCHEMAS[family], saved.get("model"), f"{file}: model")
    for prefix, part in config.towers().items() if to_build else ():
        if part.block and part.block not in _blocks:
            word = f"{prefix}.block={part.block}"
            raise ConfigError(
                f"{file} names code to import, {word}, and the command line does not: if you trust it, add {word}"
            )
    return config


def write_tokenizer(folder: Path, config: TokenizerConfig) -> None:
    """Replaces the folder's tokenizer.yaml: how its tokenizer.json is used, every special token by its name."""
    alone = dataclasses.replace(config, kind=TokenizerKind.file, path=TOKENIZER_FILE)
    write_text(folder / TOKENIZER_SETTINGS, yaml.safe_dump(to_plain(alone), sort_keys=False, allow_unicode=True))


def read_tokenizer(folder: Path) -> TokenizerConfig:
    """The settings that a run's own tokenizer.json is used with; of older runs, those of its config.yaml.

    Raises ConfigError where a file has a key or a value that is not valid.
    """
    own, run = folder / TOKENIZER_SETTINGS, folder / RUN_FILE
    file = own if own.is_file() else run
    plain = read_document(file) if file.is_file() else {}
    plain = plain if file == own else plain.get("tokenizer", {})
    found = from_plain(TokenizerConfig, plain, f"{file}: tokenizer")
    return dataclasses.replace(found, kind=TokenizerKind.file, path=str(folder / TOKENIZER_FILE))


def read_experiment(run: Path, changes: dict[str, Any] | None = None) -> Experiment:
    """What a run was made with; `changes` are values of other keys by their dotted names.

    Its model is to be looked at, not to be built. Raises ConfigError where the file is missing, or has a key or a value
    that is not valid.
    """
    file = run / RUN_FILE
    saved = read_document(file)
    for name, value in (changes or {}).items():
        section, _, last = name.rpartition(".")
        inner: Any = saved
        for part in section.split(".") if section else ():
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or section.split(".")[0] == "model":
            raise ConfigError(f"{name}={value!r}: no such key of the run at {run}, or not one that can change")
        inner[last] = value
    saved.pop("model", None)
    fields = {field.name: field for field in dataclasses.fields(Experiment)}
    unknown = [name for name in saved if name not in fields]
    if unknown:
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}.{nearest(unknown[0], fields)}")
    typed = {name: _typed(fields[name].type, value, f"{file}: {name}") for name, value in saved.items()}
    return Experiment(**typed, model=read_model(run, to_build=False))


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
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _typed(get_args(kind)[1], one, f"{place}.{name}") for name, one in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        if not isinstance(value, str) or value not in kind.__members__:
            raise ConfigError(f"{place}={value!r}: it must be one of {', '.join(kind.__members__)}")
        return kind[value]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{place}={value!r}: expected {getattr(kind, '__name__', kind)}")
    return value
