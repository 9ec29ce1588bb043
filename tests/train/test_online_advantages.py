"""What the online stage learns from: the estimators without a critic on four replies to two prompts, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax import forward
from alignax.config import names_of
from alignax.ops import advantages as ops
from alignax.train import advantages
from alignax.train.scores import keep_informative
from alignax.types import Rollout

OPPONENTS = ("remax", "win_probability", "vbon")
# Replies of 2, 1, 2 and 1 tokens after a prompt of 1; KL of 0.1 per token.
MASK = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]], bool)
SCORES = jnp.array([1.0, 3.0, 5.0, 5.0])  # the second prompt's replies are alike


def rollout():
    mask = jnp.asarray(MASK)
    old = jnp.where(mask, -1.0, 0.0)
    return Rollout(
        tokens=jnp.zeros((4, 3), jnp.int32), valid=mask.at[:, 0].set(True), mask=mask, old_logp=old,
        ref_logp=jnp.where(mask, -1.1, 0.0),
    )  # fmt: skip


def estimate(function, scores=SCORES, coef=0.0, kl_in_reward=True, **options):
    return function(rollout(), scores, jnp.float32(coef), kl_in_reward=kl_in_reward, group=2, **options)


@pytest.mark.parametrize(
    "baseline, first",  # scores 1 and 3: mean 2, the other's score, and the sd over 2 replies: sqrt(2)
    [("mean", -1.0), ("leave_one_out", -2.0), ("standardise", -1.0 / (2**0.5 + 1e-4))],
)
def test_group_baselines(baseline, first):
    found, kl, metrics = estimate(advantages.group_baseline, baseline=baseline)
    np.testing.assert_allclose(found.advantage, MASK * np.array([[first], [-first], [0], [0]]), rtol=1e-5)
    np.testing.assert_array_equal(found.mask, MASK)
    np.testing.assert_allclose(kl, (0.2 + 0.1 + 0.2 + 0.1) / 4, rtol=1e-5)
    assert metrics["frac_reward_zero_std"] == 0.5 and metrics["objective/rlhf_reward"] == 3.5
    _, _, metrics = estimate(advantages.group_baseline, scores=jnp.array([1.0, 3.0, jnp.nan, jnp.nan]))
    assert metrics["frac_reward_zero_std"] == 0 and metrics["objective/rlhf_reward"] == 2.0  # of the scored group


def test_the_kl_of_the_whole_reply_is_charged_before_the_baseline():
    # coefficient 10: the scores become 1 - 2, 3 - 1, 5 - 2 and 5 - 1, or stay where the penalty is in the loss
    found, _, metrics = estimate(advantages.group_baseline, coef=10.0, baseline="mean")
    np.testing.assert_allclose(found.advantage[:, 1], [-1.5, 1.5, -0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/non_score_reward"], -1.5, rtol=1e-5)
    free = estimate(advantages.group_baseline, coef=10.0, kl_in_reward=False, baseline="mean")[0]
    np.testing.assert_allclose(free.advantage[:, 1], [-1, 1, 0, 0], rtol=1e-6)


def test_groups_of_equal_scores_are_masked_if_asked():
    found = estimate(advantages.group_baseline, baseline="mean", only_informative=True)[0]
    np.testing.assert_array_equal(found.mask, MASK & np.array([[1], [1], [0], [0]], bool))


def test_a_different_kl_does_not_make_equal_rewards_informative():
    # the second prompt's replies have one score and KLs of 0.2 and 0.1, charged with 10
    for function, options in ((advantages.group_baseline, {"only_informative": True}), (advantages.best_and_worst, {})):
        found, _, metrics = estimate(function, coef=10.0, **options)
        assert not found.mask[2:].any() and found.mask[:2].any() and metrics["frac_reward_zero_std"] == 0.5


def test_a_missing_score_is_masked_and_poisons_nothing_and_zero_is_no_missing_score():
    # the last reply has nothing in its group to be compared with, which only a method without groups does not mind
    for function, lone in ((advantages.group_baseline, False), (advantages.reinforce_plus_plus, True)):
        found = estimate(function, scores=jnp.array([0.0, 2.0, jnp.nan, 5.0]))[0]
        np.testing.assert_array_equal(found.mask.any(1), [True, True, False, lone])
        assert np.isfinite(found.advantage).all() and found.advantage[0].any()


@pytest.mark.parametrize("options", [{"baseline": "mean", "whiten_advantages": True}, {"baseline": "standardise"}])
def test_a_lone_scored_reply_has_no_baseline_and_teaches_nothing(options):
    scores = jnp.array([0.0, 2.0, jnp.nan, 5.0])
    found, known = (estimate(advantages.group_baseline, scores=s, **options)[0] for s in (scores, scores.at[3].set(-9)))
    np.testing.assert_array_equal(found.advantage, known.advantage)
    assert not found.advantage[3].any()
    best = estimate(advantages.winners, scores=scores)[0]
    np.testing.assert_array_equal(best.mask.any(1), [False, True, False, False])


WEIGHTS = {"right": 1.0, "brief": 1.0}


def decoupled(right, brief, weights=WEIGHTS, mask=MASK, **options):
    """GDPO's (advantage of each row, rollout, metrics) for two rewards of four replies to two prompts."""
    rewards = {"right": jnp.array(right), "brief": jnp.array(brief)}
    score = sum(weight * rewards[name] for name, weight in weights.items())
    one = rollout().replace(rewards=rewards)
    found, _, metrics = advantages.gdpo(one, score, jnp.float32(0), group=2, weights=weights, **options)
    return np.asarray(found.advantage[:, 1]), found, metrics


