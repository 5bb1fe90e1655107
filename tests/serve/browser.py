"""A headless Chromium, driven over a pipe by its DevTools protocol."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
MOVED = 'exec "${@:3}" 3<&"$1" 4>&"$2"'  # Chromium reads commands from 3 and answers on 4
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --window-size=1150,1250"


class Browser:
    """One page of one browser. What its console says, and every address it asks for, is kept."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        (self._read, out), (into, self._write) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (into, out)]
        command = ["bash", "-c", MOVED, "browser", *map(str, ends)]
        command += [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=ends, stdout=quiet, stderr=quiet)
        for end in (into, out, *ends):
            os.close(end)
        self._rest, self._number, self._session = b"", 0, ""
        self.console: list[str] = []
        self.asked: list[str] = []
        (page,) = [one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def __call__(self, method: str, **params: Any) -> Any:
        """One command and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        text, self._rest = self._rest.split(b"\0", 1)
        found = json.loads(text)
        params = found.get("params", {})
        if found.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif found.get("method") == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif found.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.console.append(json.dumps(params))
        return found

    def run(self, script: str) -> Any:
        """The value of a script."""
        done = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, sec: float = 20) -> Any:
        """Its value when it has become true."""
        end = time.monotonic() + sec
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script}: not true after {sec} s; {self.console}"
            time.sleep(0.05)
        return value

    def fill(self, **values: str | bool) -> None:
        """Puts values into the fields with these ids, as a person would."""
        for name, value in values.items():
            field = "checked" if isinstance(value, bool) else "value"
            self.run(f"{{const e = document.getElementById('{name}'); e.{field} = {json.dumps(value)};"
                     f"e.dispatchEvent(new Event('change', {{bubbles: true}}))}}")  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The page as a picture."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"]))
