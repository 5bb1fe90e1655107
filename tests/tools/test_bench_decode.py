"""Decoding beside peers: the files that they read hold one model, and the run says what it left out."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from bench_decode_peers import write_models
from speed.decoding import tables
from speed.records import records

from helpers import ROOT
from lmkit.weights import open_model

TINY = [f"model.{key}" for key in ("num_layers=2", "embed_dim=64", "num_heads=4", "num_kv_heads=2", "mlp_dim=96",
                                   "vocab_size=2048", "max_seq_len=64")]  # fmt: skip


def test_every_peer_reads_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    args = argparse.Namespace(model="smollm2_135m", keys=TINY, node=Path(), quantised=["Q8_0"])
    config, params = write_models(args, tmp_path)
    for name, tolerance in (("hf", 0), ("F32.gguf", 0), ("Q8_0.gguf", 2e-3)):
        model = open_model(str(tmp_path / name))
        assert model.config.head_size == config.head_size  # type: ignore[attr-defined]
        found = model.params().params
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(one, other, atol=tolerance * max(float(np.abs(other).max()) / 0.1, 1))


@pytest.mark.slow
def test_a_run_without_peers(tmp_path: Path) -> None:
    words = ["--batch", "1", "3", "--new", "8", "--prompt", "5", "--rounds", "1", "--keys", *TINY]
    command = [sys.executable, str(ROOT / "tools" / "bench_decode_peers.py"), *words, "--out", str(tmp_path)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert "SKIPPED llama.cpp" in done.stdout
    assert "SKIPPED transformers" in done.stdout
    one, three = records(tmp_path, "decode_peers")
    assert (one["batch"], three["batch"]) == (1, 3)
    assert one["first_tokens"] == three["first_tokens"], "the same first row"
    assert three["tokens_per_cpu_sec"] == pytest.approx(3 / three["cpu_s"])
    assert three["bytes_a_step"] > one["bytes_a_step"], "the cache of more rows"
    assert "| lmkit | float32 | 3 |" in tables([one, three])
