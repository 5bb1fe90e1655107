"""Saved sharded and atomic, kept as asked, restored on any mesh, and never trusted blindly."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import leaves_equal, tiny_experiment
from lmkit.checkpoint import CheckpointError, Checkpoints, find_checkpoint, load_params
from lmkit.config import ConfigError
from lmkit.config.entry import explain
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.core.state import Blueprint, State, init_state, make_blueprint
from lmkit.parallel.mesh import build_mesh


def make(*overrides: str, devices: int = 8) -> tuple[Blueprint, State]:
    experiment = tiny_experiment("optim=muon", *overrides)
    mesh = build_mesh(experiment.mesh, jax.devices()[:devices])
    blueprint = make_blueprint(experiment.model, experiment.optim, 100, mesh)
    return blueprint, init_state(blueprint, 0)


def data_files(folder: Path) -> list[Path]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "lmkit_manifest.json"]
    return sorted(files, key=lambda p: p.stat().st_size)


def test_restored_on_another_mesh_bit_for_bit(tmp_path: Path) -> None:
    _, state = make("mesh.data=1", "mesh.fsdp=8")
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    checkpoints.save(7, state)
    checkpoints.close()
    for overrides, devices in ((["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"], 8), (["mesh.data=1"], 1)):
        blueprint, _ = make(*overrides, devices=devices)
        restored = Checkpoints(tmp_path / "checkpoints", CheckpointConfig()).restore(blueprint.shapes)
        assert restored is not None
        got, step, notes = restored
        assert (step, notes) == (7, [])
        assert leaves_equal(got, state)
        for leaf, shape in zip(jax.tree.leaves(got), jax.tree.leaves(blueprint.shapes), strict=True):
            assert leaf.sharding == shape.sharding


def test_stages_leave_no_trace_in_a_checkpoint(tmp_path: Path) -> None:
    """Saved by four stages in two rounds, restored by fsdp=4, and the other way round."""
    layers, stages = "model.num_layers=8", ["mesh.data=1", "mesh.stage=4", "model.rounds=2"]
    for number, (here, there) in enumerate(((stages, ["mesh.data=1", "mesh.fsdp=4"]), (["mesh.data=4"], stages))):
        _, state = make(layers, *here, devices=4)
        checkpoints = Checkpoints(tmp_path / str(number), CheckpointConfig())
        checkpoints.save(1, state)
        checkpoints.close()
        blueprint, other = make(layers, *there, devices=4)
        restored = Checkpoints(tmp_path / str(number), CheckpointConfig()).restore(blueprint.shapes)
        assert restored is not None
        assert leaves_equal(restored[0], state)
        assert leaves_equal(other["params"], state["params"])  # born the same, too
        kernel = restored[0]["params"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[0] == (2 if there == stages else 8)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    _, state = make(devices=1)
    checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig(keep_last=2, keep_best=1))
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        checkpoints.save(step, state, loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(5, state, 0.1)  # already there: nothing happens
    assert checkpoints.steps() == [2, 4, 5]


def test_a_value_may_come_after_the_save(tmp_path: Path) -> None:
    """Best is what `judge` said, of this process's own saves and of those that it found."""
    _, state = make(devices=1)
    for steps in ({1: 3.0, 2: 1.0, 3: 2.0}, {4: 5.0, 5: 6.0}):
        checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig(keep_last=1, keep_best=1))
        for step, loss in {2: 1.0, **steps}.items():
            if step in steps:
                checkpoints.save(step, state)
            checkpoints.judge(step, loss)
        checkpoints.close()
    assert checkpoints.steps() == [2, 5]


