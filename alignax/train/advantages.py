"""Advantage estimators of the online stage: (rollout, scores, KL coefficient) -> (rollout to learn from, KL, metrics).

Each takes keyword-only `kl_in_reward` (False where the KL penalty is a term of the loss), `group`, the replies per
prompt, which are neighbours among the rows, and `weights`, of the rewards by name, or those of them that it reads; the
config's `advantage_args` are the others. A rollout comes back with `advantage`, and with `returns` where a critic
learns. The mathematics is in `ops.returns` and `ops.advantages`.

A reply whose score or KL is not finite teaches nothing: its row is masked, for policy and critic, and no statistic sees
it. So is one whose opponents all lack a score; where some have one, it is compared with those.

Where an opponent replies as well (`Rollout.source`), the first reply of each group is the policy's, and KL, entropy
and the metrics are of the policy's alone.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops import advantages as ops
from alignax.ops import returns
from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.kl import estimate
from alignax.ops.masked import masked_mean, masked_sum, masked_var, whiten
from alignax.types import Rollout

Advantages = tuple[Rollout, Float[Array, ""], dict]

BASELINES = {"leave_one_out": ops.leave_one_out, "mean": ops.group_mean, "standardise": ops.group_standardise}


@declares(critic=True, opponents=("none",))
def gae(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 1,
    gamma: Scalar = 1.0, lam: Scalar = 0.95, whiten_rewards: bool = False, whiten_advantages: bool = True,
) -> Advantages:  # fmt: skip
    """PPO: token rewards -coef * k1 + score at the last token, GAE, whitening. Also returns the KL that was measured.

    Rewards are whitened without moving their mean. The one estimator here with a critic; `group` changes nothing.
    """
    del group
    (old_value_BT,) = needs(rollout, "old_value")
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    known_B = ops.scorable(score_B - charged * kl_BT.sum(1))
    mask_BT = rollout.mask & known_B[:, None]
    rewards_BT = returns.token_rewards(score_B, kl_BT, mask_BT, charged, rollout.step_rewards)
    metrics["objective/rlhf_reward"] = masked_mean(rewards_BT.sum(1), known_B)
    if whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    advantage_BT, returns_BT = returns.gae(rewards_BT, old_value_BT, mask_BT, gamma=gamma, lam=lam)
    unexplained = masked_var(returns_BT - old_value_BT, mask_BT)
    metrics["critic/vf_explained_var"] = 1.0 - unexplained / jnp.maximum(masked_var(returns_BT, mask_BT), 1e-8)
    metrics["critic/values"] = masked_mean(old_value_BT, mask_BT)
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, mask_BT)
    return rollout.replace(mask=mask_BT, advantage=advantage_BT, returns=returns_BT), kl, metrics


@declares(critic=False, opponents=("none",), compares=True)
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
    informative_B = ops.informative(score_B, group=group)  # of the score: every reply has another KL
    reward_B = score_B - charged * kl_BT.sum(1)
    keep_B = ops.comparable(reward_B, group=group) & (informative_B | (not only_informative))
    mask_BT = rollout.mask & keep_B[:, None]
    advantage_BT = ops.spread(BASELINES[baseline](reward_B, group=group), mask_BT)
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, mask_BT)
    metrics |= _of_groups(rollout, score_B, reward_B, group)
    return rollout.replace(mask=mask_BT, advantage=advantage_BT), kl, metrics


@declares(critic=False, opponents=("none",), compares=True, reads_parts=True)
def gdpo(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, group: int,
    weights: Mapping[str, Scalar], whiten_advantages: bool = True,
) -> Advantages:  # fmt: skip
    """GDPO: each reward of the rollout standardised in its group by itself, their weighted sum whitened over replies.

    Liu et al. 2026 (arXiv 2601.05242), TRL's "normalize_then_sum": see `ops.advantages.decoupled`. `weights` are those
    of the rewards, by name. Of the score it reads only whether it is there, as shaping a sum changes no part of it; a
    KL is a term of the loss. With one reward and without whitening it is GRPO's advantage. Raises ValueError for a
    group of 1.
    """
    (rewards,) = needs(rollout, "rewards")
    _, kl, _, metrics = _penalty(rollout, kl_coef, False)
    keep_B = ops.comparable(score_B, group=group)
    rewards_KB = jnp.where(keep_B, jnp.stack([rewards[name] for name in weights]), jnp.nan)
    weights_K = jnp.stack([jnp.asarray(weight, jnp.float32) for weight in weights.values()])
    advantage_B = ops.decoupled(rewards_KB, weights_K, group=group)
    metrics |= _of_groups(rollout, jnp.where(keep_B, advantage_B, jnp.nan), score_B, group)
    if whiten_advantages:  # the batch as one group
        advantage_B = ops.group_standardise(jnp.where(keep_B, advantage_B, jnp.nan), group=len(advantage_B))
    mask_BT = rollout.mask & keep_B[:, None]
    return rollout.replace(mask=mask_BT, advantage=ops.spread(advantage_B, mask_BT)), kl, metrics


@declares(critic=False, opponents=("none",))
def reinforce_plus_plus(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 1,
    gamma: Scalar = 1.0,
) -> Advantages:  # fmt: skip
    """The reward to go of each token, -coef * k1 and the score at the end, whitened over the batch: no baseline."""
    del group
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    reward_B = score_B - charged * kl_BT.sum(1)
    mask_BT = rollout.mask & ops.scorable(reward_B)[:, None]
    steps = {"gamma": gamma, "steps_BT": rollout.step_rewards}
    advantage_BT = ops.reinforce_plus_plus(score_B, kl_BT, mask_BT, charged, **steps)
    metrics["objective/rlhf_reward"] = _own_mean(rollout, reward_B)
    return rollout.replace(mask=mask_BT, advantage=advantage_BT), kl, metrics


@declares(critic=False, opponents=("none",), compares=True, chosen_only=True)
def winners(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int
) -> Advantages:
    """Advantage 1 for the best reply of each group, the others masked: with loss 'reinforce' this is RAFT."""
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    reward_B = score_B - charged * kl_BT.sum(1)
    best_B = ops.winners(reward_B, group=group) & ops.comparable(reward_B, group=group)
    mask_BT = rollout.mask & best_B[:, None]
    metrics |= _of_groups(rollout, score_B, reward_B, group)
    return rollout.replace(mask=mask_BT, advantage=mask_BT.astype(jnp.float32)), kl, metrics


@declares(critic=False, opponents=("none", "reference"), compares=True, chosen_only=True, pairs=True)
def best_and_worst(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int
) -> Advantages:
    """Advantage 1 for the best reply of each group, -1 for the worst, the others masked, and groups of equal scores.

    With a loss on pairs this is online DPO (Guo et al. 2024, arXiv 2402.04792): the reward is the annotator.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    informative_B = ops.informative(score_B, group=group)
    reward_B = score_B - charged * kl_BT.sum(1)
    sign_B = ops.winners(reward_B, group=group).astype(jnp.float32) - ops.winners(-reward_B, group=group)
    mask_BT = rollout.mask & (informative_B & (sign_B != 0))[:, None]
    metrics |= _of_groups(rollout, score_B, reward_B, group)
    return rollout.replace(mask=mask_BT, advantage=ops.spread(sign_B, mask_BT)), kl, metrics


