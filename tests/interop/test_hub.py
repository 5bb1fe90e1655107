"""Hub ids, through a server on this machine that speaks enough of the hub's protocol."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, tiny_config
from lmkit.config import ConfigError
from lmkit.interop import load_params, locate, read_config, save_folder
from lmkit.models import build_model
from lmkit.nn.tree import flat

constants = pytest.importorskip(
    "huggingface_hub.constants", reason="LOUD: hub ids are not tested; pip install 'lmkit[hub]'"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = tiny_config(gated=True, num_layers=1, embed_dim=16)


class Handler(BaseHTTPRequestHandler):
    """org/tiny at main and at v1; all else is not found."""

    folder: Path
    asked: list[str]

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path}")
        if not path.startswith(("/api/models/org/tiny", "/org/tiny/")):
            return self._answer(401, b"{}", X_Error_Code="RepoNotFound")
        files = sorted(file for file in self.folder.iterdir())
        for revision in ("main", "v1", COMMIT):
            if path == f"/api/models/org/tiny/revision/{revision}":
                body = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
                return self._answer(200, json.dumps(body).encode(), Content_Type="application/json")
            if path == f"/api/models/org/tiny/tree/{revision}":
                rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _tag(f)} for f in files]
                return self._answer(200, json.dumps(rows).encode(), Content_Type="application/json")
            for file in files:
                if path == f"/org/tiny/resolve/{revision}/{file.name}":
                    return self._answer(200, file.read_bytes(), ETag=f'"{_tag(file)}"', X_Repo_Commit=COMMIT)
        return self._answer(404, b"{}", X_Error_Code="RevisionNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    folder = tmp_path / "org-tiny"
    params = params_of(build_model(CONFIG, nnx.Rngs(0)))[1]
    save_folder(folder, CONFIG, params)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    handler = type("Here", (Handler,), {"folder": folder, "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    yield handler
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("init_from", ["hub://org/tiny", "hub://org/tiny@v1", f"hub://org/tiny@{COMMIT}"])
def test_a_model_is_fetched_and_read(init_from: str, server: type[Handler]) -> None:
    folder = locate(init_from)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert not any("pytorch_model" in line for line in server.asked)
    config = read_config(folder)
    _, shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    expected = flat(load_params(server.folder, config, shapes))
    got = flat(load_params(folder, config, shapes))
    assert all(np.array_equal(leaf, expected[path]) for path, leaf in got.items())
    assert jax.tree.leaves(got)

    server.asked.clear()
    assert locate(init_from) == folder
    assert not any(line.startswith("GET /org/") for line in server.asked), "the second time nothing is fetched"


def test_offline_the_cache_alone_is_asked(server: type[Handler], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate("hub://org/tiny")
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("hub://org/tiny") == folder
    assert server.asked == []
    with pytest.raises(ConfigError, match=r"init_from=hub://org/other: org/other is not in the cache"):
        locate("hub://org/other")


@pytest.mark.parametrize(
    ("init_from", "words"),
    [
        ("hub://org/none", ["no repository 'org/none' on the hub", "hf auth login"]),
        ("hub://org/tiny@v9", ["org/tiny has no revision 'v9'"]),
        ("hub://tiny", ["hub://org/name"]),
    ],
)
def test_what_is_not_there_is_one_line(init_from: str, words: list[str], server: type[Handler]) -> None:
    with pytest.raises(ConfigError) as error:
        locate(init_from)
    message = str(error.value)
    assert message.startswith(f"init_from={init_from}: ")
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["runs/first", "org/tiny", f"org/tiny@{COMMIT}"])
def test_a_mistyped_path_is_not_asked_for_on_the_hub(name: str, server: type[Handler]) -> None:
    with pytest.raises(ConfigError, match=f"init_from={name}: there is no such path; .* is init_from=hub://{name}"):
        locate(name)
    assert server.asked == []


def test_no_network_and_no_package(server: type[Handler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError, match="hub cannot be reached"):
        locate("hub://org/tiny")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmkit\[hub\]'"):
        locate("hub://org/tiny")


def test_paths_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert locate("org/tiny") == Path("org/tiny")
    for path in ("nowhere", "runs/a/b", "/nowhere/at", "./org/tiny", "model.gguf"):
        assert locate(path) == Path(path)
