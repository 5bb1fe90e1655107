"""The speech set: held-out voices and texts stay out, the same seed gives the same bytes, its lists lead to clips."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
from lmkit.data.sources.audio import read_audio

SCRIPT = ROOT / "experiments" / "whisper_digits" / "make_speech.py"
HAS_ESPEAK = shutil.which("espeak-ng") is not None
pytest.importorskip("soundfile", reason="LOUD: the speech set is not tested; pip install 'lmkit[audio]'")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_without_espeak_it_says_what_to_install(tmp_path: Path) -> None:
    done = run(str(tmp_path / "out"), PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == "make_speech: espeak-ng is not installed: apt-get install espeak-ng"
    assert "--heldout" in run("--help").stdout


def test_reserved_texts_are_made_of_words_that_are_trained_on() -> None:
    names = runpy.run_path(str(SCRIPT))
    phrases = names["COMBINED"] + names["SIMPLE"]
    kept = [text for text in phrases if names["reserved"](text)]
    assert 3 <= len(kept) <= 12
    assert {w for text in kept for w in text.split()} <= {w for t in phrases if t not in kept for w in t.split()}
    assert not set(names["TRAIN_VOICES"]) & set(names["HELDOUT_VOICES"])
    pairs = [f"{a} {b}" for a in names["DIGITS"] for b in names["DIGITS"]]
    assert 5 < sum(map(names["reserved"], pairs)) < 30
    assert not any(map(names["reserved"], names["DIGITS"]))


@pytest.mark.skipif(not HAS_ESPEAK, reason="LOUD: making speech is not tested; apt-get install espeak-ng")
def test_speech_set(tmp_path: Path) -> None:
    lists = {}
    for folder, workers in (("a", "1"), ("b", "2")):
        done = run(
            str(tmp_path / folder), "--train", "120", "--heldout", "40", "--max-sec", "1.5", "--workers", workers
        )
        assert done.returncode == 0, done.stderr
        assert "160/160 clips" in done.stdout
    for split, count in (("train", 120), ("heldout", 40)):
        text = (tmp_path / "a" / f"{split}.jsonl").read_text()
        assert text == (tmp_path / "b" / f"{split}.jsonl").read_text()
        lists[split] = [json.loads(line) for line in text.splitlines()]
        assert len(lists[split]) == count
        for row in lists[split]:
            path = tmp_path / "a" / row["audio"]
            assert path.read_bytes() == (tmp_path / "b" / row["audio"]).read_bytes()
            samples = read_audio(path)
            assert 0.1 < len(samples) / 16_000 <= 1.5
            assert 0.05 < np.abs(samples).max() <= 1.0
    voices = {split: {row["voice"].split("+")[1] for row in rows} for split, rows in lists.items()}
    assert not voices["train"] & voices["heldout"]
    texts = {row["text"] for row in lists["train"]}
    assert not texts & {row["text"] for row in lists["heldout"][1::2]}
    assert texts & {row["text"] for row in lists["heldout"]}
    assert run(str(tmp_path / "c"), "--train", "3", "--heldout", "3", "--seed", "1").returncode == 0
    other = json.loads((tmp_path / "c" / "train.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "c" / other["audio"]).read_bytes() != (tmp_path / "a" / other["audio"]).read_bytes()
