"""Processes that find each other, agree, and end together; real ones, without a model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.hosts import LOST, STALLED, HostsConfig
from lmkit.hosts.cluster import find_process, job_nodes, local_devices
from lmkit.hosts.watchdog import Watchdog

WORKER = Path(__file__).with_name("hosts_worker.py")
QUICK = {"start_timeout_sec": 30, "heartbeat_timeout_sec": 4, "shutdown_timeout_sec": 3}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Job:
    """Workers with the ids given, and what became of them."""

    def __init__(self, ids: list[int], num: int, each: dict[int, dict] | None = None, **words: Any):
        address = f"127.0.0.1:{free_port()}"
        self.processes = []
        for number in ids:
            hosts = {**QUICK, "coordinator": address, "num": num, "id": number, **words.get("hosts", {})}
            mine = {**words, **(each or {}).get(number, {}), "hosts": hosts}
            env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
            command = [sys.executable, str(WORKER), json.dumps(mine)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env=env, **pipes))

    def ended(self, timeout: float = 120.0) -> list[tuple[int, str, str]]:
        """(status, stdout, stderr) of each; whoever still runs then is killed, and is an error."""
        deadline, results = time.monotonic() + timeout, []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
                results.append((process.returncode, out, err))
        finally:
            for process in self.processes:
                process.kill()
        return results


def told(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("lmkit.test: ")]


def test_they_find_each_other_agree_and_end() -> None:
    for number, (status, out, err) in enumerate(Job([0, 1, 2], 3).ended()):
        assert status == 0, (number, err)
        assert out.splitlines() == ["from 0 ['0', '1', '2']", "finished"]


def test_who_is_missing_is_named() -> None:
    """Number 2 of 4 never starts, nor does 3: everybody else says so, in the time set, with a status of its own."""
    start = time.monotonic()
    results = Job([0, 1], 4, hosts={"start_timeout_sec": 4}).ended()
    assert time.monotonic() - start < 30
    for status, _, err in results:
        assert status == LOST
        (line,) = told(err)
        assert "2 of 4 processes did not come within hosts.start_timeout_sec=4: number 2, 3; here are 0 (" in line
        assert "1 (" in line


@pytest.mark.slow
def test_without_process_0_the_others_say_where_they_looked() -> None:
    ((status, _, err),) = Job([1], 2, hosts={"start_timeout_sec": 2}).ended()
    assert status == LOST
    assert re.search(r"process 1 \(.*\) did not reach process 0 at 127.0.0.1:\d+ within hosts.start_timeout_sec=2", err)


def test_a_port_in_use_is_refused() -> None:
    """By another job's process 0: the processes of the two would mix."""
    job = Job([0], 2)
    address = json.loads(job.processes[0].args[2])["hosts"]["coordinator"]  # type: ignore[index]
    wait_for = time.monotonic() + 60
    while time.monotonic() < wait_for:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0:
                break
        time.sleep(0.05)
    other = Job([0], 2, hosts={"coordinator": address})
    ((status, _, err),) = other.ended()
    job.processes[0].kill()
    job.ended()
    assert status == 1
    assert "choose another port with hosts.coordinator=" in err


@pytest.mark.slow
def test_two_with_one_number_are_told_apart() -> None:
    results = Job([0, 1, 1], 3, hosts={"start_timeout_sec": 60}).ended()
    assert [status for status, *_ in results] == [2, 2, 2]
    for *_, err in results:
        assert "two processes say that they are number 1" in err


def test_a_killed_process_ends_the_others_at_once() -> None:
    start = time.monotonic()
    (zero, _, err), (one, *_), (two, _, other) = Job([0, 1, 2], 3, fault="kill", who=1).ended()
    assert (zero, one, two) == (LOST, -signal.SIGKILL, LOST)
    for text in (err, other):
        (line,) = told(text)
        assert re.match(r"lmkit.test: process 1 \(.*\) was lost: killed, crashed, or its machine is gone", line)
        assert "its last step was" in line
    assert time.monotonic() - start < 40


