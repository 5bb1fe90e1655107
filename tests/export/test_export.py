"""The verb export: what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from helpers import params_of
from lmkit.config.entry import run_verb
from lmkit.interop import load_params, read_config
from lmkit.models import build_model
from lmkit.nn.tree import flat
from lmkit.weights import model_shapes, open_model

TINY = ["+experiment=gpt_tiny", "data.holdout_every=300", "tracker=none", "train.sample_tokens=0",
        "train.eval_batches=1", "model.gated=true",
        "train.steps=4", "optim.warmup_steps=1", "train.eval_every_steps=0"]  # fmt: skip


def train(run: Path, *overrides: str) -> int:
    return run_verb("train", "lmkit.train.main:train", "about", [*TINY, f"run.dir={run}", *overrides])


def export(*overrides: str) -> int:
    return run_verb("export", "lmkit.export.main:export", "about", list(overrides), reads=("init_from", "export."))


def test_a_lora_run_with_its_tokenizer(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    """The logits of what is written are those of base and adapters, unfolded; a second run starts from either."""
    text = ["data=text_files", f"data.paths=[{corpus}]", "tokenizer=bpe", "tokenizer.vocab_size=300",
            "tokenizer.end_token='<end>'", "model.vocab_size=304"]  # fmt: skip
    base, run, out = tmp_path / "base", tmp_path / "lora", tmp_path / "out"
    assert train(base, *text) == 0
    lora = [f"init_from={base}", "lora.rank=4", "lora.targets=['*.attention','*.mlp']", "optim.learning_rate=0.05"]
    theirs = [*text[:2], "tokenizer=init", "model.vocab_size=304"]
    assert train(run, *theirs, *lora, "optim.ema=0.5") == 0
    assert (run / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    capsys.readouterr()
    assert export(f"init_from={run}", f"export.folder={out}", "export.dtype=bfloat16") == 0
    assert f"{out}: qwen3, bfloat16" in capsys.readouterr().out
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == jnp.bfloat16
    before, after = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (run, out))
    plain = before.encode("word1 word2", add_special_tokens=False).ids
    assert after.encode("word1 word2", add_special_tokens=False).ids == plain
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 304

    assert export(f"init_from={run}", f"export.folder={tmp_path / 'full'}") == 0
    config = read_config(tmp_path / "full")
    written = load_params(tmp_path / "full", config, model_shapes(config))
    params = open_model(str(run)).params().params
    assert all(np.array_equal(leaf, flat(written)[path]) for path, leaf in flat(params).items())
    graph, _ = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    tokens = jnp.arange(24).reshape(2, 12)
    logits = nnx.merge(graph, nnx.State(params))(tokens)
    np.testing.assert_allclose(nnx.merge(graph, nnx.State(written))(tokens), logits, atol=1e-5)

    again = [f"init_from={tmp_path / 'full'}", "tokenizer.end_token='<end>'"]
    assert train(tmp_path / "again", *theirs, *again) == 0
    assert export(f"init_from={tmp_path / 'full'}", f"export.folder={tmp_path / 'copy'}") == 0
    assert (tmp_path / "copy" / "tokenizer_config.json").is_file()


@pytest.mark.slow
def test_bytes_are_no_tokenizer_of_theirs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(run) == 0
    assert export(f"init_from={run}", f"export.folder={out}") == 0
    assert "without a tokenizer: bytes" in capsys.readouterr().out
    assert not (out / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["init_from="]),
        (["init_from=nowhere"], ["export.folder="]),
        (["init_from=nowhere", "export.folder=/"], ["export.folder=/", "exists"]),
        (["init_from=nowhere", "export.folder=/nothing/x", "export.dtype=int8"], ["int8", "bfloat16"]),
        (["init_from=nowhere", "export.folder=/nothing/x"], ["nowhere", "there is nothing there"]),
        (["export.foldr=x"], ["export.foldr", "export.folder"]),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert export(*overrides) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_help() -> None:
    done = subprocess.run([sys.executable, "-m", "lmkit.export", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "export.folder" in done.stdout
