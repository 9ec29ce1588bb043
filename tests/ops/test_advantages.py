"""Baselines, whitening, shaping and weights: loops in float64, numbers by hand, missing scores, refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.ops import advantages as adv
from alignax.ops.masked import whiten
from alignax.ops.returns import gae, token_rewards

NAN = float("nan")
GROUP_ESTIMATORS = [adv.group_mean, adv.leave_one_out, adv.group_standardise]


def scores(seed=0, B=12, missing=True):
    score = np.random.default_rng(seed).normal(size=B).astype(np.float32)
    if missing:
        score[[1, 7]] = NAN, -np.inf  # one of a group of four, and one of the next
    return jnp.asarray(score)


def masks(seed=0, B=12, T=7):
    mask = np.random.default_rng(seed).random((B, T)) < 0.6  # holes included: tool tokens between actions
    mask[:, 0], mask[:, 3] = False, True
    return jnp.asarray(mask)


def oracle(name, score, group):
    """One row at a time, over those of its group that have a score."""
    out = np.zeros(len(score))
    for i in range(len(score)):
        first = i - i % group
        known = [j for j in range(first, first + group) if np.isfinite(score[j])]
        if i not in known or len(known) < 2:
            continue
        values = np.array([score[j] for j in known], np.float64)
        if name == "leave_one_out":
            out[i] = score[i] - np.mean([score[j] for j in known if j != i])
        else:
            out[i] = score[i] - values.mean()
            out[i] /= values.std(ddof=1) + 1e-4 if name == "group_standardise" else 1.0
    return out


@pytest.mark.parametrize("fn", GROUP_ESTIMATORS, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("group", [2, 3, 4, 12])
@pytest.mark.parametrize("missing", [False, True])
def test_group_estimators_are_their_definitions(fn, group, missing):
    score = scores(missing=missing)
    got = fn(score, group=group)
    np.testing.assert_allclose(got, oracle(fn.__name__, np.asarray(score), group), rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(fn, static_argnames="group")(score, group=group), got, rtol=1e-5, atol=1e-6)
    assert got.dtype == jnp.float32


def test_group_estimators_by_hand():
    # Groups (1, 2, 6) and (0, 0, 3). Means 3 and 1; others' means 4, 3.5, 1.5 and 1.5, 1.5, 0.
    score = jnp.float32([1, 2, 6, 0, 0, 3])
    np.testing.assert_allclose(adv.group_mean(score, group=3), [-2, -1, 3, -1, -1, 2])
    np.testing.assert_allclose(adv.leave_one_out(score, group=3), [-3, -1.5, 4.5, -1.5, -1.5, 3])
    # Unbiased variances (4 + 1 + 9) / 2 = 7 and (1 + 1 + 4) / 2 = 3.
    want = np.array([-2, -1, 3, -1, -1, 2]) / (np.sqrt([7, 7, 7, 3, 3, 3]) + 1e-4)
    np.testing.assert_allclose(adv.group_standardise(score, group=3), want, rtol=1e-6)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_rloo_is_the_centred_advantage_times_n_over_n_minus_one(group):
    score = scores(3, missing=False)
    want = group / (group - 1) * adv.group_mean(score, group=group)
    np.testing.assert_allclose(adv.leave_one_out(score, group=group), want, rtol=1e-5, atol=1e-6)


def test_a_missing_score_does_not_poison_its_group_and_zero_is_a_score():
    for fn in GROUP_ESTIMATORS:
        # the group without its missing row, and a group whose zero counts
        got = fn(jnp.float32([1, NAN, 3, 0, 2, 4]), group=3)
        np.testing.assert_allclose(got[np.array([0, 2])], fn(jnp.float32([1, 3]), group=2), rtol=1e-6)
        assert got[1] == 0
        np.testing.assert_allclose(got[3:], fn(jnp.float32([0, 2, 4]), group=3), rtol=1e-6)
        assert got[3] < 0
    np.testing.assert_array_equal(
        adv.scorable(jnp.float32([0, -0.0, NAN, jnp.inf, 1])), [True, True, False, False, True]
    )


@pytest.mark.parametrize("score", [[NAN, NAN, 5, NAN], [0.1, 0.1, 0.1, 0.1], [1e6, 1e6, NAN, 1e6]])
def test_nothing_to_compare_gives_exactly_zero(score):
    # three times 0.1 does not average to 0.1 in float32: the rounding must not be divided by a vanishing std
    for fn in (*GROUP_ESTIMATORS, lambda s, group: adv.group_standardise(s, group=group, eps=1e-12)):
        for group in (2, 4):
            np.testing.assert_array_equal(fn(jnp.float32(score), group=group), np.zeros(4))


@pytest.mark.parametrize("size", [3, 6, 7, 12])
def test_level_groups_give_exactly_zero_whatever_their_size(size):
    # the sum of five times 0.1, over 5, is not 0.1 in float32
    for value in (0.1, 0.7, 1e6 + 0.3):
        np.testing.assert_array_equal(adv.leave_one_out(jnp.full(size, value, jnp.float32), group=size), 0)


@pytest.mark.parametrize(
    "score, want",
    [
        ([1, 1, 1, 2], 0.5),
        ([1, 1, NAN, NAN], 1.0),  # a group without scores is none
        ([1, NAN, 2, 3], 0.0),  # one score alone is level with nothing
        ([NAN, NAN, NAN, NAN], 0.0),
        ([0, 0, jnp.inf, 3], 1.0),
    ],
)
def test_the_share_of_level_groups_is_of_those_with_two_scores(score, want):
    assert adv.level_share(jnp.float32(score), group=2) == want


def test_one_missing_score_makes_no_group_level():
    # three groups of three with two scores each, of which one is level
    assert adv.level_share(jnp.float32([1, 1, NAN, 1, NAN, 2, NAN, 3, 4]), group=3) == pytest.approx(1 / 3)


@pytest.mark.parametrize("fn", [*GROUP_ESTIMATORS, adv.informative, adv.winners], ids=lambda fn: fn.__name__)
def test_wrong_groups_are_refused(fn):
    with refuses(ValueError, "group = 1:", "2"):
        fn(scores(), group=1)
    with refuses(ValueError, "12 rows", "group = 5:", "multiple"):
        fn(scores(), group=5)


def test_whitening_of_groups_refuses_wrong_groups_too():
    x, mask = jnp.ones((4, 3)), jnp.ones((4, 3), bool)
    for group, word in ((1, "2"), (3, "multiple")):
        with refuses(ValueError, f"group = {group}:", word):
            adv.whiten_groups(x, mask, group=group)


def test_shift_and_scale():
    score = scores(5, missing=False)
    for fn in GROUP_ESTIMATORS:
        np.testing.assert_allclose(fn(score + 3, group=4), fn(score, group=4), rtol=1e-4, atol=1e-5)
    white = adv.group_standardise(score, group=4, eps=1e-9)
    np.testing.assert_allclose(adv.group_standardise(7 * score, group=4, eps=1e-9), white, rtol=1e-5)
    np.testing.assert_allclose(adv.group_mean(7 * score, group=4), 7 * adv.group_mean(score, group=4), rtol=1e-5)


def test_dynamic_sampling_keeps_groups_with_two_different_scores():
    score = jnp.float32([1, 1, 1, 0, 1, 0, NAN, 2, 2, NAN, 0, 3])
    want = [False] * 3 + [True] * 3 + [False] * 3 + [False, True, True]
    np.testing.assert_array_equal(adv.informative(score, group=3), want)
    # what is dropped has no advantage
    assert not adv.group_standardise(score, group=3)[~np.array(want)].any()


def test_winners():
    score = jnp.float32([1, 3, 2, 5, 5, 0, NAN, -1, -2, NAN, NAN, NAN])
    want = [False, True, False, True, False, False, False, True, False, False, False, False]
    np.testing.assert_array_equal(adv.winners(score, group=3), want)


def test_remax_by_hand():
    score = jnp.float32([1, 2, NAN, 4, 5, 6])
    np.testing.assert_array_equal(adv.remax(score, jnp.float32([1, 10, NAN])), [0, 1, 0, -6, 0, 0])
    np.testing.assert_array_equal(adv.remax(score[:2], jnp.float32([3, 0])), [-2, 2])  # one reply per prompt
    with refuses(ValueError, "6 rows", "4 prompts"):
        adv.remax(score, jnp.zeros(4))


def test_spread():
    mask = jnp.array([[False, True, False, True], [False] * 4])
    np.testing.assert_array_equal(adv.spread(jnp.float32([0.5, 2]), mask), [[0, 0.5, 0, 0.5], [0] * 4])
    np.testing.assert_array_equal(adv.spread(jnp.float32([0.5, NAN]), mask), [[0, 0.5, 0, 0.5], [0] * 4])
    assert adv.spread(jnp.ones(1), jnp.ones((1, 1), bool)).shape == (1, 1)


def test_group_whitening_skips_tool_tokens():
    x, mask = jnp.asarray(np.random.default_rng(0).normal(size=(6, 7)), jnp.float32), masks(B=6)
    got = adv.whiten_groups(jnp.where(mask, x, NAN), mask, group=3)
    for first in (0, 3):
        rows = slice(first, first + 3)
        values = np.asarray(x, np.float64)[rows][np.asarray(mask)[rows]]
        want = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
        np.testing.assert_allclose(np.asarray(got)[rows][np.asarray(mask)[rows]], want, rtol=1e-5, atol=1e-6)
    assert not got[~np.asarray(mask)].any()
    np.testing.assert_allclose(adv.whiten_groups(x, mask, group=6), whiten(x, mask), rtol=1e-5, atol=1e-6)
    kept = adv.whiten_groups(x, mask, group=6, shift_mean=False)
    np.testing.assert_allclose(kept, whiten(x, mask, shift_mean=False), rtol=1e-5, atol=1e-6)


def test_tool_tokens_do_not_move_any_advantage():
    score, kl, coef = scores(2, B=4, missing=False), jnp.ones((4, 5)) * 0.3, 0.1
    plain = jnp.ones((4, 5), bool)
    spots = np.array([0, 1, 4, 6, 7])  # the same actions with tool tokens at 2, 3 and 5
    put = lambda x, fill: jnp.full((4, 8), fill, x.dtype).at[:, spots].set(x)  # noqa: E731
    holed = put(plain, False)
    one = adv.reinforce_plus_plus(score, kl, plain, coef, gamma=0.9)
    np.testing.assert_allclose(
        adv.reinforce_plus_plus(score, put(kl, 99.0), holed, coef, gamma=0.9)[:, spots], one, rtol=1e-5, atol=1e-6
    )


def test_reinforce_plus_plus_is_its_definition():
    score, mask = scores(4), masks(4)
    kl = jnp.asarray(np.random.default_rng(1).normal(size=mask.shape), jnp.float32)
    got = adv.reinforce_plus_plus(score, kl, mask, 0.2, gamma=0.9)
    to_go = {}
    for b in range(len(score)):
        if np.isfinite(score[b]):
            later = float(score[b])  # beyond the last action: the score, not discounted before it is received
            for n, t in enumerate(np.flatnonzero(mask[b])[::-1]):
                later = -0.2 * float(kl[b, t]) + (later if n == 0 else 0.9 * later)
                to_go[b, t] = later
    values = np.array([*to_go.values()])
    want = np.zeros(mask.shape)
    for place, value in to_go.items():
        want[place] = (value - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    assert len(to_go) < mask.sum()  # the rows without a score were left out


def test_gae_with_lambda_one_and_no_critic_is_reinforce_plus_plus_before_whitening():
    score, mask = scores(6, missing=False), masks(6)
    kl = jnp.ones(mask.shape) * 0.1
    monte_carlo, _ = gae(token_rewards(score, kl, mask, 0.5), jnp.zeros(mask.shape), mask, lam=1.0)
    got = adv.reinforce_plus_plus(score, kl, mask, 0.5)
    np.testing.assert_allclose(got, whiten(monte_carlo, mask), rtol=1e-5, atol=1e-6)


def test_overlong_penalty_by_hand():
    # max 20, buffer 8: free up to 12, then -1/8 per token, -1 from 20 on. The unit is tokens.
    tokens = jnp.array([0, 12, 13, 16, 20, 21, 500])
    got = adv.overlong_penalty(tokens, max_tokens=20, buffer_tokens=8)
    np.testing.assert_allclose(got, [0, 0, -1 / 8, -4 / 8, -1, -1, -1])
    np.testing.assert_array_equal(adv.overlong_penalty(tokens, max_tokens=20480, buffer_tokens=4096), np.zeros(7))
    for buffer in (0, 21):
        with refuses(ValueError, f"buffer_tokens = {buffer}:", "max_tokens = 20"):
            adv.overlong_penalty(tokens, max_tokens=20, buffer_tokens=buffer)


@pytest.mark.parametrize("B, T", [(4, 4), (2, 1), (2, 2)])
def test_shapes_that_could_broadcast(B, T):
    score, mask = scores(7, B=B, missing=False), jnp.ones((B, T), bool)
    base = oracle("group_mean", np.asarray(score), 2)
    np.testing.assert_allclose(adv.spread(adv.group_mean(score, group=2), mask), np.tile(base[:, None], T), atol=1e-6)


def test_rows_beyond_the_group_do_not_interact():
    score = scores(8)
    for fn in (*GROUP_ESTIMATORS, adv.informative, adv.winners):
        whole = fn(score, group=4)
        parts = [fn(score[i : i + 4], group=4) for i in (0, 4, 8)]
        chex.assert_trees_all_close(jnp.concatenate(parts), whole)
