"""Each process records and checks its share of a checkpoint's files; together they miss none."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lmkit import files, hosts
from lmkit.checkpoint import Checkpoints, find_checkpoint
from lmkit.checkpoint.manifest import PROMISED, check_manifest, check_together, is_finished, write_manifest
from lmkit.config.sections.checkpoint import CheckpointConfig

NAMES = ["state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b", "state/ocdbt.process_1/manifest.ocdbt",
         "state/array_metadatas/process_1", "state/d/c", "state/_METADATA"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of two processes, as Orbax lays it out."""
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * (100 + 50 * number))
    (tmp_path / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": {PROMISED: 2}}))
    return tmp_path


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose checksums are computed from here on."""
    read, crc32 = [], files.crc32
    monkeypatch.setattr(files, "crc32", lambda path: (read.append(path), crc32(path))[1])
    return read


def test_each_process_records_what_it_wrote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_by(monkeypatch)
    write_manifest(folder, 1, 2)
    assert [path.relative_to(folder).as_posix() for path in read] == sorted(NAMES[1:4])
    assert not is_finished(folder), "process 0's is missing"
    write_manifest(folder, 0, 2)
    assert is_finished(folder)
    sums = [json.loads((folder / name).read_text()) for name in ("lmkit_manifest.json", "lmkit_manifest.1.json")]
    assert sorted([*sums[0], *sums[1]]) == sorted([*NAMES, "_CHECKPOINT_METADATA"])


@pytest.mark.parametrize("parts", [1, 2, 3, 20])
def test_the_shares_together_find_every_flipped_bit(folder: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(2):
        write_manifest(folder, part, 2)
    read = read_by(monkeypatch)
    assert [check_manifest(folder, part, parts) for part in range(parts)] == [""] * parts
    assert len(read) == len(set(read)) == len(NAMES) + 1, "each file is read once"
    for name in NAMES:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (found,) = filter(None, [check_manifest(folder, part, parts) for part in range(parts)])
        assert found == f"{name} has changed since it was written (CRC-32)"
        (folder / name).write_bytes(content)


def test_processes_with_copies_of_their_own_check_them_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 5 of 512 reads its share of what all see, and half where one other process shares its copy."""
    for part in range(2):
        write_manifest(folder, part, 2)
    monkeypatch.setattr(hosts, "index", lambda: 5)
    read = read_by(monkeypatch)
    monkeypatch.setattr(hosts, "gather", lambda label, text="": [text] * 512)
    assert check_together(folder) == ""
    assert len(read) == 1
    read.clear()
    others = {"seen": ["another copy"] * 510, "checked": [""] * 510}
    monkeypatch.setattr(hosts, "gather", lambda label, text="": [*others[label][:5], text, text, *others[label][5:]])
    assert check_together(folder) == ""
    assert len(read) == (len(NAMES) + 2) // 2


def test_a_save_that_was_cut_off_before_its_manifest_comes_last(tmp_path: Path) -> None:
    config, weights = CheckpointConfig(keep_last=3), np.arange(8, dtype=np.float32)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config)
    for step in (1, 2):
        checkpoints.save(step, {"params": {"w": jnp.asarray(weights + step)}})
    checkpoints.close()
    (tmp_path / "checkpoints" / "2" / "lmkit_manifest.json").unlink()
    assert find_checkpoint(tmp_path)[0].name == "1"
    shapes = {"params": {"w": jnp.zeros(8)}}
    for expected, note in ((1, "checkpoint 2 is not used: its save was cut off"),
                           (1, "checkpoint 1 is used although its save was cut off")):  # fmt: skip
        restored = Checkpoints(tmp_path / "checkpoints", config).restore(shapes)
        assert restored is not None
        assert (restored[1], restored[2]) == (expected, [note])
        np.testing.assert_array_equal(restored[0]["params"]["w"], weights + expected)
        (tmp_path / "checkpoints" / "1" / "lmkit_manifest.json").unlink(
            missing_ok=True
        )  # in the next turn none is whole


def test_a_checkpoint_of_before_has_promised_nothing(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": {}}))
    assert is_finished(folder)
    assert check_manifest(folder) == ""
    write_manifest(folder)
    (folder / NAMES[1]).unlink()
    assert check_manifest(folder) == f"{NAMES[1]} is missing"
