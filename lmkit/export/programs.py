"""A model as StableHLO: functions that `jax.export` writes for a CPU, a GPU and a TPU at once, weights and a manifest.

B rows, T tokens or places of a row, S slots of the cache, L layers. B, T and S are symbolic: one program serves all.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lmkit import __version__
from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import DType, LinearDType, Position, Remat, TransformerConfig
from lmkit.decode.loop import logits_of, position_limit
from lmkit.files import usual_mode
from lmkit.models import build_model
from lmkit.nn.cache import Cache, CrossCache
from lmkit.nn.param import param_specs, resting_dtype
from lmkit.nn.tree import flat, nested
from lmkit.parallel.devices import traced_for

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = ("float32", "bfloat16")  # what it computes in
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
_VERSION = 1  # of the manifest
Json = dict[str, Any]
Spec = Any  # jax.ShapeDtypeStruct, or a dict of them


class Program(NamedTuple):
    """One function of (weights, *arguments): names and shapes of the arguments, names of the results."""

    function: Callable[..., Any]
    arguments: dict[str, Spec]
    results: tuple[str, ...]


def check_programs(config: Any, dtype: str) -> None:
    """Raises ConfigError, with the reason, for a model that has no such functions, or a dtype that is none of them."""
    if dtype not in DTYPES:
        raise ConfigError(f"export.dtype={dtype}: of export.format=stablehlo there are {', '.join(DTYPES)}")
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ConfigError("export.format=stablehlo needs flatbuffers: pip install 'lmkit[stablehlo]'") from error
    kinds = (GPTConfig, BERTConfig, EncDecConfig, ViTConfig)
    way_out = "set export.format=huggingface"
    if not isinstance(config, kinds):
        raise ConfigError(
            f"export.format=stablehlo: there are no functions of a {type(config).__name__} yet; {way_out}"
        )
    if config.num_experts:
        raise ConfigError(
            f"export.format=stablehlo: model.num_experts={config.num_experts}: which rows an expert gets depends on "
            f"the batch's size, which is symbolic; {way_out}"
        )
    if isinstance(config, ViTConfig) and not config.num_classes:
        raise ConfigError(f"export.format=stablehlo: a ViT with model.num_classes=0 has nothing to say; {way_out}")


def save_programs(folder: Path, config: Any, params: Any, *, dtype: str, facts: Json) -> list[str]:
    """Writes each function as <name>.stablehlo, the weights, and manifest.json with `facts`; returns their names.

    Products are computed in `dtype`: float32 ones exactly on every platform. Norms, softmax and logits are float32.
    """
    check_programs(config, dtype)
    config = dataclasses.replace(
        config, dtype=DType[dtype], linear_dtype=LinearDType.same, remat=Remat.none, dropout=0.0
    )
    with traced_for("cpu"):
        graph, state = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
        dtypes = {name: resting_dtype(config, spec) for name, spec in flat(param_specs(state)).items()}
        weights = {name: np.asarray(leaf).astype(dtypes[name]) for name, leaf in flat(params).items()}
        save_file(weights, folder / WEIGHTS)
        usual_mode(folder / WEIGHTS)
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
        programs, said = _programs(config, graph), {}
        for name, program in programs.items():
            exported = _exported(program, shapes, exact=dtype == "float32")
            (folder / f"{name}.stablehlo").write_bytes(exported.serialize())
            out = jax.tree.unflatten(exported.out_tree, exported.out_avals)
            out = out if isinstance(out, tuple) else (out,)
            said[name] = {
                "file": f"{name}.stablehlo", "arguments": _described(program.arguments),
                "results": _described(dict(zip(program.results, out, strict=True))),
                "calling_convention": exported.calling_convention_version,
            }  # fmt: skip
    manifest = {
        "format": "lmkit-stablehlo", "version": _VERSION, "lmkit": __version__, "jax": jax.__version__,
        "calling_convention": max(one["calling_convention"] for one in said.values()), "platforms": list(PLATFORMS),
        "dtype": dtype, "weights": WEIGHTS, "max_len": position_limit(config) if _decodes(config) else 0,
        "programs": said,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest | facts, indent=1) + "\n", encoding="utf-8")
    return list(programs)


def _decodes(config: Any) -> bool:
    return isinstance(config, GPTConfig | EncDecConfig)


def _exported(program: Program, weights: dict[str, Spec], exact: bool) -> Any:
    """The program, without the paths of the files that it was traced from."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        with jax.default_matmul_precision("highest" if exact else "default"):
            return jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(
                weights, *program.arguments.values()
            )
    finally:
        jax.config.update(name, before)


def _described(specs: dict[str, Spec]) -> Json:
    """Shapes, symbolic dims by their letters, and dtypes."""
    return {
        name: _described(one) if isinstance(one, dict)
        else {"shape": [n if isinstance(n, int) else str(n) for n in one.shape], "dtype": np.dtype(one.dtype).name}
        for name, one in specs.items()
    }  # fmt: skip


def _programs(config: Any, graph: Any) -> dict[str, Program]:
    def merged(weights: Any) -> Any:
        return nnx.merge(graph, nnx.State(nested(weights)))

    kinds = {GPTConfig: _decoder, BERTConfig: _encoder, EncDecConfig: _encdec, ViTConfig: _images}
    return kinds[type(config)](config, merged)


def _ints(*shape: Any) -> Spec:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _dims(*names: str, most: Json | None = None) -> tuple[Any, ...]:
    """Symbolic dims of one program; `most`: the longest of some. A row has no more tokens than slots."""
    limits = [f"{name} <= {limit}" for name, limit in (most or {}).items() if limit]
    fits = ["T <= S"] if {"T", "S"} <= set(names) else []
    return tuple(jax.export.symbolic_shape(", ".join(names), constraints=[*fits, *limits]))


