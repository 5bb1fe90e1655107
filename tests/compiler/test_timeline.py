"""The time of a step by the text of its program: small texts written by hand, and a step that libtpu compiled."""

import pytest

from lmkit.compiler.gpu import LAUNCH_SEC, gpu_timeline
from lmkit.compiler.hlo import parse
from lmkit.compiler.steptime import step_timeline
from lmkit.compiler.timeline import COPY, KERNEL, NETWORK, OTHER, PRODUCT, Timeline
from lmkit.compiler.tpu import clock_hz, tpu_timeline
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.cost.estimate import estimate
from lmkit.plan.compiled import compiled_plan

# 1 GHz: 4 units of 128 x 128 do 131,072 FLOPs in a cycle
TPU = HardwareConfig(name="tpu_v5e", platform="tpu", bf16_tflops=131.072, memory_gb_per_sec=1000)
GPU = HardwareConfig(
    name="h100", platform="gpu", bf16_tflops=1000, fp32_tflops=500, matrix_share=0.5, memory_gb_per_sec=1000
)
SIZES = {"data": 1, "fsdp": 4}
LINK = 1e9  # bytes a second of the network
US = 1e-6


def program(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, is_scheduled=true\n\n{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def on_tpu(*lines: str, more: str = "") -> Timeline:
    return tpu_timeline(program(*lines, more=more), TPU, SIZES, lambda one: one.sent_bytes / LINK)


def on_gpu(*lines: str, more: str = "") -> Timeline:
    return gpu_timeline(program(*lines, more=more), GPU, SIZES, lambda one: one.sent_bytes / LINK)


def fusion(name: str, cycles: int, operands: str = "%p", called: str = "plain") -> str:
    estimate = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    call = f"fusion({operands}), kind=kLoop, calls=%{called}"
    return f'%{name} = f32[8]{{0}} {call}, metadata={{op_name="{name}"}}, {estimate}'


MORE = """
%plain (q: f32[8]) -> f32[8] {
  ROOT %n = f32[8]{0} negate(%q)
}

%inside (q: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} convolution(%q, %q), window={size=1}
}

%times (q: f32[8]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%q), kind=kOutput, calls=%inside
}
"""


@pytest.mark.parametrize(
    ("name", "tflops", "ghz"), [("tpu_v5e", 197, 1.503), ("tpu_v5p", 459, 1.751), ("tpu_v6e", 918, 1.751)]
)
def test_the_clock_follows_from_the_peak_and_the_matrix_units(name: str, tflops: float, ghz: float) -> None:
    assert clock_hz(HardwareConfig(name=name, bf16_tflops=tflops)) == pytest.approx(ghz * 1e9, rel=1e-3)
    with pytest.raises(ConfigError, match=r"hardware=h100: no clock is known; there are tpu_v4, tpu_v5e"):
        clock_hz(HardwareConfig(name="h100", bf16_tflops=989))


def test_cycles_are_summed_and_products_found_inside_fusions() -> None:
    found = on_tpu(fusion("a", 3000), fusion("b", 1000, called="times"), more=MORE)
    assert found.seconds == pytest.approx(4 * US)
    assert (found.busy(OTHER), found.busy(PRODUCT)) == pytest.approx((3 * US, 1 * US))
    assert found.product_share == pytest.approx(0.25)
    assert [one.source for one in found.operations] == ["a", "b"]


LOOP = """
%inner_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%plain, backend_config={"estimated_cycles":"1000"}
}

%inner_cond (q: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%outer_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %two = s32[]{:T(128)} constant(2)
  %tuple.1 = (s32[], f32[8]{0}) tuple(%two, %x)
  %while.2 = (s32[], f32[8]{0}) while(%tuple.1), condition=%inner_cond, body=%inner_body
  %g = f32[8]{0} fusion(%x), kind=kLoop, calls=%plain, backend_config={"estimated_cycles":"500"}
}

%outer_cond (q: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] custom-call(%q)
}
"""


def test_nested_loops_count_by_their_trips() -> None:
    known = 'backend_config={"known_trip_count":{"n":"7"}}'
    line = "%w = (s32[], f32[8]) while(%p), condition=%outer_cond, body=%outer_body"
    found = on_tpu(f"{line}, {known}", more=MORE + LOOP)
    assert found.seconds == pytest.approx(7 * ((5 - 2) * 1 + 0.5) * US)
    assert sum(one.times for one in found.operations) == 7 * 3 + 7
    assert found.unknown_loops == []
    unknown = on_tpu(line, more=MORE + LOOP)
    assert unknown.seconds == pytest.approx(3.5 * US)
    assert unknown.unknown_loops == ["w"]


def test_of_a_conditional_the_longest_case_counts() -> None:
    more = MORE + "".join(
        f"\n%case{cycles} (q: f32[8]) -> f32[8] {{\n  {fusion(f'f{cycles}', cycles)}\n}}\n" for cycles in (2000, 9000)
    )
    found = on_tpu("%c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%case2000, %case9000}", more=more)
    assert found.seconds == pytest.approx(9 * US)
    called = on_tpu("%c = f32[8]{0} call(%p), to_apply=%case2000", more=more)
    assert called.seconds == pytest.approx(2 * US)


START = "%s = (f32[500]{0}, f32[2000]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}"
DONE = "%d = f32[2000]{0} all-gather-done(%s)"  # 8,000 bytes, of which a device sends 3/4: 6 us


def test_what_is_started_runs_beside_and_is_waited_for() -> None:
    found = on_tpu(START, fusion("a", 4000), DONE, fusion("b", 1000), more=MORE)
    assert found.seconds == pytest.approx((6 + 1) * US)
    assert found.waited == pytest.approx({NETWORK: 2 * US})
    assert found.busy(NETWORK) == pytest.approx(6 * US)
    hidden = on_tpu(START, fusion("a", 9000), DONE, more=MORE)
    assert (hidden.seconds, hidden.waited) == (pytest.approx(9 * US), {})
    alone = on_tpu("%g = f32[2000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}")
    assert (alone.seconds, alone.waited) == (pytest.approx(6 * US), pytest.approx({NETWORK: 6 * US}))


def test_a_lane_does_one_thing_after_another() -> None:
    more = [START, START.replace("%s ", "%s2 "), fusion("a", 7000), DONE, DONE.replace("(%s)", "(%s2)")]
    found = on_tpu(*more, more=MORE)
    assert found.seconds == pytest.approx(12 * US)
    copy = "%c = (f32[250]{0:S(1)}, f32[250]{0}, u32[]) copy-start(%p)"  # 1,000 bytes of the large memory: 1 ns
    both = on_tpu(copy, START, fusion("a", 4000), DONE, "%e = f32[250]{0:S(1)} copy-done(%c)", more=MORE)
    assert both.seconds == pytest.approx(6 * US)
    assert both.busy(COPY) == pytest.approx(1e-9)


def test_a_collective_in_fusions_of_a_tpu() -> None:
    """One fusion begins it, products carry it on, one ends it: those of one channel."""
    attributes = 'channel_id=5, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}'
    more = (
        MORE
        + f"""
%begin (i: f32[500]) -> f32[2000] {{
  %ag.1 = f32[2000]{{0}} all-gather(%i), {attributes}
  ROOT %b = (f32[500]{{0}}, f32[2000]{{0}}) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}}

%carry (i: f32[500]) -> f32[2000] {{
  %ag.2 = f32[2000]{{0}} all-gather(%i), {attributes}
  ROOT %c = f32[8]{{0}} convolution(%q, %q), window={{size=1}}
}}

%end (i: f32[500]) -> f32[2000] {{
  %ag.3 = f32[2000]{{0}} all-gather(%i), {attributes}
  ROOT %b = f32[2000]{{0}} custom-call(%i, %ag.3), custom_call_target="AsyncCollectiveDone"
}}
"""
    )
    lines = [
        "%s = (f32[500]{0}, f32[2000]{0}) fusion(%p), kind=kCustom, calls=%begin", fusion("a", 4000, called="carry"),
        "%d = f32[2000]{0} fusion(%s), kind=kCustom, calls=%end",
    ]  # fmt: skip
    found = on_tpu(*lines, more=more)
    assert found.seconds == pytest.approx(6 * US)
    assert found.waited == pytest.approx({NETWORK: 2 * US})
    assert found.busy(PRODUCT) == pytest.approx(4 * US)


def test_a_splash_kernel_counts_its_blocks() -> None:
    """Of causal attention half and the diagonal; a narrow head as wide as the units; text over several lines."""
    lines = [
        "%m = s8[1,8,8]{2,1,0} parameter(0)", "%q = bf16[2,12,1,1024,64]{4,3,2,1,0} parameter(1)",
        "%k = bf16[2,12,1024,64]{3,2,1,0} parameter(2)",
        '%splash_mqa_fwd_residuals.1 = bf16[2,12,1,1024,64]{4,3,2,1,0} custom-call(%m, %m, %q, %k, %k), '
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n"block_q": 128\n}}, '
        'metadata={op_name="splash"}',
    ]  # fmt: skip
    (one,) = on_tpu(*lines).operations
    assert (one.kind, one.source, one.label) == (KERNEL, "splash", "splash_mqa_fwd_residuals")
    assert one.flops == 2 * 2 * (2 * 12) * 1024 * 1024 * 128 * 9 / 16
    assert one.seconds == pytest.approx(one.flops / 131.072e12)
    other = on_tpu(*lines[:3], lines[3].replace("splash_mqa_fwd_residuals.1", "mine"))
    assert other.operations[0].seconds == pytest.approx(other.operations[0].num_bytes / 1e12)
    assert other.operations[0].num_bytes == 4 * (2 * 12 * 1024 * 64 * 2) + 2 * 64


