"""Fine-tuning: what trains and what does not, on any mesh; what is saved, and how it goes on."""

import jax
import numpy as np
import pytest

from helpers import MESHES, leaves_equal, random_batch, rotated, tiny_experiment, train_steps
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.lora import LoraConfig
from lmkit.config.sections.optim import OptimConfig, Optimizer
from lmkit.core.state import Blueprint, evaluation_params, init_state, make_blueprint
from lmkit.core.step import make_train_step
from lmkit.nn.tree import flat
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import build_mesh

LORA = ["lora.rank=4", "init_from=elsewhere"]


def blueprint_of(*overrides: str, devices: int = 1) -> Blueprint:
    experiment = tiny_experiment(*overrides)
    mesh = build_mesh(experiment.mesh, jax.devices()[:devices])
    return make_blueprint(experiment.model, experiment.optim, 10, mesh, experiment.lora)


FREEZE = ["optim.freeze=[embed, '*.attention.*']"]
EVERYWHERE = [*LORA, "lora.targets=['*']"]


@pytest.mark.parametrize(("what", "kind"), rotated(
    ((what, kind) for what in (FREEZE, LORA) for kind in Optimizer),
    (FREEZE, Optimizer.adamw), (FREEZE, Optimizer.adafactor), (LORA, Optimizer.muon),
    (LORA, Optimizer.schedule_free_adamw),
))  # fmt: skip
def test_what_is_frozen_stays_and_the_rest_learns(kind: Optimizer, what: list[str]) -> None:
    """With every rule: frozen bits unchanged, all others changed, optimiser state and averages over those alone."""
    rate = {Optimizer.sgd: 0.1, Optimizer.lion: 1e-3, Optimizer.muon: 0.02}.get(kind, 1e-2)
    overrides = [*what, f"optim={kind.name}", f"optim.learning_rate={rate}", "optim.ema=0.5"]
    blueprint = blueprint_of(*overrides)
    start = init_state(blueprint, 0)
    before, frozen = flat(jax.device_get(start["params"])), flat(jax.device_get(start["frozen"]))
    losses, state, _ = train_steps(tiny_experiment(*overrides), 4, num_devices=1)
    assert losses[-1] < losses[0] or what is LORA  # adapters need more than four steps
    assert leaves_equal(frozen, flat(state["frozen"]))
    for path, leaf in flat(state["params"]).items():
        assert not np.array_equal(before[path], leaf), path
    assert set(flat(state["ema"])) == set(before)
    assert set(flat(evaluation_params(blueprint, state))) == set(before) | set(frozen)
    if what is FREEZE:
        assert set(frozen) == {p for p in {**before, **frozen} if p.startswith("embed.") or ".attention." in p}
    largest = max(leaf.size for leaf in before.values())
    assert max(leaf.size for leaf in jax.tree.leaves(state["opt"])) <= largest


@pytest.mark.parametrize(("what", "mesh_name"), rotated(
    ((what, mesh_name) for what in (FREEZE, EVERYWHERE) for mesh_name in MESHES),
    (FREEZE, "data2_fsdp2_tensor2"), (EVERYWHERE, "fsdp8"),
))  # fmt: skip
def test_the_same_losses_on_eight_devices(mesh_name: str, what: list[str]) -> None:
    """And with accumulation there."""
    one, _, _ = train_steps(tiny_experiment(*what, "optim.learning_rate=0.01"), 6, num_devices=1)
    overrides = [*what, "optim.learning_rate=0.01", *MESHES[mesh_name]]
    accumulate = ["train.accumulate_steps=2"] if mesh_name == "data2_fsdp2_tensor2" else []
    many, state, blueprint = train_steps(tiny_experiment(*overrides, *accumulate), 6)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    assert one[-1] < one[0] - 0.01
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(blueprint.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_the_frozen_are_not_copied() -> None:
    """Their memory is handed on from step to step, and the new state owns it."""
    experiment = tiny_experiment(*LORA)
    blueprint = blueprint_of(*LORA)
    step = make_train_step(blueprint, build_objective(experiment.objective), accumulate=1, seed=0)
    state = init_state(blueprint, 0)
    with jax.set_mesh(blueprint.mesh):
        batch = jax.tree.map(lambda x: jax.device_put(x, blueprint.shardings["step"]), random_batch(0))
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(blueprint.shardings, None))
        compiled = jitted.lower(blueprint.shapes, batch).compile()
        places = {path: leaf.unsafe_buffer_pointer() for path, leaf in flat(state["frozen"]).items()}
        new, _ = compiled(state, batch)
    assert {path: leaf.unsafe_buffer_pointer() for path, leaf in flat(new["frozen"]).items()} == places
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(blueprint.shapes))
    assert compiled.memory_analysis().alias_size_in_bytes >= whole


