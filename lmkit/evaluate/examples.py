"""What a model says of every held-out example of a task: a column a quantity, a row an example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmkit.config.base import ConfigError
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.core.evaluation import in_flight, to_host
from lmkit.core.task import Task
from lmkit.data.batches.windows import Windows, heldout_indices
from lmkit.data.loader import heldout_batches
from lmkit.data.store.tokens import TokenStore
from lmkit.objectives.scores import build_scorer

_READ = 256  # documents at a time


class Examples(NamedTuple):
    """Columns [N, ...] of all examples, part by part.

    Of text `nll`, `correct` and `weight`, sums over an example's tokens, and where they are documents their UTF-8
    `bytes`; of classes `labels`, `predicted`, `nll`, `confidence` and `weight`; of numbers `targets`, `predicted` and
    `weight`; of pairs `image` and `text`, unit vectors.
    """

    parts: list[str]
    sizes: list[int]
    columns: dict[str, np.ndarray]
    what: str  # an example is: documents, rows or records

    def of(self, part: int) -> slice:
        """The rows of a part."""
        first = sum(self.sizes[:part])
        return slice(first, first + self.sizes[part])


def score_examples(
    task: Task, merge: Callable[[Any], Any], params: Any, mesh: Mesh, *, batch_size: int, limit: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:  # fmt: skip
    """Scores the split `task.batches.evaluated`; `limit` batches of each part, spread over it, 0 for all.

    Raises ConfigError where there is nothing in it.
    """
    batches, parts = task.batches, list(task.weights)
    scorer = build_scorer(task.kind)
    step = jax.jit(lambda params, batch: scorer(merge(params), batch))
    numbers = [(part, index) for part in parts for index in heldout_indices(batches, part, batch_size, limit)]
    rows: dict[str, list[dict[str, np.ndarray]]] = {part: [] for part in parts}
    given = heldout_batches(batches, parts, batch_size=batch_size, limit=limit, mesh=mesh)
    results = in_flight(((batch, step(params, batch)) for _, batch in given), 1)
    with jax.set_mesh(mesh):
        for done, ((part, index), (batch, said)) in enumerate(zip(numbers, results, strict=True), 1):
            found = {name: to_host(value) for name, value in said.items()}
            inside = index < batches.num_heldout(part)
            rows[part].append(_rows(task, batch, found, index, inside))
            tell(done, len(numbers))
    joined = {part: {name: np.concatenate([one[name] for one in some]) for name in some[0]}
              for part, some in rows.items()}  # fmt: skip
    what = "records"
    if task.kind is ObjectiveKind.causal_lm:
        joined, what = {part: _by_document(task, part, one) for part, one in joined.items()}, "documents"
    elif isinstance(batches, Windows):
        what = "rows"
    kept = {part: _with_weight(one) for part, one in joined.items()}
    sizes = [len(next(iter(one.values()))) for one in kept.values()]
    if not all(sizes):
        raise ConfigError(f"data: {parts[sizes.index(0)]!r} has nothing to score in its split {batches.evaluated!r}")
    names = next(iter(kept.values()))
    return Examples(parts, sizes, {name: np.concatenate([one[name] for one in kept.values()]) for name in names}, what)


def _rows(
    task: Task, batch: dict[str, jax.Array], said: dict[str, np.ndarray], index: np.ndarray, inside: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of the rows of a batch; of text for documents still a value a token."""
    if task.kind is ObjectiveKind.contrastive:
        return {name: value[inside] for name, value in said.items()}
    weights = to_host(batch["weights"])
    if task.kind in WITH_CLASSES:
        found = said | {"labels": to_host(batch["labels"]), "weight": weights}
    elif task.kind is ObjectiveKind.regress:
        found = said | {"targets": to_host(batch["targets"]), "weight": weights}
    elif task.kind is ObjectiveKind.causal_lm:
        length = weights.shape[1]
        found = {**said, "weight": weights, "place": index[:, None] * length + np.arange(1, length + 1)}
    else:
        found = {name: np.sum(value * weights.astype(float), axis=1) for name, value in said.items()}
        found["weight"] = weights.sum(axis=1, dtype=float)
    return {name: value[inside] for name, value in found.items()}


def _with_weight(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without examples that weigh nothing."""
    if "weight" not in columns:
        return columns
    weight = columns["weight"]
    real = weight.reshape(len(weight), -1).sum(axis=1) > 0
    return {name: value[real] for name, value in columns.items()}


def _by_document(task: Task, part: str, tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums over the tokens of each document, its end among them; and its bytes, as far as it was scored."""
    assert isinstance(task.batches, Windows)
    store, split = task.batches.stores[part], task.batches.evaluated
    ends = store.document_ends(split)
    flat = {name: value.reshape(-1) for name, value in tokens.items()}
    document = np.minimum(np.searchsorted(ends, flat["place"]), len(ends) - 1)
    weight = flat["weight"].astype(float)
    found = {name: np.bincount(document, flat[name] * weight, len(ends)) for name in ("nll", "correct")}
    found["weight"] = np.bincount(document, weight, len(ends))
    if task.bytes_per_token:
        whole = np.diff(ends, prepend=0)
        scored = np.bincount(document, weight > 0, len(ends)) / np.maximum(whole, 1)
        found["bytes"] = _document_bytes(task, store, split, found["weight"] > 0) * np.minimum(scored, 1.0)
        # What a tokenizer writes otherwise than the text was: the sum over all is that of the text.
        if scored.min() >= 1 and (total := found["bytes"].sum()):
            found["bytes"] *= store.meta["splits"][split]["bytes"] / total
    return found


def _document_bytes(task: Task, store: TokenStore, split: str, wanted: np.ndarray) -> np.ndarray:
    assert task.tokenizer is not None
    ends, sizes = store.document_ends(split), np.zeros(len(wanted))
    starts = np.concatenate([[1], ends[:-1] + 1])
    numbers = np.flatnonzero(wanted)
    for first in range(0, len(numbers), _READ):
        some = numbers[first : first + _READ]
        texts = store.read(split, starts[some], ends[some])
        sizes[some] = [len(task.tokenizer.decode(one.tolist()).encode()) for one in texts]
    return sizes
