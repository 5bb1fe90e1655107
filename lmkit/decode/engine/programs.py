"""The engine's device programs: all are compiled before the first request, and called as what cannot compile again.

Letters as in `traced`.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmkit.compiler.programs import FewRows, jit
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.decode.engine import traced
from lmkit.decode.engine.traced import EACH, FLOATS, GROUP_DIMS, INTS, RULE_DIMS, TABLE, Group, Numbers, Rules, Text
from lmkit.nn.cache import SLOT_DIMS
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import WHOLE, Dims, sharding_of

_RULE_DTYPES = (np.bool_, np.int32, np.float32)
_Todo = dict[Any, tuple[Callable, tuple, tuple[int, ...]]]


class Sizes(NamedTuple):
    """Of all arrays.

    Attributes:
        rows: of a device's steps, ascending.
        group: rows of a group on a device.
        length: tokens of a text, prompt and all.
        pieces: tokens of the pieces of a prompt, ascending; all but a prompt's last piece have the last size.
        vocab: ids from here on are never chosen.
    """

    rows: tuple[int, ...]
    group: int
    length: int
    pieces: tuple[int, ...]
    vocab: int


class Programs:
    """Compiled once by `compile`; `programs("step", 4)` is then the executable of that name.

    Args:
        merge, config, mesh: as in `Decoder`.
        params: whose shapes and shardings are compiled for.
        never, never_first: ids that are not chosen, and not as the first of a text.
    """

    def __init__(
        self, merge: Callable[[Any], Any], config: Any, params: Any, mesh: Mesh | None, sizes: Sizes,
        never: Sequence[int] = (), never_first: Sequence[int] = (),
    ):  # fmt: skip
        self.merge, self.mesh, self.sizes, self._logits = merge, mesh, sizes, config.vocab_size
        self.parts = 1 if mesh is None else batch_shards(mesh.shape)
        late, first = (np.isin(np.arange(sizes.vocab), list(ids)) for ids in (never, never_first))
        self._never = {True: late | first, False: late}
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        cache = jax.eval_shape(lambda params: merge(params).init_cache(self.parts, sizes.length), self._params)
        self._kv, self.slots = cache.k_LBSKH, cache.k_LBSKH.shape[2]
        self.ring = self.slots < sizes.length  # it holds a window, not all of a text
        self._run: dict[Any, Any] = {}

    def __call__(self, name: str, size: int = 0) -> Any:
        return self._run[(name, size) if size else name]

    def put(self, value: Any, dims: Dims) -> jax.Array:
        """An array of the host on the devices."""
        return jax.device_put(value) if self.mesh is None else jax.device_put(value, sharding_of(dims, self.mesh))

    def number(self, value: int) -> jax.Array:
        return self.put(np.int32(value), ())

    def rules(self, rows: int, *tables_V: np.ndarray) -> Rules:
        """Of so many rows a device, all with these tables (seen, count, bias); zeros without."""
        tables_V = tables_V or tuple(np.zeros(self.sizes.vocab, dtype) for dtype in _RULE_DTYPES)
        return Rules(*(self.put(np.tile(table, (rows * self.parts, 1)), TABLE) for table in tables_V))

    def text(self, saved: Sequence[np.ndarray]) -> Text:
        """A cache that was on the host."""
        return Text(*(self.put(one, SLOT_DIMS) for one in saved))

    def may(self, *, first: bool) -> np.ndarray:
        """bool [V]: which tokens may be chosen at all, as the first of a text or later."""
        return ~self._never[first]

    def group(self) -> Group:
        """Slots that hold nothing."""
        slots: Text = self("group")()
        return Group(*slots, self.put(np.zeros(self.sizes.group * self.parts, np.int32), EACH))

    def compile(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compiles all of them, once; `progress` is told how many are done, and how many there are."""
        if self._run:
            return
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            todo = self._caches() | self._model() | self._choices()
            for done, (name, (function, arguments, donated)) in enumerate(todo.items()):
                if progress is not None:
                    progress(done, len(todo))
                program = jit(function, platform_of(self.mesh), few_rows=FewRows.alike, donate_argnums=donated)
                self._run[name] = program.lower(*arguments).compile()
        if progress is not None:
            progress(len(todo), len(todo))

    # Each program's name: its function, the shapes of its arguments, and which of these it may write over.

    def _caches(self) -> _Todo:
        """Those that move keys and values from here to there."""
        sizes, text, group, rules = self.sizes, self._text(1), self._group(), self._rules(self.sizes.group)
        place, start, token = self._shape((2,), np.int32), self._shape((), np.int32), self._each(1)
        block = self._text(1, self.slots if self.ring else sizes.pieces[-1])
        span = block.k_LDSKH.shape[2]
        return {
            "text": (partial(traced.empty, text.k_LDSKH.shape, self._kv.dtype), (), ()),
            "group": (partial(traced.empty, group.k_LGSKH.shape, self._kv.dtype), (), ()),
            "put": (partial(traced.write_row, GROUP_DIMS), (group, (*text, token), place), (0,)),
            "take": (partial(traced.read_row, GROUP_DIMS), (group, place), ()),
            "put_rules": (partial(traced.write_row, RULE_DIMS), (rules, self._rules(1), place), (0,)),
            "take_rules": (partial(traced.read_row, RULE_DIMS), (rules, place), ()),
            "cut": (partial(traced.cut, span), (text, start), ()),
            "paste": (traced.paste, (text, block, start), (0,)),
        }

    def _model(self) -> _Todo:
        """Those that go through the model."""
        text, number, todo = self._text(1), self._shape((), np.int32), {}
        for size in self.sizes.pieces:
            arguments = (self._params, text, self._shape((size,), np.int32), number, number)
            todo["piece", size] = (partial(traced.piece, self.merge), arguments, (1,))
        hidden = jax.eval_shape(todo["piece", self.sizes.pieces[0]][0], *arguments)[1]
        arguments = (self._params, self._shape(hidden.shape, hidden.dtype, WHOLE))
        todo["head"] = (partial(traced.head, self.merge), arguments, ())
        for rows in self.sizes.rows:
            arguments = (self._params, self._group(), self._each(rows))
            todo["step", rows] = (partial(traced.step, self.merge), arguments, (1,))
        return todo

    def _choices(self) -> _Todo:
        """Those that choose tokens: of one row, which is the first of its text, and of a step's."""
        todo, vocab = {}, self.sizes.vocab
        for rows in (1, *self.sizes.rows):
            held, never = 1 if rows == 1 else self.sizes.group, self._never[rows == 1]
            scores = (self._table(rows, self._logits, np.float32), self._each(rows, np.float32))
            kept = (self._each(held), self._each(rows))
            numbers = Numbers(self._table(rows, FLOATS, np.float32), self._table(rows, INTS, np.uint32))
            mask = self._table(rows, vocab, np.bool_)
            todo["likeliest", rows] = (partial(traced.likeliest, never), (*scores, *kept), (2,))
            todo["choose", rows] = (
                partial(traced.choose, never), (*scores, *kept, self._rules(held), numbers, mask), (2, 4)
            )  # fmt: skip
            todo["top", rows] = (partial(traced.top, vocab), scores, ())
        return todo

    def _shape(self, shape: tuple[int, ...], dtype: Any, dims: Dims = ()) -> jax.ShapeDtypeStruct:
        sharding = None if self.mesh is None else sharding_of(dims or (None,) * len(shape), self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def _each(self, rows: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return self._shape((rows * self.parts,), dtype, EACH)

    def _table(self, rows: int, columns: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return self._shape((rows * self.parts, columns), dtype, TABLE)

    def _text(self, rows: int, span: int = 0) -> Text:
        layers, parts, slots, *rest = self._kv.shape
        return Text(*[self._shape((layers, rows * parts, span or slots, *rest), self._kv.dtype, SLOT_DIMS)] * 2)

    def _group(self) -> Group:
        return Group(*self._text(self.sizes.group), self._each(self.sizes.group))

    def _rules(self, rows: int) -> Rules:
        return Rules(*(self._table(rows, self.sizes.vocab, dtype) for dtype in _RULE_DTYPES))
