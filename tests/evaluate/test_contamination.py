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
from lmkit.evaluate import contamination
from lmkit.evaluate.contamination import Words, build_index, contains, find_items


def test_planted_items_are_found(tmp_path: Path) -> None:
    """5 % of 400 items stand somewhere in the training text, with other words around them."""
    rng = random.Random(1)
    items = [{"question": question(rng, rng.randint(14, 30)), "answer": number % 4} for number in range(400)]
    planted = set(rng.sample(range(400), 20))
    texts = [f"{question(rng, 200)}." for _ in range(300)]
    for number in planted:
        place = rng.randrange(300)
        texts[place] += f" {items[number]['question'].title()}! {question(rng, 5)}"
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    words = [*SMALL, "data=text_files", f"data.paths=[{tmp_path}/*.txt]", "data.seq_len=32", "data.holdout_every=300"]
    task = prepare_task(compose([*words, f"data.cache_dir={tmp_path / 'cache'}"]), lambda *_: None)
    (store,) = task.batches.stores.values()  # type: ignore[attr-defined]
    experiment = compose([*words, f"data.cache_dir={tmp_path / 'cache'}", f"evaluate.against={store.place}",
                          "evaluate.tasks=[a]"])  # fmt: skip
    for _ in range(2):  # built, then from the cache
        found = find_items(experiment, {"a": items})["a"]
        assert len(found.found & planted) >= 19, "of 20; one may have fallen to what is held out"
        assert len(found.found - planted) <= 2
    assert (found.total, found.short) == (400, 0)


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
