"""Composition, validation, help: what a user sees before any device is touched."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from helpers import ROOT
from lmkit.config import ConfigError
from lmkit.config.arithmetic.mesh_checks import check_divides
from lmkit.config.base import Section
from lmkit.config.entry import GROUPS, TOWERS, all_keys_of, compose, explain, help_text, run_verb, verb
from lmkit.config.experiment import Experiment, differing, to_plain
from lmkit.config.paths import conf_dir, options_of

NAME = "run.name=test"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.stepz=3"], ["train.stepz", "'train.steps'"]),
        (["+train.stepz=3"], ["train.stepz", "'train.steps'"]),
        (["+modle.num_layers=3"], ["modle", "'model"]),
        (["model.num_haeds=2"], ["'model.num_heads'"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["optim=adamv"], ["adamv", "'adamw'", "muon"]),
        (["optim.kind=adamv"], ["optim.kind", "adamw"]),
        (["+experiment=gpt_smal"], ["gpt_smal", "'gpt_small'", "gpt2_124m"]),
        (["model.num_layers=0"], ["model.num_layers=0", "at least 1"]),
        (["model.embed_dim=100", "model.num_heads=3"], ["100", "model.num_heads=3", "99"]),
        (["model.num_heads=4", "model.embed_dim=64", "model.num_kv_heads=3"], ["4", "3", "[1, 2, 4]"]),
        (["train.batch_size=10", "train.accumulate_steps=4"], ["10", "4", "8", "12"]),
        (["model.position=learned", "model.max_seq_len=128", "data.seq_len=129"], ["129", "128"]),
        (["mesh.data=-1", "mesh.fsdp=-1"], ["mesh", "-1", "data", "fsdp"]),
        (["mesh.expert=2"], ["mesh.expert=2"]),
        (["mesh.stage=5"], ["num_layers=12", "mesh.stage=5", "10 and 15", "mesh.stage=4"]),
        (["mesh.stage=4", "model.rounds=2"], ["num_layers=12", "model.rounds x mesh.stage=8", "8 and 16"]),
        (["model=modernbert_base", "mesh.stage=2"], ["num_layers - 1=21", "mesh.stage=2", "20 and 22"]),
        (["model=whisper_tiny", "model.num_decoder_layers=3", "mesh.stage=2"], ["num_decoder_layers=3", "2 and 4"]),
        (["mesh.data=1", "mesh.stage=2", "model.microbatches=5"], ["microbatches=5", "32 rows", "4 and 8"]),
        (["mesh.stage=4", "model.rounds=3", "model.microbatches=2"], ["microbatches=2", "mesh.stage=4", "rounds=1"]),
        (["mesh.tensor=3"], ["model.num_heads=12", "model.vocab_size", "mesh.tensor=3"]),
        (["train.steps=50", "optim.warmup_steps=50"], ["optim.warmup_steps=50", "train.steps=50"]),
        (["model.head_dim=7"], ["model.head_dim=7", "even"]),
        (["optim.rates={head:2}"], ["optim.rates is a dictionary", "+optim.rates={"]),
        (["model=vit", "model.patch_size=15"], ["224", "15", "210 and 225"]),
        (["model=vit", "model.tie_embeddings=true"], ["model.tie_embeddings", "another family", "model=NAME"]),
        (["model=gpt", "model.norm_order=post"], ["norm_order=post", "pre or both"]),
        (["model=encdec", "model.sliding_window=4"], ["model.sliding_window=4", "encoder-decoders"]),
        (["model=t5_small", "model.relative_max_distance=8"], ["relative_buckets=32", "relative_max_distance=8"]),
        (["model=modernbert_base", "model.block=a:B"], ["model.block=a:B", "norm_order=pre", "norm_order=post"]),
        (["objective.kind=contrastive", "train.accumulate_steps=2"], ["accumulate_steps=2", "contrastive"]),
        (["mesh.expert=2"], ["mesh.expert=2", "without experts", "mesh.data or mesh.fsdp"]),
        (["mesh.expert=-1", "mesh.data=1"], ["mesh.expert=-1", "without experts"]),
        (["model=mixtral_8x7b", "mesh.expert=3"], ["model.num_experts=8", "mesh.expert=3", "6 and 9", "mesh.expert=2"]),
        (["model=mixtral_8x7b", "model.num_experts=0"], ["model.balance_loss=0.04", "model.num_experts=0"]),
        (["model=mixtral_8x7b", "model.bias=true"], ["model.bias=true", "num_experts", "model.bias=false"]),
    ],
)  # fmt: skip
def test_mistakes_name_both_values_and_the_way_out(overrides: list[str], parts: list[str]) -> None:
    if overrides == ["mesh.tensor=3"]:  # 12 heads divide by 3; the vocabulary does not
        overrides, parts = (
            [*overrides, "model.vocab_size=100", "model.mlp_dim=3072", "data.seq_len=300"],
            ["model.vocab_size=100", "mesh.tensor=3", "99 and 102"],
        )
    with pytest.raises(ConfigError) as caught:
        compose([NAME, *overrides])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_mistake_ends_with_status_2_and_no_traceback(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    assert run_verb("train", "nowhere:nothing", "about", ["train.stepz=1"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("lmkit.train: unknown key")
    monkeypatch.setenv("LMKIT_DEBUG", "1")
    assert run_verb("train", "nowhere:nothing", "about", ["train.stepz=1"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_hidden(capsys: pytest.CaptureFixture) -> None:
    assert run_verb("train", "json:nothing_here", "about", [NAME]) == 1
    assert "AttributeError" in capsys.readouterr().err


def test_no_experiment_names_the_ones_there_are(capsys: pytest.CaptureFixture) -> None:
    assert run_verb("train", "nowhere:nothing", "about", []) == 2
    assert "gpt_small" in capsys.readouterr().err


@pytest.mark.parametrize("name", options_of("experiment"))
def test_every_experiment_composes(name: str) -> None:
    assert compose([f"+experiment={name}"]).run.name == name


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group: str) -> None:
    assert options_of(group)
    for option in options_of(group):
        overrides = [NAME, f"{group}={option}", "init_from=somewhere"]  # which tokenizer=init asks for
        assert isinstance(getattr(compose(overrides), group), Section)


def test_every_key_is_documented() -> None:
    rows = all_keys_of(Experiment)
    assert len(rows) > 100
    assert [name for name, _, _, doc in rows if len(doc) < 8] == []
    text = help_text("train", "about")
    assert all(f"  {name}: " in text for name, *_ in rows if not name.startswith(tuple(TOWERS)))
    assert all(f"  {tower}KEY" in text for tower in TOWERS)


def test_names_that_users_type_exist() -> None:
    names = {name for name, *_ in all_keys_of(Experiment)}
    fixed = {
        "run": "dir name seed",
        "train": "steps batch_size accumulate_steps eval_every_steps log_every_steps",
        "data": "seq_len paths",
        "optim": "learning_rate warmup_steps",
        "model": "num_layers num_heads num_kv_heads embed_dim mlp_dim vocab_size",
        "mesh": "data fsdp tensor context expert stage dcn.data dcn.fsdp dcn.tensor dcn.context dcn.expert dcn.stage",
        "checkpoint": "save_every_steps keep_last keep_best",
    }
    assert {f"{section}.{key}" for section, keys in fixed.items() for key in keys.split()} | {"init_from"} <= names


def test_configuration_imports_nothing_heavy() -> None:
    heavy = ["jax", "flax", "hydra", "omegaconf", "numpy"]
    code = f"import sys, lmkit.config, lmkit.config.entry; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_cfg_job_prints_and_help_explains(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-m", "lmkit.train", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert "embed_dim: 64" in run("+experiment=gpt_tiny", "--cfg", "job")
    assert "usage: python -m lmkit.train" in run("--help")
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_users_own_conf_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nrun:\n  name: mine\ntrain:\n  steps: 7\noptim:\n  warmup_steps: 1\n"
    )
    command = [sys.executable, "-m", "lmkit.train", "--config-dir", str(tmp_path), "+experiment=mine", "--cfg", "job"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "name: mine" in out
    assert "steps: 7" in out


def test_plain_and_differing() -> None:
    one, two = to_plain(compose([NAME])), to_plain(compose([NAME, "optim=muon", "train.steps=900"]))
    assert differing(one, one) == []
    assert [name for name, *_ in differing(one, two)] == ["optim.kind", "train.steps"]


def test_check_divides_names_what_fits() -> None:
    check_divides("a", 12, "b", 4)
    with pytest.raises(ConfigError, match=r"a=10 is not divisible by b=4: nearest that fit are a=8 and 12, or b=5"):
        check_divides("a", 10, "b", 4)
    with pytest.raises(ConfigError, match=r"a=2 is not divisible by b=4: nearest that fit are a=4, or b=2"):
        check_divides("a", 2, "b", 4)


@pytest.mark.slow
def test_an_installed_wheel_finds_its_conf(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("lmkit-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import lmkit; from lmkit.config.entry import compose; "
        "print(lmkit.__file__, compose(['+experiment=gpt_tiny']).run.name)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.split() == [str(site / "lmkit" / "__init__.py"), "gpt_tiny"]
    templates = {path.name for path in (site / "lmkit" / "launch" / "templates").iterdir()}
    assert templates == {"slurm.sbatch", "gke.yaml", "tpu_pod.sh"}


def test_hydras_record_of_a_sweep_has_no_secrets(tmp_path: Path) -> None:
    file = tmp_path / "multirun.yaml"
    words = ["+my.password=hunter2", "data.paths=[https://me:hunter2@host/a]", "tokenizer.end_token=x"]
    file.write_text(yaml.safe_dump({"overrides": {"task": words}, "data": {"paths": ["s3://me:hunter2@host/a"]}}))
    verb._redact_sweep(file)
    kept = yaml.safe_load(file.read_text())
    assert kept["overrides"]["task"] == ["+my.password=***", "data.paths=[https://***@host/a]", "tokenizer.end_token=x"]
    assert kept["data"]["paths"] == ["s3://***@host/a"]


def test_an_error_names_no_secret() -> None:
    assert explain(ConfigError("data.paths: 'https://me:hunter2@host/a' is not there")) == (
        "data.paths: 'https://***@host/a' is not there"
    )


def test_a_hydra_of_the_callers_own_steps_aside() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        theirs = GlobalHydra.instance().hydra
        assert compose(["+experiment=gpt_tiny"]).run.name == "gpt_tiny"
        with pytest.raises(ConfigError, match="gpt_tny"):
            compose(["+experiment=gpt_tny"])
        assert GlobalHydra.instance().hydra is theirs


def test_without_a_home_directory_there_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(RuntimeError) as error:
        Path("~/x").expanduser()
    assert "set HOME, or LMKIT_CACHE" in str(explain(error.value))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_have_a_range(seed: int) -> None:
    """Larger ones are other seeds again: 2**32 is 0."""
    with pytest.raises(ConfigError, match=rf"run.seed={seed}: it must be at (least 0|most 4294967295)"):
        compose(["+experiment=gpt_tiny", f"run.seed={seed}"])


def test_a_semaphore_that_cannot_be_made_says_where_it_would_lie() -> None:
    assert "/dev/shm" in (explain(OSError(errno.EROFS, "Read-only file system")) or "")
    found = explain(OSError(errno.EROFS, "Read-only file system", "/runs/x")) or ""
    assert "no permission to write /runs/x" in found
