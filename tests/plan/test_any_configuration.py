"""Any configuration: plan and the start of train give a result or one line, and agree on what can run."""

from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmkit.config.base import UserError
from lmkit.config.checks import check_experiment
from lmkit.config.entry import all_keys_of, compose
from lmkit.config.experiment import Experiment
from lmkit.core.setup import setup_mesh
from lmkit.core.state import make_blueprint
from lmkit.cost.estimate import estimate
from lmkit.plan.show import as_plain

SMALL = ["run.name=x", "data.seq_len=64", "train.batch_size=8", "optim.warmup_steps=1"]
FAMILIES = {
    "gpt": ["causal_lm", "chat"],
    "bert": ["masked_lm", "classify", "regress", "classify_tokens"],
    "encdec": ["seq2seq", "span_corruption"],
    "vit": ["classify", "regress"],
}
MODEL = [
    "model.num_layers=2", "model.num_heads=4", "model.embed_dim=32", "model.vocab_size=64", "model.max_seq_len=64",
]  # fmt: skip
IMAGES = [*MODEL[:3], "model.image_size=8", "model.patch_size=4", "model.num_classes=4"]
ODD_INTS = ["-1", "0", "1", "2", "3", "4", "7", "8", "64", "1000", "2147483648", "9223372036854775808"]
ODD_FLOATS = ["0", "-1", "0.3", "0.5", "1", "2.5", "1e-30", "1e30", "nan", "inf", "-inf"]
ODD = ["", "x", "null", "true", "[]", "[x]", "{}", "[1, 2]", "实验", "a b"]
MESHES = ["mesh.data=-1", "mesh.data=2 mesh.fsdp=4", "mesh.data=4 mesh.tensor=2", "mesh.data=3"]
LISTS = ["[]", "[x]", "['*']", "['*.attention.*']", "[1]", "x", "[data, fsdp]", "[matrix]", "[8x8]"]
# A plan is of hardware; these belong to this machine or to one verb, and the other does not read them. (The size of the
# vocabulary may be left to data that neither has read here.)
OF_ONE_VERB = ("hardware.", "plan.", "run.", "hosts.", "launch.", "verify.", "generate.", "export.", "prepare.")
KEYS = {
    name: kind for name, kind, *_ in all_keys_of(Experiment)
    if not name.startswith(("launch.", "generate.", "export.", "hosts.", "model.text", "model.vision"))
    and name not in (*(f"plan.{one}" for one in ("calibrate", "save", "json", "search", "compile")), "init_from")
    and name != "model.vocab_size"
}  # fmt: skip


def values(kind: str) -> st.SearchStrategy[str]:
    """Values of a key's kind, of its edges, and now and then of another kind."""
    if "|" in kind:
        own = st.sampled_from([*kind.split("|"), "none"])
    elif kind == "int":
        own = st.sampled_from(ODD_INTS)
    elif kind == "float":
        own = st.sampled_from(ODD_FLOATS)
    elif kind == "bool":
        own = st.sampled_from(["true", "false"])
    elif kind.startswith("list"):
        own = st.sampled_from(LISTS)
    else:
        own = st.sampled_from(ODD)
    return st.one_of(own, own, own, own, st.sampled_from(ODD + ODD_INTS + ODD_FLOATS))


@st.composite
def configurations(draw: st.DrawFn) -> list[str]:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    objective = draw(
        st.sampled_from([*FAMILIES[family], draw(st.sampled_from(["causal_lm", "classify", "contrastive"]))])
    )
    names = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=4, unique=True))
    words = [f"{name}={draw(values(KEYS[name]))}" for name in names]
    group = draw(st.sampled_from(["optim=adamw", "optim=muon", "optim=sgd", "data=text_files", "tokenizer=bytes"]))
    mesh = draw(
        st.sampled_from(["mesh.data=-1", "mesh.data=2 mesh.fsdp=4", "mesh.data=4 mesh.tensor=2", "mesh.data=3"])
    )
    return [
        *SMALL, f"model={family}", f"objective={objective}", group, *(IMAGES if family == "vit" else MODEL),
        *mesh.split(), "hardware=h100_8", *words,
    ]  # fmt: skip


def outcome(step: Any) -> str:
    """'' where it works, else the one line of what the user can mend."""
    try:
        step()
        line = ""
    except UserError as error:
        line = str(error) or "nothing is said"
    assert "\n" not in line
    return line


def both(words: list[str]) -> tuple[str, str]:
    """What plan says of a configuration, and what train would before it reads any data."""
    made: list[Experiment] = []
    if refused := outcome(lambda: made.append(compose(words))):
        return refused, refused

    def plan() -> None:
        check_experiment(made[0])
        as_plain(estimate(made[0]), [])

    def train() -> None:
        check_experiment(made[0])
        mesh = setup_mesh(made[0], jax.devices()[:8])
        one = made[0]
        make_blueprint(one.model, one.optim, one.train.steps, mesh, one.lora)

    return outcome(plan), outcome(train)


def check(words: list[str]) -> None:
    planned, trained = both(words)
    if not any(word.startswith(OF_ONE_VERB) for word in words[len(SMALL) :] if not word.startswith("hardware=")):
        assert bool(planned) == bool(trained), f"plan: {planned or 'fits'}; train: {trained or 'starts'}"


@given(configurations())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_few_configurations(words: list[str]) -> None:
    check(words)


@pytest.mark.slow
@given(configurations())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_configurations(words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize("words", [
    ["model=whisper_tiny", "data.target_len=64"],
    ["+experiment=bert_sotu", "objective=contrastive"],
    ["model=bert_base", "data.seq_len=64"],
])  # fmt: skip
def test_plan_refuses_what_train_refuses(words: list[str]) -> None:
    planned, trained = both(["run.name=x", *words, "hardware=h100_8"])
    assert "objective.kind" in planned
    assert planned == trained


@pytest.mark.parametrize(("word", "message"), [
    ("optim.learning_rate=nan", "optim.learning_rate=nan: give a finite number"),
    ("optim.weight_decay=inf", "optim.weight_decay=inf: give a finite number"),
    ("hardware.link_gb_per_sec=nan", "hardware.link_gb_per_sec=nan: give a finite number"),
    ("hardware.slices=[x]", "hardware.slices=x: a topology is chips along two or three sides"),
])  # fmt: skip
def test_a_number_or_a_topology_that_is_none(word: str, message: str) -> None:
    assert message in both(["+experiment=gpt_tiny", "hardware=v5e_8", word])[0]
