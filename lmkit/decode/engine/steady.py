"""Which row counts of a step give a row the same bits here: tried, not believed."""

from typing import Any

import numpy as np

from lmkit.decode.engine.programs import Programs
from lmkit.decode.engine.traced import EACH, IDLE, Group
from lmkit.decode.loop import read


def steady_rows(programs: Programs, params: Any, group: Group) -> tuple[tuple[int, ...], Group]:
    """Those of the compiled counts that agree with the largest, and the group, which then holds what was tried.

    A text's next step is computed with each count, its row beside empty ones; logits are compared bit for bit.
    """
    size, vocab = programs.sizes.pieces[-1], programs.sizes.vocab
    tokens = np.random.default_rng(0).integers(0, vocab, size, dtype=np.int32)
    numbers = programs.number(0), programs.number(size)
    text, _ = programs("piece", size)(params, programs("text")(), programs.put(tokens, (None,)), *numbers)
    token = programs.put(np.full(programs.parts, tokens[0], np.int32), EACH)
    group = programs("put")(group, (*text, token), programs.put(np.zeros(2, np.int32), (None,)))
    found: dict[int, bytes] = {}
    for rows in programs.sizes.rows:
        lengths_R = np.full(rows * programs.parts, IDLE, np.int32)
        lengths_R[0] = size - 1  # again its last place: each count writes the same there
        group, logits, _ = programs("step", rows)(params, group, programs.put(lengths_R, EACH))
        found[rows] = read(logits)[0].tobytes()
    largest = found[programs.sizes.rows[-1]]
    return tuple(rows for rows, bits in found.items() if bits == largest), group
