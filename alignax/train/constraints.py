"""Rewards as constraints: a multiplier each, which grows while its constraint is broken (safe RLHF)."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.advantages import scorable
from alignax.ops.checks import Scalar
from alignax.ops.masked import masked_mean
from alignax.train.algorithm import Constraint, Weighing
from alignax.types import Rollout

Multipliers = dict[str, Float[Array, ""]]  # ln lambda, by the names of the constraints


def first_multipliers(weighing: Weighing) -> Multipliers | tuple:
    """ln lambda before the first iteration; () where nothing is a constraint."""
    found = {name: jnp.log(jnp.float32(one.multiplier)) for name, one in weighing.constraints.items()}
    return found or ()


def margin(constraint: Constraint, value: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """By how much a reward keeps its constraint, value - at_least or at_most - value; below 0 it is broken."""
    return constraint.sign * (value - constraint.limit)


def lagrangian(
    weighing: Weighing, score: Float[Array, "*B"], parts: dict[str, Float[Array, "*B"]],
    multipliers: Multipliers | tuple,
) -> Float[Array, "*B"]:  # fmt: skip
    """(r + sum_i lambda_i m_i) / (1 + sum_i lambda_i), m the margins.

    Dai et al. 2023 (2310.12773), equation 30, where the cost is -m: the division keeps the step of the policy as long
    as it was, whatever the multipliers.
    """
    if not weighing.constraints:
        return score
    charged = [
        jnp.exp(multipliers[name]) * margin(one, parts[name])  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, one in weighing.constraints.items()
    ]
    return (score + sum(charged)) / divisor(weighing, multipliers)


def divisor(weighing: Weighing, multipliers: Multipliers | tuple) -> Scalar:
    """1 + sum_i lambda_i; 1 where nothing is a constraint."""
    return 1.0 + sum(jnp.exp(multipliers[name]) for name in weighing.constraints)  # pyright: ignore[reportCallIssue, reportArgumentType]


def ascended(weighing: Weighing, rollout: Rollout, multipliers: Multipliers | tuple) -> tuple:
    """(the next multipliers, metrics) of an iteration.

    ln lambda' = ln lambda - learning_rate * lambda * mean m, over the policy's own replies, and at most
    ln max_multiplier: Dai et al. 2023 (2310.12773), equation 31, gradient ascent on the dual in ln lambda, so that
    lambda stays above 0. Without any reply that has a score it stays as it is.
    """
    parts, after, metrics = rollout.rewards or {}, {}, {}
    for name, one in weighing.constraints.items():
        margin_B = margin(one, parts[name])
        known_B = rollout.own & scorable(margin_B)
        log_lambda = multipliers[name]  # pyright: ignore[reportCallIssue, reportArgumentType]
        ascent = -one.learning_rate * jnp.exp(log_lambda) * masked_mean(margin_B, known_B)
        after[name] = jnp.minimum(log_lambda + ascent, jnp.log(jnp.float32(one.max_multiplier)))
        metrics[f"rewards/{name}/multiplier"] = jnp.exp(log_lambda)
    return after or (), metrics
