"""What a run depends on outside its configuration: versions, code, flags, machine."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lmkit import __version__
from lmkit.redact import redact_words


def versions() -> dict[str, str]:
    """Of everything that has a part in the numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "tokenizers", "grain")
    return {"lmkit": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def environment() -> dict[str, Any]:
    """What a run depends on outside its configuration: versions, code, flags, machine."""
    flags = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_DEFAULT_MATMUL_PRECISION")
    return {
        "command": redact_words(sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git": _git(),
        "flags": {name: os.environ[name] for name in flags if name in os.environ},
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
    }


def _git() -> dict[str, str]:
    """Commit and uncommitted diff of lmkit's checkout; {} where it is installed."""

    def git(*words: str) -> str:
        folder = Path(__file__).resolve().parents[2]
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10).stdout

    try:
        if not (Path(__file__).resolve().parents[2] / ".git").exists():
            return {}
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": git("diff", "HEAD")[:200_000]}
    except (OSError, subprocess.TimeoutExpired):
        return {}
