"""Samples on a mesh: parameters are gathered once, not for each token; where they do not fit, a line says so."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from helpers import tiny_experiment
from lmkit.compiler.collectives import collectives
from lmkit.config.entry import run_verb
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.whole import Whole, no_samples, room_for_copy
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.decode import Decoder, Prompts
from lmkit.parallel.mesh import build_mesh
from lmkit.train.sample import make_sampler


def test_a_token_gathers_no_parameters_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment("mesh.data=1", "mesh.fsdp=2", "model.vocab_size=264", "model.num_layers=1")
    mesh = build_mesh(experiment.mesh, jax.devices()[:2])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh)
    state = init_state(blueprint, 0)
    sent, stream = [], Decoder.stream

    def spy(self: Any, params: Any, prompts: Prompts, **options: Any) -> Any:
        with self.on_mesh():
            _, going = self._prefill(params, self.put(prompts, 8), jax.random.key(0), length=24)
            self._step = self._step.lower(params, going, jax.random.key(0)).compile()
        over_fsdp = [
            one for one in collectives(self._step.as_text(), dict(self.mesh.shape)) if {"fsdp", "data"} & {*one.axes}
        ]
        sent.append(sum(one.step_bytes for one in over_fsdp))
        return stream(self, params, prompts, **options)

    monkeypatch.setattr(Decoder, "stream", spy)
    asked: dict[str, Any] = {"prompt": "ab", "num_tokens": 8, "temperature": 0.0, "seq_len": 64, "seed": 0}
    with jax.set_mesh(mesh):
        split, whole = (
            make_sampler(blueprint, Whole(blueprint, copy=copy), ByteTokenizer(), **asked)(state)
            for copy in (False, True)
        )
    assert split == whole
    assert sent[0] > 0.5 * 4 * blueprint.num_params / 2  # what the other has
    assert sent[1] < 1000  # the token that each row says


def test_the_copy_is_in_the_compute_dtype_and_fits_or_not() -> None:
    experiment = tiny_experiment("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=4", "model.dtype=bfloat16")
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, build_mesh(experiment.mesh))
    whole = Whole(blueprint)
    params = whole.params(init_state(blueprint, 0))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert whole.nbytes == held == pytest.approx(2 * blueprint.num_params / 4, rel=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    assert Whole(blueprint, copy=False).nbytes == 0
    assert room_for_copy(blueprint, 0.0) == float("inf")  # a CPU does not tell
    assert room_for_copy(blueprint, 2.0) == 2**31
    line = no_samples(whole, -1.0, 2)
    assert "mesh.fsdp=2 take 0.0 GiB" in line
    assert "train.sample_gib=1 makes them all the same" in line


@pytest.mark.slow
def test_a_run_whose_copy_is_too_large_makes_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["+experiment=gpt_tiny", "tracker=none", "train.steps=1", "optim.warmup_steps=0", "data.holdout_every=300"]
    words += ["mesh.data=4", "mesh.fsdp=2", "model.num_layers=1", "train.last_eval_batches=1", "train.sample_gib=1e-9"]
    assert run_verb("train", "lmkit.train.main:train", "about", [*words, f"run.dir={tmp_path / 'run'}"]) == 0
    assert "no samples" in capsys.readouterr().out
    assert not (tmp_path / "run" / "samples.jsonl").read_text()
