"""`jax.jit` for programs that may run on a CPU: there XLA's own products are not the fastest that it can call.

jax's CPU wheels hold oneDNN, which XLA calls only if asked, and calls well from version 0.12 on: in bfloat16 a step of
config S then takes a third less time; in float32 it may take more (docs/performance.md). A program that calls it does
not go into the cache of compiled programs, so only long runs ask for it (run.cpu_products).
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

_ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
# The third level takes up to two thirds of a compilation; steps are as fast without it, as they are mostly products.
_QUICK = {"xla_backend_optimization_level": 2}
# XLA's CPU compiler leaves sums along rows to another library where the rows together have 16 KiB, which adds up in
# another order. With products alone left to it, a row's bits do not depend on how many rows there are.
_STEADY = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_traced: ContextVar[bool] = ContextVar("onednn", default=False)
_steadily: ContextVar[bool] = ContextVar("steady", default=False)


def jit(
    function: Callable, platform: str, *, with_onednn: bool = False, steady: bool = False, **options: Any
) -> Any:  # fmt: skip
    """`jax.jit` with the compiler's options for this platform.

    Args:
        platform: cpu, gpu or tpu, of the devices that it will run on.
        with_onednn: on a CPU, products call it; see `has_onednn`.
        steady: on a CPU, sums along a row have the same bits whatever the number of rows.
        options: of `jax.jit`.
    """
    if platform != "cpu":
        return jax.jit(function, **options)
    if with_onednn:  # jax tries, and would warn at each start
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry(.|\n)*onednn", UserWarning)

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _steadily.set(steady)
        try:
            with tracing(with_onednn):
                return function(*args, **kwargs)
        finally:
            _steadily.reset(token)

    quick = {} if jax.config.values.get("jax_disable_most_optimizations") else _QUICK
    more = (_ONEDNN if with_onednn else {}) | (_STEADY if steady else {})
    return jax.jit(traced, compiler_options=quick | more, **options)


def onednn() -> bool:
    """Whether the program that is being traced will call oneDNN for its products."""
    return _traced.get()


def steady_sums() -> bool:
    """Whether the program that is being traced is compiled with `steady` on a CPU."""
    return _steadily.get()


@functools.cache
def has_onednn(bfloat16: bool) -> bool:
    """Whether XLA can call oneDNN on this CPU for products of this dtype.

    It asks the compiler, on a thread of its own: what is traced here, and on which mesh, is nothing to it.

    A sum of products must be a call a product: version 0.10 makes one of them all, at which oneDNN then ends the
    process. And bfloat16 must reach oneDNN as it is: version 0.10 makes float32 of it first.
    """
    square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16 if bfloat16 else jnp.float32)
    lines = _compiled(lambda a, b, c, d, e, f: a @ b + c @ d + e @ f, [square] * 6, _ONEDNN).splitlines()
    products = [line for line in lines if " dot(" in line and (not bfloat16 or "= bf16[" in line)]
    return len(products) == 3 == sum("__onednn_fusion" in line for line in lines)


@functools.cache
def has_remat() -> bool:
    """Whether what `jax.checkpoint` says to make again is, outside a loop: version 0.10 keeps it after all."""

    @jax.checkpoint
    def layer(x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(x) @ x)

    step = jax.value_and_grad(lambda x: jnp.sum(layer(layer(x))))
    products = _compiled(step, [jax.ShapeDtypeStruct((64, 64), jnp.float32)]).count(" dot(")
    return products == 2 + 2 + 4  # forward, again, backward


def _compiled(function: Callable, shapes: list[jax.ShapeDtypeStruct], options: dict[str, Any] | None = None) -> str:
    """What a CPU's compiler makes of it; '' where it does not know the options."""
    found = [""]

    def ask() -> None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        program = jax.jit(function, in_shardings=device).lower(*shapes)
        with suppress(jax.errors.JaxRuntimeError):
            found[0] = program.compile(compiler_options=options).as_text() or ""

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


@contextmanager
def tracing(library: bool) -> Iterator[None]:
    """What is traced in the block will call oneDNN, or not."""
    token = _traced.set(library)
    try:
        yield
    finally:
        _traced.reset(token)
