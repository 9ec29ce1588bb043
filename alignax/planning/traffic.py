"""Bytes between a device and its main memory: what an instruction reads of its operands and writes of its result."""

from alignax.planning.text import Computation, Instruction, Program, called, target

# These compute nothing, move nothing, or are what another instruction is counted for.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency",
    "domain", "partition-id", "replica-id",
)  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")  # they read of their first operand what they give
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place, and the operand that is put there
IN_PLACE = ("AllocateBuffer", "ConcatBitcast")  # custom calls of a TPU that name memory


def traffic(op: Instruction, scope: Computation, program: Program) -> float:
    """Bytes that one instruction of a computation that is not fused reads from main memory and writes to it."""
    if op.opcode in FREE or op.opcode.endswith(("-done", "-update")) or target(op) in IN_PLACE:
        return 0.0
    if op.opcode == "fusion":
        inside = program.computations[called(op, "calls")[0]]
        ends = {target(inner) for inner in inside.instructions.values() if inner.opcode == "custom-call"}
        if "AsyncCollectiveStart" in ends:  # its result names the operands too
            return sum((shape.size for shape in op.shapes if shape.space == 0), 0.0)
        if "AsyncCollectiveDone" in ends:
            return 0.0
    reads = [_read(op, place, scope, program) for place in range(len(op.operands))]
    return sum(reads) + _writes(op, scope, program)


def in_flight(op: Instruction, scope: Computation) -> bool:
    """Whether a collective is one that another fusion has begun: a TPU repeats it in all that run meanwhile."""
    if "async_collective_fusion_config" not in op.attributes:
        return False
    return not any(target(user) == "AsyncCollectiveStart" for user, _ in scope.users.get(op.name, []))


def _read(op: Instruction, place: int, scope: Computation, program: Program) -> float:
    """Bytes that an instruction reads of one operand."""
    operand = scope.instructions[op.operands[place]]
    whole = sum((shape.size for shape in operand.shapes if shape.space == 0), 0.0)
    part = _part(op, place, scope, program) if whole else 0.0
    return whole if part is None else min(whole, part)


def _part(op: Instruction, place: int, scope: Computation, program: Program) -> float | None:
    """Bytes of a slice, where an instruction reads no more of an operand; None for all of it."""
    if op.opcode in SLICES and place == 0:
        return op.size
    if op.opcode in UPDATES and place == 0:
        return 0.0
    if op.opcode == "tuple" or in_flight(op, scope):
        return 0.0
    if op.opcode == "bitcast":
        return _parts(op, scope, program)
    if op.opcode == "fusion":
        inside = program.computations[called(op, "calls")[0]]
        return _parts(inside.parameters[place], inside, program)
    return None


def _parts(op: Instruction, scope: Computation, program: Program) -> float | None:
    """Bytes that all users within a fusion read of what comes in as `op`."""
    if op.name == scope.root.name:
        return None
    parts = [_part(user, place, scope, program) for user, place in scope.users.get(op.name, [])]
    return None if None in parts else sum((part for part in parts if part is not None), 0.0)


def _writes(op: Instruction, scope: Computation, program: Program) -> float:
    """Bytes of the result that lie in main memory and are new."""
    if op.opcode in UPDATES:
        return _update(op, scope) if op.shapes[0].space == 0 else 0.0
    sizes = [shape.size for shape in op.shapes]
    if op.opcode == "fusion":
        inside = program.computations[called(op, "calls")[0]]
        new = _new(inside.root, inside, program)
        sizes = new if len(new) == len(sizes) else sizes
    return sum((size for size, shape in zip(sizes, op.shapes) if shape.space == 0), 0.0)


def _new(op: Instruction, scope: Computation, program: Program) -> list[float]:
    """Bytes that a fusion writes of each array that it gives: what it only passes on is not written again."""
    if op.opcode == "tuple":
        return [size for name in op.operands for size in _new(scope.instructions[name], scope, program)]
    if op.opcode == "bitcast":
        return _new(scope.instructions[op.operands[0]], scope, program)
    if (op.opcode == "parameter" and scope.root.opcode == "tuple") or in_flight(op, scope):
        return [0.0] * len(op.shapes)
    if op.opcode in UPDATES and _origin(op.operands[0], scope).opcode == "parameter":
        return [_update(op, scope)]
    if op.opcode == "fusion":
        inside = program.computations[called(op, "calls")[0]]
        return _new(inside.root, inside, program)
    return [shape.size for shape in op.shapes]


def _update(op: Instruction, scope: Computation) -> float:
    return scope.instructions[op.operands[UPDATES[op.opcode]]].size


def _origin(name: str, scope: Computation) -> Instruction:
    """What an array is behind bitcasts."""
    op = scope.instructions[name]
    return _origin(op.operands[0], scope) if op.opcode == "bitcast" else op
