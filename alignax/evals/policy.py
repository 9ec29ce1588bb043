"""What a policy does on prompts: completions as text, exact KL to the reference, rewards."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from alignax import forward
from alignax.ops import output
from alignax.ops.checks import Scalar
from alignax.ops.kl import full_kl
from alignax.sampling.sample import finished, row_keys, sample
from alignax.types import Model, Params, Rollout


class Measured(NamedTuple):
    """One completion per prompt and what is known of it, on the device."""

    rollout: Rollout
    finished: Bool[Array, " B"]
    kl: Float[Array, " B"]  # nats per sequence
    proxy: Float[Array, " B"] | None  # the reward model's score


def make_measure(
    model: Model, *, capacity: int, eos_ids: Sequence[int], pad_id: int, reward_model: Model | None = None
) -> Callable:
    """A jitted `(params, reference, reward params, prompts, key, temperature) -> Measured`, one key per row id."""
    eos = jnp.asarray(sorted(eos_ids), jnp.int32)

    @jax.jit
    def measure(params, reference, reward_params, prompts, key, temperature):
        keys = row_keys(key, prompts["row"])
        options = {"capacity": capacity, "eos_ids": eos, "pad_id": pad_id, "temperature": temperature}
        rollout = sample(model, params, prompts["tokens"], prompts["valid"], keys, **options)
        start = prompts["tokens"].shape[1]
        kl = exact_kl(model, params, reference, rollout, start=start, temperature=temperature)
        proxy = forward.score(reward_model, reward_params, rollout.tokens, rollout.valid) if reward_model else None
        return Measured(rollout, finished(rollout, eos), kl, proxy)

    return measure


def exact_kl(
    model: Model, params: Params, reference: Params, rollout: Rollout, *, start: int, temperature: Scalar = 1.0
) -> Float[Array, " B"]:
    """KL(policy || reference) per sequence, nats: the sum over sampled positions of the full-distribution KL there.

    Its mean over samples is an unbiased estimate of the sequence KL with less variance than that of log-ratios, and
    it is never negative. `start`: first sampled position. Rows are walked one by one, so that the logits of both
    models over the whole vocabulary exist for one row at a time. At temperature 0 (greedy) the distributions are the
    untempered ones, as those of `old_logp` are.
    """
    temperature = jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)
    vocab_size = model.config.vocab_size
    kernels = [model.unembed(p)[:, :vocab_size] for p in (params, reference)]
    hiddens = [model.apply(p, rollout.tokens, rollout.valid)[:, start - 1 : -1] for p in (params, reference)]

    def row(args):
        *hidden_TD, mask_T = args
        options = {"softcap": model.config.logit_softcap, "temperature": temperature}
        logp_p, logp_q = (jax.nn.log_softmax(output.logits(h, k, **options)) for h, k in zip(hidden_TD, kernels))
        return jnp.sum(full_kl(logp_p, logp_q), where=mask_T)

    return jax.lax.map(row, (*hiddens, rollout.mask[:, start:]))


def texts(tokenizer: Any, rollout: Rollout, eos_ids: Sequence[int], lead: Sequence[int] = ()) -> list[str]:
    """The completions, without prompt, padding and end of sequence; `lead`: ids to decode them behind, without these.

    Some tokenizers take the space away that a text begins with, and a completion goes on another.
    """
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    drop = set(eos_ids)
    rows = [[int(t) for t in row[keep] if int(t) not in drop] for row, keep in zip(tokens, mask)]
    as_it_stands = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(lead, **as_it_stands) if lead else ""
    told = tokenizer.batch_decode([[*lead, *row] for row in rows], **as_it_stands)
    return [text.removeprefix(before) for text in told]


def total_reward(
    reward: Callable, row: dict, completion: str, finished: bool, *, missing: bool = False
) -> dict[str, float]:
    """What a text reward says of one completion, as parts with a "total"; a bare number is the total.

    A total of None or nan says that the completion cannot be scored: nan where a `missing` score will do, where other
    parts may be missing too. Raises ValueError for one where it will not, for an infinite number, and for what is no
    single number.
    """
    value = reward(row, completion, finished=finished)
    expected = "expected a finite number or total" + (", or None or nan where there is no score" if missing else "")
    refusal = f"the reward function gave {value!r} for {completion!r}: {expected}"
    try:
        parts = {name: _number(part) for name, part in (value if isinstance(value, dict) else {"total": value}).items()}
    except (TypeError, ValueError):
        raise ValueError(refusal) from None
    fits = [math.isfinite(part) or (missing and math.isnan(part)) for part in parts.values()]
    if "total" not in parts or not all(fits):
        raise ValueError(refusal)
    return parts


def _number(value: Any) -> float:
    """A number of any library, as a float; None is nan. Raises TypeError for text and for arrays with an axis."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0):
        raise TypeError(f"{value!r} is no single number")
    return math.nan if value is None else float(value)
