"""Advantage estimators of the online stage: (rollout, scores, KL coefficient) -> (rollout to learn from, KL, metrics).

Each takes keyword-only `kl_in_reward` (False where the KL penalty is a term of the loss) and `group`, the replies per
prompt, which are neighbours among the rows; the config's `advantage_args` are the others. A rollout comes back with
`advantage`, and with `returns` where a critic learns. The mathematics is in `ops.returns` and `ops.advantages`.

Where an opponent replies as well (`Rollout.opponent`), the first reply of each group is the policy's, and KL, entropy
and the metrics are of the policy's alone.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

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
    metrics |= _of_groups(rollout, score_B, informative_B)
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
    metrics |= _of_groups(rollout, score_B, informative_B)
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
    metrics |= _of_groups(rollout, score_B, informative_B)
    return rollout.replace(mask=mask_BT, advantage=ops.spread(sign_B, mask_BT)), kl, metrics


def remax(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 2
) -> Advantages:
    """ReMax: the score minus that of the greedy reply to the same prompt, which the opponent 'greedy' gives.

    The KL in the reward is that of the whole reply; the greedy reply is charged with none. What the greedy policy did
    is masked. Li et al. 2023 (arXiv 2310.10505), Algorithm 1.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    reward_B = score_B - charged * kl_BT.sum(1)
    advantage_B = ops.remax(reward_B, score_B.reshape(-1, group)[:, 1])
    metrics["objective/rlhf_reward"] = _own_mean(rollout, reward_B)
    return _learn_from_own(rollout, advantage_B, ops.scorable(score_B)), kl, metrics


def win_probability(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 2
) -> Advantages:
    """P(y > y') - 1/2 for the policy's reply y, the mean over its opponents' replies y' to the same prompt.

    P = sigmoid(score - score'), the preference that a Bradley-Terry reward model states: give it unshaped scores. A KL
    in the reward is taken off P, that of the whole reply. Nash-MD (Munos et al. 2023, arXiv 2312.00886) with loss
    'nash_md', whose KL is inside. Opponents are masked.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    score_PM = score_B.reshape(-1, group)
    win_P = jnp.mean(jax.nn.sigmoid(score_PM[:, :1] - score_PM[:, 1:]), axis=1)
    reward_B = jnp.repeat(win_P, group) - charged * kl_BT.sum(1)
    metrics |= {"objective/rlhf_reward": _own_mean(rollout, reward_B), "objective/win_rate": jnp.nanmean(win_P)}
    return _learn_from_own(rollout, reward_B - 0.5, ops.scorable(score_B)), kl, metrics


def vbon(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int,
    n: int = 4, whiten_advantages: bool = True,
) -> Advantages:  # fmt: skip
    """Variational best-of-n: the reward (n - 1) log F(y), F the share of the reference's replies not better than y.

    The lower bound of Amini et al. 2024 (arXiv 2407.06057): with a KL coefficient of 1 in the reward it pulls the
    policy towards the distribution of the best of `n` replies of the reference. F is estimated from the M - 1 replies
    of the opponent 'reference' as (1 + those not better) / M, which cannot be 0: a Monte Carlo rank, a little too high
    where y is bad. The batch's mean is the baseline (whitening). Raises ValueError if n < 2.
    """
    require(n >= 2, f"vbon: n = {n}: expected the n of best-of-n, 2 or more")
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    score_PM = score_B.reshape(-1, group)
    known_PM = ops.scorable(score_B).reshape(-1, group)[:, 1:]
    rank_P = (1 + jnp.sum(score_PM[:, 1:] <= score_PM[:, :1], axis=1, where=known_PM)) / (1 + known_PM.sum(1))
    reward_B = jnp.repeat((n - 1) * jnp.log(rank_P), group) - charged * kl_BT.sum(1)
    rank = jnp.mean(rank_P, where=ops.scorable(score_B)[::group])
    metrics |= {"objective/rlhf_reward": _own_mean(rollout, reward_B), "objective/rank": rank}
    learnt = _learn_from_own(rollout, reward_B, ops.scorable(score_B))
    (advantage_BT,) = needs(learnt, "advantage")
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, learnt.mask)
    return learnt.replace(advantage=advantage_BT), kl, metrics


def _penalty(rollout: Rollout, kl_coef: Float[Array, ""], kl_in_reward: bool):
    """(k1 per token, its mean per reply, the coefficient that the reward is charged with, metrics)."""
    (ref_logp_BT,) = needs(rollout, "ref_logp")
    own_B = rollout.own
    kl_BT = jnp.where(rollout.mask & own_B[:, None], estimate("k1", rollout.old_logp, ref_logp_BT), 0.0)
    kl = jnp.mean(kl_BT.sum(1), where=own_B)
    charged = kl_coef if kl_in_reward else jnp.zeros_like(kl_coef)
    metrics = {
        "objective/kl": kl,
        "objective/entropy": jnp.mean(masked_sum(-rollout.old_logp, rollout.mask, axis=1), where=own_B),
        "objective/non_score_reward": -charged * kl,
    }
    return kl_BT, kl, charged, metrics


def _own_mean(rollout: Rollout, x_B: Float[Array, " B"]) -> Float[Array, ""]:
    """The mean over the policy's replies that have a score."""
    return jnp.nanmean(jnp.where(rollout.own, x_B, jnp.nan))


def _learn_from_own(rollout: Rollout, advantage_B: Float[Array, " B"], scored_B: Bool[Array, " B"]) -> Rollout:
    """The rollout with advantages, its opponents' rows masked, and those without a score."""
    known_B = scored_B & ops.scorable(advantage_B)
    mask_BT = rollout.mask & (rollout.own & known_B)[:, None]
    return rollout.replace(mask=mask_BT, advantage=ops.spread(advantage_B, mask_BT))


def _of_groups(rollout, score_B, informative_B) -> dict:
    return {
        "objective/rlhf_reward": _own_mean(rollout, score_B),
        "frac_reward_zero_std": 1.0 - informative_B.astype(jnp.float32).mean(),  # groups that teach nothing
    }
