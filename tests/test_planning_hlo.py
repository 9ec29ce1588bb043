"""Costs of compiled programs from their text: programs for eight CPU devices, and lines as a TPU's compiler writes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignax import sharding
from alignax.planning.groups import groups
from alignax.planning.hlo import Costs, costs

L, B, D = 5, 16, 32  # layers, rows, width
PRODUCT = 2 * B * D * D  # FLOPs of one layer
W, X = (L, D, D), (B, D)
MESH = {"data": 2, "fsdp": 4}
F32 = 4  # bytes


def cost(f, *shapes, mesh=None, specs=(), **options) -> Costs:
    """Of a function of float32 arrays, on one device or sharded over a mesh."""
    at = [NamedSharding(sharding.make_mesh(mesh), spec) for spec in specs] if mesh else [None] * len(shapes)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=one) for shape, one in zip(shapes, at, strict=True)]
    return costs(jax.jit(f).lower(*args).compile().as_text(), mesh or {"one": 1}, **options)


def stack(w, x, wrap=lambda layer: layer):
    layer = wrap(lambda x, w: (jnp.tanh(x @ w), None))
    return lax.scan(layer, x, w)[0]


def module(entry: str, **others: str) -> str:
    """A module of these lines, as a TPU prints it."""
    parts = [f"%{name} (p: f32[]) -> f32[] {{\n{lines}\n}}" for name, lines in others.items()]
    return "\n\n".join(
        ["HloModule jit_f, is_scheduled=true", *parts, f"ENTRY %main (p: f32[]) -> f32[] {{\n{entry}\n}}"]
    )


def on_tpu(entry: str, trips=1, **others: str) -> Costs:
    return costs(module(entry, **others), MESH, trips=trips)


# ---- loops


def test_a_scan_of_layers_has_the_products_of_all_of_them():
    found = cost(stack, W, X)
    assert found.flops == L * PRODUCT
    assert found.unknown_trips == 0


def test_a_gradient_takes_three_products_per_layer():
    loss = lambda w, x: stack(w, x).sum()  # noqa: E731
    assert cost(jax.value_and_grad(loss, argnums=(0, 1)), W, X).flops == 3 * L * PRODUCT


def test_a_gradient_that_the_input_does_not_need_is_not_counted():
    loss = lambda w, v, x: jnp.tanh(jnp.tanh(x @ w) @ v).sum()  # noqa: E731
    assert cost(jax.value_and_grad(loss, argnums=(0, 1)), (D, D), (D, D), X).flops == (2 + 2 + 1) * PRODUCT


def test_rematerialised_layers_take_a_fourth_product():
    loss = lambda w, x: stack(w, x, jax.checkpoint).sum()  # noqa: E731
    assert cost(jax.value_and_grad(loss, argnums=(0, 1)), W, X).flops == 4 * L * PRODUCT


def test_loops_within_loops_multiply():
    outer = lambda w, x: lax.fori_loop(0, 3, lambda _, x: stack(w, x), x)  # noqa: E731
    assert cost(outer, W, X).flops == 3 * L * PRODUCT


def test_a_loop_whose_end_is_data_is_counted_as_often_as_the_caller_says():
    until = lambda w, x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)  # noqa: E731
    once, often = cost(until, (D, D), X), cost(until, (D, D), X, trips=7)
    assert (once.flops, once.unknown_trips) == (PRODUCT, 1)
    assert (often.flops, often.unknown_trips) == (7 * PRODUCT, 1)


STATE = "(s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}, /*index=2*/s32[]{:T(128)})"
LOOP = f"""
  %zero = s32[]{{:T(128)}} constant(START)
  %end = s32[]{{:T(128)}} constant(END)
  %x = bf16[16,32]{{1,0:T(8,128)(2,1)}} parameter(0)
  %start = s32[]{{:T(128)}} copy(%zero)
  %init = {STATE} tuple(%start, %x, /*index=2*/%end)
  ROOT %loop = {STATE} while(%init), condition=%test, body=%body