def test_the_optimisers_memory_falls_with_what_trains() -> None:
    def bytes_of(tree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    full, lora = blueprint_of(), blueprint_of(*LORA)
    adapters = 2 * 2 * (64 * 4 + 4 * 64)
    assert lora.num_trainable == adapters
    assert lora.num_params == full.num_params + adapters
    assert bytes_of(lora.shapes["opt"]) == pytest.approx(2 * 4 * adapters, abs=64)
    assert bytes_of(full.shapes["opt"]) == pytest.approx(2 * 4 * full.num_params, abs=64)
    assert full.unsaved == ()
    assert lora.unsaved == ("frozen",)
    assert "frozen" not in full.shapes


def test_what_trains_beside_the_adapters() -> None:
    blueprint = blueprint_of(*LORA, "lora.train=[norm, stack.*.mlp]", "optim.freeze=['*.mlp.down', '*.v']")
    trained = set(flat(blueprint.shapes["params"]))
    assert trained == {
        "norm.scale", "stack.blocks.mlp.up.kernel", "stack.blocks.attention.q.lora_a.kernel",
        "stack.blocks.attention.q.lora_b.kernel", "stack.blocks.attention.v.lora_a.kernel",
        "stack.blocks.attention.v.lora_b.kernel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.freeze=[embd]"], ["optim.freeze", "'embd' matches nothing", "embed.table"]),
        (["optim.freeze=['*']"], ["optim.freeze=['*']", "nothing to train"]),
        ([*LORA, "lora.train=[classifier]"], ["lora.train", "'classifier' matches nothing"]),
        ([*LORA, "lora.targets=[embed]"], ["lora.targets", "'embed' matches nothing", "stack.blocks.attention"]),
        (["+optim.rates={hed:2}"], ["optim.rates", "'hed' matches nothing", "head.table"]),
    ],
)
def test_patterns_that_mean_nothing_are_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        blueprint_of(*overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.rank=4"], ["lora.rank=4", "init_from"]),
        (["lora.train=[head]"], ["lora.train", "lora.rank=0"]),
        (["+optim.rates={head:0}"], ["optim.rates", "head=0", "optim.freeze=[head]"]),
        (["optim=schedule_free_adamw", "+optim.rates={head:2}"], ["optim.rates", "schedule_free_adamw"]),
    ],
)
def test_configurations_that_cannot_be_right(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose(["+experiment=gpt_tiny", *overrides])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("kind", rotated(
    (k for k in Optimizer if k is not Optimizer.schedule_free_adamw), Optimizer.adamw, Optimizer.muon
))  # fmt: skip
def test_rates_scale_the_whole_update(kind: Optimizer) -> None:
    """One step: each parameter moves by its factor times what it moves by without, its decay too."""
    common = [f"optim={kind.name}", "optim.decay=[matrix, embedding]", "optim.weight_decay=0.3"]
    common += ["optim.warmup_steps=0", f"optim.learning_rate={0.5 if kind is Optimizer.sgd else 0.02}"]
    rates = ["+optim.rates={*:0.5, stack.*.attention.*:0.1, embed:3}"]
    start = flat(jax.device_get(init_state(blueprint_of(*common), 0)["params"]))
    moved = {}
    for name, overrides in (("plain", common), ("rates", [*common, *rates])):
        _, state, _ = train_steps(tiny_experiment(*overrides), 1, num_devices=1)
        moved[name] = {path: np.asarray(leaf) - start[path] for path, leaf in flat(state["params"]).items()}
    for path, change in moved["rates"].items():
        factor = 3.0 if path.startswith("embed") else 0.1 if ".attention." in path else 0.5
        # what the sum with a parameter of about 0.02 to 1 loses of a small change in float32
        np.testing.assert_allclose(change, factor * moved["plain"][path], atol=3e-7, rtol=1e-4, err_msg=path)
        assert np.abs(moved["plain"][path]).max() > 3e-5, path


def test_an_update_by_hand() -> None:
    """SGD without momentum, clipping or warm-up: p - factor rate (g + decay p)."""
    blueprint = make_blueprint(
        tiny_experiment().model,
        OptimConfig(kind=Optimizer.sgd, momentum=0.0, learning_rate=0.5, weight_decay=0.1, warmup_steps=0,
                    clip_norm=0.0, rates={"head": 0.25}),
        1_000_000, build_mesh(tiny_experiment().mesh, jax.devices()[:1]), LoraConfig(),
    )  # fmt: skip
    params = init_state(blueprint, 0)["params"]
    grads = jax.tree.map(lambda p: 0.01 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    opt = blueprint.optim.transform.init(params)
    updates = flat(blueprint.optim.transform.update(grads, opt, params)[0])
    values, slopes = flat(params), flat(grads)
    np.testing.assert_allclose(updates["head.table"], -0.125 * slopes["head.table"], rtol=1e-5)
    path = "stack.blocks.mlp.up.kernel"
    np.testing.assert_allclose(updates[path], -0.5 * (slopes[path] + 0.1 * values[path]), rtol=1e-5, atol=1e-8)
