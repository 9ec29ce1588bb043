"""From the rewards of a rollout to one score, and what is said of what was sampled."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.advantages import scorable
from alignax.ops.checks import needs
from alignax.ops.masked import masked_mean, masked_sum, masked_var
from alignax.train.algorithm import Algorithm, Weighing
from alignax.train.constraints import divisor, lagrangian
from alignax.train.state import OnlineState
from alignax.types import Rollout


def beside_reference(frozen: dict, rollout: Rollout, prompts: dict, group: int) -> Rollout:
    """The rollout with the rewards of the reference's replies to its prompts, where there is a table of them."""
    if "reference_rewards" not in frozen:
        return rollout
    rows_B = jnp.repeat(prompts["row"], group)
    return rollout.replace(reference_rewards={name: x[rows_B] for name, x in frozen["reference_rewards"].items()})


def scored(
    weighing: Weighing,
    rollout: Rollout,
    rewards: dict[str, Float[Array, "B *K"]],  # noqa: F821
    multipliers: Any = (),
) -> Rollout:
    """The rollout with its rewards, and their weighted sum as its score. Raises ValueError unless one is for each row.

    A reward that is not finite is missing, and so is then the score; one of weight 0 is for the log alone. Of an
    ensemble, whose members' scores are [B K], the standard deviation over them is logged beside what is made of them.
    Of rewards of steps, [B T], the sum is in the score. `multipliers`: of constraints, `OnlineState.multipliers`.
    """
    rewards, steps_BT = by_reply(weighing, rollout, rewards)
    if steps_BT is not None:
        steps_BT = steps_BT / divisor(weighing, multipliers)
    parts = {name: one_for_each(part, rollout.tokens, name) for name, part in combined(weighing, rewards).items()}
    spread = {f"{name}/disagreement": jnp.std(x, axis=1) for name, x in rewards.items() if jnp.ndim(x) == 2}
    score = total(weighing, parts, multipliers)
    return rollout.replace(rewards=parts | spread, score=score, step_rewards=steps_BT)


def total(weighing: Weighing, parts: dict[str, Float[Array, "*B"]], multipliers: Any = ()) -> Float[Array, "*B"]:
    """The weighted sum of rewards, and what those that are constraints make of it."""
    weighed = {name: jnp.where(jnp.asarray(w) == 0, 0.0, w * parts[name]) for name, w in weighing.weights.items()}
    return lagrangian(weighing, sum(weighed[name] for name in parts), parts, multipliers)  # pyright: ignore[reportArgumentType]


def by_reply(weighing: Weighing, rollout: Rollout, rewards: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """(the rewards, of steps their sums; the weighted rewards of steps at their tokens, None where there are none)."""
    if not weighing.per_step:
        return rewards, None
    tokens = rollout.tokens
    given = {name: jnp.asarray(rewards[name], jnp.float32) for name in weighing.per_step}
    for name, x in given.items():
        if x.shape != tokens.shape:
            raise ValueError(
                f"the reward {name!r} gave the shape {x.shape} for tokens {tokens.shape}: expected the same"
            )
    given = {name: jnp.where(rollout.mask, x, 0.0) for name, x in given.items()}
    weights = {name: jnp.asarray(weighing.weights[name]) for name in given}
    weighed = [jnp.where(weights[name] == 0, 0.0, weights[name] * x) for name, x in given.items()]
    return rewards | {name: x.sum(1) for name, x in given.items()}, sum(weighed)


def combined(weighing: Weighing, rewards: dict[str, Float[Array, "B *K"]]) -> dict[str, Float[Array, " B"]]:  # noqa: F821
    """The rewards with those that are made of members, and then of others."""
    made = weighing.combined
    parts = {name: made[name].function(x.T) if name in made else x for name, x in rewards.items()}
    for name, one in made.items():
        if one.of:
            parts[name] = one.function(jnp.stack([parts[x] for x in one.of]))
    return parts


def one_for_each(part: Any, tokens: Array, name: str) -> Array:
    """What a reward gave, as an array. Raises ValueError unless it is one number for each reply."""
    part = jnp.asarray(part, jnp.float32)
    if part.shape != tokens.shape[:1]:  # a column would broadcast in silence
        raise ValueError(
            f"the reward {name!r} gave the shape {part.shape} for {len(tokens)} replies: expected one for each"
        )
    return part


def shaped(algorithm: Algorithm, state: OnlineState, rollout: Rollout) -> Float[Array, " B"]:
    """The scores beside those of the reference's replies to the same prompts, where a function asks for them."""
    (score_B,) = needs(rollout, "score")
    if algorithm.shaping is None:
        return score_B
    (reference,) = needs(rollout, "reference_rewards")
    return algorithm.shaping(score_B, total(algorithm, reference, state.multipliers))


def metrics_of_samples(rollout: Rollout) -> dict:
    """Metrics of the policy's own replies: scores over those that have one, 0 where none has, and the share without."""
    score_B, finished_B = needs(rollout, "score", "finished")
    own_B, scored_B = rollout.own, rollout.own & scorable(score_B)
    ended_B, tokens_B = (x.astype(jnp.float32) for x in (finished_B, rollout.mask.sum(1)))
    metrics = {
        "objective/scores": masked_mean(score_B, scored_B),
        "objective/scores_sd": jnp.sqrt(masked_var(score_B, scored_B)),
        "objective/missing_scores": 1.0 - masked_mean(scored_B.astype(jnp.float32), own_B),
        "val/num_eos_tokens": masked_sum(ended_B, own_B),
        "completions/mean_length": masked_mean(tokens_B, own_B),
        "completions/clipped_ratio": 1.0 - masked_mean(ended_B, own_B),
    }
    parts = rollout.rewards or {}
    for name, part_B in parts.items() if len(parts) > 1 else ():  # of one alone the scores say it
        there_B = own_B & scorable(part_B)
        metrics[f"rewards/{name}/mean"] = masked_mean(part_B, there_B)
        metrics[f"rewards/{name}/std"] = jnp.sqrt(masked_var(part_B, there_B))
    return metrics
