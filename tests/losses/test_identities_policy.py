"""Policy objectives: special cases that are equal, numbers by hand, gradients that define a method, refusals."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from loss_inputs import NAMES, SURROGATES, is_float, label, loss, make, record_type, with_masks
from oracles_policy import GRADIENTS, SETTINGS

from alignax.losses.cispo import cispo
from alignax.losses.clip_cov import clip_cov
from alignax.losses.dapo import dapo
from alignax.losses.dr_grpo import dr_grpo
from alignax.losses.entropy import entropy
from alignax.losses.gmpo import gmpo
from alignax.losses.grpo import grpo
from alignax.losses.gspo import gspo
from alignax.losses.gspo_token import gspo_token
from alignax.losses.kl import kl
from alignax.losses.kl_cov import kl_cov
from alignax.losses.luspo import luspo
from alignax.losses.nash_md import nash_md
from alignax.losses.ppo_clip import ppo_clip
from alignax.losses.ppo_dual_clip import ppo_dual_clip
from alignax.losses.reinforce import reinforce
from alignax.losses.sapo import sapo
from alignax.losses.sft import sft
from alignax.losses.vespo import vespo
from alignax.ops import advantages as adv
from alignax.ops.corrections import truncated_weights
from alignax.ops.masked import masked_sum, reduce, reduce_metrics
from alignax.types import Demo, Rollout

OFF = 1e6  # a clip that never acts
# at ratio 1, what multiplies grad log pi of a token: A over the batch's tokens, or over its reply's tokens and the rows
TOKEN_MEAN = (ppo_clip, ppo_dual_clip, dapo, cispo, kl_cov, functools.partial(clip_cov, fraction=0.0))
SEQUENCE_MEAN = (grpo, sapo, gspo_token)


def grad_logp(fn, rollout, **args):
    return np.asarray(jax.grad(lambda logp: reduce(fn(rollout.replace(logp=logp), **args)))(rollout.logp))


def on_policy(rollout):
    return rollout.replace(logp=rollout.old_logp)


def one_advantage_per_reply(rollout):
    score = jnp.asarray(np.random.default_rng(1).normal(size=len(rollout.mask)), jnp.float32)
    return rollout.replace(advantage=adv.spread(adv.group_mean(score, group=2), rollout.mask))


# ---- at ratio 1 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", TOKEN_MEAN, ids=label)
def test_token_means_at_ratio_one_are_reinforce(fn):
    rollout = on_policy(make("reinforce"))
    want = grad_logp(reinforce, rollout)
    np.testing.assert_allclose(want, np.where(rollout.mask, -rollout.advantage / rollout.mask.sum(), 0), rtol=1e-6)
    np.testing.assert_allclose(grad_logp(fn, rollout), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("fn", SEQUENCE_MEAN, ids=lambda fn: fn.__name__)
def test_sequence_means_at_ratio_one_are_reinforce_weighted_by_length(fn):
    rollout = on_policy(make("reinforce"))
    lengths = rollout.mask.sum(1, keepdims=True)
    want = np.where(rollout.mask, -rollout.advantage / lengths / len(lengths), 0)
    np.testing.assert_allclose(grad_logp(fn, rollout), want, rtol=1e-5, atol=1e-8)


def test_gspo_at_ratio_one_is_grpo():
    rollout = on_policy(one_advantage_per_reply(make("gspo")))
    np.testing.assert_allclose(grad_logp(gspo, rollout), grad_logp(grpo, rollout), rtol=1e-5, atol=1e-8)


def test_grpo_without_std_and_equal_lengths_is_reinforce_with_a_group_baseline():
    rollout = on_policy(one_advantage_per_reply(make("grpo")))
    same = jnp.broadcast_to((jnp.arange(8) > 1) & (jnp.arange(8) < 5), (8, 8))
    rollout = rollout.replace(mask=same, advantage=adv.spread(rollout.advantage.sum(1), same))
    np.testing.assert_allclose(grad_logp(grpo, rollout), grad_logp(reinforce, rollout), rtol=1e-5, atol=1e-8)


def test_dr_grpo_at_ratio_one_is_the_sum_of_reinforce_over_its_divisor():
    rollout = on_policy(make("dr_grpo"))
    want = grad_logp(reinforce, rollout, aggregation="sequence_sum") / 7
    np.testing.assert_allclose(grad_logp(dr_grpo, rollout, max_tokens=7.0), want, rtol=1e-5, atol=1e-8)


# ---- off-policy ---------------------------------------------------------------------------------------------------


def test_dapo_with_equal_clips_is_ppo_and_ppo_with_room_above_is_dapo():
    rollout = make("dapo")
    np.testing.assert_array_equal(dapo(rollout, clip_high=0.2).value, ppo_clip(rollout).value)
    np.testing.assert_allclose(ppo_clip(rollout, clip_higher=0.08).value, dapo(rollout).value, rtol=1e-6)
    assert reduce(dapo(rollout)) < reduce(ppo_clip(rollout))  # more room, lower loss: some token is between the two


def test_dual_clip_with_a_huge_bound_is_ppo_and_else_bounds_the_push():
    rollout = make("ppo_dual_clip", B=64)
    np.testing.assert_array_equal(ppo_dual_clip(rollout, max_ratio=1e8).value, ppo_clip(rollout).value)
    ratio = np.exp(np.asarray(rollout.logp - rollout.old_logp))
    stopped = np.asarray(rollout.mask & (ratio > 1.3) & (np.asarray(rollout.advantage) < 0))
    assert stopped.sum() > 3
    plain, dual = grad_logp(ppo_clip, rollout), grad_logp(ppo_dual_clip, rollout, max_ratio=1.3)
    assert plain[stopped].all() and not dual[stopped].any()
    np.testing.assert_allclose(dual[~stopped], plain[~stopped], rtol=1e-5, atol=1e-8)


def test_without_a_clip_the_ppo_family_is_importance_sampling():
    rollout = make("grpo")
    weighted = jnp.exp(rollout.logp - rollout.old_logp) * rollout.advantage
    sums = masked_sum(weighted, rollout.mask, axis=1)
    off = dict(clip_low=OFF, clip_high=OFF)
    np.testing.assert_allclose(grpo(rollout, **off).value, -sums / rollout.mask.sum(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dr_grpo(rollout, max_tokens=9.0, **off).value, -sums / 9, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(reduce(dapo(rollout, **off)), -sums.sum() / rollout.mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(kl_cov(rollout, coef=0.0).value, dapo(rollout, **off).value, rtol=1e-6)


def test_cispo_below_its_bound_is_reinforce_times_the_ratio():
    rollout = make("cispo")
    ratio = np.exp(np.asarray(rollout.logp - rollout.old_logp))
    want = grad_logp(reinforce, rollout) * ratio
    np.testing.assert_allclose(grad_logp(cispo, rollout), want, rtol=1e-5, atol=1e-8)
    # unclipped PPO has that gradient too
    np.testing.assert_allclose(grad_logp(ppo_clip, rollout, clip=OFF), want, rtol=1e-5, atol=1e-8)
    # beyond it the weight is the bound, but no token is silenced
    bounded = grad_logp(cispo, rollout, max_ratio=0.5)
    np.testing.assert_allclose(bounded, grad_logp(reinforce, rollout) * np.minimum(ratio, 0.5), rtol=1e-5, atol=1e-8)
    assert bounded[np.asarray(rollout.mask)].all()


def test_gspo_token_with_one_advantage_per_reply_is_gspo():
    rollout = one_advantage_per_reply(make("gspo"))
    args = dict(clip_low=0.05, clip_high=0.1)
    np.testing.assert_allclose(gspo_token(rollout, **args).value, gspo(rollout, **args).value, rtol=1e-5, atol=1e-7)
    both = [grad_logp(fn, rollout, **args) for fn in (gspo, gspo_token)]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-8)
    assert both[0].any()


def test_gspo_of_one_token_is_grpo():
    rollout = make("gspo", T=1)
    args = dict(clip_low=0.1, clip_high=0.3)
    chex.assert_trees_all_close(gspo(rollout, **args).value, grpo(rollout, **args).value, rtol=1e-6)


def test_small_sapo_temperatures_give_importance_sampling():
    # (4 / tau) (sigmoid(tau (rho - 1)) - 1/2) -> rho - 1: the values differ by a constant, the gradients do not.
    rollout = make("sapo")
    want = grad_logp(grpo, rollout, clip_low=OFF, clip_high=OFF)
    np.testing.assert_allclose(grad_logp(sapo, rollout, tau_pos=1e-3, tau_neg=1e-3), want, rtol=1e-4, atol=1e-7)


def test_covariance_methods_without_tokens_to_hold_are_ppo():
    rollout = make("clip_cov")
    np.testing.assert_array_equal(clip_cov(rollout, fraction=0.0).value, ppo_clip(rollout).value)
    np.testing.assert_array_equal(clip_cov(rollout, cov_low=1e4, cov_high=2e4).value, ppo_clip(rollout).value)
    # everything dropped in a band that holds every token which PPO's clip lets through: no gradient is left
    assert not grad_logp(clip_cov, rollout, fraction=1.0, cov_low=-1e4, cov_high=1e4).any()
    # all tokens held: |log rho| at each
    held = kl_cov(rollout, fraction=1.0).value - kl_cov(rollout, coef=0.0).value
    drift = np.where(rollout.mask, np.abs(rollout.logp - rollout.old_logp), 0)
    np.testing.assert_allclose(held, drift, rtol=1e-4, atol=1e-6)


def test_clip_cov_is_the_mean_over_the_papers_random_draws():
    """fraction N = 2 tokens of the band, drawn without replacement: every pair of them once."""
    rollout, band = make("clip_cov"), dict(cov_low=0.02, cov_high=9.0)
    count = float(rollout.mask.sum())
    got = clip_cov(rollout, fraction=2 / count, **band)
    inside = np.argwhere(got.metrics["policy/cov_fraction"][0] > 0)
    assert 3 <= len(inside) < count
    plain, draws = np.asarray(ppo_clip(rollout).value), []
    for i in range(len(inside)):
        for j in range(i):
            value = plain.copy()
            value[tuple(inside[i])] = value[tuple(inside[j])] = 0.0
            draws.append(value)
    np.testing.assert_allclose(got.value, np.mean(draws, axis=0), rtol=1e-5, atol=1e-7)


def test_nash_md_is_reinforce_plus_the_k2_penalty_of_whole_replies():
    rollout = one_advantage_per_reply(make("nash_md"))
    want = reduce(reinforce(rollout, aggregation="sequence_sum"))
    np.testing.assert_allclose(reduce(nash_md(rollout, tau=0.0)), want, rtol=1e-6)
    whole = lambda x: masked_sum(x, rollout.mask, axis=1)[:, None]  # noqa: E731  one token per reply
    first = jnp.ones((8, 1), bool)
    short = Rollout(
        tokens=jnp.zeros((8, 1), jnp.int32), valid=first, mask=first, old_logp=whole(rollout.logp),
        logp=whole(rollout.logp), ref_logp=whole(rollout.ref_logp),
    )  # fmt: skip
    np.testing.assert_allclose(reduce(nash_md(rollout)), want + 0.1 * reduce(kl(short)), rtol=1e-5)


def test_raft_is_sft_on_the_winners():
    rollout = make("reinforce")
    score = jnp.float32([1, 2, 5, 3, 0, 0, -1, jnp.nan])  # groups of two: the better one, the first of equals
    best = adv.winners(score, group=2)
    np.testing.assert_array_equal(best, [False, True, True, False, True, False, True, False])
    fields = dict(logp=rollout.logp, entropy=rollout.entropy, correct=rollout.mask)
    value = reduce(sft(Demo(mask=rollout.mask & best[:, None], **fields)))
    want = -np.mean(np.asarray(rollout.logp)[np.asarray(rollout.mask & best[:, None])])
    np.testing.assert_allclose(value, want, rtol=1e-6)


def test_entropy_pushes_entropy_up():
    rollout = make("entropy")
    grads = jax.grad(lambda e: reduce(entropy(rollout.replace(entropy=e))))(rollout.entropy)
    np.testing.assert_allclose(grads, np.where(rollout.mask, -1 / rollout.mask.sum(), 0), rtol=1e-6)


def test_a_positive_weight_of_the_advantage_commutes_with_the_clip():
    rollout = make("dapo")
    w = truncated_weights(rollout.old_logp, rollout.sampler_logp, rollout.mask, cap=1.05)
    weighted = rollout.replace(advantage=w * rollout.advantage)
    for fn in (dapo, ppo_clip, ppo_dual_clip, cispo):
        np.testing.assert_allclose(fn(weighted).value, w * fn(rollout).value, rtol=1e-5, atol=1e-7)


# ---- gradients that are the definition ----------------------------------------------------------------------------


def test_every_surrogate_has_a_gradient_oracle():
    policies = [name for name in SURROGATES if record_type(name) is Rollout]
    assert sorted(GRADIENTS) == sorted(policies) and policies


@pytest.mark.parametrize(
    "name, args",
    [(n, {}) for n in GRADIENTS] + [s for s in SETTINGS if s[0] in GRADIENTS] + [("kl", {"estimator": "k3"})],
    ids=str,
)
def test_gradients_of_the_surrogates(name, args):
    rollout = make(name, B=6, T=10)
    known = {k: v for k, v in vars(rollout).items() if v is not None}
    fields = {k: np.asarray(v, np.float64 if is_float(v) else None) for k, v in known.items()}
    want = GRADIENTS[name](fields, **args)
    np.testing.assert_allclose(grad_logp(loss(name), rollout, **args), want, rtol=1e-5, atol=1e-8)
    assert want.any()


@pytest.mark.parametrize("name", ["cispo", "reinforce"])
@pytest.mark.parametrize("drift", [5.0, 25.0, 1e3, -1e3])
def test_unclipped_methods_keep_a_useful_gradient_under_large_drift(name, drift):
    one = jnp.ones((1, 1))
    rollout = Rollout(tokens=one.astype(int), valid=one > 0, mask=one > 0, old_logp=0 * one, logp=drift * one)
    for sign in (1.0, -1.0):
        grad = grad_logp(loss(name), rollout.replace(advantage=sign * one, entropy=one))
        assert np.isfinite(grad).all() and (sign * grad <= 0).all()
        assert drift < 0 or (np.abs(grad) >= 1).all()  # a ratio of e^-1000 is a weight of 0, honestly


# ---- by hand ------------------------------------------------------------------------------------------------------

# 2 x 3 tokens, of which the first of each row and the last of the second do not count: |y| = 2 and 1.
MASK = jnp.array([[False, True, True], [False, True, False]])
HIGH, LOW, NEAR = np.log(1.5), np.log(0.5), np.log(1.1)


def at(a, b, c):
    return jnp.array([[jnp.nan, a, b], [jnp.nan, c, jnp.nan]], jnp.float32)


def hand(logp=(HIGH, LOW, NEAR), advantage=(2, -1, 3), **fields):
    """Ratios 1.5, 0.5 and 1.1; advantages 2, -1 and 3."""
    whole = jnp.ones((2, 3), bool)
    fields = {"old_logp": at(0, 0, 0), "logp": at(*logp), "advantage": at(*advantage), "entropy": at(1, 2, 6), **fields}
    return Rollout(tokens=jnp.zeros((2, 3), jnp.int32), valid=whole, mask=MASK, **fields)


@pytest.mark.parametrize(
    "fn, args, want",
    [
        # -A log pi = -2 log 1.5 = -0.810930, + log 0.5 = -0.693147, -3 log 1.1 = -0.285931: sum -1.790008
        (reinforce, {}, -1.790008 / 3),
        (reinforce, {"aggregation": "sequence_sum"}, -1.790008 / 2),
        # clip 0.2: min(3, 2.4) = 2.4, min(-0.5, -0.8) = -0.8, min(3.3, 3.3) = 3.3. Rows (2.4 - 0.8) / 2 = 0.8 and 3.3.
        (grpo, {}, -(0.8 + 3.3) / 2),
        # Rows 1.6 and 3.3 over 4 tokens, then over two rows.
        (dr_grpo, {"max_tokens": 4.0}, -(1.6 + 3.3) / 4 / 2),
        # clip_high 0.28: 2.56 in place of 2.4. All tokens alike: (2.56 - 0.8 + 3.3) / 3.
        (dapo, {}, -5.06 / 3),
        (ppo_clip, {"clip_higher": 0.08}, -5.06 / 3),
        # s = sqrt(1.5 * 0.5) = 0.866025 and 1.1; A = 0.5 and 3. Clip 0.1, 0.05: 0.866025 * 0.5 = 0.433013 is the
        # smaller one (the clip would give 0.45), and 1.05 * 3 = 3.15 < 3.3.
        (gspo, {"clip_low": 0.1, "clip_high": 0.05}, -(0.433013 + 3.15) / 2),
        # Tokens: min(1.732051, 1.8) and min(-0.866025, -0.9) -> mean (1.732051 - 0.9) / 2 = 0.416025; then 3.15.
        (gspo_token, {"clip_low": 0.1, "clip_high": 0.05}, -(0.416025 + 3.15) / 2),
        # Weights min(1.5, 1.2) = 1.2, 0.5, 1.1: -0.973116 - 0.346574 - 0.314524 = -1.634214
        (cispo, {"max_ratio": 1.2}, -1.634214 / 3),
        # tau 1 and 2: 4 sigmoid(0.5) 2 = 4.979675; 2 sigmoid(-1) (-1) = -0.537883; 4 sigmoid(0.1) 3 = 6.299750.
        # Rows (4.979675 - 0.537883) / 2 = 2.220896 and 6.299750.
        (sapo, {"tau_neg": 2.0}, -(2.220896 + 6.299750) / 2),
        # As gspo, times the lengths 2 and 1.
        (luspo, {"clip_low": 0.1, "clip_high": 0.05}, -(2 * 0.433013 + 3.15) / 2),
        # A = 0.5: min(1.5, e^0.2 = 1.221403) 0.5, whose root is 0.781474; A = 3: 1.1.
        (gmpo, {"clip_high": 0.2}, -(0.781474 * 0.5 + 3.3) / 2),
        # w = 0.75 and 1.1. k 1, lambda 2: phi = 0.75 e^0.5 = 1.236541 for the first token, A = 2, 1.1 e^-0.2 = 0.900604
        # for the third; k 1, lambda 1 for the second, A = -1: 0.75 e^0.25 = 0.963019. Times A log pi, which is
        # 0.810930, 0.693147 and 0.285931: 1.002748 + 0.667514 + 0.257511.
        (vespo, {"k_pos": 1.0, "lambda_pos": 2.0, "k_neg": 1.0, "lambda_neg": 1.0}, -1.927773 / 3),
        (entropy, {}, -3.0),
        # mean log pi = -0.192372 / 3 = -0.064124, mean A = 4/3: c = 0.469589 * 0.666667 = 0.313059,
        # -0.629023 * -2.333333 = 1.467721, 0.159434 * 1.666667 = 0.265724. Band (0.2, 0.29): the third token only
        # (and PPO's clip stops the other two). fraction 0.2 of 3 tokens is 0.6 of it: 2.4 - 0.8 + 0.4 * 3.3 = 2.92.
        (clip_cov, {"fraction": 0.2, "cov_low": 0.2, "cov_high": 0.29}, -2.92 / 3),
        # ceil(0.2 * 3) = 1 token: the second, |log 0.5| = 0.693147. -(3 - 0.5 + 3.3) + 0.5 * 0.693147 = -5.453427
        (kl_cov, {"fraction": 0.2, "coef": 0.5}, -5.453427 / 3),
    ],
    ids=label,
)
def test_by_hand(fn, args, want):
    np.testing.assert_allclose(reduce(fn(hand(), **args)), want, rtol=2e-6)


def test_dual_clip_by_hand():
    # Ratios e, e, 1.1 and advantages -2, 2, 3: PPO has -2e = -5.436564, 1.2 * 2 = 2.4, 3.3; bound 2: -4 for the first.
    rollout = hand(logp=(1, 1, NEAR), advantage=(-2, 2, 3))
    out = ppo_dual_clip(rollout, max_ratio=2.0)
    np.testing.assert_allclose(reduce(out), -(-4 + 2.4 + 3.3) / 3, rtol=1e-6)
    np.testing.assert_allclose(reduce(ppo_clip(rollout)), -(-5.436564 + 2.4 + 3.3) / 3, rtol=1e-5)
    metrics = reduce_metrics(out.metrics)
    np.testing.assert_allclose(metrics["policy/clipfrac_lower"], 1 / 3)
    np.testing.assert_allclose(metrics["clip_ratio/high_mean"], 1 / 3)
    np.testing.assert_allclose(metrics["clip_ratio/low_mean"], 0)


def test_nash_md_by_hand():
    # P = 0.9 and 0.3. log pi = -1 - 2 = -3 and -1; log ref = -2 - 2 = -4 and -3: log-ratios 1 and 2.
    # -0.4 * -3 + 0.05 * 1 = 1.25; 0.2 * -1 + 0.05 * 4 = 0. Mean 0.625.
    rollout = hand(logp=(-1, -2, -1), ref_logp=at(-2, -2, -3), advantage=(0.4, 0.4, -0.2))
    out = nash_md(rollout, tau=0.1)
    np.testing.assert_allclose(reduce(out), 0.625, rtol=1e-6)
    metrics = reduce_metrics(out.metrics)
    np.testing.assert_allclose([metrics["rewards/probabilities"], metrics["objective/kl"]], [0.6, 1.5], rtol=1e-6)
    # d/d log pi = -(P - 1/2) + tau * log-ratio, over 2 rows: (-0.4 + 0.1) / 2 and (0.2 + 0.2) / 2.
    want = [[0, -0.15, -0.15], [0, 0.2, 0]]
    np.testing.assert_allclose(grad_logp(nash_md, rollout), want, rtol=1e-6)


def test_metrics_by_hand():
    # The first token is clipped above, the second below; rows: s = 0.866 (A = 0.5) is not, 1.1 (A = 3) is above.
    metrics = reduce_metrics(grpo(hand()).metrics)
    got = [metrics[f"clip_ratio/{end}_mean"] for end in ("low", "high", "region")]
    np.testing.assert_allclose(got, [1 / 3, 1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(metrics["val/ratio"], 3.1 / 3, rtol=1e-6)
    metrics = reduce_metrics(gspo(hand()).metrics)
    got = [metrics[f"clip_ratio/{end}_mean"] for end in ("low", "high", "region")]
    np.testing.assert_allclose(got, [0, 1 / 2, 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(metrics["val/ratio"], (0.866025 + 1.1) / 2, rtol=1e-6)
    assert reduce_metrics(cispo(hand(), max_ratio=1.2).metrics)["cispo_clip_ratio"] == jnp.float32(1 / 3)


def test_a_row_without_actions_counts_as_absent():
    for name in ("grpo", "dr_grpo", "gmpo", "gspo", "gspo_token", "luspo", "sapo", "nash_md"):
        emptied = with_masks(make(name), lambda mask: mask.at[0].set(False))
        np.testing.assert_array_equal(loss(name)(emptied).weight, [0, 1, 1, 1, 1, 1, 1, 1])


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn, args, key, word",
    [
        (reinforce, {"aggregation": "mean"}, "reinforce: aggregation = 'mean':", "token_mean, sequence_sum"),
        (ppo_clip, {"clip_higher": -0.1}, "ppo_clip: clip_higher = -0.1:", "symmetric"),
        (ppo_dual_clip, {"max_ratio": 1.1}, "ppo_dual_clip: max_ratio = 1.1:", "clip_high = 1.2"),
        (dr_grpo, {"max_tokens": 0.0}, "dr_grpo: max_tokens = 0.0:", "longest"),
        (cispo, {"max_ratio": 0.0}, "cispo: max_ratio = 0.0:", "positive"),
        (sapo, {"tau_pos": 0.0}, "sapo: tau_pos = 0.0:", "positive"),
        (sapo, {"tau_neg": -1.0}, "sapo: tau_neg = -1.0:", "positive"),
        (gmpo, {"clip_low": 0.0}, "gmpo: clip_low = 0.0:", "positive"),
        (vespo, {"k_neg": -1.0}, "vespo: k_neg = -1.0:", "0 (no weight"),
        (vespo, {"lambda_pos": 0.0}, "vespo: lambda_pos = 0.0:", "positive"),
        (clip_cov, {"fraction": 1.5}, "clip_cov: fraction = 1.5:", "[0, 1]"),
        (clip_cov, {"cov_high": 0.5}, "clip_cov: cov_high = 0.5:", "cov_low = 1.0"),
        (kl_cov, {"fraction": 0.0}, "kl_cov: fraction = 0.0:", "(0, 1]"),
        (kl_cov, {"coef": -1.0}, "kl_cov: coef = -1.0:", "off"),
        (nash_md, {"tau": -0.1}, "nash_md: tau = -0.1:", "penalty"),
    ],
    ids=label,
)
def test_refuses(fn, args, key, word):
    with refuses(ValueError, key, word):
        fn(make(fn.__name__), **args)


@pytest.mark.parametrize(
    "fn", [ppo_dual_clip, grpo, dr_grpo, dapo, gspo, gspo_token, clip_cov], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("end", ["clip_low", "clip_high"])
def test_refuses_an_empty_clip_range(fn, end):
    with refuses(ValueError, f"{fn.__name__}: {end} = 0.0:", "positive"):
        fn(make(fn.__name__), **{end: 0.0})


@pytest.mark.parametrize("name", [n for n in NAMES if record_type(n) is Rollout])
def test_a_missing_field_is_named(name):
    bare = make(name).replace(logp=None, ref_logp=None, advantage=None, entropy=None, value=None)
    with refuses(ValueError, "Rollout.", " is None", "fill"):
        loss(name)(bare)
