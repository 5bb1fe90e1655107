"""The counter against texts of every dialect, and against programs that were really compiled."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers import MESHES
from lmkit.compiler.collectives import SLICED, Collective, Traffic, collectives, total
from lmkit.config.entry import compose
from lmkit.core.state import make_blueprint
from lmkit.core.step import make_train_step
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}  # device d has data d // 8, fsdp d // 2 % 4, tensor d % 2
KERNEL = 4 * 64 * 8  # bytes of f32[64,8]


def program(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def only(text: str, sizes: dict[str, int] = SIZES) -> Collective:
    (found,) = collectives(text, sizes)
    return found


@pytest.mark.parametrize(("groups", "size", "axes"), [
    ("{{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}", 4, ("fsdp",)),
    ("{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", 2, ("tensor",)),
    ("{{0,8},{1,9},{2,10},{3,11},{4,12},{5,13},{6,14},{7,15}}", 2, ("data",)),
    ("[8,2]<=[16]", 2, ("tensor",)),
    ("[4,4]<=[2,4,2]T(0,2,1)", 4, ("fsdp",)),
    ("[8,2]<=[2,8]T(1,0)", 2, ("data",)),
    ("[2,8]<=[8,2]T(1,0)", 8, ("data", "fsdp")),
    ("[1,16]<=[16]", 16, ("data", "fsdp", "tensor")),
    ("{}", 16, ("data", "fsdp", "tensor")),
    ("mesh['a'=8,'b'=2] {'b'}", 2, ("tensor",)),
    ("mesh['a'=8,'b'=2] {'a'}", 8, ("data", "fsdp")),
    ("mesh['a'=8,'b'=2] {'a':(2)4}", 4, ("fsdp",)),
    ("mesh['a'=2,'b'=8], device_ids=([2,8]<=[8,2]T(1,0)) {'b'}", 8, ("data", "fsdp")),
    ("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}", 8, ("data", "fsdp")),
])  # fmt: skip
def test_groups_are_told_by_axes(groups: str, size: int, axes: tuple[str, ...]) -> None:
    line = f"%all-gather.1 = f32[64,8]{{1,0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    found = only(program(line))
    assert (found.group, found.axes) == (size, axes)
    assert found.sent_bytes == KERNEL * (size - 1) / size


@pytest.mark.parametrize(("line", "kind", "sent"), [
    ("f32[64,8]{1,0} all-gather(%p), replica_groups={{0,2,4,6}}", "all-gather", KERNEL * 3 / 4),
    ("f32[64,8]{1,0} all-reduce(%p), replica_groups={{0,2,4,6}}", "all-reduce", 2 * KERNEL * 3 / 4),
    ("f32[64,8]{1,0} reduce-scatter(%p), replica_groups={{0,2,4,6}}", "reduce-scatter", KERNEL * 3),
    ("f32[64,8]{1,0} all-to-all(%p), replica_groups={{0,2,4,6}}", "all-to-all", KERNEL * 3 / 4),
    ("f32[64,8]{1,0} collective-permute(%p), source_target_pairs={{0,2},{2,4},{4,6}}", "collective-permute", KERNEL),
    ("(f32[10]{0}, bf16[6]{0}) all-reduce(%p, %p), replica_groups=[8,2]<=[16]", "all-reduce", 2 * 52 / 2),
    # asynchronous, as GPUs write it: the start's result names the operand first
    ("(f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%p), replica_groups={{0,2,4,6}}", "all-gather", KERNEL * 3 / 4),
    ("((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%p, %p), replica_groups={{0,2,4,6}}",
     "all-gather", 96 * 3 / 4),
    ("f32[64,8]{1,0} all-reduce-start(%p), replica_groups={{0,2,4,6}}", "all-reduce", 2 * KERNEL * 3 / 4),
    ("((f32[64,8]{1,0}), f32[16,8]{1,0}) reduce-scatter-start(%p), replica_groups={{0,2,4,6}}",
     "reduce-scatter", KERNEL / 4 * 3),
    ("(f32[64,8]{1,0}, f32[64,8]{1,0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
     "collective-permute", KERNEL),
    # layouts of a TPU
    ("bf16[4,64,8]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups=[4,4]<=[2,4,2]T(0,2,1), dimensions={1}",
     "all-gather", 4 * KERNEL / 2 * 3 / 4),
])  # fmt: skip
def test_kinds_and_bytes(line: str, kind: str, sent: float) -> None:
    found = only(program(f"%c.1 = {line}", "%d.1 = f32[64,8]{1,0} all-gather-done(%c.1)"))
    assert (found.kind, found.sent_bytes, found.times, found.looped) == (kind, sent, 1, False)


def test_one_device_sends_nothing() -> None:
    assert collectives(program("%a = f32[8]{0} all-reduce(%p), replica_groups={{0},{1}}"), SIZES) == []
    assert collectives(program("%a = f32[8]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}"), SIZES) == []


LOOP = """
%inner_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g.1 = f32[8]{0} all-gather(%x), replica_groups={{0,1}}
}

