"""The API behind its guard: keys, what is charged to them, what the log and the engine get to know."""

import json
from pathlib import Path

import httpx
from serving import ScriptedEngine, ready_server, running, served_bytes

from lmkit.serve.app import make_app
from lmkit.serve.guard import Guard
from lmkit.serve.keys import create_key


def test_a_key_is_charged_and_logged(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    key = create_key(tmp_path / "keys.yaml", "ann", "user", tokens_per_minute=100)
    guard = Guard(engine.stats, keys=tmp_path / "keys.yaml", access_log=tmp_path / "log.jsonl", log_texts=True,
                  max_body=1000)  # fmt: skip
    app = guard.around(make_app(ready_server(served_bytes(engine)), guard.routes))
    with running(app) as address, httpx.Client(base_url=address) as client:
        body = {"prompt": "abc", "max_tokens": 6, "seed": 1}
        assert client.post("/v1/completions", json=body).status_code in (401, 503)
        guard.life.ready()
        refused = client.post("/v1/completions", json=body)
        assert refused.status_code == 401
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        headers = {"authorization": f"Bearer {key}"}
        found = client.post("/v1/completions", json=body, headers=headers)
        assert found.status_code == 200, found.text
        assert engine.seen[-1].owner == "ann"
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 90}
        over = client.post("/v1/chat/completions", json=chat, headers=headers)
        assert over.status_code == 429
        assert int(over.headers["retry-after"]) > 0
        long = client.post("/v1/completions", json=body | {"prompt": "a" * 2000}, headers=headers)
        assert long.status_code == 413
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["status"] == 200]
    told = {name: row[name] for name in ("owner", "route", "complete", "prompt_tokens", "cached_tokens", "new_tokens")}
    assert told == {"owner": "ann", "route": "/v1/completions", "complete": True, "prompt_tokens": 4,
                    "cached_tokens": 1, "new_tokens": 6}  # fmt: skip
    assert row["texts"] == {"prompt": ["abc"], "answer": [found.json()["choices"][0]["text"]]}
    assert len(engine.seen) == 1
