"""Verifier of code: what passes a row's tests, run in a sandbox. A reward over text (`rewards.text`)."""

from collections.abc import Sequence

from alignax.ops.checks import require
from alignax.rewards.forms import block
from alignax.rewards.sandbox.run import Limits, run


def unit_tests(
    row: dict, completion: str, *, finished: bool, field: str = "tests", share: bool = True, timeout_s: float = 5.0,
    memory_mb: int = 512, files_mb: int = 16,
) -> dict[str, float]:  # fmt: skip
    """The share of a row's tests that the reply's code passes; each runs with the code in a process of its own.

    The code is the last ```python block of the reply, or all of it. A test is Python that runs to its end in the names
    of the code: `assert f(3) == 9`. Where tests are pairs {"input", "output"}, the code is a program that reads and
    prints. It has no network, no other files and no other processes (`sandbox.run`).

    Args:
      field: of the row: a test, or a list of tests.
      share: False gives 1 only where all pass.
      timeout_s, memory_mb, files_mb: of each test.

    Returns:
      {"total", "passed"}: the reward, and how many passed.

    Raises:
      ValueError: a row without tests.
      SandboxError: this machine has no sandbox.
    """
    del finished
    require(bool(row.get(field)), f"field = {field!r}: this row has no tests there; expected a text or a list of them")
    tests = [row[field]] if isinstance(row[field], str | dict) else row[field]
    code, limits = block(completion, "python"), Limits(timeout_s, memory_mb, files_mb)
    passed = sum(passes(code, test, limits) for test in tests)
    total = passed / len(tests) if share else float(passed == len(tests))
    return {"total": total, "passed": float(passed)}


def passes(code: str, test: str | dict, limits: Limits) -> bool:
    """Whether code passes one test."""
    if isinstance(test, str):
        return run(code, test, limits=limits).passed
    ran = run(code, stdin=str(test["input"]), limits=limits)
    return ran.passed and _lines(ran.output) == _lines(str(test["output"]))


def _lines(text: str) -> Sequence[str]:
    """Lines without what does not show: spaces at their ends, empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
