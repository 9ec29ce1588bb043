"""Parts of an online run from outside the package, by dotted path."""

import time

import jax
import jax.numpy as jnp
from jax import Array

from alignax.ops.checks import Scalar, declares, require
from alignax.sampling.opponents import Author
from alignax.types import Loss, Model, Pair, Params, Rollout
from alignax.worlds.gold import gold


def partial_gold(row: dict, completion: str, *, finished: bool) -> dict | None:
    """Gold, but None for replies of an odd number of letters."""
    return None if len(completion) % 2 else gold(row, completion, finished=finished)


def small_batches(coef: Array, kl: Array, *, batch_size: int, most: int) -> Array:
    """The coefficient as it is, where an iteration has `most` episodes or fewer."""
    require(batch_size <= most, f"batch_size = {batch_size}: expected {most} or fewer")
    return jnp.asarray(coef, jnp.float32)


def slow_for_some(row: dict, completion: str, *, finished: bool, seconds: float = 30.0) -> float:
    """1, but not within a while for replies of an odd number of letters."""
    if len(completion) % 2:
        time.sleep(seconds)
    return 1.0


async def raises_for_some(rows: list, completions: list, *, finished: list) -> list:
    """The length of each reply, but nothing for groups whose prompts have an odd number of letters."""
    if len(str(rows[0]["prompt"])) % 2:
        raise OSError("no answer")
    return [float(len(text)) for text in completions]


@declares(deterministic=True)
def greedy_reference(model: Model, policy: Params, reference: Params, temperature: Scalar) -> Author:
    """The reference at temperature 0."""
    return Author(model, reference, 0.0)


def dpo_by_hand(pair: Pair, *, beta: Scalar = 0.1) -> Loss:
    """DPO, written out as a researcher would in a notebook."""
    logp = lambda side: jnp.sum((side.logp - side.ref_logp) * side.mask, axis=1)  # noqa: E731
    value_B = -jax.nn.log_sigmoid(beta * (logp(pair.chosen) - logp(pair.rejected)))
    return Loss(value=value_B, weight=pair.chosen.mask.any(1).astype(jnp.float32), metrics={})


def no_advantage(rollout: Rollout, score_B: Array, kl_coef: Array) -> tuple:
    """An estimator that says nothing of itself, and asks for nothing."""
    return rollout.replace(advantage=jnp.zeros_like(rollout.old_logp)), jnp.float32(0), {}
