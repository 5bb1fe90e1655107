"""The tokenizer of a saved model: found beside its parameters, and used with the special tokens that it expects."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.saved import from_plain
from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.tokens.tokenizer import has_token, load_tokenizer
from lmkit.weights.source import Form, ModelSource


class Codec(NamedTuple):
    """Text to ids and back, with the ids that the model wants around them."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    vocab_size: int
    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...]  # what an encoder-decoder's target begins with


def read_codec(source: ModelSource, config: Any, tokenizer: TokenizerConfig) -> Codec:
    """The tokenizer beside the model, or the one `tokenizer.path` names.

    Raises ConfigError where there is none, or nothing says what an encoder-decoder begins with.
    """
    given = Path(tokenizer.path).expanduser() if tokenizer.path else None
    if source.form is Form.run:
        return _run_codec(source, given, config)
    if source.form is Form.gguf and given is None:
        inner, begin, ends = interop.read_gguf_tokenizer(source.path)
        return _codec(inner, ends, [], begin)
    file = given or source.path / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give the model's tokenizer.json with tokenizer.path=")
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{file} is not a tokenizer.json: {error}") from error
    theirs = {} if source.form is Form.gguf else _special_ids(source.path)
    start = theirs.get("decoder_start_token_id", theirs.get("bos_token_id"))
    if isinstance(config, EncDecConfig) and start is None:
        raise ConfigError(f"{source.path}: neither generation_config.json nor config.json has decoder_start_token_id")
    ends = theirs.get("eos_token_id")
    return _codec(inner, ends if isinstance(ends, list) else [ends], [start], [])


def _codec(inner: Any, ends: list, start: list, begin: list[int]) -> Codec:
    def encode(text: str) -> list[int]:
        return [*begin, *inner.encode(text).ids]  # with the special tokens that the file's own template adds

    def decode(ids: list[int]) -> str:
        return inner.decode(ids, skip_special_tokens=True)

    ends, start = ([token for token in some if token is not None] for some in (ends, start))
    return Codec(encode, decode, inner.get_vocab_size(with_added_tokens=True), tuple(ends), tuple(start))


def _run_codec(source: ModelSource, given: Path | None, config: Any) -> Codec:
    """A run's, as in training: texts begin after the end of another one, and a source has its end."""
    settings = from_plain(TokenizerConfig, _run_config(source).get("tokenizer", {}), f"{source.home}: tokenizer")
    codec = load_tokenizer(given or source.home / "tokenizer.json", settings)
    sources = isinstance(config, EncDecConfig)

    def encode(text: str) -> list[int]:
        ids = codec.encode_batch([text])[0].tolist()
        return [*ids, codec.end_id] if sources else [codec.end_id, *ids]

    start = codec.start_id if sources else codec.end_id
    return Codec(encode, codec.decode, codec.vocab_size, (codec.end_id,), (start,))


def _run_config(source: ModelSource) -> dict[str, Any]:
    file = source.home / "config.yaml"
    return read_document(file) if file.is_file() else {}


def _special_ids(folder: Path) -> dict[str, Any]:
    """Ids of special tokens: generation_config.json before config.json, as transformers reads them."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            for key, value in read_document(folder / name).items():
                if key.endswith("_token_id") and value is not None:
                    ids = value if isinstance(value, list) else [value]
                    if not all(type(one) is int and one >= 0 for one in ids) or not ids:
                        raise ConfigError(f"{folder / name}: {key}={value!r:.60} is no id of a token; fetch it again")
                    found[key] = value
    return found


def tokenizer_file(path: Path) -> Path | None:
    """The tokenizer.json of a folder, of a run (or of the run a checkpoint is of); None where there is none."""
    path = path.absolute()
    folders = [path, *(one.parent for one in (path, path.parent) if one.name == "checkpoints")]
    return next((one / "tokenizer.json" for one in folders if (one / "tokenizer.json").is_file()), None)


def start_tokenizer(config: TokenizerConfig, init_from: str) -> TokenizerConfig:
    """With tokenizer=init the file of what `init_from` names, and its own end token where none is asked for."""
    if config.kind is not TokenizerKind.init:
        return config
    path = interop.locate(init_from)
    if (file := tokenizer_file(path)) is None:
        raise ConfigError(f"tokenizer=init: init_from={init_from} has no tokenizer.json; set tokenizer=file or another")
    end = config.end_token
    if end == TokenizerConfig().end_token and not has_token(file, end):
        end = next((one for one in _end_tokens(file.parent) if has_token(file, one)), end)
    return dataclasses.replace(config, kind=TokenizerKind.file, path=str(file), end_token=end)


def _end_tokens(folder: Path) -> list[str]:
    """What ends a document, by a run's configuration or by a folder's of the Hugging Face layout, likeliest first."""
    run, theirs = folder / "config.yaml", folder / "tokenizer_config.json"
    section = read_document(run).get("tokenizer") if run.is_file() else None
    tokens = [section.get("end_token")] if isinstance(section, dict) else []
    values = read_document(theirs) if theirs.is_file() else {}
    for token in (values.get("eos_token"), values.get("sep_token")):
        tokens.append(token.get("content") if isinstance(token, dict) else token)
    return [token for token in tokens if token]
