"""How many answers change when the words of an item are written a little otherwise, or its parts in another order.

Items of lm-eval's tasks and records of a run's own classification. Every variant follows from the seed and the item's
number alone.
"""

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.evaluate import EvaluateConfig, Perturb
from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.core.task import Task
from lmkit.data.batches.fields import Texts
from lmkit.data.batches.records import Records
from lmkit.data.store.records import RecordStore
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.harness.tasks import Tasks
from lmkit.metrics.bootstrap import Figure, bootstrap

Json = dict[str, Any]
_EVERY = 10  # of the words that are long enough, one in so many gets a typo
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Changed(NamedTuple):
    """Of the items of a task: how many read otherwise, which answers changed, and the figures of that."""

    items: int
    altered: int
    numbers: list[int]  # doc_id of those whose answer changed
    figures: dict[str, Figure]


class _Variant(NamedTuple):
    """An item as lm-eval would put it to the model: its requests, and which old choice stands in each place."""

    requests: list[Any]
    order: list[int]


def stability(
    kind: Perturb, changed: np.ndarray, right: np.ndarray, sizes: Sequence[int], config: EvaluateConfig, seed: int
) -> dict[str, Figure]:
    """Which share of the answers changed, and how many of the variants are right; both bool [N]."""

    def statistic(counts: np.ndarray) -> dict[str, float]:
        total = counts.sum()
        return {f"changed_by_{kind.name}": float(counts @ changed / total),
                f"accuracy_with_{kind.name}": float(counts @ right / total)}  # fmt: skip

    return bootstrap(statistic, sizes, resamples=config.resamples, confidence=config.confidence, seed=seed)


def perturb_tasks(
    model: Any, tasks: Tasks, samples: dict[str, list[Json]], config: EvaluateConfig, seed: int
) -> dict[str, dict[str, Changed]]:
    """Scores seeded variants of the items of every task with choices; tasks without are left out."""
    found: dict[str, dict[str, Changed]] = {}
    for name, task in tasks.each.items():
        if config.perturb and task.OUTPUT_TYPE == "multiple_choice" and hasattr(task, "doc_to_choice"):
            rows = [one for one in samples[name] if one["filter"] == samples[name][0]["filter"]]
            found[name] = {kind.name: _perturbed(model, task, rows, kind, config, seed) for kind in config.perturb}
    return found


def _perturbed(model: Any, task: Any, samples: list[Json], kind: Perturb, config: EvaluateConfig, seed: int) -> Changed:
    task.set_fewshot_seed(seed)  # so that every item gets the solved examples that it had
    variants = [_variant(model, task, one, kind, config, seed) for one in samples]
    scores = iter(model.loglikelihood([request for one in variants for request in one.requests]))
    changed, right, altered = [], [], 0
    for sample, (requests, order) in zip(samples, variants, strict=True):
        chosen = order[int(np.argmax([next(scores)[0] for _ in requests]))]
        before = int(np.argmax([float(one[0]) for one in sample["filtered_resps"][: len(order)]]))
        truth = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
        changed.append(chosen != before)
        right.append(chosen in truth)
        asked = [sample["arguments"][place][:2] for place in range(len(order))]
        altered += {one.args[:2] for one in requests} != set(map(tuple, asked))
    numbers = [sample["doc_id"] for sample, one in zip(samples, changed, strict=True) if one]
    figures = stability(kind, np.array(changed), np.array(right), [len(samples)], config, seed) if altered else {}
    return Changed(len(samples), altered, numbers, figures)


def _variant(model: Any, task: Any, sample: Json, kind: Perturb, config: EvaluateConfig, seed: int) -> _Variant:
    """The requests of lm-eval's own code, which gets the fields of the variant wherever it asks for the item's."""
    doc, rng = sample["doc"], random.Random(f"{seed} {kind.name} {sample['doc_id']}")
    new, order = reordered(task, doc, rng) if kind is Perturb.order else reworded(task, doc, kind, rng)
    twin = copy.copy(task)
    for name in ("doc_to_text", "doc_to_choice", "doc_to_target", "doc_to_prefix"):
        plain = getattr(task, name)
        setattr(twin, name, lambda one, *how, plain=plain: plain(new if one is doc else one, *how))
    how = {"apply_chat_template": config.chat, "chat_template": model.apply_chat_template if config.chat else None}
    context = twin.fewshot_context(
        doc, task.config.num_fewshot or 0, system_instruction=config.system_prompt or None,
        fewshot_as_multiturn=True, gen_prefix=twin.doc_to_prefix(doc), **how,
    )  # fmt: skip
    metadata = (task.config.task, sample["doc_id"], 1)
    return _Variant(twin.construct_requests(doc=doc, ctx=context, metadata=metadata, **how)[: len(order)], order)


def reworded(task: Any, doc: Json, kind: Perturb, rng: random.Random) -> tuple[Json, list[int]]:
    """The item with other words in each field that neither the choices nor the answer are made from."""
    choices, new = _answers(task, doc), doc
    for name, value in doc.items():
        if isinstance(value, str) and _answers(task, doc | {name: _written(value, kind, rng)}) == choices:
            new = new | {name: _written(value, kind, rng)}
    return new, list(range(len(task.doc_to_choice(doc))))


