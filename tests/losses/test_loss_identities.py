"""A general method equals its special case; a wrong setting is refused with the reason."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from loss_inputs import make, with_masks

from alignax.losses.bradley_terry import bradley_terry
from alignax.losses.dpo import dpo
from alignax.losses.kl import kl
from alignax.losses.ppo_clip import ppo_clip
from alignax.losses.value_clip import value_clip
from alignax.ops.masked import masked_sum, reduce
from alignax.types import Pair, Rollout, Scored, Side


def replace(record, **fields):
    return type(record)(**{**vars(record), **fields})


def at_reference(pair):
    return Pair(**{k: replace(s, ref_logp=s.logp) for k, s in (("chosen", pair.chosen), ("rejected", pair.rejected))})


def test_dpo_at_the_reference_is_log_2():
    loss = dpo(at_reference(make("dpo")))
    assert (loss.value == jnp.log(jnp.float32(2))).all()  # exact: the margin is exactly 0
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert not loss.metrics[name][0].any(), name


def test_dpo_gradient_at_the_reference():
    # d/dh -log sigmoid(beta h) = -beta / 2 at h = 0: every chosen token gets -beta / (2 B).
    pair = at_reference(make("dpo"))
    f = lambda logp: reduce(dpo(replace(pair, chosen=replace(pair.chosen, logp=logp)), beta=0.3))  # noqa: E731
    np.testing.assert_allclose(jax.grad(f)(pair.chosen.logp), np.where(pair.chosen.mask, -0.3 / 16, 0), rtol=1e-6)


def test_conservative_dpo_without_flips_is_dpo():
    pair = make("dpo")
    chex.assert_trees_all_equal(dpo(pair, label_smoothing=0.0), dpo(pair))


def test_conservative_dpo_is_least_where_the_model_agrees_with_the_flip_rate():
    # Mitchell 2023: the gradient is 0 where sigmoid(beta h) = 1 - e. One token per side, one at 0: h is the other.
    h = np.log(0.8 / 0.2) / 0.5
    side = lambda logp: Side(logp=logp, ref_logp=jnp.zeros((1, 1)), mask=jnp.ones((1, 1), bool))  # noqa: E731
    f = lambda h: reduce(  # noqa: E731
        dpo(Pair(chosen=side(h[None, None]), rejected=side(jnp.zeros((1, 1)))), beta=0.5, label_smoothing=0.2)
    )
    np.testing.assert_allclose(jax.grad(f)(jnp.float32(h)), 0.0, atol=1e-7)
    assert jax.grad(f)(jnp.float32(h - 1)) < -0.01 < 0.01 < jax.grad(f)(jnp.float32(h + 1))


def test_dpo_is_bradley_terry_on_implicit_rewards():
    pair, beta = make("dpo"), 0.4
    reward = lambda side: beta * (masked_sum(side.logp, side.mask, 1) - masked_sum(side.ref_logp, side.mask, 1))  # noqa: E731
    scored = Scored(chosen=reward(pair.chosen), rejected=reward(pair.rejected), mask=jnp.ones(8, bool))
    one, two = dpo(pair, beta=beta), bradley_terry(scored)
    np.testing.assert_allclose(one.value, two.value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.metrics["rewards/accuracies"][0], two.metrics["accuracy"][0])


def test_a_pair_counts_only_if_both_sides_have_tokens():
    pair = make("dpo")
    for side in ("chosen", "rejected"):
        emptied = replace(pair, **{side: with_masks(getattr(pair, side), lambda mask: mask.at[0].set(False))})
        np.testing.assert_array_equal(dpo(emptied).weight, [0, 1, 1, 1, 1, 1, 1, 1])


def test_bradley_terry_knows_rewards_up_to_a_constant_and_centering_pins_it():
    scored = make("bradley_terry")
    moved = Scored(chosen=scored.chosen + 3, rejected=scored.rejected + 3, mask=scored.mask)
    np.testing.assert_allclose(bradley_terry(moved).value, bradley_terry(scored).value, rtol=1e-4)
    assert reduce(bradley_terry(moved, centering=0.01)) > reduce(bradley_terry(scored, centering=0.01)) + 0.1


def grad_logp(loss, rollout):
    return jax.grad(lambda logp: reduce(loss(replace(rollout, logp=logp))))(rollout.logp)


def test_ppo_at_ratio_one_is_the_policy_gradient():
    # -E[A grad log pi]: the gradient with respect to each log-probability is -A / (number of tokens), for any clip.
    rollout = make("ppo_clip")
    rollout = replace(rollout, logp=rollout.old_logp)
    want = np.where(rollout.mask, -rollout.advantage / rollout.mask.sum(), 0)
    for clip in (0.01, 0.2):
        loss = ppo_clip(rollout, clip=clip)
        np.testing.assert_allclose(grad_logp(lambda r, c=clip: ppo_clip(r, clip=c), rollout), want, rtol=1e-6)
        assert not loss.metrics["policy/clipfrac_avg"][0].any() and not loss.metrics["policy/approxkl_avg"][0].any()
        assert (loss.metrics["val/ratio"][0] == 1).all()


def test_ppo_without_a_clip_is_importance_sampling():
    rollout = make("ppo_clip")
    ratio = np.exp(np.asarray(rollout.logp - rollout.old_logp))
    want = -np.mean((ratio * rollout.advantage)[rollout.mask])
    np.testing.assert_allclose(reduce(ppo_clip(rollout, clip=1e6)), want, rtol=1e-5)


def test_ppo_clips_only_what_would_go_too_far():
    # Four tokens, A = +-1 and ratio e^+-1: the gradient vanishes where the ratio has already moved the way A asks for.
    ones = jnp.ones((1, 4), bool)
    logp, advantage = jnp.array([[1.0, 1.0, -1.0, -1.0]]), jnp.array([[1.0, -1.0, 1.0, -1.0]])
    rollout = Rollout(tokens=jnp.zeros((1, 4), jnp.int32), valid=ones, mask=ones, old_logp=jnp.zeros((1, 4)), logp=logp)
    grad = grad_logp(ppo_clip, replace(rollout, advantage=advantage, entropy=logp))
    np.testing.assert_allclose(grad, [[0, np.e / 4, -np.exp(-1) / 4, 0]], rtol=1e-6)


@pytest.mark.parametrize("drift", [5.0, 25.0, 1e3])
def test_ppo_still_pushes_back_under_large_drift(drift):
    # A bad action has become e^drift times as likely: the clip does not apply, and the gradient must say "less of it".
    one = jnp.ones((1, 1))
    rollout = Rollout(
        tokens=jnp.zeros((1, 1), jnp.int32), valid=one > 0, mask=one > 0, old_logp=0 * one, logp=drift * one
    )
    grad = grad_logp(ppo_clip, replace(rollout, advantage=-one, entropy=one))
    assert np.isfinite(grad).all() and (grad > 100).all()


def test_value_clip_without_a_clip_is_half_the_squared_error():
    rollout = make("value_clip")
    want = 0.5 * np.mean(np.square(np.asarray(rollout.value - rollout.returns))[rollout.mask])
    np.testing.assert_allclose(reduce(value_clip(rollout, clip=1e6)), want, rtol=1e-6)


def test_value_clip_at_the_old_value_has_the_plain_gradient():
    rollout = make("value_clip")
    rollout = replace(rollout, value=rollout.old_value)
    grad = jax.grad(lambda v: reduce(value_clip(replace(rollout, value=v))))(rollout.value)
    want = np.where(rollout.mask, (rollout.value - rollout.returns) / rollout.mask.sum(), 0)
    np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-8)


def test_kl_at_the_reference_is_exactly_zero():
    rollout = make("kl")
    rollout = replace(rollout, logp=rollout.ref_logp)
    for estimator in ("k2", "k3"):
        loss = kl(rollout, estimator=estimator)
        assert not loss.value.any() and not loss.metrics["kl"][0].any()
        assert not grad_logp(lambda r, e=estimator: kl(r, estimator=e), rollout).any()


@pytest.mark.parametrize(
    "call, key, word",
    [
        (lambda: dpo(make("dpo"), beta=0.0), "dpo: beta = 0.0:", "positive"),
        (lambda: dpo(make("dpo"), beta=-0.1), "dpo: beta = -0.1:", "positive"),
        (lambda: dpo(make("dpo"), label_smoothing=0.5), "dpo: label_smoothing = 0.5:", "[0, 0.5)"),
        (lambda: dpo(make("dpo"), label_smoothing=-0.1), "dpo: label_smoothing = -0.1:", "[0, 0.5)"),
        (lambda: bradley_terry(make("bradley_terry"), centering=-0.01), "bradley_terry: centering = -0.01:", "off"),
        (lambda: ppo_clip(make("ppo_clip"), clip=0.0), "ppo_clip: clip = 0.0:", "positive"),
        (lambda: value_clip(make("value_clip"), clip=-1.0), "value_clip: clip = -1.0:", "positive"),
        (lambda: kl(make("kl"), estimator="k1"), "'k1' in the loss:", "gradient"),
        (lambda: kl(make("kl"), estimator="k9"), "'k9':", "k1, k2, k3"),
        (lambda: kl(replace(make("kl"), ref_logp=None)), "Rollout.ref_logp is None", "fill"),
        (
            lambda: ppo_clip(replace(make("kl"), advantage=None, logp=None)),
            "Rollout.logp, Rollout.advantage is None",
            "fill",
        ),
        (lambda: value_clip(replace(make("kl"), returns=None)), "Rollout.returns is None", "fill"),
    ],
)
def test_refuses(call, key, word):
    with refuses(ValueError, key, word):
        call()
