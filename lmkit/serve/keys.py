"""Bearer keys: `python -m lmkit.serve.keys create|list|revoke FILE`, and which of them are valid.

A key is 256 random bits, shown once. The file has its SHA-256: nobody can guess 256 bits from their hash, so a slow
hash (scrypt), which is for passwords that people choose, would only cost time at each request.
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.files import locked, private_files, write_text

PREFIX = "sk-lmkit-"  # scanners for secrets, lmkit's own too, know sk-
ROLES = ("user", "admin")
_HEAD = "# Keys of a server; written by python -m lmkit.serve.keys, which has the commands to change it.\n"


@dataclass(frozen=True)
class Key:
    """One entry of the file.

    Attributes:
        name: of its owner; the log and the turns of the engine go by it.
        sha256: of the key, hexadecimal.
        role: one of ROLES.
        created, expires, revoked: UTC, ISO 8601; "" = never.
        requests_per_minute, tokens_per_minute: 0 = no limit.
    """

    name: str
    sha256: str
    role: str = "user"
    created: str = ""
    expires: str = ""
    revoked: str = ""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def state(self, now: datetime) -> str:
        """ "valid", "revoked" or "expired"."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and _time(self.expires) <= now else "valid"


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def hashed(key: str) -> str:
    """SHA-256 of a key, hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The entries of a file. Raises ConfigError, in one line, where it is damaged or others may write it."""
    found = read_document(path, way_out=f"python -m lmkit.serve.keys create {path} --name NAME makes one")
    if path.stat().st_mode & 0o022:
        raise ConfigError(f"{path} may be written by others, who could add keys of their own: chmod go-w {path}")
    rows = found.get("keys")
    if not isinstance(rows, list):
        raise ConfigError(f"{path} has no list `keys`; python -m lmkit.serve.keys create makes the file")
    return [_key(path, number, row) for number, row in enumerate(rows)]


def _key(path: Path, number: int, row: Any) -> Key:
    known = {field.name: field.type for field in fields(Key)}
    if not isinstance(row, dict) or not {"name", "sha256"} <= set(row) <= set(known):
        raise ConfigError(f"{path}: keys[{number}] needs name and sha256, and may have {', '.join(known)}")
    key = Key(**{name: _plain(value) for name, value in row.items()})
    for name, kind in known.items():
        value = getattr(key, name)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):  # type: ignore
            raise ConfigError(f"{path}: keys[{number}].{name}={value!r}: give a {kind.__name__}, 0 or more")  # type: ignore
    try:
        [_time(text) for text in (key.created, key.expires) if text]
    except ValueError as error:
        raise ConfigError(f"{path}: keys[{number}]: {error}; a time is written like {_now().isoformat()}") from error
    if key.role not in ROLES or not re.fullmatch("[0-9a-f]{64}", key.sha256) or not key.name.isprintable():
        raise ConfigError(
            f"{path}: keys[{number}]: role={key.role} is user or admin, sha256 64 digits, name plain text"
        )
    return key


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value  # YAML reads a time without quotes as one


def _write(path: Path, keys: list[Key]) -> None:
    rows = [{name: value for name, value in asdict(key).items() if value not in ("", 0)} for key in keys]
    with private_files(0o077):
        write_text(path, _HEAD + yaml.safe_dump({"keys": rows}, sort_keys=False, allow_unicode=True))


def create_key(
    path: Path,
    name: str,
    role: str = "user",
    *,
    days: float = 0,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
) -> str:
    """Adds a key and returns it; the file has only its hash. Raises ConfigError for a name that has a valid key."""
    with locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name and key.state(_now()) == "valid" for key in keys):
            raise ConfigError(f"{path} has a valid key of {name}: revoke it first, or take another --name")
        secret = PREFIX + secrets.token_urlsafe(32)
        expires = (_now() + timedelta(days=days)).isoformat() if days else ""
        limits = requests_per_minute, tokens_per_minute
        _write(path, [*keys, Key(name, hashed(secret), role, _now().isoformat(), expires, "", *limits)])
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Ends the valid keys of a name; they stay in the file. Raises ConfigError where there is none."""
    with locked(path):
        keys, now = read_keys(path), _now()
        ends = [key.name == name and key.state(now) == "valid" for key in keys]
        if not any(ends):
            known = sorted({key.name for key in keys if key.state(now) == "valid"})
            raise ConfigError(f"{path} has no valid key of {name}; it has those of {', '.join(known) or 'nobody'}")
        changed = [replace(key, revoked=now.isoformat()) if end else key
                   for key, end in zip(keys, ends, strict=True)]  # fmt: skip
        _write(path, changed)


class Keys:
    """A file of keys, read again when it has changed.

    A change that cannot be read leaves the keys as they were and is reported on stderr; a file that is gone admits
    nobody. Raises ConfigError where it cannot be read at the start, or has no valid key.
    """

    def __init__(self, path: Path):
        self._path = path
        self._keys, self._seen = read_keys(path), self._signature()
        if not any(key.state(_now()) == "valid" for key in self._keys):
            raise ConfigError(f"{path} has no valid key: python -m lmkit.serve.keys create {path} --name NAME")

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _current(self) -> list[Key]:
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            try:
                self._keys = read_keys(self._path) if seen else []
            except ConfigError as error:
                print(f"lmkit.serve: {error}; the keys stay as they were", file=sys.stderr, flush=True)
        return self._keys

    def find(self, secret: str) -> Key | None:
        """The entry of a valid key. The time it takes does not depend on which one it is, nor on how near it came."""
        digest, found = hashed(secret), None
        for key in self._current():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found if found is not None and found.state(_now()) == "valid" else None


def main(words: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lmkit.serve.keys", description="Keys of a server (serve.keys).")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (("create", "make a key; it is shown once"), ("list", "all keys"), ("revoke", "end a key")):
        one = commands.add_parser(command, help=about)
        one.add_argument("file", type=Path, help="such as keys.yaml")
        if command != "list":
            one.add_argument("--name", type=_name, required=True, help="of its owner")
        if command == "create":
            one.add_argument("--role", choices=ROLES, default="user", help="an admin may reload, and see all figures")
            one.add_argument("--requests-per-minute", type=_count, default=0, help="0 = no limit")
            one.add_argument("--tokens-per-minute", type=_count, default=0, help="of prompts and answers; 0 = no limit")
            one.add_argument("--days", type=_count, default=0, help="how long it is valid; 0 = until it is revoked")
    args = parser.parse_args(words)
    path = args.file.expanduser()
    try:
        if args.command == "create":
            limits = {"requests_per_minute": args.requests_per_minute, "tokens_per_minute": args.tokens_per_minute}
            print(create_key(path, args.name, args.role, days=args.days, **limits))
        elif args.command == "revoke":
            revoke_key(path, args.name)
        else:
            for key in read_keys(path):
                asked = f"{key.requests_per_minute or '-'} requests, {key.tokens_per_minute or '-'} tokens a minute"
                print(f"{key.name:<20} {key.role:<6} {key.state(_now()):<8} {key.sha256[:8]}  {asked}")
    except (ConfigError, OSError) as error:
        print(f"lmkit.serve.keys: {error}", file=sys.stderr)
        return 2
    return 0


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r}: give a name, in one line")
    return text


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
