"""A class whose public methods are tools, as TRL's `environment_factory` takes it, as an environment.

    class Counter:
        def reset(self, **row): ...          # the row's columns by name; None, or text for the prompt
        def add(self, by: int) -> str: ...   # a tool: type hints, and a docstring that says each argument under "Args:"
        def get_reward(self) -> float: ...   # of the episode, where the class has one

A turn without a call is the last.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from alignax.config import ConfigError
from alignax.data.messages import Message
from alignax.envs import calls
from alignax.envs.protocol import Stepped, is_env

OWN = ("reset", "get_reward")  # public methods that are no tools


class Tools:
    """An environment around an object whose public methods are tools.

    Args:
      instance: of a class in TRL's form.
      format: in which the policy writes its calls, a key of `calls.FORMATS`.

    Raises:
      ConfigError: there is no `reset`, no tool, or a tool without type hints or docstring.
    """

    def __init__(self, instance: Any, format: str = "hermes"):
        self.instance, self.format = instance, format
        self.methods = methods_of(instance)
        self.schemas = {name: schema_of(method) for name, method in self.methods.items()}
        self.tools = list(self.schemas.values())
        self.counts = {"tools/calls": 0.0, "tools/failures": 0.0}

    @property
    def pays(self) -> bool:
        """Whether the class has a reward of its own."""
        return hasattr(self.instance, "get_reward")

    def reset(self, row: dict) -> str | None:
        text = waited(self.instance.reset(**row))
        if not isinstance(text, str | None):
            raise TypeError(f"{type(self.instance).__name__}.reset gave {text!r}: expected text or None")
        return text

    def step(self, text: str) -> Stepped:
        found = calls.parse(text, self.format)
        return [self.answer(call) for call in found] or None, 0.0, not found

    def finish(self) -> float:
        return float(waited(self.instance.get_reward())) if self.pays else 0.0

    def answer(self, call: calls.Call) -> Message:
        """What a tool says to a call; an error of whatever kind is said to the policy, and counted."""
        self.counts["tools/calls"] += 1
        try:
            if call.error:
                raise ValueError(call.error)
            if call.name not in self.methods:
                raise ValueError(f"there is no tool {call.name!r}; there are {', '.join(self.methods)}")
            method = self.methods[call.name]
            content = waited(method(**calls.fitted(method, self.schemas[call.name], call.arguments)))
            said = content if isinstance(content, str) else str(content)
        except Exception as error:  # a tool may raise anything: the policy hears of it, and the run goes on
            self.counts["tools/failures"] += 1
            said = f"Error: {error}" if str(error) else f"Error: {type(error).__name__}"
        return {"role": "tool", "name": call.name or "unknown", "content": said}


def environment(made: Any, format: str) -> Any:
    """What a config's function made, as an environment: as it is, or its public methods as tools.

    One that reads calls itself, and has a `format` for it, is told the format.
    """
    if not is_env(made):
        return Tools(made, format)
    if hasattr(made, "format"):
        made.format = format
    return made


def methods_of(instance: Any) -> dict[str, Callable]:
    """The tools of an object by name: public methods of its class, `reset` and `get_reward` left out."""
    kind = type(instance)
    found = [name for name, _ in inspect.getmembers(kind, predicate=inspect.isfunction) if not name.startswith("_")]
    if "reset" not in found:
        raise ConfigError(
            f"config.env: {kind.__name__} has no `reset`: expected an environment (reset(row), step(text)), or a class "
            "with `reset(**row)` whose other public methods are tools"
        )
    tools = {name: getattr(instance, name) for name in found if name not in OWN}
    if not tools:
        raise ConfigError(f"config.env: {kind.__name__} has no public method beside `reset`: it has no tool")
    return tools


def schema_of(method: Callable) -> dict:
    """The JSON schema of a tool, from its type hints and docstring. Raises ConfigError where these are missing."""
    from transformers.utils.chat_template_utils import get_json_schema  # here, because importing it takes seconds

    try:
        return get_json_schema(method)
    except Exception as error:  # of kinds that transformers does not export
        raise ConfigError(
            f"config.env: the tool {method.__name__!r}: {error}; expected type hints, and a docstring with a line for "
            "each argument under 'Args:'"
        ) from error


def waited(value: Any) -> Any:
    """What a function gave, waited for if it is asynchronous."""

    async def wait() -> Any:
        return await value

    return asyncio.run(wait()) if inspect.isawaitable(value) else value
