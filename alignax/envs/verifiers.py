"""An environment of the package `verifiers`, unchanged: its own rollout runs, and the policy is its client.

    c.env, c.env_args = "alignax.envs.verifiers:environment", dict(load="my-env")
    c.source, c.data = "alignax.envs.verifiers:rows", dict(load="my-env")

Its `rollout` calls `setup_state`, `env_response` and `is_completed`, and its rubric scores the state at the end.
Releases 0.2 have these; since 0.3 an environment is a program that talks to a server.
"""

import asyncio
import functools
import importlib
import json
import queue
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from alignax.config import resolve
from alignax.data.counts import Counts
from alignax.envs import calls
from alignax.envs.protocol import Stepped

COLUMNS = ("prompt", "answer", "info", "task", "example_id")  # of a row, that a rollout takes
NEEDED = "alignax.envs.verifiers needs verifiers 0.2: pip install 'alignax[verifiers]', or pip install 'verifiers<0.3'"


def environment(*, load: str, args: Mapping[str, Any] | None = None) -> "Verifiers":
    """One episode of an environment that is loaded once.

    Args:
      load: the id of an installed environment, as `verifiers.load_environment` takes it, or module:function.
      args: its arguments.
    """
    return Verifiers(loaded(load, json.dumps(dict(args or {}), sort_keys=True)))


def rows(
    *, split: str, load: str, args: Mapping[str, Any] | None = None, count: int = 0
) -> tuple[list[dict[str, Any]], Counts]:
    """The rows of an environment's data set, or `count` of them; of its evaluation set where `split` is no "train"."""
    own = loaded(load, json.dumps(dict(args or {}), sort_keys=True))
    data = own.get_dataset(count or -1) if split == "train" else own.get_eval_dataset(count or -1)
    found = [{name: value for name, value in row.items() if value is not None} for row in data]
    return found, Counts(len(found))


def package() -> ModuleType:
    """The package. Raises ImportError, with the command that installs it, where it is missing or another release."""
    try:
        found = importlib.import_module("verifiers")
    except ImportError as error:
        raise ImportError(f"verifiers is not installed: {NEEDED}") from error
    if not hasattr(found, "MultiTurnEnv"):
        raise ImportError(f"verifiers {getattr(found, '__version__', '')} has no MultiTurnEnv: {NEEDED}")
    return found


@functools.cache
def loaded(load: str, args: str) -> Any:
    """The environment of a name, one for all episodes."""
    vf, options = package(), json.loads(args)
    found = resolve(load, "", key="env_args.load")(**options) if ":" in load else vf.load_environment(load, **options)
    if not isinstance(found, vf.MultiTurnEnv):
        raise TypeError(f"env_args.load = {load!r} gave a {type(found).__name__}: expected a verifiers.MultiTurnEnv")
    return found


class Loop:
    """The event loop of all episodes, in a thread of its own, which the first of them starts."""

    lock, made = threading.Lock(), None

    @classmethod
    def get(cls) -> asyncio.AbstractEventLoop:
        """The loop. Episodes begin in several threads: one alone may make it, as a future of another is never heard."""
        with cls.lock:
            if cls.made is None:
                cls.made = asyncio.new_event_loop()
                threading.Thread(target=cls.made.run_forever, daemon=True, name="verifiers").start()
            return cls.made