"""
TEST = f"""
  %state = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %n = s32[]{{:T(128)}} get-tuple-element(%state), index=2
  ROOT %go = pred[]{{:T(512)}} compare(%i, %n), direction=WAY
"""
BODY = f"""
  %state = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %copy.1 = s32[]{{:T(128)S(6)}} copy(%i)
  %by = s32[]{{:T(128)}} constant(STEP)
  %next = s32[]{{:T(128)}} add(%copy.1, %by)
  %x = bf16[16,32]{{1,0}} get-tuple-element(%state), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%state), index=2
  ROOT %out = {STATE} tuple(%next, %x, %n)
  %y = bf16[16,16]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}
"""


@pytest.mark.parametrize(
    ("start", "end", "step", "way", "count"),
    [(0, 6, 1, "LT", 6), (2, 9, 3, "LT", 3), (0, 6, 1, "LE", 7), (5, -1, -1, "GT", 6), (5, 0, -2, "GE", 3)]
    + [(0, 6, 2, "NE", 3), (7, 6, 1, "LT", 0)],
)  # fmt: skip
def test_a_loop_without_a_count_is_counted_from_start_step_and_end(start, end, step, way, count):
    entry = LOOP.replace("START", str(start)).replace("END", str(end))
    body, test = BODY.replace("STEP", str(step)), TEST.replace("WAY", way)
    found = on_tpu(entry, body=body, test=test, trips=100)
    assert (found.flops, found.unknown_trips) == (count * 2 * 16 * 16 * 32, 0)


@pytest.mark.parametrize(("step", "next"), [(-1, "add"), (2, "multiply")], ids=["it goes away", "steps grow"])
def test_a_loop_that_does_not_step_evenly_to_its_end_is_unknown(step, next):
    body = BODY.replace("STEP", str(step)).replace("add(", f"{next}(")
    entry = LOOP.replace("START", "1").replace("END", "64")
    found = on_tpu(entry, body=body, test=TEST.replace("WAY", "LT"), trips=2)
    assert (found.flops, found.unknown_trips) == (2 * 2 * 16 * 16 * 32, 1)


def test_the_compilers_trip_count_goes_before_what_the_condition_says():
    lines = 'frontend_attributes={kernel={\n"block":"8"\n}}'  # a program's own attributes may go over several lines
    known = f'body=%body, {lines}, backend_config={{"known_trip_count":{{"n":"80"}}}}'
    entry = LOOP.replace("START", "0").replace("END", "6").replace("body=%body", known)
    found = on_tpu(entry, body=BODY.replace("STEP", "1"), test=TEST.replace("WAY", "LT"))
    assert found.flops == 80 * 2 * 16 * 16 * 32


def test_of_a_conditional_the_dearest_branch_counts():
    def branches(p, w, x):
        return lax.switch(p[0].astype(jnp.int32), [lambda: x, lambda: x @ w @ w @ w, lambda: x @ w])

    assert cost(branches, (1,), (D, D), X).flops == 3 * PRODUCT


# ---- matrix products


def test_a_products_contracted_dimensions_are_those_that_the_result_lacks():
    assert cost(lambda a, b: jnp.einsum("bik,kjb->bij", a, b), (3, 4, 5), (5, 6, 3)).flops == 2 * 3 * 4 * 5 * 6


def test_a_convolution_counts_the_channels_of_its_group():
    def convolve(groups):
        layout = ("NHWC", "HWIO", "NHWC")
        return lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=layout, feature_group_count=groups
        )

    assert cost(convolve(1), (2, 8, 8, 4), (3, 3, 4, 6)).flops == 2 * (2 * 6 * 6 * 6) * 4 * 9
    assert cost(convolve(4), (2, 8, 8, 4), (3, 3, 1, 8)).flops == 2 * (2 * 6 * 6 * 8) * 1 * 9


PRODUCTS = """
  %a = bf16[512,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[2048,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %same = bf16[512,2048]{1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%inner
  %convolution.5 = bf16[512,256]{1,0:T(8,128)(2,1)} convolution(%same, %b), dim_labels=bf_io->bf
  ROOT %out = f32[512,256]{1,0:T(8,128)} convert(%convolution.5)
"""
INNER = "  %p = bf16[512,2048]{1,0} parameter(0)\n  ROOT %c = bf16[512,2048]{1,0} bitcast(%p)"
FUSED = """
  %x = bf16[512,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[2048,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %fusion.1 = f32[512,256]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%product
"""


def test_a_product_that_a_tpu_writes_as_a_fused_convolution_is_that_product():
    assert on_tpu(FUSED, product=PRODUCTS, inner=INNER).flops == 2 * 512 * 2048 * 256


def test_memory_on_the_chip_is_no_traffic():
    found = on_tpu(FUSED, product=PRODUCTS, inner=INNER)
    assert found.bytes == 512 * 2048 * 2 + 512 * 256 * 4  # x is read and the result written; w is in S(1)


def test_a_batch_that_a_tpu_writes_as_a_window_with_holes_costs_each_row_once():
    batched = """
  %a = bf16[8,512,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,512,256]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
"""
    assert on_tpu(batched).flops == 8 * 2 * 512 * 128 * 256


def test_a_pallas_kernel_is_counted_by_name_and_what_only_names_memory_is_not():
    kernel = """
  %x = bf16[512,128]{1,0:T(8,128)(2,1)} parameter(0)
  %splash_fwd.3 = bf16[512,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={k={
"xprof_metadata":"block_q"
}}, metadata={op_name="attention"}
  %space = bf16[512,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %both = bf16[1024,128]{1,0} custom-call(%x, %x), custom_call_target="ConcatBitcast"
  ROOT %y = bf16[512,512]{1,0} dot(%splash_fwd.3, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
"""
    found = on_tpu(kernel)
    assert found.custom_calls == {"splash_fwd": 1}
    assert found.bytes == (2 + 2) * 512 * 128 * 2 + 512 * 512 * 2
    assert found.flops == 2 * 512 * 512 * 128


# ---- memory


def test_a_scan_reads_each_layer_once_and_not_the_stack_each_time():
    layers, width = 50, 64  # a stack of layers^2 width^2 bytes would be most of the traffic
    found = cost(stack, (layers, width, width), (2, width))
    once = layers * width * width * F32
    # a slice is read, written and read by the product; with what the rows take, far less than `layers` times that
    assert 2 * once <= found.bytes <= 4 * once


def test_a_scan_writes_each_layers_result_once_and_not_the_stack_each_time():
    layers, rows = 50, 64
    scan = lambda x: lax.scan(lambda x, _: (jnp.sin(x), jnp.cos(x)), x, None, length=layers)[1]  # noqa: E731
    once = layers * rows * rows * F32
    assert once <= cost(scan, (rows, rows)).bytes <= 10 * once


def test_an_elementwise_program_reads_its_arrays_and_writes_one():
    assert cost(lambda x, y: jnp.tanh(x) + y, (64, 64), (64, 64)).bytes == 3 * 64 * 64 * F32


STACKED = """
  %x = bf16[4,512,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %u = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %f = bf16[DIMS]{2,1,0:T(8,128)(2,1)} fusion(%x, %i, %u), kind=kLoop, calls=%fused
"""
SLICED = """
  %p.0 = bf16[4,512,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %p.2 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %one = bf16[1,512,512]{2,1,0} bitcast(%p.2)
  ROOT %result = LAST
"""
SLICE = "bf16[1,512,512]{2,1,0} dynamic-slice(%p.0, %p.1, %p.1, %p.1), dynamic_slice_sizes={1,512,512}"
UPDATE = "bf16[4,512,512]{2,1,0} dynamic-update-slice(%p.0, %one, %p.1, %p.1, %p.1)"
BEHIND = f"""bf16[4,512,512]{{2,1,0}} bitcast(%p.0)
  ROOT %slice = {SLICE.replace("%p.0", "%result")}"""
WHOLE = "bf16[4,512,512]{2,1,0} negate(%p.0)"


@pytest.mark.parametrize(
    ("dims", "last", "layers"),
    [
        ("1,512,512", SLICE, 1 + 1),
        ("1,512,512", BEHIND, 1 + 1),
        ("4,512,512", UPDATE, 0 + 1),
        ("4,512,512", WHOLE, 4 + 4),
    ],
    ids=["a slice is read and written", "behind a bitcast too", "an update is written", "all is read and written"],
)
def test_a_fusion_takes_of_a_stack_what_it_reads_and_writes(dims, last, layers):
    inside = SLICED.replace("ROOT", "" if last == BEHIND else "ROOT").replace("LAST", last)
    found = on_tpu(STACKED.replace("DIMS", dims), fused=inside)
    assert found.bytes == layers * 512 * 512 * 2


def test_a_copy_to_the_chip_is_read_and_not_written():
    prefetch = """
  %x = bf16[4,512]{1,0:T(8,128)(2,1)} parameter(0)
  %copy-start = (bf16[4,512]{1,0:S(1)}, bf16[4,512]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[4,512]{1,0:S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[4,512]{1,0}), bf16[1,512]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:512]}
  ROOT %slice-done = bf16[1,512]{1,0:S(1)} slice-done(%slice-start)
"""
    assert on_tpu(prefetch).bytes == 4 * 512 * 2 + 1 * 512 * 2


# ---- collectives


def test_a_product_cut_along_what_it_sums_is_an_all_reduce_over_that_axis():
    mesh = {"data": 2, "tensor": 4}
    found = cost(lambda x, w: x @ w, X, (D, D), mesh=mesh, specs=[P("data", "tensor"), P("tensor", None)])
    assert found.flops == PRODUCT / 8
    assert found.kinds == {"all-reduce": 1}
    assert found.collectives == {("tensor",): 2 * 3 / 4 * (B / 2) * D * F32}


def test_a_scan_over_cut_layers_gathers_each_over_the_axis_that_cuts_it():
    specs = [P(None, "fsdp", None), P(("data", "fsdp"), None)]
    found = cost(stack, W, X, mesh=MESH, specs=specs)
    assert found.kinds == {"all-gather": L}
    assert found.collectives == {("fsdp",): L * 3 / 4 * D * D * F32}
    assert found.flops == L * PRODUCT / 8


def test_a_gradient_is_summed_over_both_axes_that_split_the_rows():
    specs = [P(None, None, None), P(("data", "fsdp"), None)]
    found = cost(jax.grad(lambda w, x: stack(w, x).sum()), W, X, mesh=MESH, specs=specs)
    assert set(found.collectives) == {("data", "fsdp")}
    # one sum per layer, or one of all of them after the loop
    assert found.collectives["data", "fsdp"] == pytest.approx(2 * 7 / 8 * L * D * D * F32, rel=0.01)


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_a_shift_sends_what_a_device_holds_along_its_axis(axis):
    n = MESH[axis]
    shift = lambda x: lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])  # noqa: E731

    def f(x):
        spec = P("data", "fsdp")
        return jax.shard_map(shift, mesh=sharding.make_mesh(MESH), in_specs=spec, out_specs=spec)(x)

    found = cost(f, X, mesh=MESH, specs=[P("data", "fsdp")])
    assert found.collectives == {(axis,): B * D * F32 / 8}
    assert found.kinds == {"collective-permute": 1}


def test_a_permutation_goes_over_the_axes_in_which_any_pair_differs():
    lines = """
  %x = f32[8,128]{1,0} parameter(0)
  %s = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), PAIRS, channel_id=2
  ROOT %y = f32[8,128]{1,0} collective-permute-done(%s)
"""
    moved = on_tpu(lines.replace("PAIRS", "source_target_pairs={{0,0},{4,1},{1,2},{5,3},{2,4},{6,5},{3,6},{7,7}}"))
    assert moved.collectives == {("data", "fsdp"): 8 * 128 * 4}
    assert on_tpu(lines.replace("PAIRS", "source_target_pairs={{0,0},{1,1}}")).collectives == {}


FSDP = ((0, 1, 2, 3), (4, 5, 6, 7))
DATA = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", FSDP),
        ("[2,4]<=[8]", FSDP),
        ("[4,2]<=[2,4]T(1,0)", DATA),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", FSDP),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", FSDP),
        ("mesh['a'=2,'b'=4] {'a'}", DATA),
        ("mesh['a'=8] {'a':(1)2}", DATA),
        ("mesh['a'=8] {'a':(2)4}", FSDP),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", ((0, 2), (1, 3))),
        ("{}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
    ],
)
def test_groups_are_read_in_every_form(text, listed):
    assert groups(text, 8) == listed


@pytest.mark.parametrize(
    ("opcode", "share"), [("all-gather", 3), ("reduce-scatter", 3 / 4), ("all-reduce", 3 / 2), ("all-to-all", 3 / 4)]
)
@pytest.mark.parametrize(
    ("text", "axes"), [("[2,4]<=[8]", ("fsdp",)), ("mesh['a'=2,'b'=4] {'b'}", ("fsdp",)), ("[2,4]<=[4,2]T(1,0)", None)]
)
def test_a_ring_sends_its_share_of_the_operand(opcode, share, text, axes):
    lines = f"""
  %x = bf16[8,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  ROOT %y = bf16[8,128]{{1,0}} {opcode}(%x), channel_id=1, replica_groups={text}, dimensions={{0}}, to_apply=%add
"""
    found = on_tpu(lines)
    # every other device lies in both halves of the mesh
    assert found.collectives == {axes or ("data", "fsdp"): share * 8 * 128 * 2}
    assert found.kinds == {opcode: 1}


def test_a_collective_that_runs_beside_others_is_counted_where_it_starts():
    entry = """
  %x = bf16[8,128]{1,0} parameter(0)
  %g.1 = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %g.2 = bf16[32,128]{1,0} all-gather-done(%g.1)
  %a.1 = ((bf16[32,128]{1,0}), bf16[8,128]{1,0}, u32[]{:S(2)}) async-start(%g.2), calls=%scatter
  ROOT %a.2 = bf16[8,128]{1,0} async-done(%a.1), calls=%scatter
"""
    scatter = """
  %p = bf16[32,128]{1,0} parameter(0)
  ROOT %r = bf16[8,128]{1,0} reduce-scatter(%p), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
"""
    found = on_tpu(entry, scatter=scatter)
    assert found.kinds == {"all-gather": 1, "reduce-scatter": 1}
    assert found.collectives == {("fsdp",): 3 * 8 * 128 * 2, ("data",): 32 * 128 * 2 / 2}
    assert found.bytes == 2 * (8 + 32) * 128 * 2


ASYNC = """
  %p.0 = bf16[8,128]{1,0} parameter(0)
  %g = bf16[32,128]{1,0} all-gather(%p.0), channel_id=8, replica_groups=[2,4]<=[8], dimensions={0}, CONFIG
  LAST
"""
CONFIG = 'backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
START = """ROOT %c = (bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}, u32[]{:S(2)}) custom-call(%g),\
 custom_call_target="AsyncCollectiveStart\""""
MEANWHILE = """%p.1 = bf16[64,64]{1,0} parameter(1)
  %d = bf16[64,64]{1,0} convolution(%p.1, %p.1), dim_labels=bf_io->bf
  ROOT %t = (bf16[64,64]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}) tuple(%d, %p.0, %g)"""
DONE = 'ROOT %c = bf16[32,128]{1,0:S(1)} custom-call(%p.0, %g), custom_call_target="AsyncCollectiveDone"'


def test_a_gather_that_a_tpu_spreads_over_fusions_is_one_gather():
    entry = """
  %x = bf16[8,128]{1,0} parameter(0)
  %y = bf16[64,64]{1,0} parameter(1)
  %f.1 = (bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %f.2 = (bf16[64,64]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}) fusion(%x, %y), kind=kOutput, calls=%meanwhile
  ROOT %f.3 = bf16[32,128]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%done
"""
    lines = ASYNC.replace("CONFIG", CONFIG)
    parts = {"start": START, "meanwhile": MEANWHILE, "done": DONE}
    found = on_tpu(entry, **{name: lines.replace("LAST", last) for name, last in parts.items()})
    assert found.kinds == {"all-gather": 1}
    assert found.collectives == {("fsdp",): 3 * 8 * 128 * 2}
    assert found.flops == 2 * 64**3
    assert found.bytes == 8 * 128 * 2 + 2 * 64 * 64 * 2  # the gather reads x and leaves its result on the chip


def test_a_sum_of_which_a_tpu_keeps_a_slice_is_a_reduce_scatter():
    entry = """
  %x = bf16[32,128]{1,0} parameter(0)
  ROOT %f = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.5
"""
    inside = """
  %p = bf16[32,128]{1,0} parameter(0)
  %r = bf16[32,128]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %s = bf16[8,128]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={8,128}
"""
    found = on_tpu(entry, **{"all-reduce-scatter.5": inside})
    assert found.kinds == {"reduce-scatter": 1}
    assert found.collectives == {("fsdp",): 3 / 4 * 32 * 128 * 2}
    assert found.bytes == (32 + 8) * 128 * 2


# ---- what is no such text


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="as_text"):
        costs("HloModule jit_f", MESH)


def test_devices_that_the_mesh_lacks_are_refused():
    lines = "  %x = f32[8]{0} parameter(0)\n  ROOT %y = f32[8]{0} all-reduce(%x), replica_groups={{0,9}}, to_apply=%add"
    with pytest.raises(ValueError, match="device 9"):
        on_tpu(lines)


def test_of_loops_of_unknown_length_one_behind_the_other_the_dearest_counts():
    w = jnp.ones((32, 32))

    def often(x, rows):
        return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ w[: x.shape[1]], x[:rows])

    def run(x):
        return often(x, 16), often(x, 8), x @ w

    text = jax.jit(run).lower(jnp.ones((16, 32))).compile().as_text()
    found = costs(text, {"data": 1}, trips=10)
    assert found.flops == 10 * 2 * 16 * 32 * 32 + 2 * 16 * 32 * 32
    assert found.unknown_trips == 2


def test_the_products_of_an_attention_kernel_are_counted_under_its_causal_mask():
    kernel = (
        "  %splash_mha_{name}.2 = bf16[2,8,512,64]{{3,2,1,0}} custom-call(%mask, %q, %k, %k), "
        'custom_call_target="tpu_custom_call"\n'
    )
    text = (
        "HloModule m\n\nENTRY %main (mask: s8[1,1,1], q: bf16[2,8,512,64], k: bf16[2,4,256,64]) -> bf16[2,8,512,64] {\n"
        "  %mask = s8[1,1,1]{2,1,0} parameter(0)\n  %q = bf16[2,8,512,64]{3,2,1,0} parameter(1)\n"
        "  %k = bf16[2,4,256,64]{3,2,1,0} parameter(2)\n  ROOT "
    )
    once = 2 * 8 * 512 * 256 * 64  # 2 FLOPs for half of the pairs
    for name, products in (("fwd_residuals", 2), ("dq_no_residuals", 3), ("dkv_no_residuals", 4)):
        found = costs(text + kernel.format(name=name).lstrip() + "}\n", {"data": 1})
        assert found.flops == products * once
        assert found.custom_calls == {f"splash_mha_{name}": 1}


def test_a_loop_of_unknown_length_within_one_of_known_runs_as_often_in_all():
    w = jnp.ones((32, 32))

    def refill(x, _):
        x = jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ w, x)
        return x @ w, None

    text = jax.jit(lambda x: jax.lax.scan(refill, x, length=5)[0]).lower(jnp.ones((16, 32))).compile().as_text()
    assert costs(text, {"data": 1}, trips=40).flops == (40 + 5) * 2 * 16 * 32 * 32
