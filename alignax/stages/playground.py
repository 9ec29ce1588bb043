"""A finished policy in the hand: its completions for prompts, and all that a server or a chat needs of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax.config import ConfigError
from alignax.data.arrays import pad
from alignax.data.boundary import Ids
from alignax.data.counts import DataError
from alignax.data.encode import encode_prompt
from alignax.data.messages import Turns
from alignax.data.tokenizer import load_tokenizer, pad_id
from alignax.manifest import check_parent, read_manifest
from alignax.ops.checks import Refused
from alignax.sampling.memory import slots_for
from alignax.sampling.options import Options
from alignax.sampling.sample import check_context, row_keys
from alignax.sampling.sampler import Sampler, sampler
from alignax.sampling.stops import stops
from alignax.sampling.stream import cut
from alignax.stages.parents import template_of, whole
from alignax.stages.plans import POLICY
from alignax.types import Model, Params


class Policy(NamedTuple):
    """A finished policy with what its prompts are encoded by."""

    folder: Path
    model: Model
    params: Params
    tokenizer: Any
    template: str

    def encode(self, prompt: Turns, template: str = "", **told: Any) -> Ids:
        """The ids of a prompt, a text or messages, under the checkpoint's template or another one. Raises DataError for
        one that cannot be encoded, and for words that the tokenizer does not know; `told`: see `encode_prompt`."""
        ids = encode_prompt(self.tokenizer, prompt, template or self.template, **told)
        unknown = ids.count(self.tokenizer.unk_token_id) if self.tokenizer.unk_token_id is not None else 0
        if unknown and self.tokenizer.unk_token_id != self.tokenizer.eos_token_id:
            raise DataError(f"{prompt!r} has {unknown} words that the tokenizer of {self.folder} does not know")
        return ids


def load(checkpoint: str | Path, devices: Sequence[Any] | None = None) -> Policy:
    """A finished policy, over all devices unless some are given. Raises CheckpointError for any other folder."""
    folder = Path(checkpoint)
    manifest = read_manifest(folder)
    check_parent(manifest, role="policy", makes=POLICY)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    return Policy(folder, *whole(folder, manifest, devices), tokenizer, template_of(manifest, tokenizer))


def complete(
    checkpoint: str | Path, prompts: Sequence[Turns], *, n: int = 1, temperature: float = 1.0, top_p: float = 1.0,
    top_k: int = 0, min_p: float = 0.0, repetition_penalty: float = 1.0, stop: Sequence[str] = (),
    max_new_tokens: int = 64, seed: int = 0, beams: int = 0,
) -> list[list[tuple[str, bool]]]:  # fmt: skip
    """`n` completions of each prompt as (text, whether it ended by itself), with the template of the checkpoint.

    A completion ends before the first of the `stop` texts. `beams`: nothing is drawn; the `n` best that a search of so
    many beams comes by (`sampling.beam`). Raises ConfigError for a number that is out of range, and for a setting that
    the search would not read.
    """
    if n < 1 or max_new_tokens < 1 or not temperature >= 0 or not 0 < top_p <= 1:
        given = f"n = {n}, max_new_tokens = {max_new_tokens}, temperature = {temperature}, top_p = {top_p}"
        raise ConfigError(f"{given}: expected n >= 1, max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1")
    options = Options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    options = options if repetition_penalty == 1 else options.replace(repetition_penalty=repetition_penalty)
    try:
        options.check(1, 0)
    except Refused as error:
        raise ConfigError(str(error)) from None
    if beams:
        unread = {"temperature": (temperature, 1), "top_p": (top_p, 1), "top_k": (top_k, 0), "min_p": (min_p, 0)}
        unread |= {"repetition_penalty": (repetition_penalty, 1), "stop": (len(stop), 0), "seed": (seed, 0)}
        for name in (name for name, (value, default) in unread.items() if value != default):
            raise ConfigError(
                f"{name} beside beams = {beams}: a search draws nothing and reads no {name}; leave it out"
            )
        if not n <= beams:
            raise ConfigError(f"beams = {beams}: expected n = {n} or more")
    policy = load(checkpoint)
    model, tokenizer = policy.model, policy.tokenizer
    encoded = [policy.encode(prompt) for prompt in prompts]
    try:
        check_context(model.config.context, max(map(len, encoded)), max_new_tokens, "max_new_tokens")
    except Refused as error:
        raise ConfigError(str(error)) from None
    tokens, valid = pad(encoded, max(map(len, encoded)), pad_id(tokenizer), left=True)
    own = sampler(model, tokenizer, policy.template, max_new_tokens)
    if beams:
        return searched(own, policy.params, tokens, valid, beams, n)
    options = options.replace(stops=stops(tokenizer, stop) if stop else None)
    keys = row_keys(jax.random.key(seed), jnp.arange(len(prompts) * n, dtype=jnp.int32))
    draw = jax.jit(lambda params, tokens, valid, keys: own.reply(params, tokens, valid, keys, options, group=n))
    rollout = jax.device_get(draw(policy.params, tokens, valid, keys))
    texts = [cut(text, stop) for text in own.texts(rollout)]
    found = list(zip(texts, rollout.finished.tolist(), strict=True))
    return [found[i * n : (i + 1) * n] for i in range(len(prompts))]


def searched(
    own: Sampler, params: Params, tokens: np.ndarray, valid: np.ndarray, beams: int, n: int
) -> list[list[tuple[str, bool]]]:
    """The best completions that searches find, of as many prompts at a time as there is room for their beams."""
    search = jax.jit(lambda params, tokens, valid: own.search(params, tokens, valid, beams=beams, n=n))
    model = own.model._replace(join=None)  # beams share no prompt
    at_once = slots_for(model, len(tokens) * beams, beams, tokens.shape[1], own.capacity) // beams
    out = []
    for first in range(0, len(tokens), at_once):
        rows = np.minimum(np.arange(first, first + at_once), len(tokens) - 1)  # the last prompts again, for one shape
        found = jax.device_get(search(params, tokens[rows], valid[rows]))
        said, there = own.texts(found), found.mask.any(1)  # fewer than n may be found
        each = [
            [(said[i], bool(found.finished[i])) for i in range(p * n, p * n + n) if there[i]] for p in range(at_once)
        ]
        out += each[: len(tokens) - first]
    return out
