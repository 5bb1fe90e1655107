"""Every family over meshes that cover every axis and every pair of axes: the same loss, gradients and update."""

from itertools import combinations

import pytest
from verify.test_verify import COMMON, FAMILIES

from lmkit.config.arithmetic.mesh import AXES
from lmkit.config.entry import compose
from lmkit.verify.main import verify

MESHES = (
    "data fsdp tensor",
    "data context stage",
    "fsdp context stage",
    "tensor context stage",
)
EXPERTS = ("data fsdp expert", "data tensor expert", "expert context stage", "fsdp expert tensor")
# What lets each family be split over `context` and its heads over `tensor`.
FITTING = {
    "gemma3_1b": ["model.num_kv_heads=2"],
    "modernbert_base": ["model.num_layers=21"],
    "vit_ti16": ["model.pooling=mean", "model.num_heads=4", "model.embed_dim=256"],
    "clip_vit_b32": ["data.seq_len=80", "model.text.max_seq_len=80", "model.vision.pooling=mean",
                     "model.vision.image_size=256"],
}  # fmt: skip
CASES = [(family, mesh) for family in FAMILIES for mesh in MESHES] + [("mixtral_8x7b", mesh) for mesh in EXPERTS]
QUICK = [("llama3_8b", "tensor context stage")]


def words_of(family: str, mesh: str) -> list[str]:
    """The command line of a family on a mesh of twos."""
    own = [word for word in FAMILIES[family] if not word.startswith("mesh.") and not word.startswith("data.seq_len=77")]
    sizes = {axis: 2 if axis in mesh.split() else 1 for axis in AXES}
    return [*COMMON, f"model={family}", *own, *FITTING.get(family, []), "model.dropout=0.1", "run.cpu_devices=8",
            *(f"mesh.{axis}={size}" for axis, size in sizes.items())]  # fmt: skip


def test_every_pair_of_axes_is_covered() -> None:
    pairs = {frozenset(pair) for mesh in (*MESHES, *EXPERTS) for pair in combinations(mesh.split(), 2)}
    assert pairs == {frozenset(pair) for pair in combinations(AXES, 2)}


@pytest.mark.parametrize(("family", "mesh"), [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
])  # fmt: skip
def test_a_family_on_a_mesh(family: str, mesh: str, capsys: pytest.CaptureFixture) -> None:
    words = [word.replace("model.dropout", "model.text.dropout") if "clip" in family else word
             for word in words_of(family, mesh)]  # fmt: skip
    assert verify(compose(words)) == 0, capsys.readouterr().out


@pytest.mark.parametrize("family", ["llama3_8b", "t5_small"])
@pytest.mark.slow
def test_heads_dealt_out(family: str, capsys: pytest.CaptureFixture) -> None:
    words = [*words_of(family, "data tensor context"), "model.context_attention=all_to_all"]
    assert verify(compose(words)) == 0, capsys.readouterr().out
