"""Damaged files: a reader succeeds or says in one line what is wrong, and leaves nothing half-made.

Each kind of file is mutated some times, from a seed: bytes are cut, flipped, repeated and overwritten, values of
JSON are dropped and given other types.
"""

import gzip
import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.config.base import UserError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.prepare import prepare
from lmkit.data.prepare_records import check_records, prepare_records
from lmkit.data.sources.images import read_idx
from lmkit.data.store.check import check_store
from lmkit.data.store.records import RecordStore
from lmkit.data.store.tokens import HELDOUT, TRAIN, TokenStore
from lmkit.generate.main import read_prompts

ROUNDS, MORE = 8, 4  # of kinds that build a store each time; of the others so many times more
CHEAP = ("parquet", "prompts", "idx")
BYTES = TokenizerConfig(kind=TokenizerKind.bytes)
TINY = {"vocab_size": 300, "num_layers": 1, "num_heads": 1, "embed_dim": 8}
MAIL = [
    {"text": f"mail {n} é", "label": "ab"[n % 2], "target": n / 2, "id": f"n{n}", "w": [[0, 2, 0.5]]} for n in range(9)
]
TALK = [{"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": f"{n}"}]} for n in range(9)]
VALUES: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "x",
    "\ud800",
    "../../x",
    [],
    [[]],
    {},
    {"a": None},
    float("nan"),
]


WHOLE = ("meta.json", "tokenizer.json", "scan.json")  # written last: what has one of them is all there


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice([1, 1, 4, 64])
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + size :]
    if kind == 3:
        return data[:at] + rng.randbytes(size) + data[at + size :]
    if kind == 4:
        return data[:at] + bytes(size) + data[at + size :]
    return data[:at] + data[max(at - 64, 0) : at] + data[at:]


def mutated_json(value: Any, rng: random.Random) -> Any:
    """With one key or element somewhere in it dropped, or of another kind."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not keys or rng.random() < 0.1:
        return rng.choice(VALUES)
    key = rng.choice(list(keys))
    if rng.random() < 0.3:
        rest = [(one, value[one]) for one in keys if one != key]
        return dict(rest) if isinstance(value, dict) else [one for _, one in rest]
    changed = mutated_json(value[key], rng) if rng.random() < 0.7 else rng.choice(VALUES)
    return value | {key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


def mutated(data: bytes, rng: random.Random, lines: bool) -> bytes:
    try:
        text = data.decode()
        number = rng.randrange(len(rows := text.splitlines() if lines else [text]))
        found = json.dumps(mutated_json(json.loads(rows[number]), rng))
    except ValueError:
        return mutated_bytes(data, rng)
    if rng.random() < 0.4:
        return mutated_bytes(data, rng)
    return "\n".join([*rows[:number], found, *rows[number + 1 :]]).encode()


def config(folder: Path, source: Source, **changes: Any) -> DataConfig:
    return DataConfig(**{
        "source": source, "paths": [str(folder / "in")], "cache_dir": str(folder / "cache"), "seq_len": 8,
        "holdout_every": 2, "max_bad_share": 0.5,
    } | changes)  # fmt: skip


def records(folder: Path, kind: ObjectiveKind, model: Any, source: Source = Source.records, **changes: Any) -> None:
    both = {"heldout_paths": changes.get("paths", [str(folder / "in")])} | changes
    data = prepare_records(config(folder, source, **both), BYTES, kind, model)
    check_records(data)
    for store in data.stores.values():
        store.rows_of(list(store.columns), TRAIN, np.arange(len(store.rows[TRAIN])))


def classify(folder: Path) -> None:
    records(folder, ObjectiveKind.classify, BERTConfig(**TINY))


def regress(folder: Path) -> None:
    records(folder, ObjectiveKind.regress, BERTConfig(**TINY), paths=[str(folder / "in" / "a.json")])


def chat(folder: Path) -> None:
    records(folder, ObjectiveKind.chat, GPTConfig(**TINY), seq_len=32)


def images(folder: Path) -> None:
    model = ViTConfig(image_size=4, patch_size=2, num_channels=3, num_layers=1, num_heads=1, embed_dim=8)
    records(folder, ObjectiveKind.classify, model, Source.image_folder, resize=True)


def sounds(folder: Path) -> None:
    records(folder, ObjectiveKind.seq2seq, EncDecConfig(**TINY, num_mels=8), Source.audio_folder, seq_len=32)


def text(folder: Path) -> None:
    store = prepare(config(folder, Source.text_files, id_key="id", weight_key="w"), BYTES).stores["text"]
    store.read(TRAIN, [0], [store.num_tokens(TRAIN)])


def plain(folder: Path) -> None:
    prepare(config(folder, Source.text_files), BYTES)


def prompts(folder: Path) -> None:
    for path in (folder / "in").iterdir():
        for prompt in read_prompts(GenerateConfig(prompts_file=str(path))):
            prompt.encode()


def idx(folder: Path) -> None:
    read_idx(folder / "in" / "a-images-idx3-ubyte")


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def encoded(suffix: str) -> bytes:
    """A small image, or 30 ms of sound."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    if suffix in ("wav", "flac", "ogg"):
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(file, rng.normal(0, 0.1, 480), 16_000, format=suffix)
        return file.getvalue()
    image = pytest.importorskip("PIL.Image").fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image.save(file, suffix)
    return file.getvalue()


