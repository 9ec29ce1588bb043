"""Runs a model over a batch and fills a record with everything a loss may want; jit prunes what it does not use.

The only place that shifts: hidden state t-1 predicts token t and carries the value of the state before token t.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops.logprobs import TokenStats, token_stats
from alignax.types import Demo, Model, Pair, Params, Rollout, Scored, Side


def token_statistics(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    start: int = 1,
) -> TokenStats:
    """Log-probability, entropy and correctness of tokens `start` to T-1, [B T]; positions before `start` hold zeros.

    `start` (static, at least 1) spares the output layer the positions that no loss looks at, a prompt for example.
    """
    hidden_BTD = model.apply(params, tokens, valid)
    stats = token_stats(
        hidden_BTD[:, start - 1 : -1],
        model.unembed(params),
        tokens[:, start:],
        temperature=temperature,
        vocab_size=model.config.vocab_size,
    )
    return TokenStats(*(jnp.pad(x, ((0, 0), (start, 0))) for x in stats))


def demo(model: Model, params: Params, batch: dict) -> Demo:
    """A demonstration batch under the policy."""
    stats = token_statistics(model, params, batch["tokens"], batch["valid"])
    return Demo(logp=stats.logp, mask=batch["mask"], entropy=stats.entropy, correct=stats.correct)


def pair(model: Model, params: Params, reference: Params, batch: dict) -> Pair:
    """A preference batch under the policy and under the reference; both sides go through the model as one batch."""
    both = stack_sides(batch)
    logp = token_statistics(model, params, both["tokens"], both["valid"]).logp
    ref_logp = token_statistics(model, reference, both["tokens"], both["valid"]).logp
    B = batch["row"].shape[0]
    side = lambda rows: Side(logp=logp[rows], ref_logp=ref_logp[rows], mask=both["mask"][rows])  # noqa: E731
    return Pair(chosen=side(slice(None, B)), rejected=side(slice(B, None)))


def scored(model: Model, params: Params, batch: dict) -> Scored:
    """A preference batch with the reward model's score of each side."""
    both = stack_sides(batch)
    score_2B = score(model, params, both["tokens"], both["valid"])
    B = batch["row"].shape[0]
    return Scored(chosen=score_2B[:B], rejected=score_2B[B:], mask=batch["chosen"]["mask"].any(1))


def score(model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """Scalar head at the last real token of each row, wherever the padding is."""
    hidden_BTD = model.apply(params, tokens, valid)
    last_B = tokens.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    return model.scalar(params, jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0])


def values(model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Critic's value of the state before each token: the scalar head one position earlier; 0 at position 0."""
    value_BT = model.scalar(params, model.apply(params, tokens, valid)[:, :-1])
    return jnp.pad(value_BT, ((0, 0), (1, 0)))


def policy_view(
    model: Model, params: Params, rollout: Rollout, *, temperature: Float[Array, ""] | float, start: int
) -> Rollout:
    """The rollout with `logp` and `entropy` of the current policy, at the temperature it was sampled with."""
    stats = token_statistics(model, params, rollout.tokens, rollout.valid, temperature=temperature, start=start)
    return rollout.replace(logp=stats.logp, entropy=stats.entropy)


def stack_sides(batch: dict) -> dict:
    """Chosen rows, then rejected rows, as one batch of 2B."""
    sides = batch["chosen"], batch["rejected"]
    return {name: jnp.concatenate([side[name] for side in sides]) for name in ("tokens", "valid", "mask")}
