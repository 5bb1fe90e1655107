"""Labelled records: what is read, how it becomes batches, and what is said of a bad one."""

import gzip
import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.data import AugmentConfig, Curriculum, DataConfig, OnCorrupt, Source, SourceConfig
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.task import unusable_notes
from lmkit.data import build_records
from lmkit.data.batches.fields import fit
from lmkit.data.batches.records import Records
from lmkit.data.prepare_records import RecordData, check_records, prepare_records
from lmkit.data.sources import records, text
from lmkit.data.sources.audio import log_mel
from lmkit.data.sources.files import UnreachableError
from lmkit.data.sources.records import RecordSource
from lmkit.data.store.build import build_frame, one_by_one, pooled
from lmkit.data.store.frame import CorruptError
from lmkit.data.store.records import RECORD_FORMAT, Column, RecordStore, RecordWriter
from lmkit.data.store.tokens import HELDOUT, TRAIN

BYTES = TokenizerConfig(kind=TokenizerKind.bytes)
BERT = BERTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8)
ENCDEC = EncDecConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8)
VIT = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_layers=1, num_heads=1, embed_dim=8)
SPAM = [{"text": f"mail number {n}", "label": "spam" if n % 3 == 0 else "ham"} for n in range(60)]


def write(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(
    path: Path | str, kind: ObjectiveKind, model: ModelConfig, tokenizer: TokenizerConfig = BYTES, **changes
) -> tuple[RecordData, Records]:
    cache = Path(path).parent / "cache"
    values = {"source": Source.records, "paths": [str(path)], "seq_len": 24, "holdout_every": 4}
    config = DataConfig(**(values | {"cache_dir": str(cache)} | changes))
    data = prepare_records(config, tokenizer, kind, model)
    check_records(data)
    return data, Records(data.stores, data.weights, data.fields, config, seed=0)


def decode(ids: np.ndarray) -> str:
    return bytes(i for i in ids.tolist() if i < 256).decode()


def test_a_text_and_its_class(tmp_path: Path) -> None:
    data, batches = read(write(tmp_path / "a.jsonl", SPAM), ObjectiveKind.classify, BERT)
    assert data.labels == ["ham", "spam"]
    by_text = {record["text"]: record["label"] for record in SPAM}
    seen = []
    for step in range(4):
        batch = batches.train(step, 15, np.arange(15))
        for row in range(15):
            text = decode(batch["inputs"][row][batch["segment_ids"][row] == 1])
            assert data.labels[batch["labels"][row]] == by_text[text]
            seen.append(text)
            length = len(text) + 2
            assert batch["inputs"][row, 0] == 256
            assert batch["inputs"][row, length - 1] == 256
            assert batch["segment_ids"][row].tolist() == [1] * length + [0] * (24 - length)
    count = len(data.stores["records"].rows[TRAIN])
    assert len(set(seen[:count])) == count, "each once an epoch"
    held = {decode(row) for row in batches.heldout("records", np.arange(batches.num_heldout("records")))["inputs"]}
    assert not held & set(seen)
    assert held | set(seen) == set(by_text)


def test_any_rows_of_any_step_are_those_of_the_global_batch(tmp_path: Path) -> None:
    _, batches = read(write(tmp_path / "a.jsonl", SPAM), ObjectiveKind.classify, BERT)
    whole = batches.train(7, 12, np.arange(12))
    for rows in (np.array([3]), np.array([0, 5, 11])):
        part = batches.train(7, 12, rows)
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][rows])


