"""Items that stand in the training text are found, others are not; the index is made in little memory."""

import random
import resource
from pathlib import Path

import numpy as np
import pytest
from harness.local_tasks import question
from harness.runs import SMALL

from lmkit.config.entry import compose
from lmkit.core.task import prepare_task
from lmkit.data.store.tokens import HELDOUT
from lmkit.evaluate import contamination
from lmkit.evaluate.contamination import Words, build_index, contains, find_items


def test_planted_items_are_found(tmp_path: Path) -> None:
    """5 % of 8,000 short items stand somewhere in the training text, as titles, with other words around them.

    Half of the other items share as many words in a row with it as are just not enough.
    """
    rng, count = random.Random(1), 8000
    items = [{"question": question(rng, rng.randint(13, 20)), "answer": number % 4} for number in range(count)]
    planted = set(rng.sample(range(count), count // 20))
    texts: list[list[str]] = [[question(rng, 20)] for _ in range(60)]
    where: dict[int, int] = {}
    for number, item in enumerate(items):
        where[number] = rng.randrange(len(texts))
        if number in planted:
            texts[where[number]] += [f"{item['question'].title()}!", question(rng, 3)]
        elif number % 2:
            texts[where[number]] += [" ".join(item["question"].split()[:12]), "and"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(" ".join(text))
    words = [*SMALL, "data=text_files", f"data.paths=[{tmp_path}/*.txt]", "data.seq_len=32", "data.holdout_every=20"]
    task = prepare_task(compose([*words, f"data.cache_dir={tmp_path / 'cache'}"]), lambda *_: None)
    (store,) = task.batches.stores.values()  # type: ignore[attr-defined]
    experiment = compose([*words, f"data.cache_dir={tmp_path / 'cache'}", f"evaluate.against={store.place}",
                          "evaluate.tasks=[a]"])  # fmt: skip
    held = {int(Path(store.document_name(HELDOUT, n)).stem) for n in range(len(store.document_ends(HELDOUT)))}
    learned = {number for number in planted if where[number] not in held}
    assert 300 < len(learned) < len(planted)
    for _ in range(2):  # built, then from the cache
        found = find_items(experiment, {"a": items})["a"]
        assert len(found.found & learned) >= 0.99 * len(learned)
        assert len(found.found - learned) <= 0.005 * (count - len(learned))
    assert (found.total, found.short) == (count, 0)


def test_the_index_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million runs of words, more than what is kept at a time: all found, none that was not written."""
    monkeypatch.setattr(contamination, "_MOST_WORDS", 1000)
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 5000))) for _ in range(200)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_index(tmp_path, texts, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB; the runs take 8 MB"
    words = Words(8)
    assert contains(tmp_path, words.runs(texts[17])).all()
    others = words.runs(" ".join(map(str, rng.integers(0, 10**6, 5000))))
    assert not contains(tmp_path, others).any()
    assert not len(words.runs("too few words"))
    assert (Words(3).runs("One, two: three!") == Words(3).runs("one two three")).all()
    assert Words(3).runs("one two three") != Words(3).runs("one three two")