def test_gdpo_tells_groups_apart_whose_sums_are_standardised_to_the_same():
    """Figure 2 of Liu et al. 2026: sums (0, 1) and (0, 2), of which the second is better in both rewards."""
    right, brief = [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    one = 0.5 / (0.5**0.5 + 1e-4)  # 0 and 1: mean 1/2, sd sqrt(1/2)
    grpo = estimate(advantages.group_baseline, scores=jnp.array(right) + jnp.array(brief), baseline="standardise")[0]
    np.testing.assert_allclose(grpo.advantage[:, 1], [-one, one, -one, one], rtol=1e-3)
    got, found, metrics = decoupled(right, brief, whiten_advantages=False)
    np.testing.assert_allclose(got, [-one, one, -2 * one, 2 * one], rtol=1e-6)
    assert metrics["frac_reward_zero_std"] == 0 and metrics["objective/rlhf_reward"] == 0.75
    np.testing.assert_array_equal(found.mask, MASK)
    # whitened: mean 0, and variance (1 + 1 + 4 + 4) / 3 in units of one^2, over replies and not over tokens
    np.testing.assert_allclose(decoupled(right, brief)[0], np.array([-1, 1, -2, 2]) / (10 / 3) ** 0.5, rtol=2e-4)


def test_weights_of_gdpo_come_after_the_division_by_the_spread():
    right, brief = [0.0, 1.0, 0.0, 1.0], [100.0, 0.0, 0.0, 300.0]
    of = lambda apart: apart / 2 / (apart / 2**0.5 + 1e-4)  # of the better of two replies  # noqa: E731
    got = decoupled(right, brief, {"right": 1.0, "brief": 0.5}, whiten_advantages=False)[0]
    np.testing.assert_allclose(got[1::2], [of(1) - 0.5 * of(100), of(1) + 0.5 * of(300)], rtol=1e-5)
    np.testing.assert_array_equal(got[::2], -got[1::2])
    # rewards that say the opposite with the same weight teach nothing, and that is counted
    got, _, metrics = decoupled([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0])
    assert not got[:2].any() and metrics["frac_reward_zero_std"] == 0.5


def test_gdpo_of_one_reward_is_grpo():
    score = jnp.array([1.0, 3.0, 5.0, 7.5])
    grpo = estimate(advantages.group_baseline, scores=score, baseline="standardise")[0]
    for brief, weights in ((score, {"brief": 1.0}), (jnp.array([jnp.nan, 1, 2, 3]), {"right": 1.0, "brief": 0.0})):
        rewards = {"right": score, "brief": brief}
        one = rollout().replace(rewards=rewards)
        options = dict(group=2, weights=weights, whiten_advantages=False)
        got = advantages.gdpo(one, score, jnp.float32(0), **options)[0]
        np.testing.assert_array_equal(got.advantage, grpo.advantage)


def test_gdpo_leaves_out_a_reply_without_one_of_its_rewards():
    """A group of three, of which one lacks a reward: the other two are as they would be alone."""
    three = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), rollout())  # six rows
    right, brief = jnp.array([0.0, 1, 9, 0, 1, 4]), jnp.array([0.0, 0, jnp.nan, 0, 1, 4])
    kept = np.array([0, 1, 3, 4, 5])

    def learnt(right, brief):
        one = three.replace(rewards={"right": right, "brief": brief})
        return advantages.gdpo(one, right + brief, jnp.float32(0), group=3, weights=WEIGHTS)[0]

    got, other = learnt(right, brief), learnt(right.at[2].set(-50.0), brief)
    assert not got.mask[2].any() and np.isfinite(got.advantage).all() and not np.any(got.advantage[2])
    np.testing.assert_array_equal(got.advantage, other.advantage)  # nothing of the row is in a statistic
    of_two = 0.5 / (0.5**0.5 + 1e-4)
    raw = np.array([-of_two, of_two, *(2 * (np.array([0, 1, 4]) - 5 / 3) / ((13 / 3) ** 0.5 + 1e-4))])
    want = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(got.advantage[kept, 1], want, rtol=1e-5)
    assert got.mask[kept].any(1).all()


