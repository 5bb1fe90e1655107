"""The access log: what stands in a line, and what happens where none can be written."""

import asyncio
import errno
import os
import stat
from collections.abc import MutableMapping
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
from serve.stand import Stand, rows

from lmkit.config import ConfigError
from lmkit.serve.access import AccessLog
from lmkit.serve.call import Call
from lmkit.serve.keys import create_key


def test_a_line_says_who_asked_what_and_when(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "access.jsonl"
    secret = create_key(tmp_path / "keys.yaml", "alice")
    stand = Stand(access_log=log, keys=tmp_path / "keys.yaml")
    write = ("POST", "/v1/write?api_key=sk-lmkit-in-the-address", {"prompt": 7, "new": 3, "text": "my words"})
    answers = stand.ask(write, ("GET", f"/v1/{secret}"), ("GET", "/v1/models/m"), ("GET", "/health"), key=secret)
    answers += stand.ask(write, key="sk-lmkit-wrong")
    found = rows(log)
    assert [row["id"] for row in found] == [answers[n].headers["x-request-id"] for n in (0, 1, 2, 4)]
    assert [(row["owner"], row["route"], row["status"]) for row in found] == [
        ("alice", "/v1/write", 200), ("alice", "", 404), ("alice", "/v1/models/{name}", 200), ("", "", 401),
    ]  # fmt: skip
    assert [(row["prompt_tokens"], row["new_tokens"]) for row in found] == [(7, 3), (0, 0), (0, 0), (0, 0)]
    assert found[0]["time"].startswith("20")
    assert found[0]["time"].endswith("+00:00")
    assert 0 < found[0]["first_token_sec"] <= found[0]["seconds"]
    assert all(row["complete"] for row in found)
    text = log.read_text()
    assert "sk-lmkit" not in text, "a key is in the log"
    assert "my words" not in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_texts_only_where_they_are_asked_for_and_no_secrets_in_them(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    said = 'é\n "x" \ud800 my key is sk-lmkit-' + 43 * "A"
    AccessLog(log, texts=True)(Call("POST", "", texts={"prompt": said, "stop": ["a"]}))
    (row,) = rows(log)
    assert row["texts"] == {"prompt": 'é\n "x" \ud800 my key is ***', "stop": ["a"]}
    Stand(access_log=log, log_texts=True).ask(("POST", "/v1/write", {"text": "my words"}))
    assert rows(log)[1]["texts"] == {"prompt": "my words"}


def test_a_client_that_goes_away_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    stand = Stand(access_log=log)

    async def leave() -> None:
        sent: list[MutableMapping] = []
        asked = [{"type": "http.request", "body": b'{"new":1000,"sleep":0.001,"stream":true}', "more_body": False}]

        async def receive() -> dict:
            if asked:
                return asked.pop()
            while len(sent) < 5:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/write", "raw_path": b"", "query_string": b"",
                 "headers": [], "client": ("1.2.3.4", 5), "server": ("localhost", 80), "scheme": "http",
                 "asgi": {"spec_version": "2.3"}}  # fmt: skip
        await stand.app(scope, receive, send)

    asyncio.run(leave())
    (row,) = rows(log)
    assert (row["status"], row["complete"], row["client"], stand.cancelled) == (200, False, "1.2.3.4", 1)
    assert 3 <= row["new_tokens"] < 1000


def test_probes_are_quiet_unless_they_fail(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    stand = Stand(access_log=log)
    stand.ask(*[("GET", path) for path in ("/health", "/ready", "/metrics", "/figures")])
    assert rows(log) == []
    stand.stats = stand.stats._replace(failure="out of memory")
    stand.ask(("GET", "/health"))
    assert [(row["route"], row["status"]) for row in rows(log)] == [("/health", 500)]


def test_a_full_disk_is_said_once_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    log, write, real = tmp_path / "access.jsonl", ("POST", "/v1/write", {}), os.write
    stand = Stand(access_log=log)
    stand.ask(write)

    def full(file: int, data: bytes) -> int:
        if b'"route"' in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    assert {a.status_code for a in stand.ask(write, write, write)} == {200}
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20] if b'"route"' in data else data))
    assert {a.status_code for a in stand.ask(write)} == {200}  # room for a piece of the line
    monkeypatch.undo()
    assert capsys.readouterr().err.count("No space left on device; lines are lost") == 1
    assert "lmkit_access_log_lost_total 4.0" in stand.ask(("GET", "/metrics"))[0].text
    stand.ask(write)
    first, torn, last = log.read_text().splitlines()
    assert len(torn) == 20
    assert '"status": 200' in first
    assert '"status": 200' in last


def test_a_log_that_was_renamed_begins_anew(tmp_path: Path) -> None:
    log, write = tmp_path / "access.jsonl", ("POST", "/v1/write", {})
    stand = Stand(access_log=log)
    stand.ask(write)
    log.rename(tmp_path / "access.1")
    stand.ask(write, write)
    assert (len(rows(tmp_path / "access.1")), len(rows(log))) == (1, 2)
    AccessLog(log)(Call("GET", ""))  # a server that starts again goes on where it was
    assert len(rows(log)) == 3


def test_a_log_that_cannot_be_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serve\.access_log=.* cannot be written"):
        AccessLog(tmp_path)
