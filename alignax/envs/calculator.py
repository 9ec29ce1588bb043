"""A calculator: sums, and no more than sums."""

import ast
import operator
from collections.abc import Callable
from typing import Any

OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
LONGEST = 200  # letters of an expression
LARGEST = 1e300


class Calculator:
    """A policy asks it for values; its answer is for a reward over text to judge, `rewards.answers:exact_answer`."""

    def reset(self, **row: Any) -> None:
        """Nothing is kept from one call to the next."""

    def calculate(self, expression: str) -> str:
        """
        The value of an expression.

        Args:
            expression: numbers with + - * / // % and brackets
        """
        return shown(value(expression))


def value(expression: str) -> float | int:
    """The value of an expression. Raises ValueError for what is none."""
    if len(expression) > LONGEST:
        raise ValueError(f"an expression of {len(expression)} letters: expected at most {LONGEST}")
    try:
        found = of(ast.parse(expression.strip().replace(",", ""), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is no expression: expected numbers with + - * / and brackets") from None
    except ZeroDivisionError:
        raise ValueError(f"{expression!r} divides by 0") from None
    except OverflowError:
        raise ValueError(f"the value of {expression!r} is too large") from None
    if abs(found) > LARGEST:
        raise ValueError(f"the value of {expression!r} is too large")
    return found


def of(node: ast.AST) -> float | int:
    """The value of a part of an expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](of(node.left), of(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](of(node.operand))
    raise ValueError(f"{ast.unparse(node)!r} is no sum: expected numbers with + - * / and brackets")


def shown(number: float | int) -> str:
    """A number as people write it: a whole one without a point, others with up to 10 digits."""
    if isinstance(number, int) or number.is_integer():
        return str(int(number))
    return f"{number:.10g}"
