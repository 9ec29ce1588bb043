"""The bodies of requests in OpenAI's form, read into requests to the slots; what does not fit is refused by name.

A field that is null is left out. One that says how the reply is to be and is not known is refused, since a reply that
ignores it would be another one; fields that say nothing of the reply are ignored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from alignax.config import suggest
from alignax.data.counts import DataError
from alignax.sampling.programs import SEEDS, TOP, Ask, TooLong, check
from alignax.stages.playground import Policy

MOST = 128  # replies to one prompt


class Bad(ValueError):
    """A request that is refused, with what OpenAI's form of an error says beside the message."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict:
        """The error as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Wanted(NamedTuple):
    """A request: its prompts, and n replies to each."""

    prompts: list[tuple[int, ...]]
    asks: list[Ask]  # by the index of the choice
    stream: bool
    usage: bool  # at the end of a stream
    logprobs: int | None  # how many alternatives are told with them; None: no log-probabilities
    token_ids: bool


def whole(x: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(x, int) and not isinstance(x, bool)


def number(x: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(x, float) or whole(x)


def flag(x: Any) -> bool:
    """Whether a value of JSON is true or false."""
    return isinstance(x, bool)


def texts(x: Any) -> bool:
    """Whether a value of JSON is a text or a list of texts."""
    return isinstance(x, str) or (isinstance(x, list) and all(isinstance(one, str) for one in x))


def biases(x: Any) -> bool:
    """Whether a value of JSON is numbers by token id."""
    return isinstance(x, dict) and all(key.removeprefix("-").isdigit() and number(value) for key, value in x.items())


Kind = tuple[Callable[[Any], bool], str]  # whether a value is of it, and what to call it
WHOLE, NUMBER, FLAG = (whole, "a whole number"), (number, "a number"), (flag, "true or false")
SETTINGS: dict[str, Kind] = {  # that are fields of an Ask
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": WHOLE,
    "min_p": NUMBER,
    "repetition_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "min_tokens": WHOLE,
    "seed": WHOLE,
}
BOTH: dict[str, Kind] = SETTINGS | {
    "model": (lambda x: isinstance(x, str), "a text"),
    "n": WHOLE,
    "max_tokens": WHOLE,
    "stop": (texts, "a text or a list of texts"),
    "logit_bias": (biases, 'numbers by token id, such as {"50": -100}'),
    "stream": FLAG,
    "stream_options": (lambda x: isinstance(x, dict), "an object"),
    "return_token_ids": FLAG,
}
COMPLETION: dict[str, Kind] = BOTH | {
    "prompt": (lambda x: isinstance(x, (str, list)), "a text, a list of texts, a list of ids, or a list of such lists"),
    "logprobs": (lambda x: whole(x) and 0 <= x <= TOP, f"a whole number from 0 to {TOP}, of alternatives to tell"),
}
CHAT: dict[str, Kind] = BOTH | {
    "messages": (lambda x: isinstance(x, list) and len(x) > 0, "a list of one message or more"),
    "tools": (lambda x: isinstance(x, list), "a list of schemas"),
    "chat_template_kwargs": (lambda x: isinstance(x, dict), "an object"),
    "max_completion_tokens": WHOLE,
    "logprobs": FLAG,
    "top_logprobs": (lambda x: whole(x) and 0 <= x <= TOP, f"a whole number from 0 to {TOP}"),
}
# fields that may be there at the value which asks for nothing
NEUTRAL = {
    "echo": (False, "the prompt is not told again; leave it out"),
    "best_of": (1, "every reply is returned; ask for n"),
    "suffix": ("", "replies only go on; leave it out"),
    "use_beam_search": (False, "there is no beam search; leave it out"),
    "response_format": ({"type": "text"}, "replies are free text; leave it out"),
    "tool_choice": ("auto", "the model chooses; leave it out"),
    "ignore_eos": (False, "a reply ends where the model ends it; set min_tokens"),
}
IGNORED = {  # they say nothing of the reply
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "parallel_tool_calls", "priority", "request_id",
}  # fmt: skip


def read(body: Any, known: dict[str, Kind], name: str) -> dict[str, Any]:
    """The fields of a body, without those that are null or ignored. Raises Bad for one that does not fit."""
    if not isinstance(body, dict):
        raise Bad(f'the body is {type(body).__name__}: expected a JSON object, such as {{"model": {name!r}, ...}}')
    found = {key: x for key, x in body.items() if x is not None and key not in IGNORED}
    for key in [key for key in found if key not in known]:
        if key not in NEUTRAL:
            raise Bad(f"{key!r} is no field that is known here{suggest(key, {*known, *NEUTRAL})}", key)
        neutral, why = NEUTRAL[key]
        if found.pop(key) != neutral:
            raise Bad(f"{key} = {body[key]!r}: expected {neutral!r} or nothing: {why}", key)
    for key, x in found.items():
        fits, expected = known[key]
        if not fits(x):
            raise Bad(f"{key} = {shown(x)}: expected {expected}", key)
    if found.get("model", name) != name:
        message = f"model = {found['model']!r} is not served here: expected {name!r} (GET /v1/models names it)"
        raise Bad(message, "model", "model_not_found", 404)
    return found


def completion(body: Any, policy: Policy, name: str, length: int) -> Wanted:
    """A request to /v1/completions. Raises Bad."""
    found = read(body, COMPLETION, name)
    prompts = prompts_of(found.get("prompt"), policy)
    limit = lambda ids: found.get("max_tokens", max(min(16, length - len(ids)), 1))  # noqa: E731
    return wanted(found, prompts, limit, policy, length, found.get("logprobs"))


def chat(body: Any, policy: Policy, name: str, length: int) -> Wanted:
    """A request to /v1/chat/completions, whose messages go through the checkpoint's chat template. Raises Bad."""
    found = read(body, CHAT, name)
    if "messages" not in found:
        raise Bad('messages is missing: expected a list such as [{"role": "user", "content": "Hello"}]', "messages")
    if policy.template != "chat":
        raise Bad(
            f"{name} was trained on template {policy.template!r} and knows no messages: expected a checkpoint of "
            "template 'chat'; use /v1/completions",
            "messages",
        )
    told = {key: found[key] for key in ("tools", "chat_template_kwargs") if found.get(key)}
    ids = encoded(policy, found["messages"], "messages", **told)
    room = max(length - len(ids), 1)
    limit = found.get("max_completion_tokens", found.get("max_tokens", room))
    if "top_logprobs" in found and not found.get("logprobs"):
        raise Bad('top_logprobs without logprobs: expected "logprobs": true beside it', "top_logprobs")
    logprobs = found.get("top_logprobs", 0) if found.get("logprobs") else None
    return wanted(found, [ids], lambda ids: limit, policy, length, logprobs)


