"""The tokenizer of a saved model: found beside its parameters, and used with the special tokens that it expects."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.saved import RUN_FILE, TOKENIZER_SETTINGS, read_tokenizer
from lmkit.config.sections.families import BERTConfig, EncDecConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.tokens.tokenizer import FastTokenizer, Tokenizer, load_tokenizer, vocab_size_of, without_state
from lmkit.weights.source import Form, ModelSource
from lmkit.weights.specials import Rules, read_rules, read_specials, special_ids

_PREVIOUS = "<|startofprev|>"  # Whisper's


class Codec(NamedTuple):
    """Text to ids and back, with the ids that the model wants around them."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    vocab_size: int
    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...]  # what an encoder-decoder's target begins with
    bare: Callable[[str], list[int]]  # as encode, with no special tokens
    rules: Rules = Rules()  # of a folder's files
    inner: tokenizers.Tokenizer | None = None  # None of bytes


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
    without_state(inner)
    theirs = {} if source.form is Form.gguf else special_ids(source.path)
    start = theirs.get("decoder_start_token_id", theirs.get("bos_token_id"))
    if isinstance(config, EncDecConfig) and start is None:
        raise ConfigError(f"{source.path}: neither generation_config.json nor config.json has decoder_start_token_id")
    ends = theirs.get("eos_token_id")
    codec = _codec(inner, ends if isinstance(ends, list) else [ends], [start], [])
    rules = read_rules(theirs, config.vocab_size)
    if rules.previous is None:
        rules = rules._replace(previous=inner.token_to_id(_PREVIOUS))
    return codec._replace(rules=rules)


def _codec(inner: Any, ends: list, start: list, begin: list[int]) -> Codec:
    def encode(text: str) -> list[int]:
        return [*begin, *inner.encode(text).ids]  # with the special tokens that the file's own template adds

    def bare(text: str) -> list[int]:
        return inner.encode(text, add_special_tokens=False).ids

    def decode(ids: list[int]) -> str:
        return inner.decode(ids, skip_special_tokens=True)

    ends, start = ([token for token in some if token is not None] for some in (ends, start))
    return Codec(encode, decode, vocab_size_of(inner), tuple(ends), tuple(start), bare, inner=inner)


def _run_codec(source: ModelSource, given: Path | None, config: Any) -> Codec:
    """A run's, as in training: texts begin after the end of another one; a source, and a text of an encoder, has its
    start and its end."""
    settings = read_tokenizer(source.home)
    inner = load_tokenizer(given or settings.path, settings)
    codec = codec_of(inner, sources=isinstance(config, EncDecConfig))
    if isinstance(config, BERTConfig):
        return codec._replace(encode=lambda text: [inner.start_id, *codec.bare(text), inner.end_id])
    return codec


def codec_of(codec: Tokenizer, *, sources: bool) -> Codec:
    """A tokenizer as training uses it; `sources`: texts are those of an encoder."""

    def bare(text: str) -> list[int]:
        return codec.encode_batch([text])[0].tolist()

    def encode(text: str) -> list[int]:
        ids = bare(text)
        return [*codec.source_start_ids, *ids, codec.end_id] if sources else [codec.end_id, *ids]

    start = codec.target_start_ids if sources else [codec.end_id]
    inner = codec.inner if isinstance(codec, FastTokenizer) else None
    return Codec(encode, codec.decode, codec.vocab_size, (codec.end_id,), tuple(start), bare, inner=inner)


def tokenizer_file(path: Path) -> Path | None:
    """The tokenizer.json of a folder, of a run (or of the run a checkpoint is of); None where there is none."""
    path = path.absolute()
    folders = [path, *(one.parent for one in (path, path.parent) if one.name == "checkpoints")]
    return next((one / "tokenizer.json" for one in folders if (one / "tokenizer.json").is_file()), None)


def start_tokenizer(config: TokenizerConfig, init_from: str) -> TokenizerConfig:
    """With tokenizer=init the file of what `init_from` names, and its own special tokens where none are asked for.

    Of a run all is as it was trained with; of a folder as transformers takes it from its files. Raises ConfigError
    where there is no tokenizer.json.
    """
    if config.kind is not TokenizerKind.init:
        return config
    path = interop.locate(init_from)
    if (file := tokenizer_file(path)) is None:
        raise ConfigError(f"tokenizer=init: init_from={init_from} has no tokenizer.json; set tokenizer=file or another")
    if any((file.parent / name).is_file() for name in (TOKENIZER_SETTINGS, RUN_FILE)):
        plain, theirs = TokenizerConfig(), read_tokenizer(file.parent)
        names = [one.name for one in dataclasses.fields(config) if one.name not in ("kind", "path")]
        found = {name: getattr(theirs, name) for name in names if getattr(config, name) == getattr(plain, name)}
    else:
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{file} is not a tokenizer.json: {error}; fetch it anew") from error
        found = read_specials(file.parent, inner).into(config)
    return dataclasses.replace(config, kind=TokenizerKind.file, path=str(file), **found)