class Verifiers:
    """One episode. The rollout waits in its event loop while the policy speaks.

    Args:
      own: the environment, which is shared with other episodes: it keeps its state elsewhere.
    """

    def __init__(self, own: Any):
        self.own, self.format = own, "hermes"
        self.tools = [tool_of(one) for one in own.tool_defs or ()]
        self.counts = {"tools/calls": 0.0, "tools/failures": 0.0} if self.tools else {}
        self.heard: queue.Queue = queue.Queue()  # ("ask", messages, future), ("end", state) or ("error", exception)
        self.asked: asyncio.Future | None = None  # what the rollout waits for; None: it is over
        self.known = 0  # messages of the dialogue that the policy has seen or said
        self.state: Any = None

    def reset(self, row: dict) -> str | None:
        given = {name: row[name] for name in COLUMNS if name in row} | {"prompt": row["prompt"]}
        given.setdefault("example_id", 0)
        asyncio.run_coroutine_threadsafe(self.rollout(given), Loop.get())
        messages = self.listen()
        prompt = row["prompt"]
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages is None or [said(one) for one in messages] != [said(one) for one in before]:
            raise ValueError(
                f"{type(self.own).__name__} begins with other messages than its row has: expected the row's prompt; "
                "load the rows by alignax.envs.verifiers:rows"
            )
        return None

    def step(self, text: str) -> Stepped:
        found = calls.parse(text, self.format) if self.tools else []
        self.counts |= {name: self.counts[name] + len(found) for name in ("tools/calls",) if found}
        if wrong := [call.error for call in found if call.error]:
            self.counts["tools/failures"] += len(wrong)
            return [{"role": "tool", "name": "unknown", "content": f"Error: {'; '.join(wrong)}"}], 0.0, False
        self.answer(text, found)
        messages = self.listen()
        if messages is None:
            return None, 0.0, True
        return messages, 0.0, False

    def finish(self) -> float:
        """The reward of the rubric; of an episode that was cut off too."""
        if self.asked is not None:
            too_long = package().OverlongPromptError("the policy has no more room")
            Loop.get().call_soon_threadsafe(self.asked.set_exception, too_long)
            self.asked = None
            self.listen()
        metrics = self.state.get("metrics") or {}
        self.counts |= {f"env/{name}": float(value) for name, value in metrics.items() if value is not None}
        return float(self.state["reward"])

    def answer(self, text: str, found: list[calls.Call]) -> None:
        """Gives the rollout what the policy said."""
        types = importlib.import_module("verifiers.types")
        made = [
            types.ToolCall(id=f"call{i:05d}", name=call.name, arguments=json.dumps(call.arguments))
            for i, call in enumerate(found)
        ]
        reason = "tool_calls" if made else "stop"
        told = {"finish_reason": reason, "is_truncated": False, "tool_calls": made or None}
        message = types.ResponseMessage(content=text, **told)
        response = types.Response(id="alignax", created=0, model="policy", message=message)
        assert self.asked is not None
        Loop.get().call_soon_threadsafe(self.asked.set_result, response)

    def listen(self) -> list[dict] | None:
        """The messages that are new to the policy, once the rollout asks again; None: it is over."""
        kind, *what = self.heard.get()
        if kind == "error":
            raise what[0]
        if kind == "end":
            self.state, self.asked = what[0], None
            return None
        messages, self.asked = what
        new = [plain(one) for one in messages[self.known :]]
        self.known = len(messages) + 1  # with what the policy says now
        return new

    async def rollout(self, given: dict) -> None:
        """The environment's own rollout, and the rubric's score of it."""
        try:
            state = await self.own.rollout(given, client(self.heard), "policy", {})
            if state.get("error") is not None:
                raise state["error"]
            await self.own.rubric.score_rollout(state)
            await self.own.rubric.cleanup(state)
            self.heard.put(("end", state))
        except BaseException as error:
            self.heard.put(("error", error))


def client(heard: queue.Queue) -> Any:
    """A client of `verifiers` that hands each prompt over and waits for what the policy says."""
    kind = importlib.import_module("verifiers.clients").Client

    async def get_response(self: Any, prompt: Any, **options: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        heard.put(("ask", prompt, future))
        return await future

    nothing = lambda self, *given, **options: None  # noqa: E731
    methods = dict.fromkeys(kind.__abstractmethods__, nothing) | {"__init__": nothing, "get_response": get_response}
    return type("Policy", (kind,), methods)()


def plain(message: Any) -> dict:
    """A message as a dict of role and text."""
    found = message if isinstance(message, dict) else message.model_dump(exclude_none=True)
    return {"role": found["role"], "content": content_of(found)} | (
        {"name": found.get("name", "tool")} if found["role"] == "tool" else {}
    )


def said(message: Any) -> tuple[str, str]:
    """Who says what."""
    found = plain(message)
    return found["role"], found["content"]


def content_of(message: dict) -> str:
    """The text of a message. Raises TypeError for what is no text."""
    content = message.get("content") or ""
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            raise TypeError(f"a message of {message['role']!r} is not of text alone: policies here read text")
        content = "".join(part["text"] for part in content)
    return content


def tool_of(defined: Any) -> dict:
    """The JSON schema of a tool, as chat templates take it."""
    found = defined if isinstance(defined, dict) else defined.model_dump()
    function = {name: found[name] for name in ("name", "description", "parameters")}
    return {"type": "function", "function": function}