def wanted(
    found: dict[str, Any], prompts: list[tuple[int, ...]], limit: Callable[[tuple[int, ...]], int], policy: Policy,
    length: int, logprobs: int | None,
) -> Wanted:  # fmt: skip
    """The request of fields that are of their kinds. Raises Bad for a value out of range."""
    n, seed = found.get("n", 1), found.get("seed")
    if not 1 <= n <= MOST:
        raise Bad(f"n = {n}: expected 1 to {MOST} replies to a prompt; ask several times for more", "n")
    settings = {key: found[key] for key in SETTINGS if key in found and key != "seed"}
    stop = found.get("stop", ())
    settings["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    settings["logit_bias"] = tuple((int(key), float(x)) for key, x in found.get("logit_bias", {}).items())
    asks = [Ask(ids, limit(ids), seed=seed, top=bool(logprobs), **settings) for ids in prompts]
    for ask in asks:
        try:
            check(ask, length, policy.model.config.vocab_size)
        except ValueError as error:
            code = "context_length_exceeded" if isinstance(error, TooLong) else None
            raise Bad(str(error), str(error).split()[0], code) from error
    # rows of one seed, as `alignax sample` numbers them: without a seed each has its own
    every = [ask._replace(number=(i * n + j) % SEEDS) for i, ask in enumerate(asks) for j in range(n)]
    usage = bool(found.get("stream_options", {}).get("include_usage"))
    return Wanted(prompts, every, found.get("stream", False), usage, logprobs, found.get("return_token_ids", False))


def prompts_of(prompt: Any, policy: Policy) -> list[tuple[int, ...]]:
    """The ids of each prompt. Raises Bad for one that is empty or of no known form."""
    if prompt is None or prompt == [] or prompt == "":
        raise Bad(f"prompt = {prompt!r} is empty: expected some words, or the ids of some", "prompt")
    if isinstance(prompt, str) or all(map(whole, prompt)):
        prompt = [prompt]
    for one in prompt:
        if not one or not (isinstance(one, str) or (isinstance(one, list) and all(map(whole, one)))):
            raise Bad(f"prompt holds {shown(one)}: expected {COMPLETION['prompt'][1]}, none of them empty", "prompt")
    return [encoded(policy, one, "prompt") if isinstance(one, str) else tuple(one) for one in prompt]


def encoded(policy: Policy, prompt: Any, param: str, **told: Any) -> tuple[int, ...]:
    """The ids of a text that is to go on, or of messages. Raises Bad for what the checkpoint cannot read.

    A text for a chat checkpoint is read as it stands, control tokens included: its sender has applied a template.
    """
    try:
        if isinstance(prompt, str) and policy.template == "chat":
            return tuple(policy.tokenizer(prompt)["input_ids"])
        return tuple(policy.encode(prompt, **told))
    except DataError as error:
        raise Bad(str(error), param) from error


def shown(x: Any) -> str:
    """A value as an error shows it."""
    text = repr(x)
    return text if len(text) <= 80 else f"{text[:77]}..."
