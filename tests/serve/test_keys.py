"""Keys: the file, the command, and who may ask for what."""

import hmac
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
from serve.stand import Stand, error_of

from lmkit.config import ConfigError
from lmkit.serve import keys as module
from lmkit.serve.keys import Keys, create_key, hashed, main, read_keys, revoke_key

WRITE = ("POST", "/v1/write", {"new": 1})


def test_the_file_has_a_hash_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    before = os.umask(0)  # the mode does not hang on the umask
    try:
        secret = create_key(path, "alice", requests_per_minute=5)
    finally:
        os.umask(before)
    assert secret.startswith("sk-lmkit-")
    assert len(secret) > 45  # 256 bits
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = read_keys(path)
    assert (key.name, key.role, key.sha256, key.requests_per_minute) == ("alice", "user", hashed(secret), 5)
    assert create_key(path, "bob") != secret
    assert [key.name for key in read_keys(path)] == ["alice", "bob"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.yaml"], "no lock and no half of a file is left"


def test_every_request_needs_a_key_that_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    alice, bob = create_key(path, "alice"), create_key(path, "bob", "admin", days=1)
    stand = Stand(keys=path)
    assert [a.status_code for a in stand.ask(WRITE, ("GET", "/v1/models/m"), key=alice)] == [200, 200]
    assert stand.ask(("GET", "/v1/models/m"), key=bob)[0].json() == {"owner": "bob"}
    assert [a.status_code for a in stand.ask(*(("GET", p) for p in ("/", "/health", "/ready", "/metrics")))] == [
        200
    ] * 4
    bodies = []
    for wrong in ("", "x", alice[:-1], alice + "x", hashed(alice), alice.swapcase(), "\xfc"):
        for call in (WRITE, ("GET", "/figures"), ("GET", "/nowhere"), ("POST", "/admin/reload")):
            (answer,) = stand.ask(call, headers={"authorization": f"Bearer {wrong}".encode("latin-1")})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert error_of(answer)["code"] == "invalid_api_key"
            bodies.append(answer.text)
    revoke_key(path, "alice")  # the running server sees it at the next request
    (answer,) = stand.ask(WRITE, key=alice)
    assert answer.status_code == 401
    assert {answer.text, *bodies} == {answer.text}, "no answer says what was wrong with the key"
    assert stand.ask(WRITE, key=bob)[0].status_code == 200
    assert stand.ask(WRITE, headers={"authorization": f"Basic {bob}"})[0].status_code == 401


def test_a_key_ends_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    secret = create_key(path, "alice", days=30)
    keys = Keys(path)
    assert keys.find(secret) is not None
    for days, valid in ((29.9, True), (30.1, False)):
        later = datetime.now(UTC) + timedelta(days=days)
        monkeypatch.setattr(module, "_now", lambda later=later: later)
        assert (keys.find(secret) is not None) == valid
    create_key(path, "alice")  # the name is free again
    monkeypatch.undo()
    path.write_text(f"keys: [{{name: by_hand, sha256: {hashed('x')}, expires: 2020-01-01}}]")  # a date, for YAML
    assert keys.find("x") is None


def test_all_keys_are_compared_whichever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, compared = tmp_path / "keys.yaml", []
    secrets = [create_key(path, f"owner{n}") for n in range(5)]
    keys = Keys(path)
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    for secret in (*secrets, "wrong"):
        compared.clear()
        keys.find(secret)
        assert [a for a, _ in compared] == [hashed(s) for s in secrets]
        assert {b for _, b in compared} == {hashed(secret)}


def test_admins_alone_may_reload_and_see_all_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    user, other, admin = create_key(path, "user"), create_key(path, "other"), create_key(path, "boss", "admin")
    stand = Stand(keys=path, reload=lambda: "step 7")
    (answer,) = stand.ask(("POST", "/admin/reload"), key=user)
    assert answer.status_code == 403
    assert error_of(answer)["type"] == "permission_error"
    assert stand.ask(("POST", "/admin/reload"), key=admin)[0].json() == {"status": "step 7"}
    stand.ask(WRITE, key=user)
    stand.ask(WRITE, WRITE, key=other)
    requests = {"user": 1, "other": 2}
    for key, seen in ((user, {"user"}), (other, {"other"}), (admin, {"user", "other"})):
        owners = stand.ask(("GET", "/figures"), key=key)[0].json()["owners"]
        assert {name: own["requests"] for name, own in owners.items()} == {name: requests[name] for name in seen}


def test_a_file_that_is_spoiled_later_changes_nothing_and_one_that_is_gone_admits_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    secret = create_key(path, "alice")
    keys = Keys(path)
    whole = path.read_text()
    path.write_text("keys: [")
    assert keys.find(secret) is not None
    assert keys.find(secret) is not None
    assert capsys.readouterr().err.count("the keys stay as they were") == 1
    path.unlink()
    assert keys.find(secret) is None
    path.write_text(whole)
    path.chmod(0o600)
    assert keys.find(secret) is not None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a", "holds a list"), ("keys: {}", "no list `keys`"), ("keys: [{name: a}]", "keys[0] needs name and sha256"),
        ("keys: [{name: a, sha256: x}]", "sha256 64 digits"),
        ("keys: [{name: a, sha256: '" + 64 * "é" + "'}]", "sha256 64 digits"),
        (f"keys: [{{name: a, sha256: {64 * 'a'}, role: root}}]", "role=root"),
        (f"keys: [{{name: a, sha256: {64 * 'a'}, tokens_per_minute: -1}}]", "tokens_per_minute=-1"),
        (f"keys: [{{name: a, sha256: {64 * 'a'}, expires: soon}}]", "soon"),
        (f"keys: [{{name: a, sha256: {64 * 'a'}, rate: 3}}]", "may have name"),
        (f"keys: [{{name: a, sha256: {64 * 'a'}, revoked: '2020-01-01'}}]", "has no valid key"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_line(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Keys(tmp_path / "keys.yaml")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    create_key(path, "alice")
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod go-w"):
        Keys(path)
    path.chmod(0o640)  # a secret that Kubernetes mounts
    Keys(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = str(tmp_path / "keys.yaml")
    command = [sys.executable, "-m", "lmkit.serve.keys", "create", file, "--name", "alice", "--role", "admin"]
    done = subprocess.run([*command, "--tokens-per-minute", "9"], capture_output=True, text=True, check=True)
    secret = done.stdout.strip()
    assert Keys(Path(file)).find(secret).role == "admin"  # type: ignore[union-attr]
    assert main(["create", file, "--name", "alice"]) == 2
    assert "has a valid key of alice" in capsys.readouterr().err
    assert main(["list", file]) == 0
    listed = capsys.readouterr().out
    assert listed.split()[:3] == ["alice", "admin", "valid"]
    assert "9 tokens" in listed
    assert secret not in listed
    assert main(["revoke", file, "--name", "bob"]) == 2
    assert "it has those of alice" in capsys.readouterr().err
    assert main(["revoke", file, "--name", "alice"]) == 0
    assert main(["list", file]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["list", file + "x"]) == 2
    for wrong in (
        ["--name", "a\nb"],
        ["--name", " "],
        ["--name", "a", "--days", "-1"],
        ["--name", "a", "--role", "root"],
    ):
        with pytest.raises(SystemExit):
            main(["create", file, *wrong])


def test_without_keys_no_page_of_another_site_may_ask() -> None:
    stand = Stand()
    assert stand.ask(WRITE)[0].status_code == 200
    assert stand.ask(WRITE, host="127.0.0.1:8000", headers={"origin": "http://127.0.0.1:8000"})[0].status_code == 200
    assert stand.ask(WRITE, host="[::1]:8000")[0].status_code == 200
    (answer,) = stand.ask(WRITE, host="evil.example")  # a name that was made to point here
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert stand.ask(WRITE, headers={"origin": origin})[0].status_code == 403
