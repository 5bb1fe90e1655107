"""A model's configuration goes to a file and comes back."""

from pathlib import Path

import pytest
import yaml

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.paths import options_of
from lmkit.config.saved import FAMILIES, from_plain, read_model, write_model
from lmkit.config.sections import OptimConfig, ParamKind


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
    ({"family": "gtp", "model": {}}, ["'gtp'", *FAMILIES]),
    ([1], ["None"]),
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