def test_gdpo_refuses_a_group_of_one():
    one = rollout().replace(rewards={"right": SCORES})
    with refuses(ValueError, "group = 1:", "2 replies"):
        advantages.gdpo(one, SCORES, jnp.float32(0), group=1, weights={"right": 1.0})


def with_critic():
    return rollout().replace(old_value=jnp.asarray(MASK * np.array([[0.5, -1.0, 2.0]]), jnp.float32))


def kept(record, rows):
    return jax.tree.map(lambda x: x[np.array(rows)], record)


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_gae_with_a_missing_score_is_gae_without_its_row(missing):
    scores, options = jnp.array([1.0, 3.0, missing, 5.0]), dict(kl_in_reward=True, whiten_rewards=True)
    found, kl, metrics = advantages.gae(with_critic(), scores, jnp.float32(10), **options)
    rest = [0, 1, 3]
    want, _, numbers = advantages.gae(kept(with_critic(), rest), scores[np.array(rest)], jnp.float32(10), **options)
    assert not found.mask[2].any() and np.isfinite(found.advantage).all() and np.isfinite(found.returns).all()
    for name in ("mask", "advantage", "returns"):
        np.testing.assert_allclose(getattr(found, name)[np.array(rest)], getattr(want, name), rtol=1e-6)
        assert not np.any(getattr(found, name)[2])
    for name in ("objective/rlhf_reward", "critic/vf_explained_var", "critic/values"):
        np.testing.assert_allclose(metrics[name], numbers[name], rtol=1e-5)
    np.testing.assert_allclose(kl, 0.15, rtol=1e-5)  # the KL is of every reply, scored or not: 0.2, 0.1, 0.2, 0.1


def test_a_kl_that_is_not_finite_masks_its_row_too():
    broken = with_critic()
    broken = broken.replace(ref_logp=broken.ref_logp.at[2, 1].set(-jnp.inf))
    for name in ("gae", "group_baseline", "reinforce_plus_plus", "winners", "best_and_worst"):
        function = getattr(advantages, name)
        found, _, metrics = function(broken, SCORES, jnp.float32(1), kl_in_reward=True, group=2)
        assert not found.mask[2].any() and found.mask[:2].any() and np.isfinite(found.advantage).all(), name
        assert np.isfinite(metrics["objective/rlhf_reward"])


