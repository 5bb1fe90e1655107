"""The catalogue, and how a device and its number are written."""

import math
import re

import pytest

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.paths import options_of
from lmkit.config.sections.hardware import HardwareConfig, sides_of, sized

ENTRIES = [name for name in options_of("hardware") if name != "auto"]


def hardware(option: str) -> HardwareConfig:
    return compose(["run.name=x", f"hardware={option}"]).hardware


@pytest.mark.parametrize(
    ("option", "name", "devices", "sides"),
    [
        ("h100_64", "h100", 64, ()),
        ("a100_40gb_16", "a100_40gb", 16, ()),
        ("v5p_512", "tpu_v5p", 512, (8, 8, 8)),
        ("tpu_v5p_512", "tpu_v5p", 512, (8, 8, 8)),
        ("v5p:8x8x16", "tpu_v5p", 1024, (8, 8, 16)),
        ("v5p:4x4x12", "tpu_v5p", 192, (4, 4, 12)),
        ("v7x_512", "tpu_v7x", 512, (4, 8, 8)),  # a chip is two devices
        ("v7x:4x4x4", "tpu_v7x", 128, (4, 4, 4)),
        ("v6e_256", "tpu_v6e", 256, (16, 16)),
    ],
)
def test_a_device_and_a_number(option: str, name: str, devices: int, sides: tuple[int, ...]) -> None:
    found = hardware(option)
    assert (found.name, found.devices, found.slice_sides(1)) == (name, devices, sides)


def test_slices_of_a_job_are_equal() -> None:
    assert hardware("v5e_512").slice_sides(2) == (16, 16)
    with pytest.raises(ConfigError, match=r"devices=512: tpu_v5e has no slice of so many.*are 128 and 256.*mesh.dcn"):
        hardware("v5e_512").slice_sides(1)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("h10_64", ["no hardware named 'h10_64'", "Did you mean 'h100'?", "tpu_v5p"]),
        ("v5q:8x8x8", ["no hardware named 'v5q:8x8x8'", "Did you mean 'v5p'?"]),
        ("v5p:8x8x8x8", ["hardware=v5p:8x8x8x8", "such as 8x8x8"]),
    ],
)
def test_what_is_not_there_names_the_nearest(option: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        hardware(option)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_slice_that_is_not_offered_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"topology=8x8x7: tpu_v5p has no such slice. Did you mean 8x8x8"):
        hardware("v5p:8x8x7").slice_sides(1)
    with pytest.raises(ConfigError, match=r"devices=500: tpu_v5p has no slice of so many; the nearest are 256 and 512"):
        hardware("v5p_500").slice_sides(1)
    with pytest.raises(ConfigError, match=r"hardware.topology=8: a topology is chips along two or three sides"):
        HardwareConfig(topology="8")


def test_plain_names_are_left_to_their_files() -> None:
    assert sized("h100") is None
    assert sized("auto") is None


@pytest.mark.parametrize("name", ENTRIES)
def test_every_figure_has_its_source(name: str) -> None:
    entry = hardware(name)
    assert entry.name == name
    assert len(entry.source) > 20
    assert entry.memory_gib >= 8
    assert entry.bf16_tflops > 0
    assert bool(entry.price_usd_per_hour) == bool(re.search(r"\b20\d\d\b", entry.price_source)), "a price has a date"
    if entry.platform == "cpu":
        return
    assert entry.bf16_tflops > 100
    assert 1000 * entry.bf16_tflops / entry.memory_gb_per_sec > 100, "FLOPs a byte"
    assert entry.memory_gb_per_sec > entry.link_gb_per_sec > entry.dcn_gb_per_sec
    assert (entry.platform == "tpu") == bool(entry.slices)
    chips = [math.prod(sides_of(one)) for one in entry.slices]
    assert chips == sorted(set(chips))
