"""Which options a program is compiled with, with compilers that are not there."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from helpers import tiny_experiment
from lmkit.compiler.choice import PLAIN, TPU_OPTIONS, WHOLE, choice_file, compile_fastest
from lmkit.config.base import ConfigError
from lmkit.config.sections.run import CollectiveMatmul
from lmkit.core import options as module
from lmkit.core.options import compile_lowered, tpu_candidates

OPTIONS = {"plain": {}, "other": {"flag": "1"}}


class Lowered:
    """What jax lowered: the text of its program is its options; it notes what is compiled."""

    def __init__(self, *, too_large: tuple[str, ...] = (), text: str = "module") -> None:
        self.compiled, self.too_large, self.text = [], too_large, text

    def as_text(self) -> str:
        return self.text

    def compile(self, options: dict[str, Any] | None) -> Any:
        text = json.dumps(options)
        self.compiled.append(text)
        if text in self.too_large:
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
        return SimpleNamespace(as_text=lambda: text)


def faster_with(text: str):
    return lambda found: 1.0 if found == text else 2.0


PLAIN_TEXT, OTHER_TEXT = "null", '{"flag": "1"}'


@pytest.mark.parametrize(("fast", "name"), [(PLAIN_TEXT, "plain"), (OTHER_TEXT, "other")])
def test_the_faster_is_kept_and_remembered(fast: str, name: str, tmp_path: Path) -> None:
    path, lowered = tmp_path / "options" / "x.json", Lowered()
    found = compile_fastest(lowered, OPTIONS, faster_with(fast), path)
    assert (found.name, found.compiled.as_text(), lowered.compiled) == (name, fast, [PLAIN_TEXT, OTHER_TEXT])
    assert found.seconds[name] == min(found.seconds.values()) == 1.0
    assert "compiler options: " + name in found.words
    again = Lowered()

    def never(text: str) -> float:
        raise AssertionError("it was measured before")

    second = compile_fastest(again, OPTIONS, never, path)
    assert (second.name, again.compiled, second.seconds) == (name, [fast], found.seconds)


@pytest.mark.parametrize("text", ["{", "[]", '{"options": "gone", "seconds": {}}', '{"options": "plain"}'])
def test_a_damaged_memory_is_no_choice(text: str, tmp_path: Path) -> None:
    path, lowered = tmp_path / "x.json", Lowered()
    path.write_text(text)
    assert compile_fastest(lowered, OPTIONS, faster_with(OTHER_TEXT), path).name == "other"
    assert json.loads(path.read_text())["options"] == "other"


def test_what_does_not_fit_is_no_candidate() -> None:
    lowered = Lowered(too_large=(PLAIN_TEXT,))
    assert compile_fastest(lowered, OPTIONS, faster_with(PLAIN_TEXT), None).name == "other"
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: .*flag"):
        compile_fastest(Lowered(too_large=(PLAIN_TEXT, OTHER_TEXT)), OPTIONS, faster_with(""), None)


def test_one_candidate_is_not_measured_and_an_unknown_clock_takes_the_first(tmp_path: Path) -> None:
    def unknown(text: str) -> float:
        raise ConfigError("no clock")

    assert compile_fastest(Lowered(), {"plain": {}}, unknown, None).words == ""
    path = tmp_path / "x.json"
    found = compile_fastest(Lowered(), OPTIONS, unknown, path)
    assert (found.name, found.words, path.exists()) == ("plain", "", False)


def test_a_choice_belongs_to_a_program_and_a_compiler(tmp_path: Path) -> None:
    files = {
        choice_file(tmp_path, Lowered(text=text), version) for text in ("a", "b", "a") for version in ("libtpu 1", "2")
    }
    assert len(files) == 4
    assert {file.parent for file in files} == {tmp_path / "options"}


@pytest.mark.parametrize(
    ("asked", "platform", "axis", "names"),
    [
        ("auto", "tpu", "fsdp", [PLAIN, WHOLE]), ("auto", "tpu", "data", [PLAIN]), ("auto", "gpu", "fsdp", [PLAIN]),
        ("compiler", "tpu", "fsdp", [PLAIN]), ("never", "tpu", "tensor", [WHOLE]), ("never", "cpu", "fsdp", [PLAIN]),
    ],
)  # fmt: skip
def test_only_split_weights_on_a_tpu_have_a_choice(
    asked: str, platform: str, axis: str, names: list[str], monkeypatch
) -> None:
    monkeypatch.setattr(module, "platform_of", lambda mesh: platform)
    blueprint: Any = SimpleNamespace(mesh=SimpleNamespace(shape={axis: 8}))
    assert list(tpu_candidates(CollectiveMatmul[asked], blueprint)) == names


def test_the_step_is_measured_on_the_hardware_that_is_there(tmp_path: Path, monkeypatch) -> None:
    """With texts that differ in their cycles alone; remembered in the cache's folder."""
    line = 'ENTRY %m (p: f32[8]) -> f32[8] {{\n  %f = f32[8]{{0}} fusion(%p), calls=%x, "estimated_cycles":"{}"\n}}\n'
    cycles = {"null": 3006, json.dumps(TPU_OPTIONS[WHOLE]): 1503}
    monkeypatch.setattr(module, "platform_of", lambda mesh: "tpu")
    client = SimpleNamespace(platform_version="libtpu 1")
    devices = SimpleNamespace(flat=[SimpleNamespace(device_kind="TPU v5 lite", client=client)], size=8)
    blueprint: Any = SimpleNamespace(mesh=SimpleNamespace(shape={"fsdp": 8}, devices=devices))

    class Measured(Lowered):
        def compile(self, options: dict[str, Any] | None) -> Any:
            text = super().compile(options).as_text()
            return SimpleNamespace(as_text=lambda: line.format(cycles[text]))

    found = compile_lowered(tiny_experiment(), blueprint, Measured(), str(tmp_path))
    assert found.name == WHOLE
    assert found.seconds == pytest.approx({PLAIN: 2e-6, WHOLE: 1e-6}, rel=1e-3)  # a v5e has 1.503 GHz
    assert len(list((tmp_path / "options").iterdir())) == 1
    again = Measured()
    assert compile_lowered(tiny_experiment(), blueprint, again, str(tmp_path)).name == WHOLE
    assert len(again.compiled) == 1
    asked = compile_lowered(tiny_experiment("run.collective_matmul=compiler"), blueprint, Measured(), str(tmp_path))
    assert (asked.name, asked.seconds) == (PLAIN, {})
