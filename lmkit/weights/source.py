"""What `init_from` names: a run or checkpoint of lmkit, a Hugging Face folder, or a .gguf file."""

from enum import Enum
from pathlib import Path
from typing import NamedTuple

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.saved import MODEL_FILE


class Form(Enum):
    """The format of a saved model."""

    run = 0  # a run, or one of its checkpoints
    folder = 1  # in the Hugging Face layout
    gguf = 2


class ModelSource(NamedTuple):
    """A model on disk. `home` is the run's directory, where the path may be a checkpoint inside."""

    form: Form
    path: Path
    home: Path


def form_of(path: Path) -> Form:
    """The format at a path; what is neither a folder of Hugging Face's nor a .gguf file is taken for a run."""
    if path.suffix.lower() == ".gguf":
        return Form.gguf
    return Form.folder if (path / "config.json").is_file() else Form.run


def find_model(init_from: str) -> ModelSource:
    """What `init_from` names (a hub id is fetched). Raises ConfigError where it names nothing that holds a model."""
    if not init_from:
        raise ConfigError("no model given: set init_from= to a run, a Hugging Face folder or a .gguf file")
    path = interop.locate(init_from).expanduser().absolute()
    form = form_of(path)
    if form is not Form.run:
        return ModelSource(form, path, path if form is Form.folder else path.parent)
    for home in (path, *list(path.parents)[:2]):
        if (home / MODEL_FILE).is_file():
            return ModelSource(form, path, home)
    if not path.exists():
        raise ConfigError(f"init_from={path}: there is nothing there")
    raise ConfigError(
        f"init_from={path}: neither a run (with {MODEL_FILE}), nor a Hugging Face folder (with config.json), nor a "
        f".gguf file. A run of an older version gets its {MODEL_FILE} when it is resumed"
    )