def test_short_records_come_first_in_the_first_epoch(tmp_path: Path) -> None:
    rows = [{"text": "x" * n, "label": "ab"[n % 2]} for n in range(1, 400)]
    path, kind = write(tmp_path / "a.jsonl", rows), ObjectiveKind.classify
    _, plain = read(path, kind, BERT, seq_len=512)
    _, batches = read(path, kind, BERT, seq_len=512, curriculum=Curriculum.short_first)
    count = len(batches.stores["records"].rows[TRAIN])
    lengths = batches.train(0, count, np.arange(count))["segment_ids"].sum(axis=1)
    edges = [share * count // 64 for share in range(65)]
    shares = [lengths[first:stop] for first, stop in itertools.pairwise(edges)]
    assert all(one.max() < two.min() for one, two in itertools.pairwise(shares))
    assert len(set(lengths.tolist())) == count
    assert not (np.diff(lengths) > 0).all(), "shuffled inside each share"
    second = (1, count, np.arange(count))
    np.testing.assert_array_equal(batches.train(*second)["inputs"], plain.train(*second)["inputs"])
    with pytest.raises(ConfigError, match="data.curriculum=short_first: these records are all of one length"):
        read(tmp_path / "d", kind, VIT, source=Source.digits, paths=[], curriculum=Curriculum.short_first)


def test_a_second_text_is_the_other_segment(tmp_path: Path) -> None:
    records = [{"text": "a" * 30, "other": f"{n:02}", "label": "x" if n % 2 else "y"} for n in range(20)]
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.classify, BERT, pair_key="other")
    batch = batches.train(0, 4, np.arange(4))
    for row in range(4):
        first = batch["inputs"][row][(batch["segment_ids"][row] == 1) & (batch["types"][row] == 0)]
        second = batch["inputs"][row][batch["types"][row] == 1]
        assert decode(first) == "a" * 19, "the longer one is cut"
        assert len(decode(second)) == 2
        assert batch["segment_ids"][row].all()


@pytest.mark.parametrize(("lengths", "room", "kept"), [
    ([9], 5, [5]), ([3], 5, [3]), ([9, 9], 10, [5, 5]), ([9, 9], 11, [6, 5]), ([2, 9], 10, [2, 8]),
    ([9, 2], 10, [8, 2]), ([3, 4], 10, [3, 4]), ([9, 9], 0, [0, 0]), ([9, 9], -2, [0, 0]), ([0, 9], 4, [0, 4]),
])  # fmt: skip
def test_the_longer_one_is_cut(lengths: list[int], room: int, kept: list[int]) -> None:
    pieces = [np.arange(length) for length in lengths]
    assert [len(piece) for piece in fit(pieces, room)] == kept
    assert all((cut == piece[: len(cut)]).all() for cut, piece in zip(fit(pieces, room), pieces, strict=True))


def test_words_have_a_class_each(tmp_path: Path) -> None:
    records = [{"text": ["New", "York", "is", "big"], "label": ["B", "I", "O", "O"]} for _ in range(12)]
    records = [record | {"id": n} for n, record in enumerate(records)]
    model = BERTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8, classify_tokens=True)
    data, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.classify_tokens, model)
    assert data.labels == ["B", "I", "O"]
    batch = batches.train(0, 2, np.arange(2))
    marked = np.flatnonzero(batch["weights"][0])
    assert decode(batch["inputs"][0]) == "New York is big"
    assert marked.tolist() == [1, 4, 9, 12], "the first token of each word"
    assert [data.labels[i] for i in batch["labels"][0][marked]] == ["B", "I", "O", "O"]


def test_numbers(tmp_path: Path) -> None:
    records = [{"text": f"{n}", "target": n / 2} for n in range(30)]
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.regress, BERT)
    batch = batches.train(0, 8, np.arange(8))
    assert [float(decode(row)) / 2 for row in batch["inputs"]] == batch["targets"].tolist()


def test_a_translation_is_shifted_by_its_start(tmp_path: Path) -> None:
    records = [{"text": f"one {n}", "target": f"uno {n}"} for n in range(30)]
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.seq2seq, ENCDEC, target_len=12)
    batch = batches.train(0, 4, np.arange(4))
    for row in range(4):
        length = int(batch["weights"][row].sum())
        target = batch["targets"][row, :length]
        assert decode(target).replace("uno", "one") == decode(batch["source"][row])
        assert target[-1] == 256
        assert batch["inputs"][row, 0] == 256
        np.testing.assert_array_equal(batch["inputs"][row, 1:length], target[:-1])
        assert batch["source_segment_ids"][row].sum() == len(decode(batch["source"][row])) + 1


def test_only_answers_weigh(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"},
        {"role": "assistant", "content": "ok"},
    ]
    model = GPTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8)
    records = [{"messages": talk, "id": n} for n in range(12)]
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.chat, model, seq_len=80,
                      message_format="[{role}]{content}")  # fmt: skip
    batch = batches.train(0, 2, np.arange(2))
    learned = batch["targets"][0][batch["weights"][0] == 1]
    assert learned.tolist() == [*b"yes", 256, *b"ok", 256]
    assert decode(batch["inputs"][0]) == "[user]hi[assistant]yes[user]so[assistant]ok"


