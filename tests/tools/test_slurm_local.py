"""The script that runs a local Slurm; what it runs is tried in tests/launch/test_slurm.py."""

import subprocess

from helpers import ROOT

SCRIPT = ROOT / "tools" / "slurm_local.sh"


def test_it_parses_and_explains_itself() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "tools/slurm_local.sh start DIR" in done.stderr
    assert subprocess.run([str(SCRIPT), "start"], capture_output=True).returncode == 2
    assert subprocess.run([str(SCRIPT), "begin", "/nowhere"], capture_output=True).returncode == 2
