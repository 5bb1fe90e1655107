"""lm-eval's `local-completions` through the server gives the scores and texts that lmkit's own harness gives."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from generate.test_main import make_run
from serve.test_loading import TINY, load_run
from serving import running_model

from lmkit.config.entry import compose
from lmkit.config.sections.families import GPTConfig
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model

LOUD = "LOUD: lm-eval is not tested against the server; pip install 'lmkit[evals,serve]' 'lm-eval[api]'"
for package in ("lm_eval", "tenacity"):
    pytest.importorskip(package, reason=LOUD)

PAIRS = [("The cat sat", " on the mat"), ("2+2=", "4"), ("a", "b" * 30), ("The cat sat", " down")]


def requests(pairs: list[tuple]) -> list[Any]:
    return [SimpleNamespace(args=pair, request_type="loglikelihood") for pair in pairs]


def test_scores_and_texts_are_those_of_the_harness(tmp_path: Path) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from lmkit.harness.model import HarnessModel, Words

    make_run(tmp_path / "run", GPTConfig(**TINY, max_seq_len=64))
    served, routes = load_run(tmp_path / "run", "serve.slots=2", "serve.prefill_chunk=16")
    model, mesh = open_model(str(tmp_path / "run")), build_mesh(compose(["run.name=x"]).mesh, jax.devices()[:1])
    merge, params = model.for_inference(mesh)
    ours = HarnessModel(merge, model.config, params, mesh, Words(model.codec(), None, "x"), max_len=64)
    with running_model(served, routes) as address:
        theirs = LocalCompletionsAPI(base_url=f"{address}/v1/completions", model="run", max_length=64, batch_size=4)
        assert theirs.tokenizer_backend == "remote"
        encoded = [(("", ""), served.codec.bare(a), served.codec.bare(b)) for a, b in PAIRS]  # type: ignore[union-attr]
        expected = ours._loglikelihood_tokens(encoded)
        found = theirs.loglikelihood(requests(PAIRS), disable_tqdm=True)
        for (score, greedy), (value, likeliest) in zip(found, expected, strict=True):
            assert score == pytest.approx(value, abs=1e-4)
            assert greedy == likeliest
        asked = [("The cat", {"until": ["\n"], "max_gen_toks": 9}), ("2+2=", {"until": ["\n"], "max_gen_toks": 9})]
        texts = theirs.generate_until(requests(asked), disable_tqdm=True)
        prompts = [served.codec.bare(text) for text, _ in asked]  # type: ignore[union-attr]
        from lmkit.decode import Sampling

        assert texts == ours._write(prompts, 9, ["\n"], Sampling(0.0))