%inner_cond (q: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%outer_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %two = s32[]{:T(128)} constant(2)
  %copy.1 = s32[] copy(%two)
  %tuple.1 = (s32[], f32[8]{0}) tuple(%copy.1, %x)
  %while.2 = (s32[], f32[8]{0}) while(%tuple.1), condition=%inner_cond, body=%inner_body
  %r.1 = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum
}

%outer_cond (q: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] custom-call(%q)
}
"""


def test_loops_count_as_often_as_they_run() -> None:
    known = 'backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'
    line = f"%while.1 = (s32[], f32[8]) while(%p), condition=%outer_cond, body=%outer_body, {known}"
    found = {one.kind: one for one in collectives(program(line, more=LOOP), SIZES)}
    assert found["all-reduce"].times == 7
    assert found["all-gather"].times == 7 * (5 - 2)  # its counter starts at 2
    assert all(one.looped for one in found.values())
    assert total(found.values(), "kind")["all-gather",] == Traffic(21, 21 * 16.0)


def test_a_loop_of_unknown_length_is_an_error() -> None:
    line = "%while.1 = (s32[], f32[8]) while(%p), condition=%outer_cond, body=%outer_body"
    with pytest.raises(ValueError, match=r"while\.1"):
        collectives(program(line, more=LOOP), SIZES)


def test_what_is_called_counts() -> None:
    more = """
%wrapped (q: f32[8]) -> f32[8] {
  ROOT %rs = f32[2]{0} reduce-scatter(%q), replica_groups={{0,2,4,6}}, dimensions={0}, to_apply=%sum
}

%small (q: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%sum
}
"""
    started = "%s = ((f32[8]{0}), f32[2]{0}) async-start(%p), calls=%wrapped"
    assert only(program(started, "%d = f32[2]{0} async-done(%s)", more=more)).sent_bytes == 8 * 3
    called = [f"%c.{n} = f32[8]{{0}} call(%p), to_apply=%small" for n in range(2)]
    assert [one.kind for one in collectives(program(*called, more=more), SIZES)] == ["all-reduce"] * 2
    cases = "%c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%wrapped, %small}"
    assert only(program(cases, more=more)).kind == "all-reduce"  # which sends 32 bytes, the other 24


def test_fusions_of_a_tpu() -> None:
    """A reduce-scatter is a fused all-reduce and slice; pieces of an asynchronous collective stand in many fusions."""
    more = """
%all-reduce-scatter.3 (i.1: bf16[64,8], i.2: bf16[64,8]) -> (bf16[16,8], bf16[16,8]) {
  %all-reduce.1 = (bf16[64,8]{1,0}, bf16[64,8]{1,0}) all-reduce(%i.1, %i.2), replica_groups={{0,2,4,6}}, to_apply=%sum
  %x = bf16[64,8]{1,0} get-tuple-element(%all-reduce.1), index=0
}

