"""What a policy does on prompts: completions, exact KL to the reference, a reward model's scores."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax import forward
from alignax.ops import output
from alignax.ops.checks import Scalar
from alignax.ops.kl import full_kl
from alignax.sampling.sampler import Sampler
from alignax.types import Model, Params, Rollout


class Measured(NamedTuple):
    """One completion per prompt and what is known of it, on the device."""

    rollout: Rollout
    kl: Float[Array, " B"]  # nats per sequence
    proxy: Float[Array, " B"] | None  # the reward model's score


# (params, reference, reward params, prompts, key, temperature)
Measure = Callable[[Params, Params, Params, dict, Array, Scalar], Measured]
# (params, reference, reward params, rollout, temperature)
Judge = Callable[[Params, Params, Params, Rollout, Scalar], Measured]


def make_measure(sampler: Sampler, reward_model: Model | None = None) -> Measure:
    """A jitted `Measure`, one key per row id."""
    judge = make_judge(sampler, reward_model)

    @jax.jit
    def measure(params, reference, reward_params, prompts, key, temperature):
        rollout = sampler.draw(params, prompts, key, temperature=temperature)
        return judge(params, reference, reward_params, rollout, temperature)

    return measure


def make_judge(sampler: Sampler, reward_model: Model | None = None) -> Judge:
    """A `Judge` of what the sampler wrote, or of what was written with an environment."""

    def judge(params: Params, reference: Params, reward_params: Params, rollout: Rollout, temperature: Scalar):
        start = rollout.tokens.shape[1] - sampler.capacity
        kl = exact_kl(sampler.model, params, reference, rollout, start=start, temperature=temperature)
        proxy = forward.score(reward_model, reward_params, rollout.tokens, rollout.valid) if reward_model else None
        return Measured(rollout, kl, proxy)

    return judge


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
