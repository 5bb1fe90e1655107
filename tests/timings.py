"""Where the time of a test run goes: `--timings=FILE` (with the =) writes a line of JSON a test.

Seconds of the test, and of these: of tracing and lowering, of compiling, and how many subprocesses were started.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_spent = dict.fromkeys([*_EVENTS.values(), "processes"], 0.0)
_start = subprocess.Popen.__init__


def _counted(self: subprocess.Popen, *args, **kwargs) -> None:
    _spent["processes"] += 1
    _start(self, *args, **kwargs)


def _heard(event: str, seconds: float, **_: object) -> None:
    if event in _EVENTS:
        _spent[_EVENTS[event]] += seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--timings", default="", help="file for the seconds of each test, as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--timings"):
        jax.monitoring.register_event_duration_secs_listener(_heard)
        subprocess.Popen.__init__ = _counted  # type: ignore[method-assign]
        if not hasattr(config, "workerinput"):
            Path(config.getoption("--timings")).write_text("")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before, began = dict(_spent), time.perf_counter()
    done = yield
    if file := item.config.getoption("--timings"):
        row = {"test": item.nodeid, "sec": time.perf_counter() - began}
        row |= {name: value - before[name] for name, value in _spent.items()}
        with open(file, "a") as out:  # workers append whole lines
            out.write(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
    return done
