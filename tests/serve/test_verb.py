"""The command: what it refuses before a device is touched, and a server's life from its start to SIGTERM."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from generate.test_main import make_run

from lmkit.config.entry import run_verb
from lmkit.config.saved import write_model
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.serve import main
from lmkit.serve.__main__ import ABOUT, READS

TINY = {"num_layers": 1, "num_heads": 2, "embed_dim": 16, "vocab_size": 264}


def refusal(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert run_verb("serve", "lmkit.serve.main:serve", ABOUT, list(words), reads=READS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_refused_before_a_device_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, config in (("run", GPTConfig(**TINY, max_seq_len=64)), ("reads", EncDecConfig(**TINY))):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, config)
        ByteTokenizer().save(tmp_path / name / "tokenizer.json")
    run = f"init_from={tmp_path / 'run'}"
    assert "without serve.keys" in refusal(capsys, run, "serve.host=0.0.0.0")
    keys = tmp_path / "keys"
    assert f"no such file; python -m lmkit.serve.keys create {keys} --name" in refusal(
        capsys, run, f"serve.keys={keys}"
    )
    tls = [f"serve.tls_{name}={tmp_path / 'run' / 'tokenizer.json'}" for name in ("cert", "key")]
    assert "give a PEM certificate" in refusal(capsys, run, *tls)
    assert "mesh.context=2: an engine's steps" in refusal(capsys, run, "mesh.context=2")
    assert "without serve.tls_key" in refusal(capsys, run, "serve.tls_cert=x")
    assert "without serve.access_log" in refusal(capsys, run, "serve.log_texts=true")
    assert "no model given" in refusal(capsys, "serve.port=0")
    assert "is not served" in refusal(capsys, f"init_from={tmp_path / 'reads'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"serve.port={port}" in refusal(capsys, run, f"serve.port={port}")


@pytest.mark.parametrize(("host", "own"), [
    ("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True),
    ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False),
])  # fmt: skip
def test_addresses_that_only_this_machine_reaches(host: str, own: bool) -> None:
    assert main.is_loopback(host) is own


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_PACKAGES", ("starlette", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package: pip install 'lmkit\[serve\]'"):
        main.check_packages()


def start(run: Path, *words: str, port: int = 0) -> tuple[subprocess.Popen, str]:
    """The process and the address that it says; /ready has answered 503 before."""
    with socket.create_server(("127.0.0.1", port)) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "lmkit.serve", f"init_from={run}", f"serve.port={port}", "serve.slots=2",
               "serve.prefill_chunk=16", "run.cpu_devices=1", *words]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address, seen = f"http://127.0.0.1:{port}", []
    while not seen or seen[-1] != 200:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            seen.append(httpx.get(f"{address}/ready").status_code)
        except httpx.ConnectError:
            assert not seen
        time.sleep(0.1)
    assert seen[0] == 503
    return process, address


@pytest.mark.slow
def test_from_start_to_sigterm(tmp_path: Path) -> None:
    """A stream that has begun is ended; then the process ends with status 0. A newer checkpoint is swapped in."""
    make_run(tmp_path / "run", GPTConfig(**TINY, max_seq_len=512))
    log = tmp_path / "access.jsonl"
    process, address = start(tmp_path / "run", f"serve.access_log={log}", "serve.log_texts=true")
    with httpx.Client(base_url=address, timeout=60) as client:
        body = {"prompt": "ab", "max_tokens": 8, "seed": 1}
        before = client.post("/v1/completions", json=body).json()
        metrics = client.get("/metrics").text
        assert re.search(r"^lmkit_compilations\S* 0", metrics, re.MULTILINE), metrics
        assert client.get("/").status_code == 200
        assert client.post("/admin/reload").json()["status"].endswith("is the newest there is")
        assert client.post("/v1/completions", json=body).json()["choices"] == before["choices"]
        with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 200, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == f"run is ready at {address}/v1"
    assert '"ab"' in log.read_text()


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    """As a supervisor would, on the same port: it is ready again and writes the same text."""
    make_run(tmp_path / "run", GPTConfig(**TINY, max_seq_len=512))
    body, texts, port = {"prompt": "ab", "max_tokens": 8, "seed": 1}, [], 0
    for _ in range(2):
        process, address = start(tmp_path / "run", port=port)
        port = int(address.rsplit(":", 1)[1])
        with httpx.Client(base_url=address, timeout=60) as client:
            texts.append(client.post("/v1/completions", json=body).json()["choices"])
            with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 200, "stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.kill()
                with pytest.raises(httpx.HTTPError):
                    list(lines)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_parameters_that_cannot_be_read_end_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run", GPTConfig(**TINY, max_seq_len=64))
    for file in (tmp_path / "run" / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, 10)
    command = [sys.executable, "-m", "lmkit.serve", f"init_from={tmp_path / 'run'}", "serve.port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode not in (0, 70), done.stderr
    assert "status 70" not in done.stderr
    assert "ready" not in done.stdout
