"""A model's configuration goes to a file and comes back."""

from pathlib import Path

import pytest
import yaml

from lmkit.config import ConfigError, saved
from lmkit.config.entry import compose
from lmkit.config.experiment import to_plain
from lmkit.config.paths import options_of
from lmkit.config.saved import FAMILY_SCHEMAS, from_plain, read_experiment, read_model, take_blocks, write_model
from lmkit.config.sections.families import CLIPConfig, GPTConfig, ViTConfig
from lmkit.config.sections.optim import OptimConfig, ParamKind


@pytest.mark.parametrize("preset", options_of("model"))
def test_every_preset_comes_back(preset: str, tmp_path: Path) -> None:
    config = compose(["run.name=x", f"model={preset}"]).model
    write_model(tmp_path, config)
    assert read_model(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]


def test_lists_and_absent_keys() -> None:
    assert from_plain(OptimConfig, {"decay": ["matrix", "vector"]}, "optim").decay == [
        ParamKind.matrix, ParamKind.vector,
    ]  # fmt: skip
    assert from_plain(OptimConfig, {}, "optim") == OptimConfig()
    assert from_plain(OptimConfig, {"clip_norm": 1}, "optim").clip_norm == 1.0


@pytest.mark.parametrize(("saved", "parts"), [
    ({"family": "gtp", "model": {}}, ["'gtp'", *FAMILY_SCHEMAS]),
    ([1], ["model.yaml holds a list"]),
    ({"family": "gpt", "model": {"num_layer": 2}}, ["'num_layer'", "'num_layers'"]),
    ({"family": "gpt", "model": {"num_layers": "two"}}, ["num_layers='two'", "int"]),
    ({"family": "gpt", "model": {"num_layers": True}}, ["num_layers=True", "int"]),
    ({"family": "gpt", "model": {"position": "rop"}}, ["position='rop'", "rope"]),
    ({"family": "clip", "model": {"text": {"num_haeds": 2}}}, ["model.text", "'num_heads'"]),
    ({"family": "gpt"}, ["model=None"]),
])  # fmt: skip
def test_what_is_not_valid_is_named(saved: object, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError) as caught:
        read_model(tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.yaml cannot be read"):
        read_model(tmp_path)


MIXTURE = "+data.mixture={a: {paths: [x], weight: 2, max_epochs: 1.5}, b: {source: python_stdlib, final_weight: 0}}"


@pytest.mark.parametrize("name", options_of("experiment"))
def test_every_experiment_comes_back(name: str, tmp_path: Path) -> None:
    experiment = compose([f"+experiment={name}", MIXTURE, "data.anneal_to_step=9", "+data.class_weights={a: 2}"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(experiment), sort_keys=False))
    write_model(tmp_path, experiment.model)
    assert read_experiment(tmp_path) == experiment
    changed = read_experiment(tmp_path, {"data.seq_len": 8, "run.seed": 5, "data.mixture.a.weight": 3})
    assert (changed.data.seq_len, changed.run.seed, changed.data.mixture["a"].weight) == (8, 5, 3.0)


@pytest.mark.parametrize(("changes", "parts"), [
    ({"data.seq_lne": 4}, ["data", "'seq_lne'", "'seq_len'"]),
    ({"dta.seq_len": 4}, ["dta.seq_len=4", "no such key"]),
    ({"model.num_layers": 4}, ["model.num_layers=4"]),
    ({"data.mixture.c.weight": 4}, ["data.mixture.c.weight=4"]),
    ({"data.seq_len": "x"}, ["data.seq_len='x'", "int"]),
    ({"data.mixture": {"a": {"wieght": 1}}}, ["data.mixture.a", "'wieght'", "'weight'"]),
])  # fmt: skip
def test_what_is_not_valid_of_a_run_is_named(changes: dict, parts: list[str], tmp_path: Path) -> None:
    experiment = compose(["+experiment=gpt_tiny", MIXTURE, "data.anneal_to_step=9"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(experiment)))
    write_model(tmp_path, experiment.model)
    with pytest.raises(ConfigError) as caught:
        read_experiment(tmp_path, changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_run_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        read_experiment(tmp_path)
    (tmp_path / "config.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        read_experiment(tmp_path)
    (tmp_path / "config.yaml").write_text("modle: {}")
    with pytest.raises(ConfigError, match="'modle'.*'model'"):
        read_experiment(tmp_path)


def test_code_is_imported_only_where_the_command_line_names_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the model.yaml of a run from somewhere else could run code of its own."""
    monkeypatch.setattr(saved, "_blocks", set())
    model = GPTConfig(vocab_size=9, num_layers=1, num_heads=1, embed_dim=8, block="helper:B")
    write_model(tmp_path, model)
    with pytest.raises(ConfigError, match=r"names code to import, model.block=helper:B, .* add model.block=helper:B"):
        read_model(tmp_path)
    assert read_model(tmp_path, to_build=False) == model
    assert take_blocks(["init_from=x", "model.block=other:C"]) == ["init_from=x"]
    with pytest.raises(ConfigError, match="helper:B"):
        read_model(tmp_path)
    compose(["+experiment=gpt_tiny", "model.block=helper:B"])  # as train and plan do
    assert read_model(tmp_path) == model


def test_a_towers_block_is_named_by_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "_blocks", set())
    small = {"num_layers": 1, "num_heads": 1, "embed_dim": 8}
    write_model(tmp_path, CLIPConfig(text=GPTConfig(**small), vision=ViTConfig(**small, block="helper:B")))
    with pytest.raises(ConfigError, match=r"add model.vision.block=helper:B"):
        read_model(tmp_path)
    take_blocks(["model.vision.block=helper:B"])
    assert isinstance(read_model(tmp_path), CLIPConfig)
