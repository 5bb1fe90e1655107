"""`jax.jit` for programs that may run on a CPU: there XLA's own products are not the fastest that it can call.

jax's CPU wheels hold oneDNN, which XLA calls only if asked, and calls well from version 0.12 on: in bfloat16 a step of
config S then takes a third less time; in float32 it may take more (docs/performance.md). A program that calls it does
not go into the cache of compiled programs, so only long runs ask for it (run.cpu_products).
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

_ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
# The third level takes up to two thirds of a compilation; steps are as fast without it, as they are mostly products.
_QUICK = {"xla_backend_optimization_level": 2}
_traced: ContextVar[bool] = ContextVar("onednn", default=False)


def jit(function: Callable, platform: str, *, with_onednn: bool = False, **options: Any) -> Any:
    """`jax.jit` with the compiler's options for this platform.

    Args:
        platform: cpu, gpu or tpu, of the devices that it will run on.
        with_onednn: on a CPU, products call it; see `has_onednn`.
        options: of `jax.jit`.
    """
    if platform != "cpu":
        return jax.jit(function, **options)
    if with_onednn:  # jax tries, and would warn at each start
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry(.|\n)*onednn", UserWarning)

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with tracing(with_onednn):
            return function(*args, **kwargs)

    return jax.jit(traced, compiler_options=_QUICK | (_ONEDNN if with_onednn else {}), **options)


def onednn() -> bool:
    """Whether the program that is being traced will call oneDNN for its products."""
    return _traced.get()


@functools.cache
def has_onednn(bfloat16: bool) -> bool:
    """Whether XLA can call oneDNN on this CPU for products of this dtype.

    It asks the compiler, on a thread of its own: what is traced here, and on which mesh, is nothing to it.

    A sum of products must be a call a product: version 0.10 makes one of them all, at which oneDNN then ends the
    process. And bfloat16 must reach oneDNN as it is: version 0.10 makes float32 of it first.
    """
    found: list[bool] = []

    def ask() -> None:
        square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16 if bfloat16 else jnp.float32)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        program = jax.jit(_sum_of_products, in_shardings=device).lower(*[square] * 6)
        try:
            text = program.compile(compiler_options=_ONEDNN).as_text() or ""
        except jax.errors.JaxRuntimeError:  # it does not know the options
            text = ""
        lines = text.splitlines()
        products = [line for line in lines if " dot(" in line and (not bfloat16 or "= bf16[" in line)]
        found.append(len(products) == 3 == sum("__onednn_fusion" in line for line in lines))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found == [True]


def _sum_of_products(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    return a @ b + c @ d + e @ f


@contextmanager
def tracing(library: bool) -> Iterator[None]:
    """What is traced in the block will call oneDNN, or not."""
    token = _traced.set(library)
    try:
        yield
    finally:
        _traced.reset(token)
