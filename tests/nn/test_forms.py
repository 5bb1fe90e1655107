"""What is promised in float32 is multiplied in float32 on every platform."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from helpers import equations
from lmkit.compiler.topology import hardware_devices, topology_devices
from lmkit.config.entry import compose
from lmkit.config.sections.model import DType, Kernel
from lmkit.core.aot import batch_shapes
from lmkit.core.inputs import make_inputs
from lmkit.core.state import make_blueprint
from lmkit.core.step import make_gradients, make_train_step
from lmkit.nn import forms, mlp
from lmkit.objectives.build import build_objective
from lmkit.objectives.cross_entropy import cross_entropy
from lmkit.parallel.mesh import build_mesh
from lmkit.verify.main import fit_heads
from lmkit.verify.shrink import shrink

WORDS = {
    "experts": ["model=gpt", "model.num_experts=4", "model.experts_per_token=2", "model.vocab_size=64"],
    "clip": ["model=clip_vit_b32", "objective=contrastive", "model.text.vocab_size=64"],
    "masked": ["model=bert", "objective=masked_lm", "model.vocab_size=64"],
}


@pytest.mark.parametrize("name", WORDS)
def test_no_float32_operand_is_rounded_on_an_accelerator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bfloat16 model every product of float32 operands asks for the highest precision, backward pass too."""
    monkeypatch.setattr(forms, "platform", lambda: "tpu")
    experiment = compose(["run.name=x", *WORDS[name], "data.seq_len=32", "train.batch_size=2"])
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    small = shrink(experiment, dict.fromkeys(mesh.shape, 1))
    for part in small.model.towers().values():
        part.dtype, part.attention = DType.bfloat16, Kernel.xla
    model = fit_heads(small)
    blueprint = make_blueprint(model, small.optim, 10, mesh)
    gradients = make_gradients(blueprint, build_objective(small.objective), accumulate=1, seed=0)
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(gradients)(blueprint.shapes, make_inputs(small, model))
    products = [one for one in equations(traced.jaxpr) if one.primitive.name == "dot_general"]
    exact = [one for one in products if all(var.aval.dtype == jnp.float32 for var in one.invars)]
    assert len(products) > len(exact) > 0
    for product in exact:
        assert product.params["precision"] in (lax.Precision.HIGHEST, (lax.Precision.HIGHEST,) * 2), product


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}])
def test_accelerators_programs_hold_no_form_of_a_cpu(mesh: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """No barrier and no layout but those that are there for an accelerator; a CPU's program has its own."""
    monkeypatch.setattr(mlp, "recomputed", lambda x: x)  # the accelerators' own
    words = ["run.name=x", "model=gpt2_124m", "model.num_layers=1", "model.embed_dim=32", "model.num_heads=2",
             "model.vocab_size=64", "model.dtype=bfloat16", "model.attention=xla", "data.seq_len=32",
             "train.batch_size=4", "optim=muon"]  # fmt: skip
    experiment = compose([*words, "mesh.data=1", *(f"mesh.{axis}={size}" for axis, size in mesh.items())])
    devices = build_mesh(experiment.mesh, jax.devices()[: math.prod(mesh.values())])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, devices)
    step = make_train_step(blueprint, build_objective(experiment.objective), accumulate=1, seed=0)
    held = {}
    for platform in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(forms, "platform", lambda platform=platform: platform)
        with jax.set_mesh(devices):
            traced = jax.make_jaxpr(lambda *args: step(*args))(blueprint.shapes, batch_shapes(experiment, devices))
        names = {one.primitive.name for one in equations(traced.jaxpr)}
        held[platform] = names & {"optimization_barrier", "layout_constraint"}
    assert held["cpu"]
    assert not held["gpu"]
    assert not held["tpu"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_losss_gradient_is_added_as_it_is_made_on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed behind a barrier, as a CPU likes it, the head's gradient was there twice more."""
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]')")
    device = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    width, vocab, tokens = 1024, 16384, 4096
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=device)
        for shape, dtype in (((1, tokens, width), jnp.bfloat16), ((vocab, width), jnp.float32),
                             ((1, tokens), jnp.int32), ((1, tokens), jnp.float32))
    ]  # fmt: skip

    def loss(hidden, head, targets, weights):
        return cross_entropy(hidden, head, targets, weights, chunk_tokens=1024)[0]

    monkeypatch.setattr(forms, "platform", lambda: "tpu")
    analysis = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 0.5 * vocab * width * 4  # the sum is the result itself


@pytest.mark.parametrize(("hardware", "package", "extra"), [
    ("v5e_8", "libtpu", "tpu"), ("h100_8", "jax_plugins.xla_cuda13", "gpu-aot"),
])  # fmt: skip
def test_exact_products_are_float32_in_compiled_programs(hardware: str, package: str, extra: str) -> None:
    """A TPU's and a GPU's compiler keep the precision that is asked for, and ask for none otherwise."""
    pytest.importorskip(package, reason=f"LOUD: {package} is not installed (pip install 'lmkit[{extra}]')")
    devices = hardware_devices(compose(["+experiment=gpt_tiny", f"hardware={hardware}"]).hardware)
    shapes = [jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(devices[0]))] * 2
    exact, default = (
        jax.jit(product).lower(*shapes).compile().as_text() or ""
        for product in (lambda a, b: forms.exact_einsum("nd,md->nm", a, b), lambda a, b: jnp.einsum("nd,md->nm", a, b))
    )
    assert "operand_precision={highest,highest}" in exact
    assert "operand_precision={highest,highest}" not in default
