"""What a compiled program costs, counted as often as it runs, from the text of its optimised HLO module.

`compiled.cost_analysis()` counts the body of a loop once, and a model is a loop over its layers.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignax.planning.groups import SENT, axes_of
from alignax.planning.loops import trip_count
from alignax.planning.text import (
    Computation,
    Instruction,
    Program,
    attribute,
    called,
    integers,
    parse,
    synchronous,
    target,
)
from alignax.planning.traffic import in_flight, traffic

# Custom calls of a TPU that name memory or mark what is around them.
BOOKKEEPING = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective", "AssumeGather", "GatherScatterIndices", "Sharding")

# Of a splash kernel: forward S = QK and PV; for dQ S, dP and dSK; for dK and dV S, dP, PdO and dSQ.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}

Part = tuple[Instruction, Computation, str]  # an instruction, the computation that it is in, and its name


class Costs(NamedTuple):
    """What one run takes on each device."""

    flops: float  # of matrix products: dots, convolutions, and those within the attention kernel of a TPU
    bytes: float  # that instructions read from and write to a device's main memory
    collectives: dict[tuple[str, ...], float]  # bytes that a device sends, by the mesh axes that they go over
    kinds: dict[str, int]  # how often each collective runs
    custom_calls: dict[str, int]  # how often each kernel runs that is no HLO; of splash alone the FLOPs are counted
    unknown_trips: int  # loops whose trip count is not in the text


NOTHING = Costs(0.0, 0.0, {}, {}, {}, 0)


def costs(text: str, mesh_shape: Mapping[str, int], *, trips: int = 1) -> Costs:
    """The costs of a compiled program, `compiled.as_text()`, on each device of a mesh {axis: size}.

    Loops are counted as often as they run. Where the text does not say, of several such loops the dearest runs `trips`
    times in all, wherever it stands, and the others never: those of a sampler go on in turn, with fewer and fewer rows.
    Of a conditional the branch with the most FLOPs counts, or bytes where these are equal.

    - FLOPs: of a product of [M, K] with [K, N] 2 M K N. Elementwise work is left out.
    - Bytes: operands and results of each instruction, those of a fusion and not what is within; of a slice of an array,
      or an update in place, the slice. What lies on the chip is not memory traffic.
    - Collectives: a device of a ring of n sends of its operands' bytes m for all-gather (n - 1) m, reduce-scatter and
      all-to-all (n - 1) / n m, all-reduce 2 (n - 1) / n m, collective-permute m.

    Raises ValueError for a text that is no module, and for devices that the mesh has not.
    """
    program = parse(text)
    done: dict[str, tuple[Costs, Costs]] = {}

    def run(name: str) -> tuple[Costs, Costs]:
        """(what is known, one turn of the dearest loop whose length is not)."""
        if name not in done:
            scope = program.computations[name]
            done[name] = _side_by_side(step(op, scope) for op in scope.instructions.values())
        return done[name]

    def step(op: Instruction, scope: Computation) -> tuple[Costs, Costs]:
        if op.opcode == "while":
            count = trip_count(op, scope, program)
            known, endless = _side_by_side(map(run, called(op, "body", "condition")))
            if count is None:
                return NOTHING, _dearest([known, endless])._replace(unknown_trips=endless.unknown_trips + 1)
            return _times(known, count), endless
        op = synchronous(op, scope)
        if op.opcode == "conditional":
            branches = called(op, "branch_computations", "true_computation", "false_computation")
            return max(map(run, branches), key=lambda both: _dear(_sum(both)))
        if op.opcode in ("call", "async"):
            return _side_by_side(map(run, called(op, "to_apply", "calls")))
        return _once(op, scope, program, mesh_shape), NOTHING

    known, endless = run(program.entry)
    return _sum([known, _times(endless, trips)])


def _side_by_side(parts: Iterable[tuple[Costs, Costs]]) -> tuple[Costs, Costs]:
    known, endless = zip(*parts, (NOTHING, NOTHING))
    return _sum(known), _dearest(endless)


def _dearest(loops: Sequence[Costs]) -> Costs:
    return max(loops, key=_dear)._replace(unknown_trips=sum(one.unknown_trips for one in loops))


def _once(op: Instruction, scope: Computation, program: Program, mesh_shape: Mapping[str, int]) -> Costs:
    """Of one instruction that calls nothing but fused computations."""
    parts = [Costs(0.0, traffic(op, scope, program), {}, {}, {}, 0)]
    for inner, inside, name in _within(op, scope, "", program):
        parts.append(Costs(_flops(inner, inside), 0.0, {}, {}, _kernel(inner), 0))
        if inner.opcode in SENT and not in_flight(inner, inside):
            parts.append(_collective(inner, inside, name, mesh_shape))
    return _sum(parts)


def _within(op: Instruction, scope: Computation, name: str, program: Program) -> Iterator[Part]:
    """The instruction, or all within a fusion, with the computations that they are in."""
    if op.opcode != "fusion":
        yield op, scope, name
        return
    inside = program.computations[name := called(op, "calls")[0]]
    for inner in inside.instructions.values():
        yield from _within(inner, inside, name, program)


def _collective(op: Instruction, scope: Computation, name: str, mesh_shape: Mapping[str, int]) -> Costs:
    axes, n = axes_of(op, mesh_shape)
    # a ragged one has its sizes and the room for its result beside what it sends
    given = op.operands[:1] if op.opcode == "ragged-all-to-all" else op.operands
    # what a TPU fuses under this name is a sum of which each device keeps a slice
    kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else op.opcode
    sent = SENT[kind](n) * sum(scope.instructions[operand].size for operand in given)
    return Costs(0.0, 0.0, {axes: sent} if axes else {}, {kind: 1}, {}, 0)


def _kernel(op: Instruction) -> dict[str, int]:
    """A custom call, by its target; a Pallas kernel of a TPU by its own name, which its instruction has."""
    what = target(op)
    if not what or what.startswith(BOOKKEEPING):
        return {}
    return {re.sub(r"\.\d+$", "", op.name) if what == "tpu_custom_call" else what: 1}


def _dear(one: Costs) -> tuple[float, float, float]:
    return one.flops, one.bytes, sum(one.collectives.values(), 0.0)


def _sum(parts: Iterable[Costs]) -> Costs:
    flops, sizes, sent, kinds, kernels, unknown = zip(*parts, NOTHING)
    return Costs(sum(flops), sum(sizes), _merged(sent), _merged(kinds), _merged(kernels), sum(unknown))


def _merged(counts: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    total = {}
    for one in counts:
        for key, value in one.items():
            total[key] = total.get(key, 0) + value
    return total


def _times(once: Costs, n: int) -> Costs:
    often = lambda counts: {key: n * value for key, value in counts.items()}  # noqa: E731
    sent, kinds, kernels = map(often, (once.collectives, once.kinds, once.custom_calls))
    return Costs(n * once.flops, n * once.bytes, sent, kinds, kernels, once.unknown_trips)


# ---- matrix products


def _flops(op: Instruction, scope: Computation) -> float:
    if op.opcode == "dot":
        left = scope.instructions[op.operands[0]].shapes[0].dims
        contracted = integers(attribute(op, r"lhs_contracting_dims=\{([\d,]*)\}"))
        return 2.0 * math.prod(op.shapes[0].dims) * math.prod(left[i] for i in contracted)
    if op.opcode == "convolution":
        left, kernel = (scope.instructions[name].shapes[0].dims for name in op.operands)
        return _convolution_flops(op, left, kernel)
    return _splash_flops(op, scope) if op.opcode == "custom-call" else 0.0


def _splash_flops(op: Instruction, scope: Computation) -> float:
    """n B N T S H of splash attention: n products of queries [B N T H] with keys [B K S H], 2 FLOPs for each pair of
    which the causal mask leaves half. A window would leave fewer. 0 for any other kernel."""
    found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", op.name)
    given = [scope.instructions[name].shapes[0] for name in op.operands if name in scope.instructions]
    heads = [shape.dims for shape in given if shape.dtype in ("bf16", "f16", "f32") and len(shape.dims) >= 3]
    if not found or len(heads) < 2:
        return 0.0
    queries, keys = heads[:2]
    return float(PRODUCTS[found[1]] * math.prod(queries) * keys[-2])


def _convolution_flops(op: Instruction, left: tuple[int, ...], kernel: tuple[int, ...]) -> float:
    """2 B F C prod_d P_d: B rows and F features of the result, C features of its group that it reads, and P_d pairs of
    a place of the result and one of the kernel, along d, that meet an element.

    A TPU writes a product over a batch as a convolution, with a hole for each pair of two different rows.
    """
    lefts, kernels, results = re.split("_|->", attribute(op, r"dim_labels=([\w>-]+)"))
    size = lambda labels, dims, label: dims[labels.index(label)]  # noqa: E731
    window = attribute(op, r"window=\{([^}]*)\}")
    total = 2.0 * math.prod(size(results, op.shapes[0].dims, label) for label in "bf") * size(kernels, kernel, "i")
    for d in filter(str.isdigit, kernels):
        sizes = (size(results, op.shapes[0].dims, d), size(kernels, kernel, d), size(lefts, left, d))
        total *= _pairs(*sizes, _window(window, int(d)))
    return total


def _window(text: str, d: int) -> dict[str, str]:
    """{'size': '2', 'stride': '1', 'pad': '0_0'} of 'size=4x2 stride=3x1 pad=1_1x0_0' along its last dimension."""
    return {key: values.split("x")[d] for key, values in re.findall(r"(\w+)=(\S+)", text)}


def _pairs(result: int, kernel: int, left: int, window: Mapping[str, str]) -> int:
    stride, hole, spread = (int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    place = np.arange(result)[:, None] * stride + np.arange(kernel) * spread - before
    return int(((place >= 0) & (place <= (left - 1) * hole) & (place % hole == 0)).sum())
