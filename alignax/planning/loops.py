"""How often a loop runs, where its text says so."""

from collections.abc import Callable, Mapping

from alignax.planning.text import Computation, Instruction, Program, attribute, called

Known = Mapping[int, int | None]  # values of the elements of a computation's tuple, or of its parameters

_SAME = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "opt-barrier")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


def trip_count(loop: Instruction, scope: Computation, program: Program) -> int | None:
    """How often the body of a `while` runs: the compiler's known_trip_count, or what follows from start, step and end.

    That is where the condition compares two integers that are constants or change by constants. None elsewhere.
    """
    if known := attribute(loop, r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    (test,), (body,) = called(loop, "condition"), called(loop, "body")
    first = _elements(scope.instructions[loop.operands[0]], scope, program, {})
    second = _elements(program.computations[body].root, program.computations[body], program, first)
    third = _elements(program.computations[body].root, program.computations[body], program, second)
    gaps = [_gap(program.computations[test], program, state) for state in (first, second, third)]
    if any(gap is None for gap in gaps):
        return None
    (gap, way), (after, _), (last, _) = gaps  # pyright: ignore[reportGeneralTypeIssues]
    step = gap - after
    return None if after - last != step else _times(gap, step, way)


def _times(gap: int, step: int, way: str) -> int | None:
    """How often a gap of end - start holds the comparison when each time it shrinks by `step`."""
    if way in ("GT", "GE"):
        return _times(-gap, -step, {"GT": "LT", "GE": "LE"}[way])
    if way == "LE":
        return _times(gap + 1, step, "LT")
    if way == "NE":
        return gap // step if step and gap % step == 0 and gap // step >= 0 else None
    if way != "LT":
        return None
    if gap <= 0:
        return 0
    return -(-gap // step) if step > 0 else None


def _gap(test: Computation, program: Program, known: Known) -> tuple[int, str] | None:
    """Right less left side of a condition that is a comparison, and its direction."""
    root = test.root
    if root.opcode == "fusion":
        known = {place: _number(name, test, program, known) for place, name in enumerate(root.operands)}
        test = program.computations[called(root, "calls")[0]]
        root = test.root
    if root.opcode != "compare":
        return None
    left, right = (_number(name, test, program, known) for name in root.operands)
    return None if left is None or right is None else (right - left, attribute(root, r"direction=(\w+)"))


def _elements(op: Instruction, scope: Computation, program: Program, known: Known) -> Known:
    """The integers among the elements of a tuple."""
    if op.opcode in _SAME:
        return _elements(scope.instructions[op.operands[0]], scope, program, known)
    if op.opcode != "tuple":
        return {}
    scalar = lambda name: scope.instructions[name].shapes[:1] and scope.instructions[name].shapes[0].dims == ()  # noqa: E731
    return {i: _number(name, scope, program, known) for i, name in enumerate(op.operands) if scalar(name)}


def _number(name: str, scope: Computation, program: Program, known: Known) -> int | None:
    """The value of an integer, where it follows from constants and what is known of the computation's arguments."""
    op = scope.instructions[name]
    inner = lambda place: _number(op.operands[place], scope, program, known)  # noqa: E731
    if op.opcode == "constant":
        return int(op.literal) if op.literal.lstrip("-").isdigit() else None
    if op.opcode == "parameter":
        return known.get(int(op.literal))
    if op.opcode in _SAME:
        return inner(0)
    if op.opcode in _ARITHMETIC:
        left, right = inner(0), inner(1)
        return None if left is None or right is None else _ARITHMETIC[op.opcode](left, right)
    if op.opcode == "fusion":
        return _of_fusion(op, scope, program, known, 0)
    if op.opcode == "get-tuple-element":
        place, whole = int(attribute(op, r"index=(\d+)")), scope.instructions[op.operands[0]]
        if whole.opcode == "parameter":
            return known.get(place)
        if whole.opcode == "tuple":
            return _number(whole.operands[place], scope, program, known)
        return _of_fusion(whole, scope, program, known, place) if whole.opcode == "fusion" else None
    return None


def _of_fusion(op: Instruction, scope: Computation, program: Program, known: Known, place: int) -> int | None:
    inside = program.computations[called(op, "calls")[0]]
    given = {i: _number(name, scope, program, known) for i, name in enumerate(op.operands)}
    result = inside.root.operands[place] if inside.root.opcode == "tuple" else inside.root.name
    return _number(result, inside, program, given)
