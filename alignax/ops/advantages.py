"""From one score per reply to advantages: baselines from the group, the batch or a greedy reply, and what shapes them.

Rows come in groups: the M = `group` replies to a prompt are neighbours, B = P * M. A score that is not finite (nan: the
reply could not be scored) is missing; 0.0 is a score like any other. A missing score takes no part in its group's
statistics and gets the advantage 0. Its row must not count either: `mask_BT & scorable(score_B)[:, None]`.
Advantages per row, [B], become one per action token by `spread`. Nothing here has a gradient worth taking.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean, masked_var, ratio, whiten
from alignax.ops.returns import gae, token_rewards

# ---- groups -------------------------------------------------------------------------------------------------------


def scorable(score_B: Float[Array, " B"]) -> Bool[Array, " B"]:
    """Rows that have a score: finite ones."""
    return jnp.isfinite(score_B)


def comparable(score_B: Float[Array, " B"], *, group: int) -> Bool[Array, " B"]:
    """Rows that have a score, as another row of their group has: a lone one has nothing to be better than."""
    counts_PM = _groups(score_B, group)[1]
    return (counts_PM & (jnp.sum(counts_PM, axis=1, keepdims=True) > 1)).ravel()


def group_mean(score_B: Float[Array, " B"], *, group: int) -> Float[Array, " B"]:
    """R_i - mean_j R_j over the group: Dr. GRPO's advantage (Liu et al. 2025), GRPO's without the division by std.

    The mean holds R_i itself, so the policy gradient comes out (M - 1) / M times as long, in the right direction.
    """
    score_PM, counts_PM = _groups(score_B, group)
    total_P1, count_P1 = (jnp.sum(x, axis=1, keepdims=True) for x in (score_PM, counts_PM.astype(jnp.float32)))
    # equal rewards give exactly 0: rounding must not be what a division by their std magnifies
    differ_PM = counts_PM & _differ(score_PM, counts_PM)
    return jnp.where(differ_PM, score_PM - ratio(total_P1, count_P1), 0.0).ravel()


def leave_one_out(score_B: Float[Array, " B"], *, group: int) -> Float[Array, " B"]:
    """R_i - mean_{j != i} R_j over the group: RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

    The baseline does not know R_i, so the policy gradient is unbiased. It is M / (M - 1) times `group_mean`. A row that
    is its group's only one with a score has no baseline and gets 0, and equal scores give exactly 0.
    """
    score_PM, counts_PM = _groups(score_B, group)
    total_P1, count_P1 = (jnp.sum(x, axis=1, keepdims=True) for x in (score_PM, counts_PM.astype(jnp.float32)))
    others_PM = ratio(total_P1 - score_PM, jnp.broadcast_to(count_P1 - 1, score_PM.shape))
    return jnp.where(counts_PM & _differ(score_PM, counts_PM), score_PM - others_PM, 0.0).ravel()


def group_standardise(score_B: Float[Array, " B"], *, group: int, eps: Scalar = 1e-4) -> Float[Array, " B"]:
    """(R_i - mean) / (std + eps) over the group: GRPO (Shao et al. 2024, arXiv 2402.03300). `group_mean` is std off.

    std is the unbiased one and eps = 1e-4, as in TRL (verl: 1e-6). Dividing by std weighs prompts that are nearly
    always or nearly never solved more than others (Liu et al. 2025).
    """
    score_PM, counts_PM = _groups(score_B, group)
    std_P = jnp.sqrt(masked_var(score_PM, counts_PM, axis=1, ddof=1))
    return group_mean(score_B, group=group) / (jnp.repeat(std_P, group) + eps)


def decoupled(
    rewards_KB: Float[Array, "K B"], weights_K: Float[Array, " K"], *, group: int, eps: Scalar = 1e-4
) -> Float[Array, " B"]:
    """sum_k w_k (r_ki - mean_k) / (std_k + eps), each of K rewards standardised over the group by itself: GDPO.

    Liu et al. 2026 (arXiv 2601.05242), who whiten it over the batch then; `group_standardise` with the batch as one
    group does. Of two groups of two replies with two rewards of 0 or 1, let the better reply of one be better in one
    reward, that of the other in both. Standardised sums are the same for both; here the second counts twice as much.

    A row that misses one of its rewards is missing, and so no part of any statistic; a reward of weight 0 is not looked
    at.
    """
    looked_at_K1 = (weights_K != 0)[:, None]
    known_B = jnp.all(jnp.isfinite(rewards_KB) | ~looked_at_K1, axis=0)
    standardise = jax.vmap(lambda reward_B: group_standardise(reward_B, group=group, eps=eps))
    standard_KB = jnp.where(looked_at_K1, standardise(jnp.where(known_B, rewards_KB, jnp.nan)), 0.0)
    return jnp.sum(weights_K[:, None] * standard_KB, axis=0)


def informative(score_B: Float[Array, " B"], *, group: int) -> Bool[Array, " B"]:
    """Rows whose group has two different scores: DAPO's dynamic sampling keeps these (Yu et al. 2025, 2503.14476).

    The others have the advantage 0 and teach nothing, but a token mean would count their tokens. Missing scores do not
    make a difference, and their own rows are not kept.
    """
    score_PM, counts_PM = _groups(score_B, group)
    return (counts_PM & _differ(score_PM, counts_PM)).ravel()


def level_share(score_B: Float[Array, " B"], *, group: int) -> Float[Array, ""]:
    """The share of groups whose scores are all equal, of those with two scores or more; 0 if there is none.

    A group with fewer has nothing to be level with: it was not scored, which says nothing of the reward.
    """
    score_PM, counts_PM = _groups(score_B, group)
    level_P = ~_differ(score_PM, counts_PM)[:, 0]
    return masked_mean(level_P.astype(jnp.float32), jnp.sum(counts_PM, axis=1) > 1)


def winners(score_B: Float[Array, " B"], *, group: int) -> Bool[Array, " B"]:
    """The best row of each group, the first of equals; none where every score is missing.

    RAFT (Dong et al. 2023, arXiv 2304.06767) is best-of-M selection and then `losses.sft` on the winners: their mask is
    `mask_BT & winners(score_B, group=M)[:, None]`.
    """
    score_PM, counts_PM = _groups(score_B, group)
    best_P = jnp.argmax(jnp.where(counts_PM, score_PM, -jnp.inf), axis=1)
    return (counts_PM & (jnp.arange(group)[None] == best_P[:, None])).ravel()


def whiten_groups(
    x_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"], *, group: int, shift_mean: bool = True, eps: Scalar = 1e-8
) -> Float[Array, "B T"]:
    """`masked.whiten` within each group, over its action tokens: tool tokens and padding are skipped, and stay 0."""
    rows = _check_group(x_BT.shape[0], group)
    x_PMT, mask_PMT = (y_BT.reshape(rows, group, -1) for y_BT in (x_BT, mask_BT))
    return jax.vmap(lambda x, mask: whiten(x, mask, shift_mean=shift_mean, eps=eps))(x_PMT, mask_PMT).reshape(
        x_BT.shape
    )


# ---- other baselines ----------------------------------------------------------------------------------------------


def remax(score_B: Float[Array, " B"], greedy_P: Float[Array, " P"]) -> Float[Array, " B"]:
    """R_i - R(greedy reply to the same prompt): ReMax (Li et al. 2023, arXiv 2310.10505); groups of one will do.

    A prompt whose greedy reply is not scored gives 0 to all its rows.
    """
    rows, prompts = score_B.shape[0], greedy_P.shape[0]
    require(
        prompts > 0 and rows % prompts == 0,
        f"remax: {rows} rows for {prompts} prompts: expected the same number of replies, neighbours, for each prompt",
    )
    advantage_B = score_B.astype(jnp.float32) - jnp.repeat(greedy_P.astype(jnp.float32), rows // max(prompts, 1))
    return jnp.where(scorable(advantage_B), advantage_B, 0.0)


def reinforce_plus_plus(
    score_B: Float[Array, " B"],
    kl_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    coef: Scalar,
    *,
    gamma: Scalar = 1.0,
    eps: Scalar = 1e-8,
    steps_BT: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """REINFORCE++ (Hu 2025, arXiv 2501.03262): the reward to go of every action token, whitened over the batch.

    The reward is -coef * kl at every action token plus the score at the last one (`returns.token_rewards`); kl_BT is an
    estimate fit for a reward (k1), nats. Rows without a score are left out of mean and variance, and are 0.
    """
    mask_BT = mask_BT & scorable(score_B)[:, None]
    rewards_BT = token_rewards(jnp.where(scorable(score_B), score_B, 0.0), kl_BT, mask_BT, coef, steps_BT)
    to_go_BT, _ = gae(rewards_BT, jnp.zeros_like(rewards_BT), mask_BT, gamma=gamma, lam=1.0)
    return whiten(to_go_BT, mask_BT, eps=eps)


# ---- shapes and penalties -----------------------------------------------------------------------------------------


def spread(advantage_B: Float[Array, " B"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The row's advantage at each of its action tokens, zeros elsewhere."""
    return jnp.where(mask_BT, advantage_B.astype(jnp.float32)[:, None], 0.0)


