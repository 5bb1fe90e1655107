"""Embeddings, classes and a prompt's log-probabilities: what the model says, bit-equal alone and among others."""

import asyncio
import base64
import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from flax import nnx
from serving import ScriptedEngine, running_model, served_bytes

from helpers import MESHES, params_of, rotated, tiny_model
from lmkit.config.entry import compose
from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.serve import EmbeddingPooling
from lmkit.models import BERT
from lmkit.nn.param import param_specs
from lmkit.nn.tree import flat, nested
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of
from lmkit.serve.batcher import Batcher, TokenRows
from lmkit.serve.embeddings import embed
from lmkit.serve.labels import probabilities
from lmkit.serve.refusal import Refused
from lmkit.serve.scoring import Scorer

TEXTS = [[7, 9, 3], [256, *range(40, 120)], [5], list(range(90))]


def on(mesh: Any, model: nnx.Module) -> Any:
    """Its parameters on a mesh."""
    specs = flat(param_specs(nnx.split(model)[1]))
    params = flat(params_of(model)[1])
    shardings = {path: sharding_of(specs[path].dims, mesh, leaf.shape, path) for path, leaf in params.items()}
    return nested({path: jax.device_put(leaf, shardings[path]) for path, leaf in params.items()})


def outputs(model: Any, name: str, *texts: list[int]) -> list[np.ndarray]:
    """What a method of the model gives for each text by itself, without padding."""
    graph, params = params_of(model)
    call = jax.jit(lambda params, tokens: getattr(nnx.merge(graph, nnx.State(params)), name)(tokens))
    return [np.asarray(call(params, jnp.asarray([ids]))[0], np.float64) for ids in texts]


def mesh_of(name: str = "") -> Any:
    words = MESHES[name] if name else ["mesh.data=1"]
    return build_mesh(compose(["run.name=x", *words]).mesh, jax.devices()[: 8 if name else 1])


def merger(model: nnx.Module) -> Any:
    graph = params_of(model)[0]
    return lambda params: nnx.merge(graph, nnx.State(params))


def bert(**changes: Any) -> BERT:
    config = {"vocab_size": 260, "num_layers": 1, "num_heads": 4, "embed_dim": 32, "max_seq_len": 128, "num_classes": 3}
    return BERT(BERTConfig(**(config | changes)), rngs=nnx.Rngs(0))


async def ask_all(ask: Any, texts: list) -> list:
    return list(await asyncio.gather(*map(ask, texts)))


@pytest.mark.parametrize("mesh", ["", "data2_fsdp2_tensor2"])
def test_a_prompt_is_scored_as_its_logits_say(mesh: str) -> None:
    model, place = tiny_model(vocab_size=264, num_layers=1), mesh_of(mesh)
    scorer = Scorer(merger(model), on(place, model), place, vocab_size=257, length=96, queue=9)
    scorer.compile()
    together = asyncio.run(ask_all(lambda ids: scorer.score(ids, 3), TEXTS))
    alone = [asyncio.run(scorer.score(ids, 3)) for ids in TEXTS]
    scorer.close()
    for ids, events, others, logits in zip(TEXTS, together, alone, outputs(model, "__call__", *TEXTS), strict=True):
        assert events[1:] == others[1:]
        assert math.isnan(events[0].logprob)
        expected = np.asarray(jax.nn.log_softmax(logits.astype(np.float32), axis=-1))[:, :257]
        for place_, event in enumerate(events[1:]):
            assert event.token == ids[place_ + 1]
            assert event.logprob == pytest.approx(expected[place_, event.token], abs=1e-5)
            assert [token for token, _ in event.top] == np.argsort(-expected[place_])[:3].tolist()


@pytest.mark.parametrize(("family", "pooling"), rotated(
    [(family, pooling.name) for family in ("bert", "gpt") for pooling in EmbeddingPooling],
    ("bert", "mean"), ("gpt", "last"),
))  # fmt: skip
def test_an_embedding_is_of_the_text_alone(family: str, pooling: str) -> None:
    model, method = (bert(), "encode") if family == "bert" else (tiny_model(vocab_size=260, num_layers=1), "hidden")
    mesh, texts = mesh_of(), TEXTS[:2]
    function = partial(embed, merger(model), model.config, EmbeddingPooling[pooling])
    rows = TokenRows(function, on(mesh, model), mesh, length=96, queue=9)
    found = asyncio.run(ask_all(rows.ask, texts))
    rows.close()
    for vector, hidden in zip(found, outputs(model, method, *texts), strict=True):
        expected = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model, mesh = bert(), mesh_of()
    params = on(mesh, model)
    sizes: Any = {"length": 96, "queue": 64}
    served = served_bytes(
        None, "", labels=("ham", "spam", "eggs"),
        embedder=TokenRows(partial(embed, merger(model), model.config, EmbeddingPooling.mean), params, mesh, **sizes),
        classifier=TokenRows(partial(probabilities, merger(model), model.config), params, mesh, **sizes),
    )  # fmt: skip
    served.length = 96
    with running_model(served, ("/v1/embeddings", "/v1/classify", "/tokenize")) as found:
        yield found


