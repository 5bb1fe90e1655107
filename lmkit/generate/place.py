"""Where a model comes from: what it is, its parameters on the mesh, its tokenizer."""

import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import yaml
from flax import nnx
from jax.sharding import Mesh

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.data import TokenizerConfig
from lmkit.config.families import EncDecConfig, GPTConfig
from lmkit.config.model import LinearDType
from lmkit.config.saved import MODEL_FILE, from_plain, read_model
from lmkit.data.tokenizer import load_tokenizer
from lmkit.models import build_model
from lmkit.nn.param import compute_dtype, for_inference, param_specs
from lmkit.train.start import load_model as load_saved


class Form(Enum):
    """What is at a path."""

    run = 0
    folder = 1  # in the Hugging Face layout
    gguf = 2


class Place(NamedTuple):
    """A model on disk. `home` is the run's directory, where the path may be a checkpoint inside."""

    form: Form
    path: Path
    home: Path


class Codec(NamedTuple):
    """Text to ids and back, with the ids that the model wants around them."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    vocab_size: int
    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...]  # what an encoder-decoder's target begins with


def find_model(init_from: str) -> Place:
    """What `init_from` names. Raises ConfigError where it names nothing that holds a model."""
    if not init_from:
        raise ConfigError("no model given: set init_from= to a run, a Hugging Face folder or a .gguf file")
    path = interop.locate(init_from).expanduser().absolute()
    if path.suffix == ".gguf":
        return Place(Form.gguf, path, path.parent)
    if (path / "config.json").is_file():
        return Place(Form.folder, path, path)
    for home in (path, *list(path.parents)[:2]):
        if (home / MODEL_FILE).is_file():
            return Place(Form.run, path, home)
    if not path.exists():
        raise ConfigError(f"init_from={path}: there is nothing there")
    raise ConfigError(
        f"init_from={path}: neither a run (with {MODEL_FILE}), nor a Hugging Face folder (with config.json), nor a "
        f".gguf file. A run of an older version gets its {MODEL_FILE} when it is resumed"
    )


def read_config(place: Place) -> GPTConfig | EncDecConfig:
    """The model's configuration; its products are in the compute dtype, whatever it was trained with.

    Raises ConfigError for a model that does not write text.
    """
    config = read_model(place.home) if place.form is Form.run else interop.read_config(place.path)
    if not isinstance(config, GPTConfig | EncDecConfig):
        raise ConfigError(
            f"init_from={place.path}: a {type(config).__name__} makes no text; generate needs a model of the family "
            f"gpt or encdec"
        )
    return dataclasses.replace(config, linear_dtype=LinearDType.same)


def load_model(place: Place, config: Any, mesh: Mesh) -> tuple[Callable[..., Any], Any]:
    """Parameters to the model, and the parameters, each device's share read straight into its place.

    A run's are those it is evaluated with: the moving average, where there is one, with adapters folded in. They are
    kept in the compute dtype.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    _, params, _ = load_saved(str(place.path), mesh)
    params = for_inference(params, param_specs(state), compute_dtype(config.dtype))
    return lambda params: nnx.merge(graph, nnx.State(params)), params


def read_codec(place: Place, config: Any, tokenizer: TokenizerConfig) -> Codec:
    """The tokenizer beside the model, or the one `tokenizer.path` names.

    Raises ConfigError where there is none, or nothing says what an encoder-decoder begins with.
    """
    given = Path(tokenizer.path).expanduser() if tokenizer.path else None
    if place.form is Form.run:
        return _run_codec(place, given, config)
    if place.form is Form.gguf and given is None:
        inner, begin, ends = interop.read_gguf_tokenizer(place.path)
        return _codec(inner, ends, [], begin)
    file = given or place.path / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give the model's tokenizer.json with tokenizer.path=")
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{file} is not a tokenizer.json: {error}") from error
    theirs = {} if place.form is Form.gguf else _special_ids(place.path)
    start = theirs.get("decoder_start_token_id", theirs.get("bos_token_id"))
    if isinstance(config, EncDecConfig) and start is None:
        raise ConfigError(f"{place.path}: neither generation_config.json nor config.json has decoder_start_token_id")
    ends = theirs.get("eos_token_id")
    return _codec(inner, ends if isinstance(ends, list) else [ends], [start], [])


def _codec(inner: Any, ends: list, start: list, begin: list[int]) -> Codec:
    def encode(text: str) -> list[int]:
        return [*begin, *inner.encode(text).ids]  # with the special tokens that the file's own template adds

    def decode(ids: list[int]) -> str:
        return inner.decode(ids, skip_special_tokens=True)

    ends, start = ([token for token in some if token is not None] for some in (ends, start))
    return Codec(encode, decode, inner.get_vocab_size(with_added_tokens=True), tuple(ends), tuple(start))


def _run_codec(place: Place, given: Path | None, config: Any) -> Codec:
    """A run's, as in training: texts begin after the end of another one, and a source has its end."""
    settings = from_plain(TokenizerConfig, _run_config(place).get("tokenizer", {}), f"{place.home}: tokenizer")
    codec = load_tokenizer(given or place.home / "tokenizer.json", settings)
    sources = isinstance(config, EncDecConfig)

    def encode(text: str) -> list[int]:
        ids = codec.encode_batch([text])[0].tolist()
        return [*ids, codec.end_id] if sources else [codec.end_id, *ids]

    start = codec.start_id if sources else codec.end_id
    return Codec(encode, codec.decode, codec.vocab_size, (codec.end_id,), (start,))


def _run_config(place: Place) -> dict[str, Any]:
    file = place.home / "config.yaml"
    return (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}


def _special_ids(folder: Path) -> dict[str, Any]:
    """Ids of special tokens: generation_config.json before config.json, as transformers reads them."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            found |= {k: v for k, v in json.loads((folder / name).read_text()).items() if v is not None}
    return found
