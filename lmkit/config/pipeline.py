"""Arithmetic of pipelines, for those who plan one and for those who run it."""

import math

STAGE = "stage"
_PER_STAGE = 4  # micro-batches a stage where nobody says: the bubble is then below a fifth


def fitting_microbatches(asked: int, rows: int, stages: int) -> int:
    """The largest number of micro-batches, `asked` at most, that `rows` (a multiple of the stages) divide into.

    rows: of a batch, for one device of each stage. asked: 0 for four a stage.

    Each stage keeps a share of every micro-batch's rows, or of whole ones: lcm(stages, microbatches) divides the rows.
    """
    limit = min(asked or _PER_STAGE * stages, rows)
    return max(n for n in range(1, limit + 1) if rows % math.lcm(stages, n) == 0)


def bubble(stages: int, microbatches: int, rounds: int = 1) -> float:
    """Share of a stage's time in which it has nothing to do: (S - 1) / (R M + S - 1)."""
    return (stages - 1) / (rounds * microbatches + stages - 1)