def test_image_and_caption(tmp_path: Path) -> None:
    from PIL import Image

    for n in range(8):
        Image.fromarray(np.full((8, 8), n * 10, np.uint8)).save(tmp_path / f"{n}.png")
    model = CLIPConfig(
        text=GPTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8),
        vision=ViTConfig(image_size=8, patch_size=2, num_channels=1, num_classes=0, num_heads=1, embed_dim=8),
    )
    records = [{"image": f"{n}.png", "text": f"picture {n}"} for n in range(8)]
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.contrastive, model,
                      image_mean=0.0, image_std=1.0)  # fmt: skip
    batch = batches.train(0, 4, np.arange(4))
    for row in range(4):
        number = int(decode(batch["inputs"][row])[-1])
        assert batch["images"][row].max() == pytest.approx(number * 10 / 255)
        assert batch["inputs"][row, batch["last"][row]] == 256


def test_a_sound_becomes_frames(tmp_path: Path) -> None:
    import soundfile

    (tmp_path / "sounds").mkdir()
    for n in range(8):
        tone = 0.1 * np.sin(np.arange(16000 * (n + 1) // 10) * 0.1 * (n + 1))
        soundfile.write(tmp_path / "sounds" / f"{n}.wav", tone, 16000)
    records = [{"audio": f"sounds/{n}.wav", "target": f"tone {n}"} for n in range(8)]
    model = EncDecConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8, num_mels=40)
    _, batches = read(write(tmp_path / "a.jsonl", records), ObjectiveKind.seq2seq, model, seq_len=50)
    batch = batches.train(0, 4, np.arange(4))
    assert batch["source"].shape == (4, 100, 40)
    for row in range(4):
        number = int(decode(batch["targets"][row])[-1])
        clip, _ = soundfile.read(tmp_path / "sounds" / f"{number}.wav", dtype="float32")
        np.testing.assert_allclose(batch["source"][row], log_mel(clip, 40, num_frames=100), atol=1e-3)  # float16
    assert (batch["source_segment_ids"] == 1).all(), "silence is heard"


def idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def test_mnist_files_hold_out_their_own_test_set(tmp_path: Path) -> None:
    for name, count in (("train", 30), ("t10k", 10)):
        idx(tmp_path / f"{name}-images-idx3-ubyte.gz", np.arange(count * 64).reshape(count, 8, 8) % 256)
        idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 3)
    data, batches = read(tmp_path, ObjectiveKind.classify, VIT, source=Source.idx)
    assert data.labels == ["0", "1", "2"]
    assert [len(data.stores["records"].rows[split]) for split in (TRAIN, HELDOUT)] == [30, 10]
    batch = batches.heldout("records", np.arange(16))
    assert batch["weights"].tolist() == [1.0] * 10 + [0.0] * 6
    assert batch["labels"][:10].tolist() == [n % 3 for n in range(10)]
    np.testing.assert_allclose(batch["images"][3, :, :, 0], ((np.arange(192, 256) / 255 - 0.5) / 0.5).reshape(8, 8),
                               rtol=1e-6)  # fmt: skip


def test_folders_are_classes_and_blends_have_two(tmp_path: Path) -> None:
    from PIL import Image

    for label, value in (("black", 0), ("white", 255)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(12):
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / "images" / label / f"{n}.png")
    data, batches = read(tmp_path / "images", ObjectiveKind.classify, VIT, source=Source.image_folder,
                         image_mean=0.0, image_std=1.0, augment=AugmentConfig(mixup=1.0))  # fmt: skip
    assert data.labels == ["black", "white"]
    batch = batches.train(0, 16, np.arange(16))
    share, own, other = batch["share"], batch["labels"], batch["other_labels"]
    np.testing.assert_allclose(batch["images"].mean((1, 2, 3)), share * own + (1 - share) * other, atol=1e-6)
    assert (own != other).any()
    assert share.std() > 0.1
    held = batches.heldout("records", np.arange(4))
    assert (held["share"] == 1).all()
    assert set(held["images"].mean((1, 2, 3)).tolist()) <= {0.0, 1.0}


def test_digits_are_there(tmp_path: Path) -> None:
    data, batches = read(tmp_path / "x", ObjectiveKind.classify, VIT, source=Source.digits, paths=[])
    assert data.labels == [str(n) for n in range(10)]
    assert data.stores["records"].meta["count"] == 1797
    assert batches.train(0, 4, np.arange(4))["images"].shape == (4, 8, 8, 1)


