"""The state as it was, while the next steps write over theirs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


class Snapshot:
    """A copy of a state on its devices, in memory that is kept from one save to the next.

    For CPUs: there Orbax hands the arrays themselves to its writer, and a step that gets one of them donated must find
    other memory for its result, while the writer holds it. New memory costs seconds a
    GiB where a hypervisor has to find it, so it is asked for once.
    """

    def __init__(self) -> None:
        self._copy: Any = None
        self._again: Callable | None = None

    def of(self, state: Any) -> Any:
        """Arrays equal to those of `state`, good until the next call; its shapes are those of the first call."""
        shardings = jax.tree.map(lambda array: array.sharding, state)
        if self._again is None:
            self._copy = jax.jit(_copied, out_shardings=shardings)(state)
            self._again = jax.jit(
                lambda _, state: _copied(state), out_shardings=shardings, donate_argnums=0, keep_unused=True
            )
        else:
            self._copy = self._again(self._copy, state)
        return jax.block_until_ready(self._copy)


_copied = partial(jax.tree.map, jnp.copy)
