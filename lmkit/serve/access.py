"""The access log: who asked what and when, a line of JSON a request, appended. It never has a key."""

import json
import os
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.redact import redact
from lmkit.serve.call import Call

QUIET = frozenset({"/health", "/ready", "/metrics", "/figures"})  # asked every few seconds by machines


class AccessLog:
    """Writes a line at the end of each request.

    The file is opened for each line, to append, and the line written in one call: lines of several processes do not
    mix, and a rotated file (renamed, or removed) begins anew. What cannot be written, on a full disk, is counted in
    `lost` and reported on stderr once; the server goes on. Put it on a local disk: a write waits for it.

    Args:
        path: the file; made with mode 0600.
        texts: whether prompts and answers are written, too.
        quiet: routes that are written only where they fail.

    Raises ConfigError where the file cannot be opened.
    """

    def __init__(self, path: Path, texts: bool = False, quiet: Collection[str] = QUIET):
        self._path, self._texts, self._quiet = path, texts, quiet
        self.lost = 0
        self._failing = self._torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise ConfigError(f"serve.access_log={path} cannot be written: {error.strerror}") from error

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __call__(self, call: Call) -> None:
        """Writes the line of a request that has ended."""
        if call.route in self._quiet and call.status < 400:
            return
        line = {
            "time": datetime.fromtimestamp(call.when, UTC).isoformat(timespec="milliseconds"),
            "id": call.id, "owner": call.owner, "client": call.client, "method": call.method, "route": call.route,
            "status": call.status, "complete": call.complete, "seconds": round(call.seconds, 6),
            "first_token_sec": None if call.first_sec is None else round(call.first_sec, 6),
            "prompt_tokens": call.prompt_tokens, "cached_tokens": call.cached_tokens, "new_tokens": call.new_tokens,
        }  # fmt: skip
        if self._texts and call.texts:
            line["texts"] = redact(dict(call.texts))
        self._append(json.dumps(line, ensure_ascii=False, default=str))

    def _append(self, line: str) -> None:
        data = ("\n" * self._torn + line + "\n").encode("utf-8", "backslashreplace")
        try:
            file = self._open()
            try:
                written = os.write(file, data)
            finally:
                os.close(file)
            if written < len(data):
                self._torn = True  # the next line must not go on where this one broke off
                raise OSError("the disk is full")
        except OSError as error:
            self.lost += 1
            if not self._failing:
                why = error.strerror or error
                print(
                    f"lmkit.serve: {self._path} cannot be written: {why}; lines are lost", file=sys.stderr, flush=True
                )
            self._failing = True
        else:
            self._failing = self._torn = False