def table() -> bytes:
    pyarrow, file = pytest.importorskip("pyarrow"), io.BytesIO()
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: [row[name] for row in MAIL] for name in ("text", "label")}), file)
    return file.getvalue()


CSV = ("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in MAIL)).encode()
KINDS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[Path], None]]] = {
    "jsonl": (lambda: {"a.jsonl": jsonl(MAIL)}, classify),
    "csv": (lambda: {"a.csv": CSV, "b.tsv.gz": gzip.compress(CSV.replace(b",", b"\t"), mtime=0)}, classify),
    "json": (lambda: {"a.json": json.dumps(MAIL).encode()}, regress),
    "parquet": (lambda: {"a.parquet": table()}, classify),
    "chat": (lambda: {"a.jsonl": jsonl(TALK)}, chat),
    "documents": (lambda: {"a.jsonl": jsonl(MAIL), "b.jsonl": jsonl(MAIL)}, text),
    "text": (lambda: {"a.txt": b"one \xc3\xa9\n" * 9, "b.txt.gz": gzip.compress(b"two\n" * 9, mtime=0)}, plain),
    "prompts": (lambda: {"a.jsonl": jsonl([{"prompt": "é"}] * 3), "b.txt": b"\xc3\xa9\nb\n", "c.csv": b"prompt\nx\n"},
                prompts),
    "images": (lambda: {f"{n}/a.{n}": encoded(n) for n in ("png", "jpeg", "gif", "bmp", "tiff", "webp")}, images),
    "sounds": (lambda: {f"{n}.{n}": encoded(n) for n in ("wav", "flac", "ogg")}
               | {f"{n}.txt": b"\xc3\xa9" for n in ("wav", "flac", "ogg")}, sounds),
    "idx": (lambda: {"a-images-idx3-ubyte": b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02" + bytes(8)}, idx),
}  # fmt: skip


def one_line(error: Exception, what: str) -> None:
    assert isinstance(error, UserError), f"{what}: {type(error).__name__}: {error}"
    str(error).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_named(tmp_path: Path, kind: str) -> None:
    make, read = KINDS[kind]
    files, rng = make(), random.Random(kind)
    ended = set()
    for number in range(1 + ROUNDS * (MORE if kind in CHEAP else 1)):  # the first is whole
        folder = tmp_path / str(number)
        victim = rng.choice(sorted(files)) if number else ""
        for name, data in files.items():
            (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            data = mutated(data, rng, name.endswith("l")) if name == victim else data
            (folder / "in" / name).write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
            ended.add("read")
        except Exception as error:
            one_line(error, f"{kind} {number} {victim}")
            ended.add("named" if number else f"the whole one is refused: {error}")
        made = [one for one in (folder / "cache").glob("*/*") if not one.name.startswith(".")]
        assert all(any((one / name).is_file() for name in WHOLE) for one in made)
    assert "read" in ended
    assert ended <= {"read", "named"}


def read_tokens(store: Path) -> None:
    check_store(str(store))
    found = TokenStore(store)
    for split in (TRAIN, HELDOUT):
        found.read(split, [0], [found.num_tokens(split)])
        ends = found.document_ends(split)
        for number in range(len(ends)):
            found.document_name(split, number)


def read_records(store: Path) -> None:
    check_store(str(store))
    for skip in (False, True):
        found = RecordStore(store, 2, skip_corrupt=skip)
        for split in (TRAIN, HELDOUT):
            found.rows_of(list(found.columns), split, np.arange(len(found.rows[split])))


@pytest.mark.parametrize("kind", ["tokens", "records"])
def test_a_damaged_store_is_read_or_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl(MAIL))
    if kind == "tokens":
        store, read = Path(prepare(config(tmp_path, Source.text_files), BYTES).stores["text"].place), read_tokens
    else:
        how = config(tmp_path, Source.records, heldout_paths=[str(tmp_path / "in")])
        data = prepare_records(how, BYTES, ObjectiveKind.classify, BERTConfig(**TINY))
        store, read = Path(data.stores["records"].place), read_records
    read(store)
    files = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
    described = [path for path in files if path.name in ("meta.json", "files.json")]
    rng, named = random.Random(kind), 0
    for number in range(ROUNDS * MORE):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(store, copy)
        victim = rng.choice(described if rng.random() < 0.6 else files)
        (copy / victim).write_bytes(mutated((store / victim).read_bytes(), rng, False))
        try:
            read(copy)
        except Exception as error:
            one_line(error, f"{number} {victim}: {(copy / victim).read_bytes()[:2000]!r}")
            named += 1
    assert named, "damage is seen"