def test_classes_are_weighed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SPAM)
    data, batches = read(path, ObjectiveKind.classify, BERT, balance_classes=True)
    batch = batches.train(0, 45, np.arange(45))
    rows = data.stores["records"].rows[TRAIN]
    per_class = np.bincount(batch["labels"], batch["weights"])[:2]
    assert len(rows) == 45 or per_class[0] > 0
    numbers = np.array(data.stores["records"].read("label", TRAIN, np.arange(len(rows))))
    counts = np.bincount(numbers)
    np.testing.assert_allclose(batch["weights"], (len(rows) / (2 * counts))[batch["labels"]], rtol=1e-6)
    _, batches = read(path, ObjectiveKind.classify, BERT, class_weights={"spam": 3.0})
    batch = batches.train(0, 8, np.arange(8))
    np.testing.assert_array_equal(batch["weights"], np.where(batch["labels"] == 1, 3.0, 1.0))
    assert (batches.heldout("records", np.arange(4))["weights"] == 1).all()


def test_folds_divide_the_records(tmp_path: Path) -> None:
    path, seen = write(tmp_path / "a.jsonl", SPAM), []
    for fold in range(4):
        data, _ = read(path, ObjectiveKind.classify, BERT, fold=fold)
        seen.append(data.stores["records"].rows[HELDOUT])
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(60))


def test_a_mixture_of_records(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", SPAM)
    write(tmp_path / "b.jsonl", [{"text": f"b{n}", "label": "ham"} for n in range(20)])
    parts = {
        "a": SourceConfig(source=Source.records, paths=[str(tmp_path / "a.jsonl")], weight=3.0),
        "b": SourceConfig(source=Source.records, paths=[str(tmp_path / "b.jsonl")], weight=1.0),
    }
    _, batches = read(tmp_path / "x", ObjectiveKind.classify, BERT, mixture=parts)
    texts = [decode(row) for row in batches.train(0, 1024, np.arange(1024))["inputs"]]
    assert sum(text.startswith("b") for text in texts) == 256


@pytest.mark.parametrize(("records", "kind", "changes", "words"), [
    ([{"body": "x", "label": "a"}], ObjectiveKind.classify, {}, "line 1 has no 'text', it has: body, label; set"),
    ([{"text": "x"}], ObjectiveKind.classify, {}, "has no 'label', it has: text; set data.label_key="),
    ([{"text": 3, "label": "a"}], ObjectiveKind.classify, {}, "has a int under 'text', not a text"),
    (SPAM, ObjectiveKind.classify, {"labels": ["ham", "spamm"]}, "no training .* class 'spamm'; .* ham, spam"),
    (SPAM, ObjectiveKind.classify, {"labels": ["ham"]}, "has the label 'spam', which is none of the 1 classes"),
    (SPAM, ObjectiveKind.classify, {"class_weights": {"spma": 2.0}}, "no class 'spma'; there are ham, spam"),
    ([{"text": "x", "target": "many"}], ObjectiveKind.regress, {}, "has 'many' as 'target', not a number"),
    ([{"messages": [{"role": "user", "content": "x"}]}], ObjectiveKind.chat, {}, "at least one .* 'assistant'"),
    ([{"text": ["a"], "label": ["x", "y"]}], ObjectiveKind.classify_tokens, {}, "must be two lists of one length"),
    ([["x"]], ObjectiveKind.classify, {}, "line 1 is a list, not an object"),
    ([{"text": "x", "label": "a"}], ObjectiveKind.classify, {}, "leaves no record"),
    ([{"image": "none.png", "label": "a"}], ObjectiveKind.contrastive, {}, "none.png"),
    ([{"audio": "none.wav", "target": "a"}], ObjectiveKind.seq2seq, {}, "none.wav"),
])  # fmt: skip
def test_a_bad_record_is_named(tmp_path: Path, records: list, kind: ObjectiveKind, changes: dict, words: str) -> None:
    models: dict[ObjectiveKind, ModelConfig] = {
        ObjectiveKind.chat: GPTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8),
        ObjectiveKind.seq2seq: EncDecConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8, num_mels=40),
        ObjectiveKind.contrastive: CLIPConfig(),
    }
    with pytest.raises(ConfigError, match=words):
        read(write(tmp_path / "a.jsonl", records), kind, models.get(kind, BERT), **changes)
    left = list((tmp_path / "cache" / "records").iterdir()) if (tmp_path / "cache" / "records").is_dir() else []
    assert not [path for path in left if path.name.startswith(".")], "nothing half-built"


