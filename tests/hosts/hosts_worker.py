"""One of several processes, without a model: what test_hosts.py starts. Its one argument is JSON.

{"hosts": keys of HostsConfig, "fault": what happens at step 3 to the process "who", "value": what they must agree on,
 "cache": a folder to fill, "run": a folder that must be shared}
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from lmkit import hosts
from lmkit.config import ConfigError
from lmkit.config.sections.hosts import HostsConfig
from lmkit.config.sections.run import RunConfig


def load_batch() -> None:
    time.sleep(600)


def fail(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "stuck":
        load_batch()
    elif fault == "bug":
        raise RuntimeError("this must not happen")
    elif fault == "mistake":
        raise ConfigError("data.paths=nowhere: it is not there")


def build(folder: Path) -> str:
    """As data are prepared: slowly, unless they are there."""
    if not (folder / "data").exists():
        time.sleep(1.0)
        (folder / "data").touch()
        with (folder / "builders").open("a") as file:
            file.write(f"{hosts.index()} ")
    return "read"


def main(words: dict) -> None:
    with hosts.session(HostsConfig(**words["hosts"]), RunConfig(cpu_devices=1), "test"):
        hosts.agree("the value", {"value": words.get("value", 0), "same": 1})
        print(hosts.share("word", f"from {hosts.index()}"), hosts.gather("numbers", str(hosts.index())), flush=True)
        if "cache" in words:
            hosts.first_where_shared(Path(words["cache"]), lambda: build(Path(words["cache"])))
        if "run" in words:
            hosts.check_shared("run.dir", Path(words["run"]))
        watch = hosts.watchdog()
        watch.arm()
        for step in range(1, 12):
            if step == 3 and words.get("who") in (hosts.index(), "all"):
                fail(words["fault"])
            watch.started(step)
            hosts.gather("step")  # as a collective would
            watch.ended(step)
        print("finished", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
