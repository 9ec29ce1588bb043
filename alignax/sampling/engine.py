"""An outside engine as a sampler: replies over `/v1/completions` of an OpenAI-compatible server, vLLM or SGLang.

Prompts go as token ids, and replies come as token ids with the log-probability of each: no text is encoded again. What
comes out is the `Rollout` of our own sampler, of the same fixed shapes. An engine draws with its own noise, so a run
with one cannot be repeated bit for bit.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from alignax.bound import Bound, bound
from alignax.ops.checks import require
from alignax.rewards.workers import LATE, Workers
from alignax.sampling.endpoint import Endpoint, EngineError, NotThere
from alignax.sampling.options import Options
from alignax.sampling.slots import END, LENGTH
from alignax.types import Rollout

# what an engine takes of `Options`, and what says that it is off: a server may have defaults of its own
TAKEN = {
    "temperature": ("temperature", 1.0), "top_k": ("top_k", -1), "top_p": ("top_p", 1.0), "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repetition_penalty", 1.0), "presence_penalty": ("presence_penalty", 0.0),
    "frequency_penalty": ("frequency_penalty", 0.0), "min_new_tokens": ("min_tokens", 0),
}  # fmt: skip
SAID = "The harbour opens at 7:30, said Maël;  12 boats (or 13) left.\n"  # encoded by both sides


class Engine(NamedTuple):
    """An outside engine, and how it is used. `engine` makes it of settings."""

    endpoint: Endpoint
    model: str  # by which name it is asked
    reload: Bound  # of sampling.reload
    every: int
    folder: str
    dtype: str
    untied: bool
    timeout_s: float
    workers: Workers
    max_difference: float

    def reply(
        self, tokens: Int[np.ndarray, "P L"], valid: Bool[np.ndarray, "P L"], *, capacity: int, ends: Sequence[int],
        pad: int, vocab_size: int, options: Options | None = None, group: int = 1,
    ) -> Rollout:  # fmt: skip
        """`group` replies to each prompt, neighbours, as `Sampler.reply` gives them; arrays on the host.

        `old_logp` is what the engine says: of the distribution that it samples from if it was started so. Raises
        EngineError where it cannot be reached, is slow, or replies with what is no reply; ValueError for options that
        it does not have.
        """
        body = {"model": self.model, "n": group} | asked(options or Options(), capacity, ends)
        read = lambda found: replies_of(found, group, body["max_tokens"], ends, vocab_size)  # noqa: E731

        def one(prompt: list[int]) -> list["Reply"]:
            found = {"prompt": prompt} | body
            return self.endpoint.call("/v1/completions", found, timeout_s=self.timeout_s, read=read)

        found = self.workers.map(one, [([int(x) for x in row[keep]],) for row, keep in zip(tokens, valid, strict=True)])
        if late := sum(x is LATE for x in found):
            raise EngineError(
                f"the engine {self.endpoint.url} replied to {len(found) - late} of {len(found)} prompts in "
                f"{self.timeout_s:g} s: expected all. Raise engine_args.timeout_s, or see what else it does"
            )
        return rollout_of(tokens, valid, [reply for group in found for reply in group], capacity, pad)


class Reply(NamedTuple):
    """One reply, its end included."""

    ids: list[int]
    logp: list[float]
    reason: int


def engine(
    url: str,
    *,
    model: str = "",
    reload: str | Callable = "vllm",
    every: int = 1,
    folder: str = "",
    dtype: str = "",
    untied: bool = False,
    timeout_s: float = 600.0,
    retries: int = 3,
    wait_s: float = 1.0,
    workers: int = 64,
    max_difference: float = 0.1,
    key_variable: str = "",
) -> Engine:
    """The engine at a URL.

    Args:
      model: the name that it serves the policy under; "": its only one.
      reload: how it takes new weights: a function of alignax.sampling.reload ("vllm", "sglang", "none"), or
        module:function.
      every: iterations between two sets of weights.
      folder: where weights are written for it, which has to be a folder that it sees under the same name; "": the
        stage's own.
      dtype: of these weights; "": that of the checkpoint which the policy started from.
      untied: the output layer is written too where it is the embedding: for vLLM on a CPU, which packs it once and has
        to be started on such a folder (`alignax export --untied`).
      timeout_s: seconds for a batch, and for taking weights.
      retries: of a request without a whole answer, after wait_s seconds, then twice as many, and so on.
      workers: requests at the same time, of a prompt each.
      max_difference: nats, in the mean over tokens, by which its log-probabilities may be off the policy's while it has
        the policy's weights; more is refused.
      key_variable: the environment variable that has its API key; "": none is sent.

    Raises ValueError for what cannot be.
    """
    parts = urlsplit(url)
    fits = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and not parts.query
    require(fits, f"engine: url = {url!r}: expected http://HOST:PORT, without a path such as /v1")
    for name, value, least in (("every", every, 1), ("retries", retries, 0), ("workers", workers, 1)):
        require(value >= least, f"engine: {name} = {value}: expected {least} or more")
    for name, value in (("timeout_s", timeout_s), ("max_difference", max_difference)):
        require(value > 0, f"engine: {name} = {value}: expected a number above 0")
    require(wait_s >= 0, f"engine: wait_s = {wait_s}: expected seconds, 0 or more")
    require(
        not key_variable or key_variable in os.environ,
        f"engine: key_variable = {key_variable!r}: expected the name of an environment variable that is set",
    )
    key = os.environ.get(key_variable, "") if key_variable else ""
    endpoint = Endpoint(url.rstrip("/"), key, retries, wait_s)
    given = bound(reload, {}, "alignax.sampling.reload", key="engine_args.reload", given=("timeout_s",))
    pool = Workers(workers, timeout_s)
    fields = {"reload": given, "every": every, "folder": folder, "dtype": dtype, "untied": untied}
    return Engine(endpoint, model, **fields, timeout_s=timeout_s, workers=pool, max_difference=max_difference)


def asked(options: Options, capacity: int, ends: Sequence[int]) -> dict[str, Any]:
    """What a request says of sampling. Raises ValueError for options that an engine does not have, or not by row."""
    for name in options.__dataclass_fields__:
        value = getattr(options, name)
        if value is not None and (jnp.ndim(value) if name != "stops" else 1) > 0:
            raise ValueError(
                f"{name}: an outside engine takes one number for all rows, or nothing; sample here instead"
            )
    options.check(1, 0)
    body: dict[str, Any] = {"logprobs": 0, "return_token_ids": True, "skip_special_tokens": False}
    for name, (key, off) in TAKEN.items():
        value = getattr(options, name)
        body[key] = off if value is None else type(off)(value)
    body["top_k"] = body["top_k"] if body["top_k"] > 0 else -1
    limit = options.max_new_tokens
    body["max_tokens"] = capacity if limit is None else min(int(limit), capacity)
    return body | {"stop_token_ids": [int(x) for x in ends], "ignore_eos": True}  # these ends, and no others


def replies_of(found: Any, group: int, limit: int, ends: Sequence[int], vocab_size: int) -> list[Reply]:
    """The replies of an answer. Raises ValueError for one that is not whole, EngineError for one that never will be."""
    choices = found.get("choices", []) if isinstance(found, dict) else []
    if len(choices) != group:
        raise ValueError(f"{len(choices)} replies of {group}")
    in_order = sorted(choices, key=lambda choice: choice["index"])
    return [reply_of(choice, limit, ends, vocab_size) for choice in in_order]


def reply_of(choice: dict, limit: int, ends: Sequence[int], vocab_size: int) -> Reply:
    """One reply; raises as `replies_of`."""
    why = choice.get("finish_reason")
    if why not in ("stop", "length"):
        raise ValueError(f"a reply was given up (finish_reason = {why!r})")
    ids, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logp is None or len(ids) != len(logp):
        raise EngineError(
            "the engine's reply has no token ids, or not one log-probability for each: expected what return_token_ids "
            "and logprobs ask for. Use a release of vLLM or SGLang that knows both on /v1/completions"
        )
    if any(not 0 <= x < vocab_size for x in ids):
        raise EngineError(
            f"the engine replied with the token {max(ids)}: expected less than {vocab_size}, the policy's vocabulary. "
            "It serves another model or tokenizer: start it on an export of this policy"
        )
    if not all(x is not None and math.isfinite(x) for x in logp):
        raise EngineError(f"the engine gave a log-probability that is no number: {logp}; see its log and its weights")
    if why == "length" and len(ids) != limit or why == "stop" and (not ids or ids[-1] not in ends) or len(ids) > limit:
        raise EngineError(
            f"the engine ended a reply ({why}) after {len(ids)} tokens at {ids[-1:]}: expected an end among "
            f"{sorted(ends)}, or {limit} tokens. Its context is too short, or it has stops of its own: start it "
            "without them, with a --max-model-len for prompt and reply"
        )
    return Reply(ids, logp, END if why == "stop" else LENGTH)


def rollout_of(tokens: np.ndarray, valid: np.ndarray, replies: list[Reply], capacity: int, pad: int) -> Rollout:
    """Prompts and replies side by side, [P * group, L + capacity]."""
    R, (P, L) = len(replies), tokens.shape
    said, logp = np.full((R, capacity), pad, np.int32), np.zeros((R, L + capacity), np.float32)
    length = np.array([len(reply.ids) for reply in replies])
    there = np.arange(capacity)[None] < length[:, None]
    for row, reply in enumerate(replies):
        said[row, : length[row]], logp[row, L : L + length[row]] = reply.ids, reply.logp
    each = lambda x: np.repeat(np.asarray(x), R // P, axis=0)  # noqa: E731
    reason = np.array([reply.reason for reply in replies], np.int32)
    fields: dict[str, Any] = {
        "tokens": np.concatenate([each(tokens).astype(np.int32), said], axis=1),
        "valid": np.concatenate([each(valid), there], axis=1),
        "mask": np.concatenate([np.zeros((R, L), bool), there], axis=1),
    }
    return Rollout(**fields | {"old_logp": logp, "finished": reason != LENGTH, "reason": reason})


def checked(engine: Engine, tokenizer: Any, longest: int) -> Engine:
    """The engine under the name of its model, once it is known to fit. `longest`: tokens of a prompt and its reply.

    Raises EngineError for one that cannot be reached, serves another name, or has a shorter context or another
    tokenizer.
    """
    at, timeout_s = engine.endpoint, min(engine.timeout_s, 60.0)
    try:
        served = at.call("/v1/models", timeout_s=timeout_s, read=lambda found: {x["id"]: x for x in found["data"]})
    except (NotThere, KeyError, TypeError) as error:
        raise EngineError(
            f"{at.url} answers, but not as an engine does ({error}): expected a list of models at /v1/models. Another "
            "program has this port: correct config.engine, or start the engine on a free one"
        ) from None
    names = [engine.model] if engine.model else list(served)
    if len(names) != 1 or names[0] not in served:
        raise EngineError(
            f"the engine {at.url} serves {', '.join(served) or 'nothing'}: expected engine_args.model = "
            f"{engine.model!r}; set it to the name of the policy (vLLM: --served-model-name)"
        )
    context = served[names[0]].get("max_model_len")
    if context is not None and context < longest:
        raise EngineError(
            f"the engine {at.url} has a context of {context} tokens: expected {longest}, max_prompt_length + "
            f"max_new_tokens. Start it with --max-model-len {longest} (SGLang: --context-length), or lower these"
        )
    engine = engine._replace(model=names[0])
    check_tokenizer(engine, tokenizer, timeout_s)
    return engine


def check_tokenizer(engine: Engine, tokenizer: Any, timeout_s: float) -> None:
    """Raises EngineError where it encodes a text in another way, or has other ids for what ours decodes."""
    some = range(0, len(tokenizer), max(len(tokenizer) // 48, 1))
    for text in (SAID, tokenizer.decode(list(some), skip_special_tokens=True)):
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"model": engine.model, "prompt": text, "add_special_tokens": False}
        try:
            theirs = engine.endpoint.call("/tokenize", body, timeout_s=timeout_s, read=lambda found: found["tokens"])
        except NotThere:
            return  # it does not say; other weights are found by their log-probabilities
        if list(theirs) != list(ours):
            raise EngineError(
                f"the engine {engine.endpoint.url} encodes {text[:40]!r} as {theirs[:8]}...: expected {ours[:8]}..., "
                "as the policy's tokenizer does. Start it on an export of this policy (alignax export)"
            )