def test_few_bad_records_are_listed_and_left_out(tmp_path: Path) -> None:
    """As of text: one of a hundred does not refuse the set, and its number is told."""
    lines = [json.dumps(record) for record in SPAM * 10]
    lines[7] = json.dumps({"text": "half \ud83d", "label": "ham"})
    lines[300] = '{"text": "cut'
    lines[301] = json.dumps({"text": "x", "label": " "})
    lines[599] = json.dumps({"text": 7, "label": "ham"})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    data, _ = read(path, ObjectiveKind.classify, BERT)
    store = data.stores["records"]
    assert data.labels == ["ham", "spam"]
    assert (store.meta["count"], store.meta["unusable"]) == (596, 4)
    listed = (Path(store.place) / "parts" / "00000" / "quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["place"].rpartition(" ")[2] for line in listed) == ["301", "302", "600", "8"]
    assert {word for line in listed for word in ("half a character", "not JSON", "empty 'label'", "not a text")
            if word in line} == {"half a character", "not JSON", "empty 'label'", "not a text"}  # fmt: skip
    (note,) = unusable_notes(data.stores, {"records": {}})
    assert note.startswith("data 'records': 4 records could not be used; see quarantine.jsonl in the parts of ")
    with pytest.raises(ConfigError, match=r"4 of 600 records \(0\.67%\).*the first: .*line \d+ .*share=0\.01"):
        read(path, ObjectiveKind.classify, BERT, max_bad_share=0.001, cache_dir=str(tmp_path / "other"))
    assert not list((tmp_path / "other" / "records").iterdir()), "nothing half-built"


def test_a_set_that_is_bad_from_the_start_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [{"image": f"{n}.png", "label": "a"} for n in range(2000)])
    asked: list[str] = []
    monkeypatch.setattr(records, "read_bytes", lambda path: asked.append(path) or b"no image")
    with pytest.raises(ConfigError, match=r"line 1 cannot be used: .*0\.png cannot be read.*; so it is with all"):
        read(path, ObjectiveKind.classify, VIT)
    assert len(set(asked)) == 256


def test_a_store_that_does_not_answer_is_no_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(path: str) -> bytes:
        raise UnreachableError(f"data: cannot read {path}: the line is down")

    path = write(tmp_path / "a.jsonl", [{"image": f"{n}.png", "label": "a"} for n in range(20)])
    monkeypatch.setattr(records, "read_bytes", down)
    with pytest.raises(UnreachableError, match="the line is down"):
        read(path, ObjectiveKind.classify, VIT, max_bad_share=1.0)


def test_labels_that_yaml_made_booleans(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"{n}", "label": "yes" if n % 2 else "no"} for n in range(40)])
    with pytest.raises(ConfigError, match=r"class 'False', 'True'; the records have no, yes; .*put them in quotes"):
        read(path, ObjectiveKind.classify, BERT, labels=["False", "True"])


def _talk(words: int) -> dict:
    return {"messages": [{"role": "user", "content": "w " * words}, {"role": "assistant", "content": "ok"}]}


def test_answers_that_are_cut_off_are_told(tmp_path: Path) -> None:
    model = GPTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8)
    path = write(tmp_path / "a.jsonl", [_talk(60) for _ in range(40)])
    with pytest.raises(
        ConfigError, match=r"data.seq_len=24: no answer of the training .* set data.seq_len=(\d+) or more"
    ) as caught:
        read(path, ObjectiveKind.chat, model)
    enough = int(str(caught.value).rpartition("=")[2].split()[0])
    for length, learned in ((enough, 1), (enough + 3, 3)):
        _, batches = read(path, ObjectiveKind.chat, model, seq_len=length)
        assert batches.train(0, 4, np.arange(4))["weights"].sum() == 4 * learned
    with pytest.raises(ConfigError, match=f"data.seq_len={enough - 1}: no answer"):
        read(path, ObjectiveKind.chat, model, seq_len=enough - 1)
    half = write(tmp_path / "b.jsonl", [_talk(60 * (n % 2)) for n in range(40)])
    data, _ = read(half, ObjectiveKind.chat, model, seq_len=60)
    (note, *_) = data.notes
    assert "of the training conversations have no answer in data.seq_len=60 tokens, and teach nothing" in note
    assert not read(half, ObjectiveKind.chat, model, seq_len=400)[0].notes