%begin (i: f32[16,8]) -> f32[64,8] {
  %all-gather.1 = f32[64,8]{1,0} all-gather(%i), replica_groups={{0,2,4,6}}, frontend_attributes={chain_id="0"}
  ROOT %b = (f32[16,8]{1,0}, f32[64,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%go_on (i: f32[16,8]) -> f32[64,8] {
  %all-gather.2 = f32[64,8]{1,0} all-gather(%i), replica_groups={{0,2,4,6}}, frontend_attributes={chain_id="0"}
}
"""
    scatter = "%f = (bf16[16,8]{1,0:T(8,128)}, bf16[16,8]{1,0}) fusion(%p, %p), calls=%all-reduce-scatter.3"
    found = only(program(scatter, more=more))
    assert (found.kind, found.dtype, found.sent_bytes) == ("reduce-scatter", "bf16", 2 * 16 * 8 * 2 * 3)
    gather = [f"%f.{n} = f32[64,8]{{1,0}} fusion(%p), calls=%{name}" for n, name in enumerate(["begin", "go_on"])]
    assert only(program(*gather, more=more)).sent_bytes == KERNEL * 3 / 4


def test_an_all_reduce_of_which_a_part_is_used_is_told_apart() -> None:
    more = """
%cut (a: f32[2,8], b: f32[64,8]) -> f32[16,8] {
  %a = f32[2,8]{1,0} parameter(0)
  %b = f32[64,8]{1,0} parameter(1)
  %c = f32[64,8]{0,1} transpose(%b), dimensions={0,1}
  ROOT %s = f32[16,8]{1,0} dynamic-slice(%c, %i, %j), dynamic_slice_sizes={16,8}
}

%keep (a: f32[2,8], b: f32[64,8]) -> f32[64,8] {
  %b = f32[64,8]{1,0} parameter(1)
  %s = f32[16,8]{1,0} dynamic-slice(%b, %i, %j), dynamic_slice_sizes={16,8}
  ROOT %n = f32[64,8]{1,0} negate(%b)
}
"""
    reduce = "%r = f32[64,8]{1,0} all-reduce(%p), replica_groups={{0,2,4,6}}, to_apply=%sum"

    def use(name: str) -> str:
        return f"%f = f32[16,8]{{1,0}} fusion(%q, %r), kind=kLoop, calls=%{name}"

    assert only(program(reduce, use("cut"), more=more)).kind == SLICED
    assert only(program(reduce, use("keep"), more=more)).kind == "all-reduce"
    both = program(
        "%r = (f32[64,8]{1,0}, f32[4]{0}) all-reduce(%p, %q), replica_groups={{0,2,4,6}}, to_apply=%sum",
        "%e.0 = f32[64,8]{1,0} get-tuple-element(%r), index=0",
        "%e.1 = f32[4]{0} get-tuple-element(%r), index=1",
        "%s = f32[16,8]{1,0} dynamic-slice(%e.0, %i, %j), dynamic_slice_sizes={16,8}",
        "%n = f32[4]{0} negate(%e.1)",
    )
    assert {one.kind: one.sent_bytes for one in collectives(both, SIZES)} == {
        SLICED: 2 * KERNEL * 3 / 4, "all-reduce": 2 * 16 * 3 / 4
    }  # fmt: skip


def test_no_program_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        collectives("nothing", SIZES)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_loop_that_was_compiled(unroll: bool) -> None:
    """Three gathers of one array, whose size is known."""
    mesh = build_mesh(compose(["run.name=x", *MESHES["fsdp8"]]).mesh)
    xs = jax.device_put(np.ones((3, 16, 4), np.float32), NamedSharding(mesh, P(None, "fsdp", None)))

    def gather(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        whole = jax.shard_map(
            lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), in_specs=P("fsdp"), out_specs=P(), check_vma=False
        )(x)
        return jnp.sin(carry + whole), None

    with jax.set_mesh(mesh):
        run = jax.jit(lambda xs: jax.lax.scan(gather, jnp.zeros((16, 4)), xs, unroll=3 if unroll else 1)[0])
        found = collectives(run.lower(xs).compile().as_text() or "", mesh.shape)
    assert total(found, "axes", "kind", "looped") == {
        (("fsdp",), "all-gather", not unroll): Traffic(3, 3 * 16 * 4 * 4 * 7 / 8)
    }  # fmt: skip


@cache
def step_of(mesh_name: str, scan: bool) -> tuple[Collective, ...]:
    """The collectives of the train step of a small Llama, as compiled for the CPU."""
    words = ["run.name=x", "model=llama3_8b", "data.seq_len=64", "train.batch_size=16"]
    words += ["model.num_layers=3", "model.embed_dim=64", "model.num_heads=8", "model.num_kv_heads=2"]
    words += ["model.mlp_dim=128", "model.vocab_size=256", "model.remat=full"]
    experiment = compose([*words, f"model.scan_layers={str(scan).lower()}", *MESHES[mesh_name]])
    mesh = build_mesh(experiment.mesh)
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh)
    step = make_train_step(blueprint, build_objective(experiment.objective), accumulate=1, seed=0)
    sharding = sharding_of(("batch", "seq"), mesh)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((16, 64), dtype, sharding=sharding) for name, dtype in dtypes.items()}
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(blueprint.shardings, None))
        text = jitted.lower(blueprint.shapes, batch).compile().as_text() or ""
    return tuple(collectives(text, mesh.shape))


def bytes_by(found: tuple[Collective, ...], *by: str) -> dict[tuple, float]:
    return {name: traffic.sent_bytes for name, traffic in sorted(total(found, *by).items())}


@pytest.mark.parametrize("mesh_name", ["fsdp8", "data2_fsdp2_tensor2"])
def test_scanned_layers_send_what_unrolled_ones_do(mesh_name: str) -> None:
    """Byte for byte, by axes and kind. (How many collectives carry them differs: XLA combines some.)"""
    scanned, unrolled = step_of(mesh_name, True), step_of(mesh_name, False)
    assert any(one.looped and one.times == 3 for one in scanned)
    assert not any(one.looped for one in unrolled)
    assert bytes_by(scanned, "axes", "kind") == bytes_by(unrolled, "axes", "kind")


def test_layers_gather_in_the_loop_and_scatter_their_gradients() -> None:
    """fsdp: each layer's kernels, twice (forward and backward), never the whole stack; no gradient is kept whole."""
    found, kernels = step_of("fsdp8", True), 64 * (8 * 8 * 2 + 2 * 8 * 2) + 3 * 64 * 128
    assert max(np.prod(shape) for one in found if one.looped for shape in one.shapes) == 64 * 128
    gathers = [one for one in found if one.looped and one.kind == "all-gather"]
    assert sum(one.step_bytes for one in gathers) == 3 * 2 * kernels * 4 * 7 / 8
    whole = [one for one in found if one.kind == "all-reduce" for shape in one.shapes if np.prod(shape) > 3 * 64]
    assert not whole, [one.source for one in whole]