def test_a_save_survives_donation(tmp_path: Path) -> None:
    _, state = make(devices=1)
    before = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig())
    checkpoints.save(1, state)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(state))
    blueprint, _ = make(devices=1)
    checkpoints.wait()
    restored = checkpoints.restore(blueprint.shapes)
    assert restored is not None
    assert leaves_equal(restored[0], before)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_bad_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    blueprint, state = make(devices=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep_last=3))
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.wait()
    largest = data_files(tmp_path / "checkpoints" / "2")[-1]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        largest.unlink()
    else:
        largest.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    restored = checkpoints.restore(blueprint.shapes)
    assert restored is not None
    got, step, notes = restored
    assert step == 1
    assert leaves_equal(got, state)
    assert "checkpoint 2 is not used" in notes[0]
    assert largest.name in notes[0]
    assert checkpoints.steps() == [1]
    assert len(list((tmp_path / "checkpoints_bad").iterdir())) == 1, "moved aside, not deleted"
    checkpoints.save(2, state)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_none_good_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    blueprint, state = make(devices=1)
    checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig())
    assert checkpoints.restore(blueprint.shapes) is None
    checkpoints.save(1, state)
    checkpoints.wait()
    data_files(tmp_path / "c" / "1")[-1].write_bytes(b"")
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        checkpoints.restore(blueprint.shapes)


def test_a_half_written_save_is_ignored(tmp_path: Path) -> None:
    blueprint, state = make(devices=1)
    checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig())
    checkpoints.save(1, state)
    checkpoints.close()
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path / "c", CheckpointConfig())
    assert again.steps() == [1]
    restored = again.restore(blueprint.shapes)
    assert restored is not None
    assert restored[1] == 1


def test_parameters_alone(tmp_path: Path) -> None:
    _, state = make(devices=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    checkpoints.save(3, state)
    checkpoints.close()
    blueprint, _ = make("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=4")
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "3"):
        params, place = load_params(path, blueprint.shapes["params"])
        assert leaves_equal(params, state["params"])
        assert place.endswith("checkpoints/3")
    with pytest.raises(ConfigError, match="no checkpoint there"):
        load_params(tmp_path / "nothing", blueprint.shapes["params"])
    other, _ = make("model.embed_dim=32", devices=1)
    with pytest.raises(ConfigError, match="init_from"):
        load_params(tmp_path, other.shapes["params"])


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """init_from takes the newest good one; where none is good the error names the files of all."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep_last=3))
    weights = {step: np.random.default_rng(step).standard_normal(4096).astype(np.float32) for step in (9, 10)}
    for step, w in weights.items():
        checkpoints.save(step, {"params": {"w": jnp.asarray(w)}})
    checkpoints.close()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"w": jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=one)}
    for step in (10, 9):
        params, place = load_params(tmp_path, shapes)
        assert place == str(find_checkpoint(tmp_path)[0]) == str(tmp_path / "checkpoints" / str(step))
        np.testing.assert_array_equal(params["w"], weights[step])
        largest = data_files(Path(place))[-1]
        content = bytearray(largest.read_bytes())
        assert len(content) > 4096, "the numbers, not what describes them"
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoints/10: .*checkpoints/9: "):
        load_params(tmp_path, shapes)


def test_object_stores_that_do_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="s3:/bucket"):
        Checkpoints(Path("s3://bucket/run"), CheckpointConfig())


@pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: mounting a small disk needs root, a full disk is not tested")
def test_a_full_disk_is_told_and_the_last_save_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("LOUD: mount is not permitted here, a full disk is not tested")
    try:
        blueprint, state = make(devices=1)
        checkpoints = Checkpoints(disk / "c", CheckpointConfig(keep_last=5))
        checkpoints.save(1, state)
        checkpoints.wait()
        (disk / "filler").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 200_000))
        with pytest.raises(CheckpointError) as caught:  # noqa: PT012
            checkpoints.save(2, state)
            checkpoints.wait()
        assert "disk is full" in (explain(caught.value) or "")
        (disk / "filler").unlink()
        again = Checkpoints(disk / "c", CheckpointConfig(keep_last=5))
        restored = again.restore(blueprint.shapes)
        assert restored is not None
        assert restored[1] == 1
        assert leaves_equal(restored[0], state)
        again.save(2, state)
        again.close()
        assert again.steps() == [1, 2]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
