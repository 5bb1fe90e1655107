"""hosts.local where it cannot be; where it can, tests/train/test_hosts.py has real processes."""

import pytest

from lmkit.config.entry import run_verb
from lmkit.config.entry.local import run_local
from lmkit.config.sections.hosts import LOCAL, HostsConfig, local_process


def test_a_verb_of_one_process_refuses_it(capsys: pytest.CaptureFixture) -> None:
    words = ["+experiment=gpt_tiny", "hosts.local=2", "mesh.fsdp=2"]
    assert run_verb("verify", "lmkit.verify.main:verify", "about", words) == 2
    assert "hosts.local=2: lmkit.verify is one process; leave hosts.local out" in capsys.readouterr().err


def test_a_sweep_refuses_it(capsys: pytest.CaptureFixture) -> None:
    words = ["--multirun", "+experiment=gpt_tiny", "hosts.local=2", "train.steps=10,20"]
    assert run_verb("train", "lmkit.train.main:train", "about", words, many=True) == 2
    assert "hosts.local=2 in a sweep" in capsys.readouterr().err


def test_the_first_bad_status_is_that_of_all(capfd: pytest.CaptureFixture) -> None:
    """`python -m lmkit.train --help` is a verb that ends at once; one that is not there fails."""
    assert run_local("train", ["--help"], HostsConfig(local=2)) == 0
    out, err = capfd.readouterr()
    assert out.count("hosts.stall_factor: float = 20.0") == 1
    assert "[1]   hosts.stall_factor: float = 20.0" in err
    assert run_local("nothing", [], HostsConfig(local=2, heartbeat_timeout_sec=2.0)) == 1
    assert "[1] " in capfd.readouterr().err


def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_process() is None
    monkeypatch.setenv(LOCAL, "3 4711")
    assert local_process() == (3, 4711)
