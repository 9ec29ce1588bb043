"""Classes in the form of TRL's `environment_factory`: nothing of alignax is known here."""

import time


class Counter:
    """A counter, as TRL's documentation has environments: `reset`, tools, `get_reward`."""

    def __init__(self):
        self.count = 0

    def reset(self, **kwargs) -> str | None:
        self.target = int(kwargs["answer"])
        self.count = 0
        return f" target {self.target}" if kwargs.get("told") else None

    def add(self, by: int) -> str:
        """
        Adds to the counter.

        Args:
            by: how much

        Returns:
            The count.
        """
        self.count += by
        return f"count {self.count}"

    async def wait(self, seconds: float = 0.0) -> str:
        """
        Waits.

        Args:
            seconds: how long
        """
        return "waited"

    def fail(self) -> str:
        """
        Raises.
        """
        raise RuntimeError("the counter is broken")

    def flood(self) -> str:
        """
        Answers 10 MB.
        """
        return "9" * 10_000_000

    def hang(self) -> str:
        """
        Comes back late.
        """
        time.sleep(3)
        return "late"

    def step(self, name: str) -> str:
        """
        A tool with the name of an environment's method.

        Args:
            name: of nothing
        """
        return name

    def _private(self):
        return "no tool"

    def get_reward(self) -> float:
        return 1.0 if self.count == self.target else 0.0


class Untyped:
    """A tool without type hints."""

    def reset(self, **kwargs):
        return None

    def act(self, x):
        """Acts."""
        return x


class Toolless:
    """No tool."""

    def reset(self, **kwargs):
        return None


class Hints(Counter):
    """Begins otherwise each time."""

    made = 0

    def reset(self, **kwargs):
        super().reset(**kwargs)
        Hints.made += 1
        return f" {Hints.made}"
