"""The verb, and scripts that run with pretended srun, scontrol and gcloud: what happens after each exit status."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch.jobs import GPT, experiment_of, program, run_bash, trained, trainer

from lmkit.config.entry.sweep import JobEnded
from lmkit.launch.render import render

SRUN = """#!/bin/bash
# Two tasks, one after the other; the highest status.
shift
worst=0
for SLURM_PROCID in 0 1; do
  export SLURM_PROCID
  "$@"; status=$?
  [ $status -gt $worst ] && worst=$status
done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "$@" >>scontrol.log
case $1-$2 in
  show-hostnames) printf 'n1\\nn2\\n' ;;
  show-node) echo "NodeName=n1 Arch=x NodeAddr=10.0.0.1 NodeHostName=n1" ;;
esac
"""
GCLOUD = """#!/bin/bash
# Answers `describe` with the next line of `states`; runs what ssh is given.
echo "$@" | head -n 1 >>gcloud.log
case $4 in
  describe) head -n 1 states; sed -i 1d states ;;
esac
for word in "$@"; do
  case $word in --command=*) bash -c "${word#--command=}"; exit ;; esac
done
"""


def slurm_job(folder: Path, statuses: str, *, restarts: int = 0) -> tuple[int, bool]:
    """The status of the batch script and whether it went back into the queue."""
    program(folder, "srun", SRUN)
    program(folder, "scontrol", SCONTROL)
    (folder / "statuses").write_text(statuses)
    (folder / "runs" / "gpt_tiny" / "slurm-12").mkdir(parents=True, exist_ok=True)  # as train does
    (folder / "scontrol.log").unlink(missing_ok=True)
    script = render(experiment_of("slurm", f"launch.python={trainer(folder)}"), ["+experiment=gpt_tiny"])
    env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    done = run_bash(script, folder, env=env)
    return done.returncode, "requeue 12" in (folder / "scontrol.log").read_text()


@pytest.mark.parametrize(
    ("statuses", "restarts", "expected"),
    [
        ("0 0", 0, (0, False)),
        ("75 75", 9, (75, True)),  # asked to stop: however often
        ("75 0", 0, (75, True)),  # one was a step ahead
        ("75 76", 0, (76, True)),  # one broke off meanwhile
        ("1 76", 0, (76, True)),
        ("1 1", 0, (1, False)),
        ("2 2", 0, (2, False)),
        ("130 130", 0, (130, False)),
        ("76 76", 2, (76, True)),
        ("76 76", 3, (76, False)),  # launch.max_restarts
    ],
)
def test_what_slurm_does_after_each_status(
    statuses: str, restarts: int, expected: tuple[int, bool], tmp_path: Path
) -> None:
    assert slurm_job(tmp_path, statuses, restarts=restarts) == expected
    calls = trained(tmp_path)
    assert [call["env"]["SLURM_PROCID"] for call in calls] == ["0", "1"]
    (token,) = {call["env"]["LMKIT_JOB_TOKEN"] for call in calls}
    assert re.fullmatch("[0-9a-f]{32}", token)
    for call in calls:
        assert call["env"]["JAX_COORDINATOR_ADDRESS"] == "10.0.0.1:20012"
        assert call["argv"] == ["-m", "lmkit.train", "+experiment=gpt_tiny", "run.dir=runs/gpt_tiny/slurm-12"]


def test_the_next_start_forgets_that_it_was_asked(tmp_path: Path) -> None:
    assert slurm_job(tmp_path, "75 75") == (75, True)
    assert slurm_job(tmp_path, "0 0", restarts=1) == (0, False)


def tpu_job(folder: Path, states: list[str], statuses: str) -> tuple[int, list[str]]:
    """The status of the script, and the gcloud commands without their options."""
    program(folder, "gcloud", GCLOUD)
    program(folder, "sudo", "#!/bin/bash\n")
    program(folder, "mountpoint", "#!/bin/bash\nexit 0\n")
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "statuses").write_text(statuses)
    script = render(experiment_of("tpu_pod", f"launch.python={trainer(folder)}"), ["+experiment=gpt_tiny"])
    done = run_bash(script, folder)
    return done.returncode, [line.split()[3] for line in (folder / "gcloud.log").read_text().splitlines()]


def test_a_tpu_is_asked_for_until_the_run_is_done(tmp_path: Path) -> None:
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE", "ACTIVE"]
    status, calls = tpu_job(tmp_path, states, "75 255 0")
    assert status == 0
    assert calls == [
        *["describe", "create", "describe", "describe", "ssh"],  # there, and asked to stop
        *["describe", "describe", "delete", "describe", "create", "describe", "ssh"],  # taken away; then it broke off
        *["describe", "ssh"],
    ]
    assert all(call["env"]["LMKIT_CACHE"] == "/mnt/lmkit/cache" for call in trained(tmp_path))
    assert len({call["env"]["LMKIT_JOB_TOKEN"] for call in trained(tmp_path)} - {""}) == 3  # a new one each start
    assert {call["argv"][-1] for call in trained(tmp_path)} == {"run.dir=/mnt/lmkit/runs/gpt_tiny/job"}


@pytest.mark.parametrize(
    ("states", "statuses", "expected"),
    [
        (["ACTIVE"] * 9, "76 137 1 0", (1, 3)),
        (["ACTIVE"] * 9, "76 76 76 76 0", (76, 4)),
        (["ACTIVE"] * 9, "2 0", (2, 1)),
        (["FAILED"], "0", (1, 0)),
    ],
)
def test_a_tpu_job_gives_up(states: list[str], statuses: str, expected: tuple[int, int], tmp_path: Path) -> None:
    status, calls = tpu_job(tmp_path, states, statuses)
    assert (status, calls.count("ssh")) == expected


def verb(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-m", "lmkit.launch", *words], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_it_prints_and_leaves_nothing(tmp_path: Path) -> None:
    done = verb("target=slurm", *GPT, "launch.nodes=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n# python -m lmkit.launch launch.target=slurm +experiment=gpt_tiny")
    assert "#SBATCH --nodes=4\n" in done.stdout
    assert f"{sys.executable} -m lmkit.train" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_hands_over(tmp_path: Path) -> None:
    tool = program(tmp_path / "bin", "sbatch", "#!/bin/bash\ncat $1 >submitted\nexit 3\n")
    words = ["target=slurm", *GPT, "launch.submit=true", "launch.name=mine", "data=text_files"]
    words += ["data.paths=[https://me:hunter2@host/a]"]
    done = verb(*words, cwd=tmp_path, path=f"{tool.parent}:/usr/bin:/bin")
    assert done.returncode == 3, done.stderr
    script = (tmp_path / "launch" / "mine.sbatch").read_text()
    assert (tmp_path / "submitted").read_text() == script
    assert (tmp_path / "launch" / "mine.sbatch").stat().st_mode & 0o777 == 0o600  # its words may hold secrets
    assert (script.count("hunter2"), "data.paths=[https://***@host/a]" in script.split("\n")[1]) == (1, True)
    assert "launch.submit" not in script.split("\n", 2)[2]
    words = ["target=gke", *GPT, "launch.submit=true", "launch.name=mine", "launch.image=i", "run.dir=/r"]
    done = verb(*words, cwd=tmp_path, path=str(tool.parent))
    assert done.returncode == 2
    assert "kubectl is not installed here; launch/mine.yaml is written" in done.stderr


def test_a_mistake_costs_nothing(tmp_path: Path) -> None:
    done = verb("target=slurm", *GPT, "launch.nodes=3", "launch.submit=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "launch.nodes=3 x run.cpu_devices=2 = 6 devices: train.batch_size=16" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = verb("target=slrum", *GPT, cwd=tmp_path)
    assert done.returncode == 2
    assert "slrum" in done.stderr
    assert "tpu_pod" in done.stderr


def test_it_needs_no_jax(tmp_path: Path) -> None:
    code = (
        "import sys; from lmkit.config.entry import run_verb; "
        f"status = run_verb('launch', 'lmkit.launch.main:launch', 'about', {[*GPT, 'launch.nodes=2']!r}); "
        "print(status, [m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_how_a_job_ended_travels() -> None:
    back = pickle.loads(pickle.dumps(JobEnded("job 1: why", 75)))
    assert (str(back), back.status) == ("job 1: why", 75)


def test_a_failure_in_another_process_is_told(tmp_path: Path) -> None:
    """A sweep whose jobs run in processes of their own. With jobs that are fine: tests/launch/test_slurm.py."""
    pytest.importorskip("submitit", reason="LOUD: sweeps in other processes are not tested; pip install 'lmkit[slurm]'")
    command = [sys.executable, "-m", "lmkit.train", "--multirun", *GPT, "train.steps=4", "optim.warmup_steps=900,901"]
    command += ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.sweep.dir=out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lmkit.train: job 0 (+experiment=gpt_tiny"), done.stderr
    assert "optim.warmup_steps=900 leaves nothing of train.steps=4" in last
    assert "Traceback" not in done.stderr