def test_process_0_can_be_the_one_that_is_killed() -> None:
    (zero, *_), (one, _, err), (two, *_) = Job([0, 1, 2], 3, fault="kill", who=0).ended()
    assert (zero, one, two) == (-signal.SIGKILL, LOST, LOST)
    assert re.match(r"lmkit.test: process 0 \(.*\) was lost", told(err)[0])


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_silent_process_counts_as_lost(who: int) -> None:
    """A machine that is gone closes no sockets: SIGSTOP is the same to the others."""
    job = Job([0, 1], 2, fault="freeze", who=who)
    other = job.processes[1 - who]
    _, err = other.communicate(timeout=60)
    job.processes[who].kill()
    assert other.returncode == LOST
    (line,) = told(err)
    assert re.match(rf"lmkit.test: process {who} \(.*\) has been silent for ", line)


def test_a_bug_in_one_ends_all_with_its_traceback() -> None:
    (zero, _, err), (one, _, own) = Job([0, 1], 2, fault="bug", who=1).ended()
    assert (zero, one) == (1, 1)
    assert re.match(r"lmkit.test: process 1 \(.*\): RuntimeError: this must not happen", told(err)[0])
    assert "Traceback" not in err
    assert 'raise RuntimeError("this must not happen")' in own


def test_a_mistake_found_by_one_is_one_line_and_status_2() -> None:
    for status, _, err in Job([0, 1], 2, fault="mistake", who=1).ended():
        assert status == 2
        (line,) = told(err)
        assert re.match(r"lmkit.test: process 1 \(.*\): data.paths=nowhere: it is not there", line)
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_mistake_found_by_all_names_nobody() -> None:
    for status, _, err in Job([0, 1], 2, fault="mistake", who="all").ended():
        assert status == 2
        assert told(err) == ["lmkit.test: data.paths=nowhere: it is not there"]


@pytest.mark.slow
def test_what_differs_is_named() -> None:
    for status, _, err in Job([0, 1], 2, each={1: {"value": 5}}).ended():
        assert status == 2
        (line,) = told(err)
        assert re.search(r"the value of process 1 \(.*\) differs: value \(0 on process 0, 5 there\)", line)


def test_a_stuck_process_is_named_and_all_stacks_are_shown() -> None:
    limits = {"stall_factor": 2.0, "stall_min_sec": 2.0, "stall_pause_sec": 3.0}
    results = Job([0, 1], 2, fault="stuck", who=1, hosts=limits).ended()
    for status, _, err in results:
        assert status == STALLED
        assert "has not ended for" in err
        assert re.search(r"behind: process 1 \(.*\)\n  process 0 \(.*\): started step 3, ended step 2, in ", err)
        assert re.search(r"\n  process 1 \(.*\): started step 2, ended step 2, in ", err)
        assert "thread MainThread:" in err
    assert "in load_batch" in results[1][2]


