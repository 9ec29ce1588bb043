"""What an environment is: `reset(row)`, then `step(text)` for each turn of the policy. One object for each episode."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from alignax.data.messages import Message

Observation = str | list[Message] | None  # a turn of the user; or messages, of tools say
Stepped = tuple[Observation, float, bool]  # (what the policy sees next, the reward of this turn, whether that was all)


@runtime_checkable
class Env(Protocol):
    """One episode.

    It may have more than this:

      tools: JSON schemas of functions that the prompt shows.
      counts: dict of numbers by the name of their metric, as "tools/calls"; their means over replies are in the log.
      finish(): asked once when the episode is over, however that came: a reward beside those of the turns.
      steps(envs, texts): a static method; the list of what `step` would give of each, for all live episodes of a batch
        at once. An environment that asks another policy asks it for many rows in one call. If it is late, all of the
        batch are.
    """

    def reset(self, row: dict) -> str | None:
        """Begins with a row of the data. Text for the end of the prompt's last user turn, or None.

        All episodes of one row have to give the same text: their replies are compared.
        """
        ...

    def step(self, text: str) -> Stepped:
        """What comes of a turn of the policy, its text without the end. What is seen after the last turn, nobody sees.

        An exception is an error of the environment, and ends the run; what the policy did wrong is an observation.
        """
        ...


def is_env(made: Any) -> bool:
    """Whether an object is an environment, and no class of tools, one of which may be called `step`.

    The two differ in `reset`: an environment's takes the row, a tool class's the columns of it by name.
    """
    if not isinstance(made, Env):
        return False
    first = next(iter(inspect.signature(made.reset).parameters.values()), None)
    return first is not None and first.name == "row" and first.kind is not first.VAR_KEYWORD


Make = Callable[[], Env]  # an environment for one episode
Partner = Callable[[Sequence[str]], list[str]]  # a second policy: (questions) -> its answers, in their order
