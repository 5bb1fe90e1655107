"""Exchange with Hugging Face: their folders and GGUF files to our parameters, and back.

    config = read_config("path/to/folder")
    params = load_params("path/to/folder", config, shapes)   # shapes: ShapeDtypeStructs, sharded or not
    save_folder("out", config, params)                        # transformers' from_pretrained reads it

Models know nothing of it: a table a family says which tensor is which.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.config.saved import read_model, write_model
from lmkit.config.sections.model import ModelConfig
from lmkit.interop.check import some
from lmkit.interop.config_fields import unknown_keys
from lmkit.interop.families import FAMILIES, OWN, family_for, family_of, layout_for, read_json, with_keys
from lmkit.interop.folder import new_folder
from lmkit.interop.gguf import GGUFSource
from lmkit.interop.gguf_tokenizer import GGUFTokenizer, read_gguf_tokenizer
from lmkit.interop.gguf_vocabulary import Vocabulary, read_vocabulary
from lmkit.interop.gguf_write import check_gguf, save_gguf
from lmkit.interop.hub import locate
from lmkit.interop.load import load_tensors
from lmkit.interop.names import TOKENIZER_FILES
from lmkit.interop.save import DTYPES, check_params, save_tensors
from lmkit.interop.source import SafetensorsSource

__all__ = [
    "FAMILIES", "GGUFTokenizer", "Vocabulary", "check_gguf", "copy_tokenizer", "layout_for", "load_params", "locate",
    "new_folder", "read_config", "read_gguf_tokenizer", "read_vocabulary", "save_folder", "save_gguf",
]  # fmt: skip


def read_config(path: str | Path) -> Any:
    """The configuration of a folder in the Hugging Face layout, or of a .gguf file.

    Raises ConfigError for what lmkit cannot compute, naming the key.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return GGUFSource(path).config
    theirs = read_json(path)
    family = family_of(theirs)
    if family is OWN:
        return read_model(path)
    if any(path.glob("*.safetensors")):
        theirs["tensors"] = SafetensorsSource(path).shapes  # some heads show in the tensors alone
    return family.read_config(theirs)


def load_params(
    path: str | Path,
    config: ModelConfig,
    shapes: Any,
    progress: Callable[[int, int], None] | None = None,
    partial: bool = False,
    notes: list[str] | None = None,
) -> Any:
    """Parameters from a folder in the Hugging Face layout or a .gguf file, as float32 arrays.

    Args:
        shapes: a tree of ShapeDtypeStructs like the parameters; their shardings, where they have one, say where each
            array goes, and each device's share is read straight into its place.
        progress: called with (bytes done, bytes in all) after each parameter.
        partial: `shapes` may lack some of the configuration's parameters (heads, say), which then stay unread.
        notes: gets lines for the user: what else stays unread, and which copy of a tensor is read (None: a warning).

    Raises ConfigError naming each missing, extra or mis-shaped tensor before any is read.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        source: Any = GGUFSource(path)
        return load_tensors(source.family, config, source, shapes, progress, partial, notes)
    theirs, source = read_json(path), SafetensorsSource(path)
    family = family_of(theirs)
    if unknown := [] if family is OWN else unknown_keys(family, theirs, source.shapes):
        source.notes.append(f"config.json: lmkit does not know {some(unknown)}, which may change the model")
    return load_tensors(family, config, source, shapes, progress, partial, notes)


def save_folder(
    folder: str | Path,
    config: ModelConfig,
    params: Any,
    *,
    tokenizer: str | Path = "",
    keys: dict[str, Any] | None = None,
    dtype: str = "float32",
    shard_bytes: int = 2 << 30,
    fallback: bool = False,
    texts: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Writes a folder that `transformers.AutoModel*.from_pretrained` loads, and returns its model_type.

    It is written beside its place and renamed when complete: a run that is killed leaves `<folder>.partial-...`, which
    the next export to the same place removes.

    Args:
        tokenizer: a tokenizer.json, or a folder whose tokenizer files are copied.
        keys: more keys for config.json: ids of special tokens, names of classes.
        dtype: float32, bfloat16 or float16.
        shard_bytes: largest size of one file of weights, which the host holds at a time.
        fallback: a model that no published family computes is written in lmkit's own layout ("lmkit"), which
            `lmkit.weights.open_model` and `init_from` read.
        texts: more files, by name, such as README.md.

    Raises ConfigError where no published family computes what the model does, the parameters are not its own, or the
    folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another place or remove it")
    family, theirs = layout_for(config)[:2] if fallback else family_for(config)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype}: there are {', '.join(DTYPES)}")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes}: it must be at least 1, such as 2 << 30")
    check_params(config, params)
    with new_folder(folder) as partial:
        if family is OWN:
            write_model(partial, config)
        theirs = with_keys(family, theirs, keys or {})
        save_tensors(partial, family, theirs, config, params, dtype=dtype, shard_bytes=shard_bytes, progress=progress)
        copy_tokenizer(tokenizer, partial)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    return family.model_type


def copy_tokenizer(tokenizer: str | Path, folder: Path) -> list[str]:
    """Copies a tokenizer.json, or the tokenizer files of a folder, and returns their names; none for "".

    Raises ConfigError for a folder without any.
    """
    if not tokenizer:
        return []
    source = Path(tokenizer)
    files = [source] if source.is_file() else [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not files:
        raise ConfigError(f"tokenizer={source}: no tokenizer files there, such as tokenizer.json")
    for path in files:
        shutil.copy(path, folder / (path.name if len(files) > 1 or source.is_dir() else "tokenizer.json"))
    if not (folder / "tokenizer_config.json").exists():
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
    return sorted(path.name for path in folder.iterdir() if path.name in TOKENIZER_FILES)
