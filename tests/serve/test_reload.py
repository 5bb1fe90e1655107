"""A newer checkpoint takes the place of the one that is served, and another model does not."""

from pathlib import Path

import httpx
import jax
import pytest
from generate.test_main import make_run
from serving import running

from lmkit.checkpoint import Checkpoints
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.saved import write_model
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.config.sections.families import GPTConfig
from lmkit.parallel.mesh import build_mesh
from lmkit.serve.app import make_app, routes_of
from lmkit.serve.loading import find
from lmkit.serve.run import Behind
from lmkit.serve.served import Server
from lmkit.weights import open_model

TINY = GPTConfig(num_layers=1, num_heads=2, embed_dim=16, vocab_size=264, init_std=0.4, max_seq_len=32)


def test_a_newer_checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    state = make_run(tmp_path / "run", TINY)
    words = ["run.name=x", f"init_from={tmp_path / 'run'}", "serve.slots=1", "serve.prefill_chunk=16"]
    experiment = compose(words)
    model, mesh = open_model(experiment.init_from), build_mesh(experiment.mesh, jax.devices()[:1])
    behind = Behind(find(experiment, model), Server("run", routes_of(TINY)), experiment, mesh, "http://here")
    with pytest.raises(ConfigError, match="still being loaded"):
        behind.reload()
    ready: list[int] = []
    behind.load(lambda: ready.append(1))
    request.addfinalizer(behind.close)
    assert (behind.error, ready) == (None, [1])
    body = {"prompt": "ab", "max_tokens": 6, "temperature": 0, "logprobs": 0, "echo": True}
    with running(make_app(behind.server)) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        before, vector = (client.post(path, json=one).json() for path, one in (
            ("/completions", body), ("/embeddings", {"input": "a"})))  # fmt: skip
        assert behind.reload().endswith("is the newest there is")
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig())
        checkpoints.save(20, state | {"params": jax.tree.map(lambda leaf: leaf * 1.5, state["params"])})
        checkpoints.close()
        assert "gave way to" in behind.reload()
        after = client.post("/completions", json=body).json()
        assert after["system_fingerprint"] != before["system_fingerprint"]
        assert after["choices"][0]["logprobs"] != before["choices"][0]["logprobs"]
        assert client.post("/embeddings", json={"input": "a"}).json()["data"] != vector["data"]
        write_model(tmp_path / "run", GPTConfig(**(vars(TINY) | {"embed_dim": 32})))
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig())
        checkpoints.save(30, state)
        checkpoints.close()
        with pytest.raises(ConfigError, match="another kind of model"):
            behind.reload()
        assert client.post("/completions", json=body).json()["choices"] == after["choices"]
        assert behind.stats().compilations == 0
