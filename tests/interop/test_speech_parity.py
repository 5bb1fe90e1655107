"""Sound to text as transformers makes it: frames of its feature extractor, text of its `generate`, for a tiny Whisper.

Needs the extra `parity` (torch on CPU, transformers).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.config.entry import run_verb
from lmkit.config.sections.data import DataConfig
from lmkit.data.batches.fields import RecordRows
from lmkit.data.batches.text_fields import Sounds
from lmkit.data.sources.records import Record
from lmkit.generate.__main__ import ABOUT, READS
from lmkit.interop import read_config

LOUD = "LOUD: speech is not compared with transformers; pip install 'lmkit[parity,audio]'"
torch = pytest.importorskip("torch", reason=LOUD)
transformers = pytest.importorskip("transformers", reason=LOUD)
soundfile = pytest.importorskip("soundfile", reason=LOUD)

from interop.reference import make

torch.set_num_threads(1)  # of models so small the threads mostly wait for each other
PLACES, MELS, NEW = 20, 20, 8
END, START, EN, DE, TRANSCRIBE, TRANSLATE, PLAIN = 3, 2, 5, 6, 7, 8, 9
SPECIAL_IDS = {START, EN, DE, TRANSCRIBE, TRANSLATE, PLAIN, 0, 1, 4}
SPECIAL = {
    "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 1, "bos_token_id": 2,
    "is_multilingual": True, "lang_to_id": {"<|en|>": EN, "<|de|>": DE},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}, "no_timestamps_token_id": PLAIN,
    "max_length": 40,
}  # fmt: skip


# As Whisper's own: text, the end, special tokens, no time stamps, a stamp for each place of the encoder
STAMPED = {
    "decoder_start_token_id": 67, "eos_token_id": 66, "pad_token_id": 66, "bos_token_id": 66, "is_multilingual": True,
    "lang_to_id": {"<|en|>": 68, "<|de|>": 69}, "task_to_id": {"transcribe": 70, "translate": 71},
    "prev_sot_token_id": 72, "no_timestamps_token_id": 75, "max_initial_timestamp_index": 5, "max_length": 40,
    "suppress_tokens": [67, 68, 69, 70, 71, 72, 73, 74], "begin_suppress_tokens": [20, 66],
}  # fmt: skip
FIRST = STAMPED["no_timestamps_token_id"] + 1


def sweep(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 1900 * time) * time)).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, their model, three files, their frames)."""
    folder = tmp_path_factory.mktemp("whisper")
    model = make("whisper")
    model.save_pretrained(folder / "m")
    vocabulary = {f"w{n}": n for n in range(97)}
    inner = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    special = [{"id": n, "content": f"w{n}", "special": True, "single_word": True, "lstrip": False, "rstrip": False,
                "normalized": False} for n in range(10)]  # fmt: skip
    whole = {"version": "1.0", "added_tokens": special, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": inner}
    whole |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (folder / "m" / "tokenizer.json").write_text(json.dumps(whole))
    extract = transformers.WhisperFeatureExtractor(feature_size=MELS)
    clips = [sweep(seconds) for seconds in (0.13, 0.25, 0.4)]
    files = [folder / f"{number}.wav" for number in range(3)]
    for file, clip in zip(files, clips, strict=True):
        soundfile.write(file, clip, 16_000, subtype="FLOAT")
    frames = extract(clips, sampling_rate=16_000, max_length=2 * PLACES * 160, return_tensors="pt").input_features
    return folder / "m", model, files, frames


def rows(folder: Path, files: list[Path], *words: str) -> list[dict[str, Any]]:
    out = folder / "out.jsonl"
    common = [f"init_from={folder}", f"generate.audio=[{','.join(map(str, files))}]", f"generate.out={out}"]
    common += ["generate.temperature=0", f"generate.max_new_tokens={NEW}", *words]
    assert run_verb("generate", "lmkit.generate.main:generate", ABOUT, common, reads=READS) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def texts(folder: Path, files: list[Path], *words: str) -> list[str]:
    return [row["text"] for row in rows(folder, files, *words)]


def test_training_hears_what_theirs_does(whisper: Any) -> None:
    """float16 is what is stored."""
    folder, _, files, frames = whisper
    field = Sounds(DataConfig(seq_len=PLACES, allow_roots=[str(folder.parent)]), read_config(folder))
    records = [Record("a", {"audio": str(file)}, "a", "", None) for file in files]
    rows = [row["frames"] for row in field.encode(records)]
    assert len(rows[0]) < 20 * MELS, "silence is not stored"
    batch = field.collate(RecordRows({"frames": rows}, np.zeros(3, np.uint64), False))
    np.testing.assert_allclose(batch["source"], frames.numpy().transpose(0, 2, 1), atol=1e-3)
    assert batch["source_segment_ids"].all()


@pytest.mark.parametrize(("words", "more"), [
    (["generate.language=de", "generate.task=translate"], {}),
    pytest.param([], {"forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]}, marks=pytest.mark.slow),
    pytest.param(["generate.num_beams=2", "generate.language=de"], {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_generate(words: list[str], more: dict[str, Any], whisper: Any, capsys: pytest.CaptureFixture) -> None:
    """Short clips with languages and tasks, and tokens that may not be chosen: those that were, without that."""
    folder, model, files, frames = whisper

    def theirs(settings: dict[str, Any]) -> list[list[int]]:
        (folder / "generation_config.json").write_text(json.dumps(settings))
        model.generation_config = transformers.GenerationConfig.from_dict(settings)
        asked = dict(word.removeprefix("generate.").split("=") for word in words)
        asked = {name: int(value) if name == "num_beams" else value for name, value in asked.items()}
        out = model.generate(frames, max_new_tokens=NEW, do_sample=False, **asked)
        rows = [[token for token in row.tolist() if token not in SPECIAL_IDS] for row in out]
        return [row[: row.index(END)] if END in row else row for row in rows]

    free = theirs(SPECIAL | more)
    more = more | {"suppress_tokens": [free[0][2]], "begin_suppress_tokens": [free[1][0]]}
    expected = theirs(SPECIAL | more)
    assert expected != free
    assert texts(folder, files, *words) == [" ".join(f"w{token}" for token in row) for row in expected]
    capsys.readouterr()


@pytest.mark.parametrize("words", [
    ["generate.language=german", "generate.max_new_tokens=16"],
    ["generate.language=<|en|>", "generate.prompt=w30 w31 w32", "generate.max_new_tokens=12", "generate.batch_size=2"],
    pytest.param(["generate.task=translate", "generate.max_new_tokens=16"], marks=pytest.mark.slow),
    pytest.param(["generate.num_beams=3", "generate.language=de", "generate.max_new_tokens=9"], marks=pytest.mark.slow),
])  # fmt: skip
def test_time_stamps(
    words: list[str], whisper: Any, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of sounds shorter and longer than a window, with their times; theirs hear silence after the end, too.

    Their own `generate` has zeros there, which are louder than the silence that the model was trained with.
    """
    folder, model, _, _ = whisper
    files, window, extract = [], 2 * PLACES, transformers.WhisperFeatureExtractor(feature_size=MELS)
    frames, lengths = np.zeros((3, MELS, 400), np.float32), np.zeros((3, 400), np.int64)
    for number, seconds in enumerate((1.7, 0.25, 0.6)):
        files.append(folder / f"long{number}.wav")
        clip = sweep(seconds)
        soundfile.write(files[-1], clip, 16_000, subtype="FLOAT")
        longer = np.concatenate([clip, np.zeros(window * 160, np.float32)])
        found = extract(longer, sampling_rate=16_000, padding="longest", truncation=False).input_features[0]
        frames[number, :, : found.shape[1]], lengths[number, : len(clip) // 160] = found, 1
    (folder / "generation_config.json").write_text(json.dumps(STAMPED))
    model.generation_config = transformers.GenerationConfig.from_dict(STAMPED)

    def segment(input_features: Any, seek: Any, cur_bsz: int, batch_idx_map: list[int], **_: Any) -> Any:
        starts = [int(seek[batch_idx_map[row]]) for row in range(cur_bsz)]
        return torch.stack([input_features[row, :, start : start + window] for row, start in enumerate(starts)])

    monkeypatch.setattr(model, "_get_input_segment", segment)
    asked = dict(word.removeprefix("generate.").split("=") for word in words)
    if prompt := asked.pop("prompt", ""):
        asked["prompt_ids"] = torch.tensor([72, *(int(word[1:]) for word in prompt.split())])
    asked.pop("batch_size", None)
    asked = {name: int(value) if name in ("num_beams", "max_new_tokens") else value for name, value in asked.items()}
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(frames), attention_mask=torch.tensor(lengths), do_sample=False, return_timestamps=True,
            return_segments=True, **asked,
        )["segments"]  # fmt: skip
    ours = [row["segments"] for row in rows(folder, files, "generate.timestamps=true", *words)]
    for mine, other in zip(ours, theirs, strict=True):
        texts = [[f"w{token}" for token in one["tokens"].tolist() if token < FIRST] for one in other]
        times = [(round(float(one["start"]), 2), round(float(one["end"]), 2)) for one in other]
        spoken = [(" ".join(text), time) for text, time in zip(texts, times, strict=True) if text]
        assert [(one["text"], (one["start"], one["end"])) for one in mine] == spoken
    assert len(ours[0]) > 3
    assert ours[0][-1]["end"] > 1.2
    assert "[00:00." in capsys.readouterr().out
