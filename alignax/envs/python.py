"""A Python interpreter in the sandbox of the verifiers."""

from typing import Any

from alignax.rewards.sandbox.run import Limits, run

ENDED = {"time": "the code ran too long", "output": "the code wrote too much", "files": "the code wrote too many files"}


class Python:
    """A policy runs code and reads what it prints; its answer is for a reward over text to judge.

    Nothing of one run is left for the next. See `rewards.sandbox.run` for what the code cannot do.

    Args:
      seconds: of one run.
      memory_mb: of one run, address space.
    """

    def __init__(self, *, seconds: float = 5.0, memory_mb: int = 512):
        self.limits = Limits(timeout_s=seconds, memory_mb=memory_mb)

    def reset(self, **row: Any) -> None:
        """Nothing is kept from one run to the next."""

    def python(self, code: str) -> str:
        """
        Runs Python code, and gives what it prints.

        Args:
            code: a program; print what you want to see
        """
        ran = run(code, limits=self.limits)
        if ran.reason:
            raise RuntimeError(ENDED[ran.reason])
        lines = ran.error.strip().splitlines()
        if not ran.passed:
            raise RuntimeError(lines[-1] if lines else "the code did not come to its end")
        return ran.output or "(nothing was printed)"
