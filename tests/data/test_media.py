"""Images and sounds in tables, beside transcripts, and in stores."""

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from PIL import Image

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.config.sections.families import EncDecConfig, ViTConfig
from lmkit.data.batches.fields import Images
from lmkit.data.batches.text_fields import Sounds
from lmkit.data.sources.audio import log_mel
from lmkit.data.sources.records import Record, RecordSource

VIT = ViTConfig(image_size=4, patch_size=2, num_channels=1, num_layers=1, num_heads=1, embed_dim=8)
PIXELS = np.arange(16, dtype=np.uint8).reshape(4, 4)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    return file.getvalue()


def tone(hertz: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(1600) / 16_000)).astype(np.float32)


def flac(hertz: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(hertz), 16_000, format="flac")
    return file.getvalue()


def records(kind: Source, path: Path | str) -> list[Record]:
    return list(RecordSource(kind, [str(path)], [], DataConfig(source=kind)).records())


def pixels(found: list[Record]) -> list[np.ndarray]:
    return [one["image"][..., 0] for one in Images(DataConfig(), VIT).encode(found)]  # type: ignore[call-overload]


def test_parquet_with_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="LOUD: pyarrow is not installed, .parquet is not tested")
    from pyarrow import parquet

    (tmp_path / "beside.png").write_bytes(png())
    struct = [{"bytes": png(), "path": "a.png"}, {"bytes": None, "path": "beside.png"}]
    parquet.write_table(pyarrow.table({"image": struct, "label": [1, 0]}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"image": [png()], "label": ["x"]}), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"image": [b"no image"], "label": ["x"]}), tmp_path / "c.parquet")
    found = records(Source.records, tmp_path)
    assert all((image == PIXELS).all() for image in pixels(found[:3]))
    with pytest.raises(ConfigError, match=r"c\.parquet record 1 cannot be read as an image"):
        pixels(found[3:])


def test_images_and_sounds_of_a_store(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/media/cat/1.png": png(), "/media/dog/2.png": png(), "/sound/a.flac": flac(440)})
    memory.pipe({"/sound/a.txt": b"one tone\n"})
    found = records(Source.image_folder, "memory://media")
    assert [one.fields["label"] for one in found] == ["cat", "dog"]
    assert all((image == PIXELS).all() for image in pixels(found))
    (sound,) = records(Source.audio_folder, "memory://sound")
    assert sound.fields["target"] == "one tone"
    _frames_are_of(sound, 440)
    header = b"\0\0\x08\x03\0\0\0\x01\0\0\0\x04\0\0\0\x04"
    memory.pipe({"/idx/train-images-idx3-ubyte": header + PIXELS.tobytes()})
    memory.pipe({"/idx/train-labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x01\x07"})
    (digit,) = records(Source.idx, "memory://idx")
    assert (digit.fields["image"][..., 0] == PIXELS).all()
    assert digit.fields["label"] == "7"


def _frames_are_of(record: Record, hertz: float) -> None:
    part = Sounds(DataConfig(), EncDecConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8, num_mels=8))
    (row,) = part.encode([record])
    expected = (
        log_mel(tone(hertz), 8, num_frames=2048)[: -(-len(tone(hertz)) // 160) + 3].astype(np.float16).reshape(-1)
    )
    np.testing.assert_allclose(row["frames"], expected, atol=0.02)  # flac rounds to 16 bits


def test_transcripts_beside_sounds(tmp_path: Path) -> None:
    chapter = tmp_path / "84" / "121123"
    chapter.mkdir(parents=True)
    for name, hertz in (("84-121123-0000", 300), ("84-121123-0001", 900)):
        (chapter / f"{name}.flac").write_bytes(flac(hertz))
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 IF YOU WILL\n")
    soundfile.write(tmp_path / "own.wav", tone(500), 16_000)
    (tmp_path / "own.txt").write_text(" its own words \n")
    found = records(Source.audio_folder, tmp_path)
    assert {one.name: one.fields["target"] for one in found} == {
        "84/121123/84-121123-0000.flac": "GO ON", "84/121123/84-121123-0001.flac": "IF YOU WILL",
        "own.wav": "its own words",
    }  # fmt: skip
    for one, hertz in zip(found, (300, 900, 500), strict=True):
        _frames_are_of(one, hertz)
    (tmp_path / "own.txt").unlink()
    with pytest.raises(ConfigError, match=r"own\.wav has no transcript"):
        records(Source.audio_folder, tmp_path)