def test_weights_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SPAM)
    for weights in ({"spam": 0.0, "ham": 0.0}, {"spam": -1.0}):
        with pytest.raises(ConfigError, match="data.class_weights=.*none may be negative, and one must be above 0"):
            read(path, ObjectiveKind.classify, BERT, class_weights=weights)


def test_a_class_without_training_records_is_named(tmp_path: Path) -> None:
    names = [f"a.jsonl:{n}" for n in range(1, 61)]
    held = [n for n, name in enumerate(names) if RecordStore.held_out(name, 4, 0)]
    records = [{"text": f"{n}", "label": "rare" if n == held[0] else "common"} for n in range(60)]
    with pytest.raises(ConfigError, match=r"no training record has the class 'rare'.*data.fold"):
        read(write(tmp_path / "a.jsonl", records), ObjectiveKind.classify, BERT)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    idx(tmp_path / "images-idx3-ubyte.gz", np.zeros((4, 28, 28)))
    idx(tmp_path / "labels-idx1-ubyte.gz", np.arange(4))
    with pytest.raises(ConfigError, match=r"28 x 28 x 1.*8 x 8 x 1.*model.image_size=28"):
        read(tmp_path, ObjectiveKind.classify, VIT, source=Source.idx)


def test_csv_and_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="LOUD: pyarrow is not installed, .parquet is not tested")
    from pyarrow import parquet

    rows = [(record["text"], record["label"]) for record in SPAM]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    (tmp_path / "b.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table, tmp_path / "c.parquet")
    stores = [read(tmp_path / name, ObjectiveKind.classify, BERT)[0].stores["records"] for name in
              ("a.csv", "b.tsv", "c.parquet")]  # fmt: skip
    assert len({store.meta["sha256"] for store in stores}) == 1


def test_a_store_is_built_once_and_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SPAM)
    data, _ = read(path, ObjectiveKind.classify, BERT)
    store = Path(data.stores["records"].place)
    before = (store / "meta.json").stat().st_mtime_ns
    assert read(path, ObjectiveKind.classify, BERT)[0].stores["records"].place == str(store)
    assert (store / "meta.json").stat().st_mtime_ns == before
    (chunk,) = [p for p in (store / "parts" / "00000" / "columns" / "text" / "c").rglob("*") if p.is_file()]
    raw = bytearray(chunk.read_bytes())
    raw[10] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(CorruptError, match=r"columns/text/c/0 is damaged.*Digest mismatch"):
        read(path, ObjectiveKind.classify, BERT)[1].train(0, 60, np.arange(60))


def test_a_missing_column_is_named_with_skip_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SPAM)
    data, _ = read(path, ObjectiveKind.classify, BERT)
    store = Path(data.stores["records"].place)
    (store / "parts" / "00000" / "columns" / "text" / "c" / "0").unlink()
    with pytest.raises(CorruptError, match=r"columns/text/c/0 is missing"):
        read(path, ObjectiveKind.classify, BERT)
    with pytest.raises(CorruptError, match="no row of train can be read"):
        read(path, ObjectiveKind.classify, BERT, on_corrupt=OnCorrupt.skip)[1].train(0, 8, np.arange(8))


