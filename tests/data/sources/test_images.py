"""Pixels come out as they went in; random changes are a function of the row's key."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.data.keyed import hash64
from lmkit.data.sources.images import augment, read_idx, read_image

Image = pytest.importorskip("PIL.Image", reason="LOUD: image files are not tested; pip install 'lmkit[vision]'")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
KEYS = hash64(np.arange(8), 3)
ALL = {"flip": True, "crop_pixels": 2, "rotate_degrees": 20.0, "scale": 0.2}


def test_colour_and_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS[0]).save(path)
    read = read_image(path, 9, 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, PIXELS[0])
    grey = read_image(path, 9, 1)
    assert grey.shape == (9, 9, 1)
    np.testing.assert_allclose(grey[..., 0], PIXELS[0] @ [0.299, 0.587, 0.114], atol=1)  # ITU-R 601 luma
    Image.fromarray(grey[..., 0]).save(path)
    np.testing.assert_array_equal(read_image(path, 9, 3), np.repeat(grey, 3, axis=2))


def test_a_photo_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS[0])
    image.getexif()[0x0112] = 3  # held upside down
    image.save(tmp_path / "a.png", exif=image.getexif())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 9, 3), PIXELS[0][::-1, ::-1])


def test_another_size(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((10, 20, 3), [10, 20, 30], np.uint8)).save(path)
    with pytest.raises(ConfigError, match=r"wide.png is 20x10, the model takes 16x16.*model.image_size"):
        read_image(path, 16, 3)
    np.testing.assert_array_equal(read_image(path, 16, 3, resize=True), np.full((16, 16, 3), [10, 20, 30]))


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    hidden = np.concatenate([PIXELS[0], np.full((9, 9, 1), 255, np.uint8)], axis=-1)
    hidden[:3, :, 3] = 0
    hidden[3, :, 3] = 128
    Image.fromarray(hidden).save(path)
    read = read_image(path, 9, 3)
    assert (read[:3] == 255).all()
    np.testing.assert_allclose(read[3], PIXELS[0, 3] * (128 / 255) + 127, atol=1)
    np.testing.assert_array_equal(read[4:], PIXELS[0, 4:])
    Image.fromarray(hidden[..., [0, 3]]).save(path)
    grey = read_image(path, 9, 1)
    assert (grey[:3] == 255).all()
    np.testing.assert_array_equal(grey[4:, :, 0], hidden[4:, :, 0])
    indexed = Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).convert("P")
    indexed.save(path, transparency=7)
    assert read_image(path, 9, 3)[0, 7].tolist() == [255] * 3
    Image.fromarray(PIXELS[0]).save(path, transparency=tuple(PIXELS[0, 0, 0].tolist()))
    assert read_image(path, 9, 3)[0, 0].tolist() == [255] * 3


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    whole, cut, text, deep = (tmp_path / name for name in ("whole.png", "cut.png", "text.jpg", "deep.png"))
    Image.fromarray(PIXELS[0]).save(whole)
    cut.write_bytes(whole.read_bytes()[:200])
    text.write_text("no image")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(deep)
    for path, reason in ((cut, "cannot be"), (text, "cannot be"), (tmp_path / "no.png", "No such"), (deep, "8 bits")):
        with pytest.raises(ConfigError, match=f"{path}.*{reason}"):
            read_image(path, 9, 3)
    with pytest.raises(ConfigError, match="not 4"):
        read_image(whole, 9, 4)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmkit\[vision\]'"):
        read_image("a.png", 9, 3)


HEADER = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x03\0\0\0\x04"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx(pack, tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(pack(HEADER + bytes(range(24))))
    array = read_idx(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG....", "starts with 89504e47"),
        (b"\0\0\x0d" + HEADER[3:] + bytes(96), "000008"),  # floats
        (HEADER + bytes(23), r"cut short: 39 bytes, 40 for sizes \(2, 3, 4\)"),
        (HEADER + bytes(25), "too long: 41 bytes, 40"),
        (HEADER[:9], "cut short"),
        (gzip.compress(HEADER + bytes(24), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8bnonsense", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_a_wrong_idx_file_is_named(data: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{path}.*{reason}"):
        read_idx(path)


def test_nothing_changes_with_all_switches_off() -> None:
    out = augment(PIXELS, KEYS)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, PIXELS)


@pytest.mark.parametrize("switches", [ALL, *({name: value} for name, value in ALL.items())], ids=str)
def test_a_row_depends_on_its_key_and_pixels_only(switches: dict) -> None:
    before = PIXELS.copy()
    together = augment(PIXELS, KEYS, **switches)
    np.testing.assert_array_equal(PIXELS, before)
    assert (together != PIXELS).any(axis=(1, 2, 3)).sum() >= 2
    for row in range(8):
        alone = augment(PIXELS[row : row + 1], KEYS[row : row + 1], **switches)
        np.testing.assert_array_equal(alone[0], together[row])
    same_pixels = augment(np.repeat(PIXELS[:1], 8, axis=0), KEYS, **switches)
    assert len(np.unique(same_pixels.reshape(8, -1), axis=0)) >= 2


def test_flip_mirrors_half_of_the_rows() -> None:
    keys = np.arange(2000, dtype=np.uint64)
    image = np.broadcast_to(np.arange(6.0, dtype=np.float32).reshape(1, 2, 3, 1), (2000, 2, 3, 1))
    out = augment(image, keys, flip=True)
    mirrored = (out == image[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((out == image).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.04  # three and a half standard deviations


def test_crop_shifts_by_whole_pixels_and_pads_with_zeros() -> None:
    image = np.zeros((400, 5, 5, 1), np.uint8)
    image[:, 2, 2] = 100
    out = augment(image, np.arange(400, dtype=np.uint64), crop_pixels=2)
    assert set(np.unique(out)) == {0.0, 100.0}
    places = {tuple(np.argwhere(one[..., 0])[0]) for one in out}
    assert places == {(row, column) for row in range(5) for column in range(5)}
    edge = np.full((100, 5, 5, 1), 7, np.float32)
    left = np.count_nonzero(augment(edge, np.arange(100, dtype=np.uint64), crop_pixels=1), axis=(1, 2, 3))
    assert set(left) == {25, 20, 16}


def test_rotation_keeps_the_centre_and_stays_in_range() -> None:
    image = np.zeros((200, 21, 21, 1), np.float32)
    image[:, 10, 10:19] = 1.0  # a hand that points right, 8 pixels long
    out = augment(image, np.arange(200, dtype=np.uint64), rotate_degrees=30)[..., 0]
    np.testing.assert_allclose(out[:, 10, 10], 1.0, atol=1e-6)
    rows, columns = np.mgrid[:21, :21] - 10
    tips = out * (columns >= 6)
    angles = np.degrees(np.arctan2((tips * rows).sum((1, 2)), (tips * columns).sum((1, 2))))
    assert angles.min() == pytest.approx(-30, abs=2)
    assert angles.max() == pytest.approx(30, abs=2)


def test_scale_magnifies_about_the_centre() -> None:
    image = np.zeros((200, 21, 21, 1), np.float32)
    image[:, 6:15, 6:15] = 1.0
    sides = np.sqrt(augment(image, np.arange(200, dtype=np.uint64), scale=0.25).sum((1, 2, 3)))
    assert sides.min() == pytest.approx(9 * 0.75, abs=0.4)  # an edge is sampled at whole pixels
    assert sides.max() == pytest.approx(9 * 1.25, abs=0.4)
    out = augment(image, np.arange(200, dtype=np.uint64), scale=0.25)
    np.testing.assert_allclose(out, out[:, ::-1, ::-1], atol=1e-5)


def test_bad_switches_are_named() -> None:
    for switches in ({"scale": 1.0}, {"crop_pixels": -1}, {"rotate_degrees": -5.0}):
        with pytest.raises(ConfigError, match=next(iter(switches))):
            augment(PIXELS, KEYS, **switches)
    with pytest.raises(ValueError, match="keys"):
        augment(PIXELS, KEYS[:3])