def test_a_shared_folder_is_filled_once_and_others_each(tmp_path: Path) -> None:
    """Number 2 has a disk of its own."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    each = {number: {"cache": str(folder)} for number, folder in enumerate((shared, shared, own))}
    for status, _, err in Job([0, 1, 2], 3, each=each).ended():
        assert status == 0, err
    assert (shared / "builders").read_text() == "0 "
    assert (own / "builders").read_text() == "2 "
    assert {p.name for p in shared.iterdir()} == {"data", "builders"}


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    each = {number: {"run": str(tmp_path / str(number))} for number in range(2)}
    for status, _, err in Job([0, 1], 2, each=each).ended():
        assert status == 2
        assert re.search(r"run.dir=.* is another folder on process 1 \(.*\) than on process 0", told(err)[0])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_measures_steps_alone() -> None:
    clock = Clock()
    watch = Watchdog(HostsConfig(stall_factor=10.0, stall_min_sec=5.0, stall_pause_sec=100.0), clock)
    clock.now = 1e6
    assert watch.report()["limit"] == 0  # data are being prepared
    watch.arm()
    assert watch.report()["limit"] == 100
    for step in range(1, 6):
        clock.now += 2.0
        watch.ended(step)
    report = watch.report()
    assert (report["ended"], report["doing"], report["limit"], report["sec"]) == (5, "", 20.0, 0.0)
    with watch.pause("an evaluation"):
        clock.now += 4.0
        assert (watch.report()["limit"], watch.report()["sec"], watch.report()["doing"]) == (100, 4.0, "an evaluation")
        clock.now += 4.0
    assert watch.report()["sec"] == 0.0
    with watch.pause("an evaluation"):
        for _ in range(100):  # longer than the limit of 100, in batches that are not
            clock.now += 4.0
            assert watch.report()["sec"] == 4.0
            watch.progressed()
    clock.now += 1.0
    watch.ended(6)  # follows the evaluation: no time of a step
    assert watch.limit() == 20.0
    for _ in range(9):
        clock.now += 3.0
        report = watch.report()
    assert report["sec"] == 27.0 > report["limit"]


def test_the_watchdog_stands_still_with_its_process() -> None:
    clock = Clock()
    watch = Watchdog(HostsConfig(), clock)
    watch.arm()
    watch.report()
    clock.now += 3600.0  # a laptop asleep
    assert watch.report()["sec"] <= 5.0


def test_the_watchdog_can_be_switched_off() -> None:
    watch = Watchdog(HostsConfig(stall_factor=0.0))
    watch.arm()
    assert watch.limit() == 0.0


@pytest.mark.parametrize(("overrides", "words"), [
    (["hosts.local=2", "hosts.num=2"], "hosts.local=2 with hosts.num=2"),
    (["hosts.coordinator=node1:1", "hosts.num=2", "hosts.id=2"], "hosts.id=2 with hosts.num=2: ids go from 0 to 1"),
    (["hosts.coordinator=node1", "hosts.num=2", "hosts.id=1"], "hosts.coordinator=node1: it is host:port"),
    (["hosts.id=1"], "hosts.id=1 needs hosts.coordinator, hosts.num, too"),
    (["hosts.num=2"], "hosts.num=2 needs hosts.coordinator, hosts.id, too"),
])  # fmt: skip
def test_keys_that_do_not_go_together(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        compose(["+experiment=gpt_tiny", *overrides])


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "gpu[01-02,7],login", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "2",
}  # fmt: skip


def test_slurm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = find_process(HostsConfig(), os.environ)
    assert place is not None
    assert (place.num, place.id, place.nodes) == (4, 2, ["gpu01", "gpu02", "gpu7", "login"])
    assert re.fullmatch(r"gpu01:\d+", place.coordinator)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:7")
    place = find_process(HostsConfig(), os.environ)
    assert place is not None
    assert place.coordinator == "127.0.0.1:7"
    assert find_process(HostsConfig(num=1), os.environ) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_process(HostsConfig(), os.environ) is None


def test_alone_there_is_no_place() -> None:
    assert find_process(HostsConfig(), os.environ) is None
    assert job_nodes({"TPU_WORKER_HOSTNAMES": "t0,t1"}) == ["t0", "t1"]


@pytest.mark.parametrize(("env", "devices"), [
    ({}, None),
    ({**SLURM, "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, None),  # one task: all eight
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "5", "SLURM_GPUS_ON_NODE": "8",
      "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [5]),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2),2(x2)", "SLURM_LOCALID": "1", "SLURM_GPUS_ON_NODE": "8",
      "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [4, 5, 6, 7]),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "5", "SLURM_GPUS_ON_NODE": "8",
      "CUDA_VISIBLE_DEVICES": "5"}, None),  # --gpus-per-task has shared them out
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
])  # fmt: skip
def test_the_gpus_of_a_machine_are_shared_out(env: dict[str, str], devices: list[int] | None) -> None:
    assert local_devices(env) == devices


def test_gpus_that_cannot_be_shared_out_are_refused() -> None:
    env = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    with pytest.raises(ConfigError, match="3 processes on this machine do not share its 4 GPUs"):
        local_devices(env)