def test_a_line_of_the_code_is_named() -> None:
    tables = """HloModule m

FileNames
1 "/home/me/lmkit/nn/stack.py"
2 "/x/site-packages/jax/experimental/pallas/kernel.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=95 end_line=95 column=19 end_column=19}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} negate(%p), metadata={op_name="x" stack_frame_id=2}
  %b = f32[8]{0} negate(%p), metadata={op_name="x" source_file="/a/b/c/d.py" source_line=3}
}
"""
    found = parse(tables)
    lines = found.computations["main"]
    assert found.place(lines["a"]) == "lmkit/nn/stack.py:95"  # not jax's own, which is innermost
    assert found.place(lines["b"]) == "b/c/d.py:3"


def test_a_gpu_takes_the_longer_of_bytes_and_flops() -> None:
    more = """
%product (a: bf16[1000,1000], b: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %b = bf16[1000,1000]{1,0} parameter(1)
  ROOT %d = bf16[1000,1000]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    arrays = ["%a = bf16[1000,1000]{1,0} parameter(0)", "%b = bf16[1000,1000]{1,0} parameter(1)"]
    call = 'fusion(%a, %b), kind=kCustom, calls=%product, backend_config={"kind":"__triton_gemm"}'
    one = on_gpu(*arrays, f"%f = bf16[1000,1000]{{1,0}} {call}", more=more).operations[0]
    assert (one.kind, one.label, one.launches) == (PRODUCT, "__triton_gemm", 1)
    assert (one.flops, one.num_bytes) == (2e9, 6e6)
    assert one.seconds == pytest.approx(6e6 / 1e12 + LAUNCH_SEC)  # its FLOPs take 2.5 us, its bytes 6
    wide = on_gpu(*(line.replace("bf16[", "f32[") for line in arrays), f"%f = f32[1000,1000]{{1,0}} {call}",
                  more=more.replace("bf16[", "f32[")).operations[0]  # fmt: skip
    assert wide.seconds == pytest.approx(max(12e6 / 1e12, 2e9 / (500e12 * 0.5)) + LAUNCH_SEC)
    cublas = (
        '%c = (bf16[1000,1000]{1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
        'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}'
    )
    library = on_gpu(*arrays, cublas).operations[0]
    assert (library.label, library.flops) == ("__cublas$lt$matmul", 2e9)


def test_attention_of_cudnn() -> None:
    line = (
        '%at = (bf16[2,8,64,32]{3,2,1,0}, u8[0]{0}) custom-call(%q), custom_call_target="__cudnn$fmhaSoftmaxWHAT", '
        'backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", '
        '"dimensions": ["2", "8", "64", "64"]}, "mask_type": "MASK"}}'
    )
    query = "%q = bf16[2,64,8,32]{3,2,1,0} parameter(0)"
    whole, causal, backward = (
        on_gpu(query, line.replace("WHAT", what).replace("MASK", mask)).operations[0]
        for what, mask in [("", "NO"), ("", "CAUSAL"), ("Backward", "CAUSAL")]
    )
    assert whole.flops == 2 * 2 * (2 * 8 * 64 * 64) * 32
    assert causal.flops == whole.flops / 2
    assert backward.flops == 2.5 * causal.flops
    assert (causal.kind, backward.label) == (KERNEL, "__cudnn$fmhaSoftmaxBackward")


def test_a_slice_is_read_and_an_update_written_alone() -> None:
    more = """