def _decoder(config: GPTConfig, merged: Callable) -> dict[str, Program]:
    B, T, S = _dims("B", "T", "S", most={"T": position_limit(config)})

    def prefill(weights, tokens, num, cache):
        return _step(merged(weights), tokens, num, _unpacked(cache))

    first = {"tokens": _ints(B, T), "num": _ints(B), "cache": _cache_specs(config, config.num_layers, B, S)}
    rows, slots = _dims("B", "S")
    cache = _cache_specs(config, config.num_layers, rows, slots)
    return {
        "prefill": Program(prefill, first, ("logits", "cache")),
        "decode": Program(_decode(merged), {"tokens": _ints(rows), "cache": cache}, ("logits", "cache")),
    }


def _decode(merged: Callable) -> Callable:
    """One token a row, all of them real."""

    def decode(weights, tokens, cache):
        return _step(merged(weights), tokens[:, None], jnp.ones_like(tokens), _unpacked(cache))

    return decode


def _step(model: Any, tokens_BT: jax.Array, num_B: jax.Array, cache: Cache, **more: Any) -> tuple[jax.Array, Json]:
    """float32 logits [B, V] after the last of each row's tokens, and the cache with them."""
    hidden_BTD, cache = model.extend(tokens_BT, num_B, cache, **more)
    last_BT = jnp.arange(tokens_BT.shape[1]) == num_B[:, None] - 1
    hidden_BD = jnp.sum(jnp.where(last_BT[:, :, None], hidden_BTD, 0), axis=1, keepdims=True)
    return logits_of(model, hidden_BD), _packed(cache)


def _cache_specs(config: TransformerConfig, layers: int, rows: Any, slots: Any) -> dict[str, Spec]:
    """An empty cache is zeros of these shapes. A row needs a slot a token."""
    keys = jax.ShapeDtypeStruct((layers, rows, slots, config.kv_heads, config.head_size), config.dtype.name)
    return {"k": keys, "v": keys, "segment_ids": _ints(rows, slots), "length": _ints(rows), "position": _ints(rows)}


def _unpacked(cache: Json) -> Cache:
    cross = CrossCache(cache["cross_k"], cache["cross_v"], cache["cross_ids"]) if "cross_k" in cache else None
    return Cache(cache["k"], cache["v"], cache["segment_ids"], cache["length"], cache["position"], cross)


def _packed(cache: Cache) -> Json:
    found = {"k": cache.k_LBSKH, "v": cache.v_LBSKH, "segment_ids": cache.segment_ids_BS,
             "length": cache.length_B, "position": cache.position_B}  # fmt: skip
    if (cross := cache.cross) is not None:
        found |= {"cross_k": cross.k_LBMKH, "cross_v": cross.v_LBMKH, "cross_ids": cross.segment_ids_BM}
    return found


def _encdec(config: EncDecConfig, merged: Callable) -> dict[str, Program]:
    """`prefill` encodes the source and takes the first tokens of the target; `decode` as a decoder's."""
    limit = config.position is Position.learned

    def prefill(weights, source, source_ids, tokens, num, cache):
        model = merged(weights)
        return _step(model, tokens, num, _unpacked(cache), memory=model.encode(source, source_ids))

    most = {"T": config.max_seq_len if limit else 0, "M": config.source_len if limit else 0}
    B, T, S, M = _dims("B", "T", "S", "M", most={} if config.num_mels else most)
    places, frames = (config.source_len, 2 * config.source_len) if config.num_mels else (M, 0)
    source = jax.ShapeDtypeStruct((B, frames, config.num_mels), jnp.float32) if frames else _ints(B, M)
    first = {"source": source, "source_ids": _ints(B, places), "tokens": _ints(B, T), "num": _ints(B),
             "cache": _cache_specs(config, config.decoder_layers, B, S)}  # fmt: skip
    B, S, M = _dims("B", "S", "M")
    places = config.source_len if config.num_mels else M
    cache = _cache_specs(config, config.decoder_layers, B, S)
    keys = jax.ShapeDtypeStruct((config.decoder_layers, B, places, *cache["k"].shape[3:]), cache["k"].dtype)
    cache |= {"cross_k": keys, "cross_v": keys, "cross_ids": _ints(B, places)}
    return {
        "prefill": Program(prefill, first, ("logits", "cache")),
        "decode": Program(_decode(merged), {"tokens": _ints(B), "cache": cache}, ("logits", "cache")),
    }


def _encoder(config: BERTConfig, merged: Callable) -> dict[str, Program]:
    """`mask` is 1 for a token and 0 for padding; `types` where the model has them."""
    B, T = _dims("B", "T", most={"T": config.max_seq_len if config.position is Position.learned else 0})
    arguments = {"tokens": _ints(B, T), "mask": _ints(B, T)}
    arguments |= {"types": _ints(B, T)} if config.type_vocab_size > 1 else {}

    def encode(weights, tokens, mask, types=None):
        return merged(weights).encode(tokens, mask, None, types).astype(jnp.float32)

    def classify(weights, tokens, mask, types=None):
        model = merged(weights)
        return model.class_logits(model.encode(tokens, mask, None, types))

    found = {"encode": Program(encode, arguments, ("hidden",))}
    return found | ({"classify": Program(classify, arguments, ("logits",))} if config.num_classes else {})


def _images(config: ViTConfig, merged: Callable) -> dict[str, Program]:
    (B,) = _dims("B")
    size, channels = config.image_size, config.num_channels
    images = jax.ShapeDtypeStruct((B, size, size, channels), "float32")
    return {"classify": Program(lambda weights, images: merged(weights)(images), {"images": images}, ("logits",))}