@pytest.mark.parametrize("name", [*names_of("alignax.train.advantages")])
def test_a_batch_without_any_score_teaches_nothing_and_reads_as_zeros(name):
    record = with_critic().replace(source=jnp.array([0, 1, 0, 1]) if name in OPPONENTS else None)
    if name == "gdpo":
        record, given = record.replace(rewards={"right": jnp.full(4, jnp.nan)}), {"weights": {"right": 1.0}}
    else:
        given = {"kl_in_reward": True}
    found, kl, metrics = getattr(advantages, name)(record, jnp.full(4, jnp.nan), jnp.float32(0.1), group=2, **given)
    assert not found.mask.any() and not found.advantage.any()
    assert np.isfinite([*metrics.values()]).all() and np.isfinite(kl)


def test_whitening_is_over_the_tokens_that_count():
    found = estimate(advantages.group_baseline, baseline="mean", whiten_advantages=True)[0]
    inside = np.asarray(found.advantage)[MASK]
    np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [0, 1], atol=1e-5)


def test_reinforce_plus_plus_is_the_whitened_reward_to_go():
    found = estimate(advantages.reinforce_plus_plus, coef=10.0)[0]
    # k1 = 0.1, coefficient 10: 1 per token. To go: row 0: 1 - 2, 1 - 1; row 1: 3 - 1; row 2: 5 - 2, 5 - 1; row 3: 5 - 1
    to_go = np.array([-1, 0, 2, 3, 4, 4])
    np.testing.assert_allclose(np.asarray(found.advantage)[MASK], (to_go - 2) / to_go.std(ddof=1), atol=1e-5)


def test_winners_are_all_that_raft_learns_from():
    found = estimate(advantages.winners)[0]
    np.testing.assert_array_equal(found.mask.any(1), [False, True, True, False])  # the first of equals
    np.testing.assert_array_equal(found.advantage, np.asarray(found.mask, np.float32))


def test_best_and_worst_make_a_pair_where_they_differ():
    found = estimate(advantages.best_and_worst)[0]
    np.testing.assert_array_equal(found.advantage[:, 1], [-1, 1, 0, 0])
    pair = forward.best_and_worst(found.replace(logp=found.old_logp * jnp.arange(1.0, 5.0)[:, None]), 2)
    np.testing.assert_allclose(pair.chosen.logp[0], [0, -2, 0])
    np.testing.assert_allclose(pair.rejected.logp[0], [0, -1, -1])
    assert pair.chosen.mask[0].any() and not pair.chosen.mask[1].any() and not pair.rejected.mask[1].any()


def test_unknown_baselines_and_groups_of_one_are_refused():
    with refuses(ValueError, "baseline = 'median'", "standardise"):
        estimate(advantages.group_baseline, baseline="median")
    with pytest.raises(ValueError, match="group = 1"):
        advantages.group_baseline(rollout(), SCORES, jnp.float32(0), kl_in_reward=True, group=1)


def test_dynamic_sampling_keeps_the_groups_that_teach_and_fills_up_with_others():
    scores = jnp.array([1.0, 1, 2, 3, 0, 0, 4, 0])  # groups 1 and 3 of 4 differ
    np.testing.assert_array_equal(keep_informative(scores, group=2, keep=2), [2, 3, 6, 7])
    np.testing.assert_array_equal(keep_informative(scores, group=2, keep=3), [2, 3, 6, 7, 0, 1])
    assert ops.informative(scores, group=2).sum() == 4


# ---- against an opponent: rows 0 and 2 are the policy's, 1 and 3 another policy's


def against(function, scores=SCORES, coef=0.0, **options):
    seen = rollout().replace(source=jnp.array([0, 1, 0, 1]))
    return function(seen, scores, jnp.float32(coef), kl_in_reward=True, group=2, **options)


def test_kl_and_entropy_are_of_the_policys_replies():
    for function in (advantages.remax, advantages.win_probability, advantages.vbon, advantages.best_and_worst):
        _, kl, found = against(function)
        np.testing.assert_allclose([kl, found["objective/kl"]], 0.2, rtol=1e-5)  # 0.2 each; the rivals' is 0.1
        np.testing.assert_allclose(found["objective/entropy"], 2.0, rtol=1e-6)


