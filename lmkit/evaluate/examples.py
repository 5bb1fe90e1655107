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


def make_step(kind: ObjectiveKind, merge: Callable[[Any], Any]) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """What `build_scorer` says of a batch, compiled: step(params, batch)."""
    scorer = build_scorer(kind)
    return jax.jit(lambda params, batch: scorer(merge(params), batch))


def score_examples(
    task: Task, step: Callable[[Any, Any], dict[str, jax.Array]], params: Any, mesh: Mesh, *, batch_size: int,
    limit: int, tell: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:  # fmt: skip
    """Scores the split `task.batches.evaluated`; `limit` batches of each part, spread over it, 0 for all.

    Of text that has documents only their sums are kept. Raises ConfigError where there is nothing in the split.
    """
    batches, parts = task.batches, list(task.weights)
    numbers = [(part, index) for part in parts for index in heldout_indices(batches, part, batch_size, limit)]
    documents = {part: _Documents(task, part) for part in parts} if _has_documents(task) else {}
    rows: dict[str, list[dict[str, np.ndarray]]] = {part: [] for part in parts}
    given = heldout_batches(batches, parts, batch_size=batch_size, limit=limit, mesh=mesh)
    results = in_flight(((batch, step(params, batch)) for _, batch in given), 1)
    with jax.set_mesh(mesh):
        for done, ((part, index), (batch, said)) in enumerate(zip(numbers, results, strict=True), 1):
            found = {name: to_host(value) for name, value in said.items()}
            inside = index < batches.num_heldout(part)
            some = _rows(task, batch, found, index, inside)
            if documents:
                documents[part].add(some)
            else:
                rows[part].append(some)
            tell(done, len(numbers))
    if documents:
        joined, what = {part: one.columns() for part, one in documents.items()}, "documents"
    else:
        joined = {part: {name: np.concatenate([one[name] for one in some]) for name in some[0]}
                  for part, some in rows.items()}  # fmt: skip
        what = "rows" if isinstance(batches, Windows) else "records"
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
    elif _has_documents(task):
        assert isinstance(task.batches, Windows)
        masked = task.kind is ObjectiveKind.masked_lm
        place = to_host(batch["masked_positions"]) if masked else np.arange(1, weights.shape[1] + 1)
        found = {**said, "weight": weights, "place": index[:, None] * task.batches.stride + place}
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


def _has_documents(task: Task) -> bool:
    """Whether each scored token stands in one document: of the next token, and of hidden ones of a plain window."""
    batches = task.batches
    plain = isinstance(batches, Windows) and batches.pairer is None
    return plain and task.kind in (ObjectiveKind.causal_lm, ObjectiveKind.masked_lm)


class _Documents:
    """Sums over the tokens of each document of a part, its end among them, a batch at a time."""

    def __init__(self, task: Task, part: str):
        assert isinstance(task.batches, Windows)
        self.task, self.store, self.split = task, task.batches.stores[part], task.batches.evaluated
        self.ends = self.store.document_ends(self.split)
        self.sums = {name: np.zeros(len(self.ends)) for name in ("nll", "correct", "weight", "scored")}

    def add(self, tokens: dict[str, np.ndarray]) -> None:
        """A batch's `nll`, `correct`, `weight` and `place` in the split, [B, T] each."""
        flat = {name: value.reshape(-1) for name, value in tokens.items()}
        document = np.minimum(np.searchsorted(self.ends, flat["place"]), len(self.ends) - 1)
        weight = flat["weight"].astype(float)
        first, count = int(document.min(initial=0)), int(document.max(initial=0)) + 1
        for name, value in (("nll", flat["nll"] * weight), ("correct", flat["correct"] * weight), ("weight", weight),
                            ("scored", weight > 0)):  # fmt: skip
            self.sums[name][first:count] += np.bincount(document - first, value, count - first)

    def columns(self) -> dict[str, np.ndarray]:
        """The sums; and where bits per byte mean something the bytes of each document, as far as it was scored."""
        found = {name: self.sums[name] for name in ("nll", "correct", "weight")}
        if self.task.bytes_per_token:
            scored = self.sums["scored"] / np.maximum(np.diff(self.ends, prepend=0), 1)
            sizes = _document_bytes(self.task, self.store, self.split, found["weight"] > 0)
            found["bytes"] = sizes * np.minimum(scored, 1.0)
            # What a tokenizer writes otherwise than the text was: the sum over all is that of the text.
            if scored.min() >= 1 and (total := found["bytes"].sum()):
                found["bytes"] *= self.store.meta["splits"][self.split]["bytes"] / total
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