def overlong_penalty(tokens_B: Int[Array, " B"], *, max_tokens: int, buffer_tokens: int) -> Float[Array, " B"]:
    """DAPO's soft punishment (Yu et al. 2025, arXiv 2503.14476), to be added to the score; n the reply's tokens:

        0                                               if n <= max_tokens - buffer_tokens
        (max_tokens - buffer_tokens - n) / buffer_tokens    up to max_tokens
        -1                                              beyond

    DAPO's values are 20480 and 4096. Raises ValueError unless 0 < buffer_tokens <= max_tokens.
    """
    require(
        0 < buffer_tokens <= max_tokens,
        f"overlong_penalty: buffer_tokens = {buffer_tokens}: expected 1 to max_tokens = {max_tokens} tokens",
    )
    over_B = tokens_B.astype(jnp.float32) - (max_tokens - buffer_tokens)
    return -jnp.clip(over_B / buffer_tokens, 0.0, 1.0)


def _groups(score_B, group):
    """Scores [P M] with zeros for missing ones, and which count."""
    rows = _check_group(score_B.shape[0], group)
    counts_B = scorable(score_B)
    return jnp.where(counts_B, score_B.astype(jnp.float32), 0.0).reshape(rows, group), counts_B.reshape(rows, group)


def _check_group(rows: int, group: int) -> int:
    """The number of groups."""
    require(group > 1, f"group = {group}: a group estimator needs 2 replies per prompt or more; remax works with 1")
    require(rows % group == 0, f"{rows} rows in groups of group = {group}: expected a multiple of the group size")
    return rows // group


def _differ(score_PM, counts_PM):
    """[P 1]: two scores of the group differ."""
    least_P1 = jnp.min(score_PM, axis=1, keepdims=True, initial=jnp.inf, where=counts_PM)
    most_P1 = jnp.max(score_PM, axis=1, keepdims=True, initial=-jnp.inf, where=counts_PM)
    return least_P1 < most_P1
