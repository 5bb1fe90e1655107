"""A Slurm of two pretended nodes on this machine."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ROOT

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of our own that sbatch and squeue talk to. Skips loudly where there can be none."""
    if MISSING:
        pytest.skip(f"LOUD: no job was run: {MISSING} missing; tools/slurm_local.sh")
    if os.getuid() != 0:
        pytest.skip("LOUD: a local Slurm needs root: no job was run")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1] % 20000 + 10000
    monkeypatch.setenv("SLURM_LOCAL_PORT", str(port))
    folder = tmp_path / "slurm"
    tool = [str(ROOT / "tools" / "slurm_local.sh")]
    try:
        subprocess.run([*tool, "start", str(folder)], check=True)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
    finally:
        subprocess.run([*tool, "stop", str(folder)], check=True)
