"""The table of steps that the accelerators' compilers made, with texts in place of compilers."""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import bench_aot
import pytest
from speed import ahead
from speed.ahead import Point
from speed.records import records

TEXT = """HloModule m, is_scheduled=true

ENTRY %main (p: f32[8]) -> f32[8] {
  %d = f32[8]{0} convolution(%p, %p), metadata={op_name="jit(step)/dot"}, backend_config={"estimated_cycles":"1503000"}
}
"""
POINT = Point("gpt2_124m", "v5e:2x4", "fsdp=8", "dots", "train.batch_size=128", "as they come")


def asked(tmp_path: Path, **more: Any) -> argparse.Namespace:
    plain = {"model": [], "on": [], "remat": ["dots"], "keys": "", "maxtext_python": "", "again": False}
    return argparse.Namespace(**plain | {"reread": False, "records": tmp_path, "texts": tmp_path} | more)


def test_points_are_models_times_meshes_times_remat(tmp_path: Path) -> None:
    args = asked(tmp_path, model=["gpt2_124m"], on=["v5e:2x4 fsdp=4 data=2", "h100_1"], remat=["dots", "full"])
    found = [point for point in bench_aot.points(args) if point.code == "lmkit"]
    assert [(one.hardware, one.mesh, one.remat, one.options) for one in found] == [
        *(("v5e:2x4", "fsdp=4 data=2", remat, options) for remat in ("dots", "full") for options in ahead.TPU_OPTIONS),
        *(("h100_1", "", remat, "as they come") for remat in ("dots", "full")),
    ]  # fmt: skip
    assert found[0].words == ["+experiment=gpt2_124m", "hardware=v5e:2x4", "mesh.data=2", "mesh.fsdp=4",
                              "model.remat=dots"]  # fmt: skip
    plain = [one for one in bench_aot.points(asked(tmp_path)) if one.code == "lmkit"]
    assert len(plain) == 9, "without weights that are split there is one set of options"


def test_maxtext_gets_the_same_model_mesh_and_batch() -> None:
    found = ahead.estimate_of(POINT)
    words = ahead.maxtext_words(POINT._replace(options="no collective matmul"), found)
    assert words is not None
    assert {"ici_fsdp_parallelism=8", "per_device_batch_size=16", "max_target_length=1024",
            "compile_topology=v5e:2x4", "remat_policy=minimal_with_context", "base_num_decoder_layers=12",
            "compile_xla_flags=--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"} <= set(words)  # fmt: skip
    plain = ahead.maxtext_words(POINT, found)
    assert plain is not None
    assert not any("xla_flags" in word for word in plain)
    assert ahead.maxtext_words(POINT._replace(remat="names"), found) is None
    assert ahead.maxtext_words(POINT._replace(model="gpt3_1b3"), found) is None


def test_what_was_compiled_is_not_compiled_again(tmp_path: Path, monkeypatch) -> None:
    args, calls = asked(tmp_path), []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        calls.append(Point(*json.loads(command[command.index("--worker") + 1])))
        ahead.write(Path(command[command.index("--out") + 1]), TEXT, 3 * 2**30)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench_aot.subprocess, "run", run)
    monkeypatch.setattr(ahead, "compiled_by", lambda *_: {"jax": "1", "libtpu": "2", "jax-cuda13-plugin": "3"})
    said = bench_aot.measure(POINT, args, [])
    assert said.startswith("1.0 ms a step")
    assert "jit(step)/dot" in said
    (row,) = records(tmp_path, "aot")
    assert (row["versions"], row["peak_bytes"], row["rows"]) == ({"jax": "1", "libtpu": "2"}, 3 * 2**30, 128)
    assert bench_aot.measure(POINT, args, [row]) == "is there"
    assert bench_aot.measure(POINT, asked(tmp_path, reread=True), [row]).startswith("1.0 ms")
    assert calls == [POINT]
    assert bench_aot.measure(POINT, asked(tmp_path, again=True), [row]).startswith("1.0 ms")
    assert len(calls) == 2
    said = bench_aot.measure(POINT._replace(code="maxtext"), args, [row])
    assert said == "no row: --maxtext-python is not set"


def test_the_table_has_the_newest_of_each_point() -> None:
    row = POINT._asdict() | {
        "seconds": 0.2, "mfu": 0.5, "product_share": 0.25, "waited_sec": {"copy": 0.001, "collective": 0.002},
        "compute_floor_sec": 0.1, "bandwidth_floor_sec": 0.05, "arithmetic_sec": 0.15, "peak_bytes": 2**31,
        "kernels": 0, "moved_bytes": 0.0, "floor_bytes": 1e9, "rows": 128, "seq_len": 1024, "versions": {"jax": "1"},
    }  # fmt: skip
    on_gpu = row | {"hardware": "h100_1", "mesh": "", "kernels": 1200, "moved_bytes": 2e9, "libraries": {"cudnn": 12}}
    lines = ahead.table([row | {"seconds": 9.0}, row, on_gpu]).splitlines()
    assert lines[2].startswith(
        "| gpt2_124m | h100_1 | one | dots | 128 x 1,024 | as they come | lmkit | 200.0 | 50.0% "
    )
    assert lines[2].endswith("| 2.00 | 1,200 | 2 (2.00) |")
    assert "| 3.0 | 100.0, 50.0 | 150.0 |" in lines[3]
    assert "- gpt2_124m on h100_1: 12 x `cudnn`" in lines
    assert sum(line.startswith("| gpt2") for line in lines) == 2
    assert lines[-1] == "Compiled by jax 1."


def test_a_model_needs_a_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench_aot.py", "--model", "gpt2_124m"])
    with pytest.raises(SystemExit, match="2"):
        bench_aot.parse()
    assert "--model needs --on" in capsys.readouterr().err
