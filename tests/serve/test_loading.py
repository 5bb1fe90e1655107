"""From files on disk to answers: the real engine behind the real API, on tiny models."""

import base64
import io
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import openai
import pytest
import soundfile
import yaml
from flax import nnx
from generate.test_main import make_run
from PIL import Image
from serve.test_api import until
from serving import at_once, running_model

from helpers import params_of
from lmkit.config.entry import compose
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import NormOrder
from lmkit.models import build_model
from lmkit.parallel.mesh import build_mesh
from lmkit.serve.app import routes_of
from lmkit.serve.loading import conversation_of, find, load
from lmkit.serve.served import Served
from lmkit.weights import open_model

TINY: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "embed_dim": 16, "vocab_size": 264, "init_std": 0.4}


def load_run(folder: Path, *words: str) -> tuple[Served, tuple[str, ...]]:
    experiment = compose(["run.name=x", f"init_from={folder}", *words])
    model = open_model(experiment.init_from)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    return load(find(experiment, model), experiment.serve, mesh).served, routes_of(model.config)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("runs") / "small"
    make_run(folder, GPTConfig(**TINY, max_seq_len=64))
    chat = {"objective": {"kind": "chat"}, "data": {"message_format": "<{role}>{content}\n"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(chat))
    return load_run(folder, "serve.slots=2", "serve.prefill_chunk=16", "serve.prefix_mib=0")[0]


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    with running_model(served) as found:
        yield found


def test_sixteen_clients_of_two_slots_get_what_each_gets_alone(address: str, served: Served) -> None:
    session = httpx.Client(base_url=f"{address}/v1", timeout=120)

    def ask(number: int) -> Any:
        body = {"prompt": "word " * (number % 5), "seed": number, "max_tokens": 6 + number % 7, "logprobs": 2,
                "temperature": number % 3 / 2, "top_k": number % 4}  # fmt: skip
        return session.post("/completions", json=body).json()["choices"]

    alone = [ask(number) for number in range(16)]
    assert at_once(ask, 16) == alone
    assert len({one[0]["text"] for one in alone}) > 12
    assert served.engine is not None
    assert served.engine.stats().compilations == 0


def test_the_engines_log_probabilities_are_those_of_the_prompt(address: str) -> None:
    """What was written, put back as a prompt, is scored alike."""
    session = httpx.Client(base_url=f"{address}/v1", timeout=60)
    body = {"prompt": "ab", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    written = session.post("/completions", json=body | {"echo": True}).json()["choices"][0]["logprobs"]
    assert len(written["tokens"]) == 3 + 8
    ids = [256, *b"ab", *(int(one[-2:], 16) if len(one) > 1 else ord(one) for one in written["tokens"][3:])]
    scored = session.post("/completions", json=body | {"prompt": ids, "max_tokens": 0, "echo": True}).json()
    scores = scored["choices"][0]["logprobs"]
    np.testing.assert_allclose(scores["token_logprobs"][1:], written["token_logprobs"][1:], atol=1e-5)
    assert scores["top_logprobs"][3:] == [pytest.approx(one, abs=1e-5) for one in written["top_logprobs"][3:]]


def test_json_of_a_schema_from_the_model(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    schema = {"type": "object", "required": ["a"], "additionalProperties": False,
              "properties": {"a": {"enum": ["x", "yy"]}}}  # fmt: skip
    format: Any = {"type": "json_schema", "json_schema": {"name": "row", "schema": schema}}
    asked: Any = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "response_format": format}
    found = client.chat.completions.create(**asked, logit_bias={str(one): -100 for one in b" \n\r\t"})
    assert json.loads(found.choices[0].message.content or "")["a"] in ("x", "yy")
    assert found.choices[0].finish_reason == "stop"


def test_a_conversation_is_written_as_the_run_learned_it(address: str) -> None:
    info = httpx.post(f"{address}/v1/chat/completions", json={
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tools": [
            {"type": "function", "function": {"name": "f"}}]}).json()  # fmt: skip
    assert "data.message_format" in info["error"]["message"]
    found = httpx.post(f"{address}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert found["usage"]["prompt_tokens"] == len([256, *b"<user>Hi\n", 256, *b"<assistant>"])


def test_a_client_that_goes_away_frees_its_slot(address: str, served: Served) -> None:
    assert served.engine is not None
    body = {"prompt": "x", "max_tokens": 60, "stream": True, "ignore_eos": True, "n": 4}
    with httpx.Client() as client, client.stream("POST", f"{address}/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    stats = served.engine.stats
    until(lambda: stats().running == stats().waiting == 0)
    assert stats().ended["cancelled"] >= 3


@pytest.mark.slow
def test_a_thousand_requests_of_64_clients_leave_nothing_behind(address: str, served: Served) -> None:
    """Random lengths, streams, bodies that are cut, clients that go away or do not wait: every reply is well-formed."""
    assert served.engine is not None
    replies: list[int] = []

    def client_of(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=address, timeout=300) as client:
            for _ in range(16):
                body = {"prompt": "w" * rng.randrange(70), "max_tokens": rng.randrange(-1, 40), "ignore_eos": True}
                body |= {"seed": rng.randrange(99), "stream": rng.random() < 0.4, "n": rng.choice([1, 1, 1, 2])}
                content = json.dumps(body)[: rng.choice([None, None, None, 20])]
                impatient = rng.random() < 0.2
                try:
                    with client.stream("POST", "/v1/completions", content=content,
                                       timeout=rng.uniform(0.001, 0.3) if impatient else 300) as answer:  # fmt: skip
                        if rng.random() < 0.15:
                            continue  # it has seen enough
                        text = answer.read().decode()
                except httpx.TimeoutException:
                    assert impatient
                    continue
                replies.append(answer.status_code)
                if answer.status_code != 200:
                    assert 400 <= answer.status_code < 500
                    assert json.loads(text)["error"]["message"]
                elif body["stream"]:
                    assert text.endswith("data: [DONE]\n\n")
                else:
                    assert all(one["finish_reason"] == "length" for one in json.loads(text)["choices"])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client_of, range(64)))
    assert replies.count(200) > 200
    assert replies.count(400) > 100
    stats = served.engine.stats
    until(lambda: stats().running == stats().waiting == 0)
    assert stats().compilations == 0
    assert not stats().failure
    assert sum(stats().ended.values()) == stats().requests


def test_a_classifier_of_texts(tmp_path: Path) -> None:
    make_run(tmp_path / "run", BERTConfig(**TINY, max_seq_len=32, num_classes=2))
    receipt = {"data": {"mail": {"labels": ["ham", "spam"]}}}
    (tmp_path / "run" / "receipt.json").write_text(json.dumps(receipt))
    served, routes = load_run(tmp_path / "run")
    assert routes == ("/v1/embeddings", "/v1/classify", "/tokenize", "/detokenize")
    with running_model(served, routes) as address:
        ids = httpx.post(f"{address}/tokenize", json={"prompt": "a"}).json()["tokens"]
        assert ids == [256, 97, 256]  # as its rows in training
        found = httpx.post(f"{address}/v1/classify", json={"input": "a"}).json()["data"][0]["probs"]
        assert set(found) == {"ham", "spam"}
        assert sum(found.values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs") / "ear"
    make_run(folder, EncDecConfig(**TINY, num_mels=8, norm_order=NormOrder.pre, max_seq_len=32, max_source_len=40))
    with (folder / "config.yaml").open("w") as file:
        yaml.safe_dump({"data": {"seq_len": 40}}, file)
    served, routes = load_run(folder)
    with running_model(served, routes) as address:
        yield address


def sound(path: Path, seconds: float) -> bytes:
    clip = np.random.default_rng(int(seconds * 10)).normal(size=int(16_000 * seconds)) / 9
    soundfile.write(path, clip, 16_000)
    return path.read_bytes()


def test_a_sound_is_transcribed(listener: str, tmp_path: Path) -> None:
    """As `generate` writes it, window after window; the same alone and beside others."""
    client = openai.OpenAI(base_url=f"{listener}/v1", api_key="none", max_retries=0)
    files = [sound(tmp_path / f"{n}.wav", seconds) for n, seconds in enumerate((0.5, 1.9))]
    alone = [client.audio.transcriptions.create(model="ear", file=("a.wav", one)).text for one in files]
    together: list[str] = [""] * 4

    def ask(n: int) -> None:
        together[n] = client.audio.transcriptions.create(model="ear", file=("a.wav", files[n % 2])).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone * 2
    assert all(alone)
    text = client.audio.transcriptions.create(model="ear", file=("a.wav", files[0]), response_format="text")
    assert text == alone[0] + "\n"
    told = client.audio.transcriptions.create(model="ear", file=("a.wav", files[0]), response_format="verbose_json")
    assert (told.text, told.duration) == (alone[0], 0.5)


@pytest.mark.parametrize(("data", "file", "param"), [
    ({}, None, "file"),
    ({}, b"nothing", "file"),
    ({"response_format": "srt"}, b"", "response_format"),
    ({"temperature": "0.5"}, b"", "temperature"),
    ({"language": "de"}, b"", "language"),
    ({"prompt": "Names"}, b"", "prompt"),
    ({"speed": "2"}, b"", "speed"),
    ({"stream": "true"}, b"", "stream"),
])  # fmt: skip
def test_mistakes_with_sounds(listener: str, data: dict, file: bytes | None, param: str, tmp_path: Path) -> None:
    content = sound(tmp_path / "a.wav", 0.1) if file == b"" else file
    files: Any = {"file": ("a.wav", content)} if content is not None else {"x": ("x", b"")}
    found = httpx.post(f"{listener}/v1/audio/transcriptions", data=data, files=files)
    assert found.status_code == 400, found.text
    assert found.json()["error"]["param"] == param


def test_templates_of_runs_and_folders(tmp_path: Path) -> None:
    make_run(tmp_path / "run", GPTConfig(**TINY))
    model = open_model(str(tmp_path / "run"))
    plain = compose(["run.name=x"]).tokenizer
    assert conversation_of(model, model.codec(), plain) is None
    (tmp_path / "own.jinja").write_text("{% for m in messages %}({{ m.content }}){% endfor %}{{ eos_token }}")
    given = compose(["run.name=x", f"tokenizer.chat_template={tmp_path / 'own.jinja'}"]).tokenizer
    talk = conversation_of(model, model.codec(), given)
    assert talk is not None
    assert bytes(talk.encode([{"role": "user", "content": "a"}], [])) == b"(a)<|endoftext|>"


def test_a_classifier_of_images(tmp_path: Path) -> None:
    """Pixels as in training, at the model's size; the same beside others as alone."""
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_layers=1, num_heads=2, embed_dim=16, num_classes=3, init_std=0.4
    )  # fmt: skip
    params = make_run(tmp_path / "run", config)["params"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"image_mean": 0.25, "image_std": 0.5}}))
    served, routes = load_run(tmp_path / "run")
    assert routes == ("/v1/classify",)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    urls = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    with running_model(served, routes) as address:
        found = httpx.post(f"{address}/v1/classify", json={"input": urls}).json()["data"]
        alone = httpx.post(f"{address}/v1/classify", json={"input": urls[1]}).json()["data"]
        for wrong in ("a cat", "data:image/png;base64,!!", "data:image/png;base64,AAAA", 5, []):
            answer = httpx.post(f"{address}/v1/classify", json={"input": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert found[1]["probs"] == alone[0]["probs"]
    graph = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
    images = (pixels[..., None] / np.float32(255) - 0.25) / 0.5
    call = jax.jit(lambda params, images: nnx.merge(graph, nnx.State(params))(images))
    expected = jax.nn.softmax(call(jax.tree.map(np.asarray, params), images.astype(np.float32)))
    got = [list(one["probs"].values()) for one in found]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert list(found[0]["probs"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