def test_embeddings_by_the_client(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="tiny", input=["one", "two", "three"])  # asks for base64
    assert [one.index for one in found.data] == [0, 1, 2]
    assert len(found.data[0].embedding) == 32
    assert found.usage.prompt_tokens == 4 + 4 + 6
    plain = client.embeddings.create(model="tiny", input="two", encoding_format="float")
    np.testing.assert_array_equal(np.float32(plain.data[0].embedding), np.float32(found.data[1].embedding))
    ids = httpx.post(f"{address}/v1/embeddings", json={"input": [256, *b"two"], "encoding_format": "base64"}).json()
    raw = np.frombuffer(base64.b64decode(ids["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(raw, np.float32(plain.data[0].embedding))


def test_classes_by_their_names(address: str) -> None:
    found = httpx.post(f"{address}/v1/classify", json={"input": ["buy now", "hello"]}).json()["data"]
    again = httpx.post(f"{address}/v1/classify", json={"input": "hello"}).json()["data"]
    assert found[1]["probs"] == again[0]["probs"]
    hidden = outputs(bert(), "encode", [256, *b"buy now"])[0][None]
    expected = np.asarray(jax.nn.softmax(bert().class_logits(jnp.asarray(hidden, jnp.float32))[0]))
    np.testing.assert_allclose(list(found[0]["probs"].values()), expected, atol=1e-5)
    assert found[0]["label"] == list(found[0]["probs"])[int(expected.argmax())]
    assert list(found[0]["probs"]) == ["ham", "spam", "eggs"]


def test_a_text_that_is_too_long(address: str) -> None:
    found = httpx.post(f"{address}/v1/embeddings", json={"input": "x" * 96})
    assert found.status_code == 400
    assert "97 tokens; the model takes 96" in found.json()["error"]["message"]


def test_echo_tells_the_prompts_log_probabilities() -> None:
    model, mesh = tiny_model(vocab_size=264, num_layers=1), mesh_of()
    scorer = Scorer(merger(model), on(mesh, model), mesh, vocab_size=257, length=64, queue=9)
    with running_model(served_bytes(ScriptedEngine(), scorer=scorer)) as address:
        body = {"prompt": [[256, 97, 98], [256, 195, 169, 99]], "max_tokens": 1, "echo": True, "logprobs": 2, "seed": 1}
        one, two = httpx.post(f"{address}/v1/completions", json=body).json()["choices"]
        assert one["logprobs"]["tokens"][:3] == ["<|256|>", "a", "b"]
        assert one["logprobs"]["token_logprobs"][0] is one["logprobs"]["top_logprobs"][0] is None
        assert len(one["logprobs"]["token_logprobs"]) == 4
        assert one["logprobs"]["token_logprobs"][3] == -1.0  # the engine's
        expected = jax.nn.log_softmax(outputs(model, "__call__", [256, 97, 98])[0].astype(np.float32))[:, :257]
        assert one["logprobs"]["token_logprobs"][2] == pytest.approx(float(expected[1, 98]), abs=1e-5)
        assert max(one["logprobs"]["top_logprobs"][2].values()) == pytest.approx(float(expected[1].max()), abs=1e-5)
        assert two["text"].startswith("éc")
        none = httpx.post(f"{address}/v1/completions", json=body | {"max_tokens": 0}).json()
        assert none["choices"][0]["logprobs"]["token_logprobs"] == one["logprobs"]["token_logprobs"][:3]
        assert none["usage"]["completion_tokens"] == 0


def test_a_batcher_takes_rows_of_one_kind_and_says_when_it_is_full() -> None:
    batches, go = [], threading.Event()

    def run(kind: str, rows: list[int]) -> list[int]:
        go.wait(5)
        batches.append((kind, rows))
        if kind == "bad":
            raise ValueError("no")
        return [row * 2 for row in rows]

    async def ask() -> None:
        batcher = Batcher(run, rows=2, queue=3)
        first = asyncio.ensure_future(batcher.ask("a", 0))
        await asyncio.sleep(0.05)  # the thread has it
        tasks = [asyncio.ensure_future(batcher.ask(kind, n)) for n, kind in enumerate("abaa", 1)]
        gone = asyncio.ensure_future(batcher.ask("a", 9))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as full:
            await batcher.ask("a", 7)
        assert full.value.status_code == 429
        gone.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(first, *tasks) == [0, 2, 4, 6, 8]
        assert batches == [("a", [0]), ("a", [1, 3]), ("b", [2]), ("a", [4])]
        with pytest.raises(ValueError, match="no"):
            await batcher.ask("bad", 1)
        assert await batcher.ask("a", 1) == 2
        batcher.close()
        with pytest.raises(Refused):
            await batcher.ask("a", 1)

    asyncio.run(ask())