def reordered(task: Any, doc: Json, rng: random.Random) -> tuple[Json, list[int]]:
    """The item with its choices in another order, and which old one stands in each new place.

    The choices are the list that is as long as the choices are many, and whose order decides theirs, or, where the
    choices are letters, the prompt's.
    """
    choices = list(task.doc_to_choice(doc))
    order = list(range(len(choices)))
    rng.shuffle(order)
    for path, value in _lists(doc):
        if len(value) != len(choices):
            continue
        new = _replaced(doc, path, [value[place] for place in order])
        moved = _tried(task.doc_to_choice, new)
        if moved == [choices[place] for place in order] and moved != choices:
            return new, order
        if moved == choices and _tried(task.doc_to_text, new) != task.doc_to_text(doc):
            return new, order
    return doc, list(range(len(choices)))


def _answers(task: Any, doc: Json) -> Any:
    return _tried(task.doc_to_choice, doc), _tried(task.doc_to_target, doc)


def _tried(function: Callable[[Json], Any], doc: Json) -> Any:
    """What a task makes of a document; None where it cannot read it."""
    try:
        return function(doc)
    except Exception:  # of a task's own code, or of its templates
        return None


def _lists(doc: Json) -> list[tuple[tuple[str, ...], list]]:
    """The lists of a document and of the documents in it, and where they stand."""
    found: list[tuple[tuple[str, ...], list]] = []
    for name, value in doc.items():
        if isinstance(value, list):
            found.append(((name,), value))
        elif isinstance(value, dict):
            found += [((name, *path), one) for path, one in _lists(value)]
    return found


def _replaced(doc: Json, path: tuple[str, ...], value: Any) -> Json:
    first, *rest = path
    return doc | {first: _replaced(doc[first], tuple(rest), value) if rest else value}


def _written(text: str, kind: Perturb, rng: random.Random) -> str:
    return typos(text, rng) if kind is Perturb.typos else text.swapcase()


def typos(text: str, rng: random.Random) -> str:
    """Two letters inside a word change places."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3]
    for place in rng.sample(long, min(-(-len(long) // _EVERY), len(long))):
        word, at = words[place], rng.randrange(1, len(words[place]) - 2)
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def check_own(experiment: Experiment) -> None:
    """Raises ConfigError where the answers of a run's own task cannot be perturbed."""
    kinds = [kind.name for kind in experiment.evaluate.perturb]
    kind = experiment.objective.kind
    if kinds and (kind is not ObjectiveKind.classify or not isinstance(experiment.model, BERTConfig)):
        what = "images" if kind is ObjectiveKind.classify else f"objective.kind={kind.name}"
        raise ConfigError(
            f"evaluate.perturb=[{','.join(kinds)}] changes texts that have a class each, and items of evaluate.tasks "
            f"with choices; this model's own task is {what}: leave it out"
        )


def perturbed_task(task: Task, kind: Perturb, seed: int) -> Task:
    """The same task, with the texts of its evaluated split written otherwise.

    Raises ConfigError for an order of texts that have no parts.
    """
    batches = copy.copy(task.batches)
    assert isinstance(batches, Records)
    assert task.tokenizer is not None
    (field,) = (one for one in batches.fields if isinstance(one, Texts))
    stores = {part: _Rewritten(store, list(field.keys), task.tokenizer, kind, f"{seed} {kind.name} {part}")
              for part, store in batches.stores.items()}  # fmt: skip
    if kind is Perturb.order and not any(store.has_parts(batches.evaluated) for store in stores.values()):
        raise ConfigError(
            "evaluate.perturb=[order]: no record has two texts (data.pair_key) or two sentences whose order could "
            "change: leave order out"
        )
    batches.stores = stores  # type: ignore[assignment]
    return task._replace(batches=batches)


class _Rewritten:
    """A store whose texts are read otherwise: decoded, changed, and encoded again."""

    def __init__(self, store: RecordStore, names: list[str], tokenizer: Tokenizer, kind: Perturb, seed: str):
        self._store, self._names, self._tokenizer, self._kind, self._seed = store, names, tokenizer, kind, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def rows_of(self, names: Sequence[str], split: str, index: np.ndarray) -> dict[str, Any]:
        rows = self._store.rows_of(names, split, index)
        old = self._texts(rows)
        new = [self._changed(texts, random.Random(f"{self._seed} {n}")) for n, texts in zip(index, old, strict=True)]
        for column, name in enumerate(self._names):
            ids = self._tokenizer.encode_batch([texts[column] for texts in new])
            pairs = zip(rows[name], ids, old, new, strict=True)
            rows[name] = [b if was[column] != now[column] else a for a, b, was, now in pairs]
        return rows

    def has_parts(self, split: str) -> bool:
        """Whether any record has parts that can change places."""
        if len(self._names) > 1:
            return True
        count = len(self._store.rows[split])
        blocks = (np.arange(first, min(first + 256, count)) for first in range(0, count, 256))
        return any(len(_SENTENCE.split(text.strip())) > 1 for block in blocks
                   for (text,) in self._texts(self._store.rows_of(self._names, split, block)))  # fmt: skip

    def _texts(self, rows: dict[str, Any]) -> list[list[str]]:
        return [[self._tokenizer.decode(ids.tolist()) for ids in row]
                for row in zip(*(rows[name] for name in self._names), strict=True)]  # fmt: skip

    def _changed(self, texts: list[str], rng: random.Random) -> list[str]:
        if self._kind is not Perturb.order:
            return [_written(text, self._kind, rng) for text in texts]
        if len(texts) > 1:
            return texts[::-1]
        parts = moved = _SENTENCE.split(texts[0].strip())
        while moved == parts and len(set(parts)) > 1:
            moved = rng.sample(parts, len(parts))
        return texts if moved == parts else [" ".join(moved)]
