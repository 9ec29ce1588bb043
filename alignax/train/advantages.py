"""Advantage estimators of the online stage: (rollout, scores, KL coefficient) -> (rollout to learn from, KL, metrics).

Each takes keyword-only `kl_in_reward` (False where the KL penalty is a term of the loss) and `group`, the replies per
prompt, which are neighbours among the rows; the config's `advantage_args` are the others. A rollout comes back with
`advantage`, and with `returns` where a critic learns. The mathematics is in `ops.returns` and `ops.advantages`.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops import advantages as ops
from alignax.ops import returns
from alignax.ops.checks import needs, require
from alignax.ops.kl import estimate
from alignax.ops.masked import masked_mean, masked_sum, masked_var, whiten
from alignax.types import Rollout

Advantages = tuple[Rollout, Float[Array, ""], dict]

BASELINES = {"leave_one_out": ops.leave_one_out, "mean": ops.group_mean, "standardise": ops.group_standardise}


def gae(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 1,
    gamma: float = 1.0, lam: float = 0.95, whiten_rewards: bool = False, whiten_advantages: bool = True,
) -> Advantages:  # fmt: skip
    """PPO: token rewards -coef * k1 + score at the last token, GAE, whitening. Also returns the KL that was measured.

    Rewards are whitened without moving their mean. The one estimator here with a critic; `group` changes nothing.
    """
    del group
    (old_value_BT,) = needs(rollout, "old_value")
    mask_BT = rollout.mask
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    rewards_BT = returns.token_rewards(score_B, kl_BT, mask_BT, charged)
    metrics["objective/rlhf_reward"] = rewards_BT.sum(1).mean()
    if whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    advantage_BT, returns_BT = returns.gae(rewards_BT, old_value_BT, mask_BT, gamma=gamma, lam=lam)
    unexplained = masked_var(returns_BT - old_value_BT, mask_BT)
    metrics["critic/vf_explained_var"] = 1.0 - unexplained / jnp.maximum(masked_var(returns_BT, mask_BT), 1e-8)
    metrics["critic/values"] = masked_mean(old_value_BT, mask_BT)
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, mask_BT)
    return rollout.replace(advantage=advantage_BT, returns=returns_BT), kl, metrics


def group_baseline(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int,
    baseline: str = "leave_one_out", only_informative: bool = False, whiten_advantages: bool = False,
) -> Advantages:  # fmt: skip
    """One advantage per reply, from the scores of its group; the KL in the reward is that of the whole reply.

    baseline: 'leave_one_out' is RLOO's, 'mean' Dr. GRPO's, 'standardise' GRPO's and DAPO's (`ops.advantages`).
    `only_informative` masks the groups whose scores are all equal (DAPO). `whiten_advantages` is over the batch's
    tokens (REINFORCE++-baseline, with 'mean'). Raises ValueError for an unknown baseline or a group of 1.
    """
    require(baseline in BASELINES, f"baseline = {baseline!r}: expected one of {', '.join(BASELINES)}")
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    informative_B = ops.informative(score_B, group=group)  # of the reward: every reply has another KL
    score_B = score_B - charged * kl_BT.sum(1)
    keep_B = ops.scorable(score_B) & (informative_B | (not only_informative))
    mask_BT = rollout.mask & keep_B[:, None]
    advantage_BT = ops.spread(BASELINES[baseline](score_B, group=group), mask_BT)
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, mask_BT)
    metrics |= _of_groups(score_B, informative_B)
    return rollout.replace(mask=mask_BT, advantage=advantage_BT), kl, metrics


def reinforce_plus_plus(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 1,
    gamma: float = 1.0,
) -> Advantages:  # fmt: skip
    """The reward to go of each token, -coef * k1 and the score at the end, whitened over the batch: no baseline."""
    del group
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    mask_BT = rollout.mask & ops.scorable(score_B)[:, None]
    advantage_BT = ops.reinforce_plus_plus(score_B, kl_BT, mask_BT, charged, gamma=gamma)
    metrics["objective/rlhf_reward"] = jnp.nanmean(score_B - charged * kl_BT.sum(1))
    return rollout.replace(mask=mask_BT, advantage=advantage_BT), kl, metrics


def winners(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int
) -> Advantages:
    """Advantage 1 for the best reply of each group, the others masked: with loss 'reinforce' this is RAFT."""
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    informative_B = ops.informative(score_B, group=group)
    score_B = score_B - charged * kl_BT.sum(1)
    mask_BT = rollout.mask & ops.winners(score_B, group=group)[:, None]
    metrics |= _of_groups(score_B, informative_B)
    return rollout.replace(mask=mask_BT, advantage=mask_BT.astype(jnp.float32)), kl, metrics


def best_and_worst(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int
) -> Advantages:
    """Advantage 1 for the best reply of each group, -1 for the worst, the others masked, and groups of equal scores.

    With a loss on pairs this is online DPO (Guo et al. 2024, arXiv 2402.04792): the reward is the annotator.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    informative_B = ops.informative(score_B, group=group)
    score_B = score_B - charged * kl_BT.sum(1)
    sign_B = ops.winners(score_B, group=group).astype(jnp.float32) - ops.winners(-score_B, group=group)
    mask_BT = rollout.mask & (informative_B & (sign_B != 0))[:, None]
    metrics |= _of_groups(score_B, informative_B)
    return rollout.replace(mask=mask_BT, advantage=ops.spread(sign_B, mask_BT)), kl, metrics


def _penalty(rollout: Rollout, kl_coef: Float[Array, ""], kl_in_reward: bool):
    """(k1 per token, its mean per reply, the coefficient that the reward is charged with, metrics)."""
    (ref_logp_BT,) = needs(rollout, "ref_logp")
    kl_BT = jnp.where(rollout.mask, estimate("k1", rollout.old_logp, ref_logp_BT), 0.0)
    kl = kl_BT.sum(1).mean()
    charged = kl_coef if kl_in_reward else jnp.zeros_like(kl_coef)
    metrics = {
        "objective/kl": kl,
        "objective/entropy": masked_sum(-rollout.old_logp, rollout.mask, axis=1).mean(),
        "objective/non_score_reward": -charged * kl,
    }
    return kl_BT, kl, charged, metrics


def _of_groups(score_B, informative_B) -> dict:
    return {
        "objective/rlhf_reward": jnp.nanmean(score_B),
        "frac_reward_zero_std": 1.0 - informative_B.astype(jnp.float32).mean(),  # groups that teach nothing
    }
