"""What is made of the scores of a rollout before anything is learnt: shaping by their history, and what is kept."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops.advantages import informative, overlong_penalty, scorable
from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean
from alignax.train.state import Moments
from alignax.types import Rollout


def shape_scores(
    score_B: Float[Array, " B"], finished_B: Bool[Array, " B"], tokens_B: Int[Array, " B"], moments: Moments, *,
    max_tokens: int, normalize: bool = True, clip: Scalar = 5.0, missing_eos_penalty: Scalar = 1.0,
    overlong_buffer: int = 0,
) -> tuple[Float[Array, " B"], Moments]:  # fmt: skip
    """Normalises by the history of scores, this batch included, clips, and charges for length and a missing end.

    Historical moments and clipping (in standard deviations where scores are normalised; 0 is off): Zheng et al. 2023,
    PPO-max, 2307.04964. The penalties come last, so that they are in the unit of the reward that the policy sees and no
    clipping hides them: `missing_eos_penalty` for a reply without an end of sequence (Huang et al. 2024, 2403.17031,
    detail 23), and DAPO's for the last `overlong_buffer` of `max_tokens` tokens (`ops.advantages.overlong_penalty`; 0
    is off). Raises ValueError if clip or the penalty is negative.
    """
    require(clip >= 0, f"clip = {clip}: expected 0 (off) or more, such as 5.0")
    require(missing_eos_penalty >= 0, f"missing_eos_penalty = {missing_eos_penalty}: expected 0 (none) or more")
    score_B = jnp.where(jnp.isfinite(score_B), score_B, jnp.nan)  # missing: no clip may turn it into a score
    moments = update_moments(moments, score_B)
    if normalize:
        score_B = (score_B - moments.mean) / jnp.sqrt(moments.square / jnp.maximum(moments.count - 1, 1) + 1e-8)
    limit = jnp.where(clip > 0, clip, jnp.inf)
    score_B = jnp.clip(score_B, -limit, limit)
    score_B = score_B - missing_eos_penalty * ~finished_B
    if overlong_buffer:
        score_B = score_B + overlong_penalty(tokens_B, max_tokens=max_tokens, buffer_tokens=overlong_buffer)
    return score_B, moments


def update_moments(moments: Moments, x_B: Float[Array, " B"]) -> Moments:
    """Adds a batch to running moments (Chan et al. 1979, the parallel form of Welford's update); missing scores, which
    are not finite, take no part."""
    known_B = jnp.isfinite(x_B)
    new = jnp.sum(known_B, dtype=jnp.float32)
    mean_of_new = masked_mean(x_B, known_B)
    count = moments.count + new
    gap = jnp.where(new > 0, mean_of_new - moments.mean, 0.0)
    mean = moments.mean + gap * new / jnp.maximum(count, 1)
    spread = jnp.sum(jnp.square(x_B - mean_of_new), where=known_B)
    square = moments.square + spread + gap**2 * moments.count * new / jnp.maximum(count, 1)
    return Moments(count=count, mean=mean, square=square)


def keep_informative(score_B: Float[Array, " B"], *, group: int, keep: int) -> Int[Array, " b"]:
    """The rows of `keep` groups: those whose scores differ first, in their order, then the others if they must.

    DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476) in a program of fixed size: more groups are sampled than
    are learnt from. What is kept but has equal scores has the advantage 0; mask it with `only_informative`.
    """
    useful_P = informative(score_B, group=group).reshape(-1, group).any(axis=1)
    order_P = jnp.argsort(~useful_P, stable=True)[:keep]
    return group_rows(order_P, group)


def group_rows(prompts_P: Int[Array, " P"], group: int) -> Int[Array, " B"]:
    """The rows of the replies to these prompts."""
    return (prompts_P[:, None] * group + jnp.arange(group)[None, :]).ravel()


def only_scored(rollout: Rollout, score_B: Float[Array, " B"]) -> Rollout:
    """The rollout without the rows whose score is missing, nor those whose advantages or returns are not finite.

    The estimators of `train.advantages` mask theirs; one from outside may not know that a score can be missing.
    """
    targets = {name: x for name in ("advantage", "returns") if (x := getattr(rollout, name)) is not None}
    known_B = scorable(score_B)
    for x_BT in targets.values():
        known_B &= jnp.all(jnp.isfinite(x_BT) | ~rollout.mask, axis=1)
    mask_BT = rollout.mask & known_B[:, None]
    return rollout.replace(mask=mask_BT, **{name: jnp.where(mask_BT, x_BT, 0.0) for name, x_BT in targets.items()})