%slice (s: f32[12,1000], i: s32[]) -> f32[1,1000] {
  %s = f32[12,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[1,1000]{1,0} dynamic-slice(%s, %i), dynamic_slice_sizes={1,1000}
}

%update (s: f32[12,1000], u: f32[1,1000]) -> f32[12,1000] {
  %s = f32[12,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  ROOT %d = f32[12,1000]{1,0} dynamic-update-slice(%s, %u, %i)
}
"""
    arrays = ["%s = f32[12,1000]{1,0} parameter(0)", "%u = f32[1,1000]{1,0} parameter(1)", "%i = s32[] parameter(2)"]
    read = on_gpu(*arrays, "%f = f32[1,1000]{1,0} fusion(%s, %i), kind=kLoop, calls=%slice", more=more)
    assert read.operations[0].num_bytes == 4000 + 4000 + 4
    line = "%f = f32[12,1000]{1,0} fusion(%s, %u), kind=kLoop, calls=%update"
    assert on_gpu(*arrays, line, more=more).operations[0].num_bytes == 4000 + 4000
    start = "%f = ((f32[12,1000]{1,0}, f32[1,1000]{1,0}), f32[12,1000]{1,0}, u32[]) fusion-start(%s, %u), calls=%update"
    beside = on_gpu(*arrays, start, "%e = f32[12,1000]{1,0} fusion-done(%f)", more=more)
    assert beside.seconds == pytest.approx(8000 / 1e12 + LAUNCH_SEC)  # a copy shares the bandwidth: it is not hidden
    assert sum(one.launches for one in beside.operations) == 1


def test_collectives_take_their_network() -> None:
    hardware = compose(["+experiment=gpt_tiny", "hardware=v5e:2x4"]).hardware
    mesh = compose(["+experiment=gpt_tiny"]).mesh
    gather = "%g = f32[2000]{0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}"
    found = step_timeline(program(gather), hardware, mesh, {"fsdp": 8}, network_share=0.5)
    assert found.seconds == pytest.approx(8000 * 7 / 8 / (2 * 50e9 * 0.5))  # two open sides: a link each


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_step_that_was_compiled_for_a_tpu() -> None:
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]'): nothing compiled")
    words = ["+experiment=gpt_tiny", "model.vocab_size=512", "hardware=v5e:2x2", "mesh.data=1", "mesh.fsdp=4"]
    found = estimate(compose(words))
    timed = compiled_plan(found.context).timed
    assert timed is not None
    assert timed.timeline.seconds > timed.compute_floor > 0
    assert 0 < timed.timeline.product_share < 1
    assert timed.timeline.unknown_loops == []
    assert any(one.place.startswith("lmkit/nn/") for one in timed.dearest)
