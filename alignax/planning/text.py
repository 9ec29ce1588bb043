"""The text of an HLO module as records: computations of instructions, with the shapes that a device holds."""

import functools
import math
import re
from typing import NamedTuple

# Of a layout only the memory space is kept: bf16[80,8192]{1,0:T(8,128)(2,1)S(1)}
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{[^}S]*(?:S\((\d+)\))?[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?\S+ = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_OPCODE = re.compile(r"\s*([\w-]+)\(")


class Shape(NamedTuple):
    """One array of a device."""

    dtype: str
    dims: tuple[int, ...]
    space: int  # of memory: 0 is a device's main memory; on a TPU 1 is on the chip (VMEM), 5 is the host's

    @property
    def size(self) -> float:
        """Bytes; without the padding of a tiled layout."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) / 8 if bits else float(self.dtype == "pred")  # token and opaque hold nothing
        return math.prod(self.dims) * width


class Instruction(NamedTuple):
    """One line. What is a tuple has a shape for each of its arrays, in order."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]  # names of instructions of the same computation
    literal: str  # between the brackets after the opcode: of a constant its value, of a parameter its number
    attributes: str  # what comes after them

    @property
    def size(self) -> float:
        """Bytes of the result, wherever it is."""
        return sum((shape.size for shape in self.shapes), 0.0)


class Computation(NamedTuple):
    instructions: dict[str, Instruction]
    root: Instruction
    parameters: dict[int, Instruction]
    users: dict[str, list[tuple[Instruction, int]]]  # of an instruction: who has it as which operand


class Program(NamedTuple):
    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The computations of a module, `compiled.as_text()`.

    Raises ValueError for a text without an entry, and for a line that is no instruction.
    """
    lines: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            lines[name], entry = [], name if head[1] else entry
        elif _END.match(line):
            name = ""
        elif name and _INSTRUCTION.match(line):
            lines[name].append(line)
        elif name and lines[name]:  # what a kernel says of itself goes over several lines
            lines[name][-1] += f" {line}"
    if not entry:
        raise ValueError("no ENTRY computation: expected the text of an optimised HLO module, compiled.as_text()")
    return Program({name: _computation(found) for name, found in lines.items()}, entry)


def attribute(op: Instruction, pattern: str, default: str = "") -> str:
    """The first group of a regular expression in the attributes, or the default."""
    found = re.search(pattern, op.attributes)
    return found[1] if found else default


def target(op: Instruction) -> str:
    """What a custom call calls; "" for any other instruction."""
    return attribute(op, r'custom_call_target="([^"]*)"') if op.opcode == "custom-call" else ""


def called(op: Instruction, *keys: str) -> list[str]:
    """Names of the computations behind `calls=%name` or `branch_computations={%one, %other}`, in order."""
    found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%[^\s,]+)", op.attributes)
    return [name for text in found for name in re.findall(r"%([^\s,}]+)", text)]


def integers(text: str) -> list[int]:
    """All numbers of a text."""
    return [int(number) for number in re.findall(r"-?\d+", text)]


def synchronous(op: Instruction, scope: Computation) -> Instruction:
    """`X-start` as the X that it begins, with the result of X alone; others as they are.

    What an X-start gives holds ((operands), results, contexts), where contexts are single integers; but a copy's begins
    with the result, and that of an all-reduce is the result.
    """
    if not op.opcode.endswith("-start"):
        return op
    base = op.opcode.removesuffix("-start")
    before = sum(len(scope.instructions[name].shapes) for name in op.operands)
    result = tuple(shape for shape in op.shapes[before:] if shape.dims or shape.dtype not in ("s32", "u32"))
    shapes = {"copy": op.shapes[:1], "all-reduce": op.shapes}.get(base, result)
    return op._replace(opcode=base, shapes=shapes)


def _computation(lines: list[str]) -> Computation:
    found = [_instruction(line) for line in lines]
    root = next((op for op, line in zip(found, lines) if line.lstrip().startswith("ROOT ")), found[-1])
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for op in found:
        for place, operand in enumerate(op.operands):
            users.setdefault(operand, []).append((op, place))
    parameters = {int(op.literal): op for op in found if op.opcode == "parameter"}
    return Computation({op.name: op for op in found}, root, parameters, users)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, cut)
    if opcode is None:
        raise ValueError(f"no opcode in {line.strip()[:80]!r}: expected 'name = shape opcode(operands), attributes'")
    end = _closing(rest, opcode.end() - 1)
    literal = rest[opcode.end() : end]
    operands = () if opcode[1] in ("constant", "parameter") else tuple(re.findall(r"%([^\s,()]+)", literal))
    return Instruction(name.removeprefix("%"), opcode[1], _shapes(rest[:cut]), operands, literal, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a bracket does not close in {text[:80]!r}")


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(Shape(dtype, tuple(integers(dims)), int(space or 0)) for dtype, dims, space in _SHAPE.findall(text))