def test_several_writers_keep_the_order_and_only_the_first_start_reads_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two processes: the rows are those of one writer, and lines of one file may be in several parts."""
    (tmp_path / "in").mkdir()
    for name, lines in (("a", 40), ("b", 3), ("c", 17)):
        rows = [{"text": f"{name}{n} " * (n % 5 + 1), "label": "xyz"[n % 3]} for n in range(lines)]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    config = DataConfig(
        source=Source.records, paths=[str(tmp_path / "in")], seq_len=32, holdout_every=4, max_bad_share=0.1,
        cache_dir=str(tmp_path / "one"),
    )  # fmt: skip
    tokenizer = TokenizerConfig(kind=TokenizerKind.bytes)
    (one,) = prepare_records(config, tokenizer, ObjectiveKind.classify, BERT).stores.values()
    monkeypatch.setattr(build_records, "PART_BYTES", 200)
    monkeypatch.setattr(text, "RANGE_BYTES", 200)
    config.cache_dir = str(tmp_path / "many")
    data = prepare_records(config, tokenizer, ObjectiveKind.classify, BERT, run=pooled(2))
    (many,) = data.stores.values()
    assert len(many.meta["parts"]) > 5
    assert (many.meta["count"], many.meta["unusable"]) == (one.meta["count"], one.meta["unusable"]) == (60, 3)
    for split in (TRAIN, HELDOUT):
        np.testing.assert_array_equal(many.rows[split], one.rows[split])
        for name in one.columns:
            pairs = zip(
                *(store.read(name, split, np.arange(len(one.rows[split]))) for store in (many, one)), strict=True
            )
            assert all(np.array_equal(a, b) for a, b in pairs)
    monkeypatch.setattr(RecordSource, "records", None)  # what reads the records again would fail
    again = prepare_records(config, tokenizer, ObjectiveKind.classify, BERT)
    assert again.labels == data.labels == ["x", "y", "z"]


@pytest.mark.parametrize("kind", [Source.audio_folder, Source.image_folder, Source.records])
def test_parts_have_all_records_in_their_order(tmp_path: Path, kind: Source) -> None:
    """Sounds find their texts, which may lie in another part."""
    for number in range(12):
        folder = tmp_path / "in" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        if kind is Source.records:
            write(folder / f"{number}.jsonl", [{"n": number}] * (number + 1))
            continue
        (folder / f"{number:02}.{'wav' if kind is Source.audio_folder else 'png'}").write_bytes(b"x" * 100)
        if kind is Source.audio_folder:
            (folder / f"{number:02}.txt").write_text(f"text {number}")
    source = RecordSource(kind, [str(tmp_path / "in")], [], DataConfig())
    whole = list(source.records())
    assert len(whole) == (78 if kind is Source.records else 12)
    for parts in (2, 5):
        found = [list(source.records(part=part, parts=parts)) for part in range(parts)]
        assert [record for part in found for record in part] == whole
        assert sum(map(bool, found)) > 1


def test_columns_come_back_as_written(tmp_path: Path) -> None:
    columns = {"a": Column("float32", (2, 3)), "b": Column("int32", None)}
    rng = np.random.default_rng(0)
    rows = [{"a": rng.random((2, 3), np.float32), "b": rng.integers(0, 9, n % 4).astype(np.int32)} for n in range(50)]

    def make(part: int, folder: Path) -> None:
        writer = RecordWriter(folder, columns)
        for n in range(50)[part * 17 : part * 17 + 17]:
            writer.append(str(n), None if n < 40 else n < 45, rows[n])
        writer.close({})

    def finish(_: Path, facts: list[dict]) -> dict:
        assert [one["count"] for one in facts] == [17, 17, 16]
        return {"format": RECORD_FORMAT, "columns": columns}

    build_frame(tmp_path / "s", 3, make, finish, one_by_one)
    store = RecordStore(tmp_path / "s", 5)
    split = np.concatenate([store.rows[TRAIN], store.rows[HELDOUT]])
    np.testing.assert_array_equal(np.sort(split), np.arange(50))
    assert set(range(45, 50)) <= set(store.rows[TRAIN])
    assert set(range(40, 45)) <= set(store.rows[HELDOUT])
    for side in (TRAIN, HELDOUT):
        index = np.arange(len(store.rows[side]))[::-1]
        for name in ("a", "b"):
            for number, value in zip(index, store.read(name, side, index), strict=True):
                np.testing.assert_array_equal(value, rows[store.rows[side][number]][name])


def test_with_skip_the_next_record_takes_the_place(tmp_path: Path) -> None:
    columns = {"a": Column("int32", ()), "b": Column("int32", None)}

    def make(part: int, folder: Path) -> None:
        writer = RecordWriter(folder, columns)
        for n in range(part * 5, part * 5 + 5):
            writer.append(str(n), False, {"a": np.int32(n), "b": np.full(3, n, np.int32)})
        writer.close({})

    build_frame(tmp_path / "s", 3, make, lambda *_: {"format": RECORD_FORMAT, "columns": columns}, one_by_one)
    (tmp_path / "s" / "parts" / "00001" / "columns" / "b" / "c" / "0").unlink()
    store = RecordStore(tmp_path / "s", 5, skip_corrupt=True)
    found = store.rows_of(["a", "b"], TRAIN, [4, 7, 14, 9])
    assert [int(one) for one in found["a"]] == [4, 10, 14, 10]
    assert [one.tolist() for one in found["b"]] == [[n] * 3 for n in (4, 10, 14, 10)]
    assert sum(store.lost.values()) == 3 + 1
    assert "parts/00001/columns/b/c/0 is missing" in next(iter(store.lost))