def test_remax_is_the_score_above_the_greedy_replys():
    found, _, metrics = against(advantages.remax)
    np.testing.assert_allclose(found.advantage, MASK * np.array([[-2], [0], [0], [0]]))
    np.testing.assert_array_equal(found.mask, MASK & np.array([[1], [0], [1], [0]], bool))
    assert metrics["objective/rlhf_reward"] == 3.0
    charged = against(advantages.remax, coef=10.0)[0]  # 10 * 0.2 for the policy, none for the greedy
    np.testing.assert_allclose(charged.advantage[:, 1], [-4, 0, -2, 0], rtol=1e-5)


def test_the_probability_of_winning():
    found, _, metrics = against(advantages.win_probability)
    win = 1 / (1 + np.exp(2.0))  # scores 1 and 3; 5 and 5 are even
    np.testing.assert_allclose(found.advantage, MASK * np.array([[win - 0.5], [0], [0], [0]]), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/win_rate"], (win + 0.5) / 2, rtol=1e-6)
    charged, _, metrics = against(advantages.win_probability, coef=10.0)  # 10 * 0.2 off each; the comparison stays
    np.testing.assert_allclose(charged.advantage[:, 1], [win - 2.5, 0, -2, 0], rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/win_rate"], (win + 0.5) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found.mask, MASK & np.array([[1], [0], [1], [0]], bool))


def test_vbon_is_the_log_of_the_rank_and_a_kl():
    # one of the reference each: rank (1 + 0) / 2 and, as 5 is not better than 5, (1 + 1) / 2
    found, _, metrics = against(advantages.vbon, n=3, whiten_advantages=False)
    np.testing.assert_allclose(found.advantage, MASK * np.array([[2 * np.log(0.5)], [0], [0], [0]]), rtol=1e-6)
    assert metrics["objective/rank"] == 0.75
    charged = against(advantages.vbon, n=3, coef=1.0, whiten_advantages=False)[0]
    np.testing.assert_allclose(charged.advantage[:, 1], [2 * np.log(0.5) - 0.2, 0, -0.2, 0], rtol=1e-5)
    white = np.asarray(against(advantages.vbon, n=3)[0].advantage)[MASK & np.array([[1], [0], [1], [0]], bool)]
    np.testing.assert_allclose([white.mean(), white.std(ddof=1)], [0, 1], atol=1e-5)
    with refuses(ValueError, "n = 1", "2 or more"):
        against(advantages.vbon, n=1)


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("name", ["remax", "win_probability", "vbon"])
def test_a_missing_score_on_either_side_masks_the_row(name, missing):
    found, _, metrics = against(getattr(advantages, name), scores=SCORES.at[missing].set(jnp.nan))
    np.testing.assert_array_equal(found.mask, MASK & np.array([[0], [0], [1], [0]], bool))
    assert np.isfinite(found.advantage).all() and np.isfinite([*metrics.values()]).all()
    np.testing.assert_array_equal(found.advantage[:2], 0)


def test_opponents_that_have_a_score_are_enough():
    # one reply against three, of which one has none: 1 of 2 is not better, so the rank is (1 + 1) / 3
    theirs = jnp.array([0, 1, 1, 1])
    record, scores = rollout().replace(source=theirs), jnp.array([1.0, 0.0, jnp.nan, 3.0])
    options = dict(kl_in_reward=True, group=4)
    found, _, metrics = advantages.vbon(record, scores, jnp.float32(0), n=2, whiten_advantages=False, **options)
    np.testing.assert_allclose(found.advantage[0, 1:], np.log(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/rank"], 2 / 3, rtol=1e-6)
    found, _, metrics = advantages.win_probability(record, scores, jnp.float32(0), **options)
    win = (1 / (1 + np.exp(-1.0)) + 1 / (1 + np.exp(2.0))) / 2
    np.testing.assert_allclose(metrics["objective/win_rate"], win, rtol=1e-6)
    np.testing.assert_allclose(found.advantage[0, 1:], win - 0.5, rtol=1e-5)


def test_the_pair_says_which_side_the_reference_sampled():
    found, _, _ = against(advantages.best_and_worst, scores=jnp.array([1.0, 3.0, 5.0, 4.0]))
    pair = forward.best_and_worst(found.replace(logp=found.old_logp), 2)
    np.testing.assert_array_equal(pair.reference_is_chosen, [True, False])