@declares(critic=False, opponents=("greedy",), compares=True)
def remax(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 2
) -> Advantages:
    """ReMax: the score minus that of the greedy reply to the same prompt, which the opponent 'greedy' gives.

    The KL in the reward is that of the whole reply; the greedy reply is charged with none. What the greedy policy did
    is masked. Li et al. 2023 (arXiv 2310.10505), Algorithm 1.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    reward_B = score_B - charged * kl_BT.sum(1)
    greedy_P = score_B.reshape(-1, group)[:, 1]
    metrics["objective/rlhf_reward"] = _own_mean(rollout, reward_B)
    known_B = ops.scorable(reward_B) & jnp.repeat(ops.scorable(greedy_P), group)
    return _learn_from_own(rollout, ops.remax(reward_B, greedy_P), known_B), kl, metrics


@declares(critic=False, opponents=("mixture", "reference", "greedy"), compares=True)
def win_probability(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool, group: int = 2
) -> Advantages:
    """P(y > y') - 1/2 for the policy's reply y, the mean over its opponents' replies y' to the same prompt.

    P = sigmoid(score - score'), the preference that a Bradley-Terry reward model states: give it unshaped scores. A KL
    in the reward is taken off P, that of the whole reply. Nash-MD (Munos et al. 2023, arXiv 2312.00886) with loss
    'nash_md', whose KL is inside. Opponents are masked.
    """
    kl_BT, kl, charged, metrics = _penalty(rollout, kl_coef, kl_in_reward)
    own_P1, theirs_PM, met_PM = _sides(score_B, group)
    win_P = masked_mean(jax.nn.sigmoid(own_P1 - theirs_PM), met_PM, axis=1)
    reward_B = jnp.repeat(jnp.where(met_PM.any(1), win_P, jnp.nan), group) - charged * kl_BT.sum(1)
    win_rate = masked_mean(win_P, met_PM.any(1))
    metrics |= {"objective/rlhf_reward": _own_mean(rollout, reward_B), "objective/win_rate": win_rate}
    return _learn_from_own(rollout, reward_B - 0.5, ops.scorable(reward_B)), kl, metrics


@declares(critic=False, opponents=("reference",), compares=True)
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
    own_P1, theirs_PM, met_PM = _sides(score_B, group)
    rank_P = (1 + jnp.sum(theirs_PM <= own_P1, axis=1, where=met_PM)) / (1 + met_PM.sum(1))
    reward_P = jnp.where(met_PM.any(1), (n - 1) * jnp.log(rank_P), jnp.nan)
    reward_B = jnp.repeat(reward_P, group) - charged * kl_BT.sum(1)
    rank = masked_mean(rank_P, met_PM.any(1))
    metrics |= {"objective/rlhf_reward": _own_mean(rollout, reward_B), "objective/rank": rank}
    learnt = _learn_from_own(rollout, reward_B, ops.scorable(reward_B))
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


def _sides(score_B: Float[Array, " B"], group: int) -> tuple[Array, Array, Array]:
    """Scores of the policy's replies [P 1] and of their opponents' [P M-1], and which of these can be compared."""
    score_PM, known_PM = (x.reshape(-1, group) for x in (score_B, ops.scorable(score_B)))
    return score_PM[:, :1], score_PM[:, 1:], known_PM[:, :1] & known_PM[:, 1:]


def _own_mean(rollout: Rollout, x_B: Float[Array, " B"]) -> Float[Array, ""]:
    """The mean over the policy's replies that have a score; 0 if none has."""
    return masked_mean(x_B, rollout.own & ops.scorable(x_B))


def _learn_from_own(rollout: Rollout, advantage_B: Float[Array, " B"], known_B: Bool[Array, " B"]) -> Rollout:
    """The rollout with advantages, its opponents' rows masked, and those whose advantage is not known."""
    mask_BT = rollout.mask & (rollout.own & known_B)[:, None]
    return rollout.replace(mask=mask_BT, advantage=ops.spread(advantage_B, mask_BT))


def _of_groups(rollout: Rollout, score_B: Float[Array, " B"], reward_B: Float[Array, " B"], group: int) -> dict:
    """The mean reward, less its KL, and the share of groups that teach nothing: of the scores, as every KL differs."""
    return {
        "objective/rlhf_reward": _own_mean(rollout, reward_B),
        "frac_reward_zero_std": ops.level_share(score_B, group=group),
    }
