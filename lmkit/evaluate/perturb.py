"""How many answers change when the words of an item are written a little otherwise, or its choices in another order."""

import json
import random
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.sections.evaluate import EvaluateConfig, Perturb
from lmkit.harness.tasks import Tasks

Json = dict[str, Any]
_EVERY = 10  # of the words that are long enough, one in so many gets a typo


class Changed(NamedTuple):
    """Of the items of a task: how many answers changed, and the accuracy of the changed ones."""

    items: int
    changed: int
    accuracy: float
    numbers: list[int]  # doc_id of those whose answer changed


class _Request(NamedTuple):
    """What the harness's model reads of a request."""

    args: tuple[str, str]


def perturb_tasks(
    model: Any, tasks: Tasks, samples: dict[str, list[Json]], config: EvaluateConfig, seed: int
) -> dict[str, dict[str, Changed]]:
    """Scores seeded variants of the items of every task with choices; tasks without are left out."""
    found: dict[str, dict[str, Changed]] = {}
    for name, task in tasks.each.items():
        if config.perturb and task.OUTPUT_TYPE == "multiple_choice":
            found[name] = {kind.name: _perturbed(model, task, samples[name], kind, seed) for kind in config.perturb}
    return found


def _perturbed(model: Any, task: Any, samples: list[Json], kind: Perturb, seed: int) -> Changed:
    samples = [one for one in samples if one["filter"] == samples[0]["filter"]]
    requests, sizes, variants = [], [], []
    for sample in samples:
        rng = random.Random(f"{seed} {kind.name} {sample['doc_id']}")
        doc, order = _variant(task, sample, kind, rng)
        context = _context(task, sample, doc)
        requests += [_Request((context, sample["arguments"][place][1])) for place in order]
        sizes.append(len(sample["arguments"]))
        variants.append(order)
    scores = [score for score, _ in model.loglikelihood(requests)]
    changed, right, first = [], 0, 0
    for sample, size, order in zip(samples, sizes, variants, strict=True):
        chosen = order[int(np.argmax(scores[first : first + size]))]
        before = int(np.argmax([float(one[0]) for one in sample["filtered_resps"]]))
        changed += [sample["doc_id"]] if chosen != before else []
        right += chosen == sample["target"] or chosen in (
            sample["target"] if isinstance(sample["target"], list) else []
        )
        first += size
    return Changed(len(samples), len(changed), right / len(samples), changed)


def _variant(task: Any, sample: Json, kind: Perturb, rng: random.Random) -> tuple[Json, list[int]]:
    """The document with other words, and which of the old choices stands in each place of the new one."""
    doc, count = json.loads(json.dumps(sample["doc"], default=str)), len(sample["arguments"])
    order = list(range(count))
    field = task.config.doc_to_choice if isinstance(task.config.doc_to_choice, str) else ""
    field = field.strip("{} ")
    if kind is Perturb.order:
        if isinstance(doc.get(field), list) and len(doc[field]) == count:
            rng.shuffle(order)
            doc[field] = [doc[field][place] for place in order]
        return doc, order
    target = task.config.doc_to_target if isinstance(task.config.doc_to_target, str) else ""
    change = _typos if kind is Perturb.typos else lambda text, _: text.swapcase()
    kept = {field, target.strip("{} ")}
    return {name: change(value, rng) if isinstance(value, str) and name not in kept else value
            for name, value in doc.items()}, order  # fmt: skip


def _context(task: Any, sample: Json, doc: Json) -> str:
    """The prompt of the variant: that of the item with the text of the variant in place of its own."""
    old, new, whole = task.doc_to_text(sample["doc"]), task.doc_to_text(doc), sample["arguments"][0][0]
    if isinstance(old, str) and isinstance(new, str) and (place := whole.rfind(old)) >= 0:
        return whole[:place] + new + whole[place + len(old) :]
    return whole


def _typos(text: str, rng: random.Random) -> str:
    """Two letters inside a word change places."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3]
    for place in rng.sample(long, min(-(-len(long) // _EVERY), len(long))):
        word, at = words[place], rng.randrange(1, len(words[place]) - 2)
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
