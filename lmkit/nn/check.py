"""What models may be called with. Shapes and dtypes are known while a program is traced, so checks cost it nothing."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from lmkit.config.base import ConfigError

T = TypeVar("T")


def shape_of(name: str, array: Any) -> tuple[int, ...]:
    """The shape of an array. Raises ConfigError for what is none."""
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        what = "None" if array is None else f"a {type(array).__name__}"
        raise ConfigError(f"{name} is {what}: give an array, as jnp.asarray makes one")
    return tuple(array.shape)


def check_shape(name: str, array: Any, shape: tuple[int, ...], of: str, *, ints: bool = False) -> None:
    """Raises ConfigError unless an array has this shape, which is `of` something; `ints`: and holds ints or bools."""
    if shape_of(name, array) != tuple(shape):
        raise ConfigError(f"{name} has shape {tuple(array.shape)}, {of} {tuple(shape)}: give one of that shape")
    if ints and not _is_int(array) and array.dtype != bool:
        raise ConfigError(f"{name} is {array.dtype}: it must be int; cast it with .astype(jnp.int32)")


def check_tokens(tokens_BT: Any, key: Any = None, *, name: str = "tokens_BT", **others: Any) -> None:
    """Raises ConfigError unless tokens are int [B, T], `others` int of that shape or None, and `key` is one or None."""
    shape = shape_of(name, tokens_BT)
    if len(shape) != 2 or not shape[1]:
        row = f"; one row is {name}[None]" if len(shape) == 1 and shape[0] else ""
        raise ConfigError(f"{name} has shape {shape}: it must be [B, T], with at least one token a row{row}")
    if not _is_int(tokens_BT):
        raise ConfigError(f"{name} is {tokens_BT.dtype}: it must be int, ids of the vocabulary")
    check_like(shape, f"{name} has", key, **others)


def check_like(shape: tuple[int, ...], of: str, key: Any = None, **others: Any) -> None:
    """Raises ConfigError unless `others` are int or bool of a shape, which is `of` something, or None."""
    for name, array in others.items():
        if array is not None:
            check_shape(name, array, shape, of, ints=True)
    check_key(key)


def check_key(key: Any) -> None:
    """Raises ConfigError unless a key is one of jax.random, or None."""
    if key is None:
        return
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and not (dtype == jnp.uint32 and len(shape or ()) == 1):
        what = f"{key!r:.40}" if shape is None else f"{dtype} of shape {tuple(shape)}"
        raise ConfigError(f"key={what} is no key of dropout: give jax.random.key(0), or None for no dropout")


def check_stream(hidden_BTD: Any, width: int, name: str = "hidden_BTD") -> None:
    """Raises ConfigError unless hidden states are [B, T, width], T at least 1."""
    shape = shape_of(name, hidden_BTD)
    if len(shape) != 3 or not shape[1] or shape[2] != width:
        raise ConfigError(f"{name} has shape {shape}: it must be [B, T, {width}], what the model's layers gave")


def check_memory(memory: Any, rows: int, width: int, wanted: bool = True) -> None:
    """Raises ConfigError unless `memory` is what an encoder gave for so many rows, or None where none is wanted."""
    if not wanted:
        if memory is not None:
            raise ConfigError("the cache holds an encoded source already: leave out memory, or begin a fresh cache")
        return
    if not hasattr(memory, "hidden_BSD"):
        what = "None" if memory is None else f"a {type(memory).__name__}"
        raise ConfigError(f"memory is {what}: give what model.encode(source) returned; it comes with the first tokens")
    check_stream(memory.hidden_BSD, width, "memory.hidden_BSD")
    if memory.hidden_BSD.shape[0] != rows:
        raise ConfigError(f"the source has {memory.hidden_BSD.shape[0]} rows, tokens_BT has {rows}: give as many")


def present(part: T | None, name: str, way_out: str) -> T:
    """A part of a model. Raises ConfigError where the model was made without it."""
    if part is None:
        raise ConfigError(f"the model has no {name}: make it with {way_out}")
    return part


def _is_int(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.integer)
