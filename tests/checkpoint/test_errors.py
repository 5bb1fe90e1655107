"""Checkpoints that are not there, or of another model, are named with both shapes and the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmkit.checkpoint import Checkpoints, find_checkpoint, load_params, load_part
from lmkit.config.base import ConfigError
from lmkit.config.sections.checkpoint import CheckpointConfig


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())
    params = {"norm": {"scale": jnp.ones(4)}, "table": jnp.ones((2, 3))}
    checkpoints.save(1, {"step": jnp.zeros((), jnp.int32), "params": params}, last=True)
    checkpoints.close()
    return folder


FITTING = {"norm": {"scale": shape(4)}, "table": shape(2, 3)}
WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (lambda run: find_checkpoint(run / "checkpoints" / "1" / "params"), "no checkpoint there"),
    (
        lambda run: Checkpoints(Path("gs://bucket/run"), CheckpointConfig()),
        "go to a local path .a mounted bucket",
    ),
    (lambda run: find_checkpoint(str(run.parent / "nowhere")), "nowhere: no checkpoint there"),
    (lambda run: load_params(run, FITTING | {"table": shape(2, 4)}), r"table \[2, 3\] instead of \[2, 4\]"),
    (lambda run: load_params(run, FITTING | {"head": shape(2)}), r"missing: head \[2\]; give the configuration"),
    (lambda run: load_params(run, FITTING | {"norm": shape(4)}), r"missing: norm \[4\]"),
    (lambda run: load_params(run, [shape(4)]), "a tree of parameters is a list: give a nested dict"),
    (lambda run: load_part(run / "checkpoints" / "1", "ema", {"head": shape(2)}), "ema has no head"),
    (lambda run: Checkpoints(run / "new", CheckpointConfig()).save(1, [1]), "the state is a list: give a dict"),
    (lambda run: Checkpoints(run / "new", CheckpointConfig()).restore([1]), "the state is a list: give a dict"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call(run: Path, wrong: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        wrong(run)
    assert "\n" not in str(caught.value)


def test_a_path_as_text(run: Path) -> None:
    params, place = load_params(str(run), FITTING)
    assert place == str(run / "checkpoints" / "1")
    assert params["table"].shape == (2, 3)


@pytest.mark.parametrize("damage", [b"", b'{"a": [1', b"[]", b"{}", b'{"a": 3}', b'{"a": ["1", 2]}', b"\xff"])
def test_a_damaged_manifest_is_a_damaged_checkpoint(tmp_path: Path, damage: bytes) -> None:
    """The one before is used, by a resume and by init_from."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    state = {"step": jnp.zeros((), jnp.int32), "params": {"table": jnp.ones((2, 3))}}
    for step in (1, 2):
        checkpoints.save(step, state, last=True)
    checkpoints.wait()
    (tmp_path / "checkpoints" / "2" / "lmkit_manifest.json").write_bytes(damage)
    place, _, problems = find_checkpoint(tmp_path)
    assert place.name == "1"
    assert [problem.endswith("2: lmkit_manifest.json is damaged") for problem in problems] == [True]
    found = checkpoints.restore({"step": shape(), "params": {"table": shape(2, 3)}})
    checkpoints.close()
    assert found is not None
    assert found[1:] == (1, ["checkpoint 2 is not used: lmkit_manifest.json is damaged"])
