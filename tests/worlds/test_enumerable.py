"""Tier T0: identities that hold exactly when every response can be summed over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.worlds.enumerable import (
    enumerable,
    exact_kl,
    expectation,
    optimal_policy,
    population_dpo_loss,
    preference_matrix,
    regularised_reward,
    sample_pairs,
    slot_logp,
)

OPTIONS, BETA = 8, 0.5
WORLD = enumerable(OPTIONS, seed=0)


def test_the_world_is_a_distribution_with_a_standardised_reward():
    assert WORLD.slots_R3.shape == (OPTIONS**3, 3)
    assert len({tuple(row) for row in np.asarray(WORLD.slots_R3).tolist()}) == OPTIONS**3
    np.testing.assert_allclose(jnp.exp(WORLD.ref_logp_R).sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(expectation(WORLD.ref_logp_R, WORLD.reward_R), 0.0, atol=1e-6)
    np.testing.assert_allclose(expectation(WORLD.ref_logp_R, WORLD.reward_R**2), 1.3**2, rtol=1e-5)
    assert jnp.array_equal(enumerable(OPTIONS, seed=0).reward_R, WORLD.reward_R)
    assert not jnp.array_equal(enumerable(OPTIONS, seed=1).reward_R, WORLD.reward_R)


def test_optimal_policy_is_stationary_and_reaches_the_bound():
    @jax.jit
    def value(theta_R):
        return regularised_reward(jax.nn.log_softmax(theta_R), WORLD, BETA)

    best_R = optimal_policy(WORLD, BETA)
    bound = BETA * jax.nn.logsumexp(WORLD.ref_logp_R + WORLD.reward_R / BETA)
    np.testing.assert_allclose(value(best_R), bound, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value)(best_R), 0.0, atol=1e-6)
    for seed in range(5):
        nudge_R = 0.3 * jax.random.normal(jax.random.key(seed), best_R.shape)
        assert value(best_R + nudge_R) < bound


def test_kl_by_float64_sums():
    logp_R = optimal_policy(WORLD, BETA)
    p_R, ref_R = (np.exp(np.asarray(x, np.float64)) for x in (logp_R, WORLD.ref_logp_R))
    np.testing.assert_allclose(exact_kl(logp_R, WORLD.ref_logp_R), np.sum(p_R * np.log(p_R / ref_R)), rtol=1e-4)
    assert exact_kl(WORLD.ref_logp_R, WORLD.ref_logp_R) == 0.0
    certain_R = jnp.full_like(logp_R, -jnp.inf).at[7].set(0.0)
    np.testing.assert_allclose(exact_kl(certain_R, WORLD.ref_logp_R), -WORLD.ref_logp_R[7], rtol=1e-6)


def test_dpo_population_gradient_vanishes_at_the_optimal_policy_only():
    """At pi* of the right beta, beta (h_i - h_j) = r_i - r_j: sigma is the label probability, so the gradient is 0."""

    def gradient(policy_beta, loss_beta):
        theta_R = optimal_policy(WORLD, policy_beta)
        loss = lambda theta: population_dpo_loss(jax.nn.log_softmax(theta), WORLD, loss_beta)  # noqa: E731
        return jnp.linalg.norm(jax.grad(loss)(theta_R))

    assert gradient(BETA, BETA) < 2e-7
    assert gradient(2 * BETA, BETA) > 1e-3
    assert gradient(BETA / 2, BETA) > 1e-3


def test_dpo_population_loss_is_log_two_at_the_reference():
    np.testing.assert_allclose(population_dpo_loss(WORLD.ref_logp_R, WORLD, BETA), np.log(2.0), rtol=1e-5)


def test_dpo_population_loss_is_lowest_at_the_optimal_policy():
    """The loss is convex in log pi, so its stationary point is the minimum: every nudge raises it."""
    loss = jax.jit(lambda theta_R: population_dpo_loss(jax.nn.log_softmax(theta_R), WORLD, BETA))
    best_R = optimal_policy(WORLD, BETA)
    for seed in range(5):
        assert loss(best_R + jax.random.normal(jax.random.key(seed), best_R.shape)) > loss(best_R) + 1e-3


def test_the_third_slot_is_neutral():
    before_O = slot_logp(WORLD.ref_logp_R, WORLD, 2, OPTIONS)
    after_O = slot_logp(optimal_policy(WORLD, 0.2), WORLD, 2, OPTIONS)
    np.testing.assert_allclose(after_O, before_O, atol=1e-4)
    first_O = slot_logp(optimal_policy(WORLD, 0.2), WORLD, 0, OPTIONS)
    assert jnp.max(jnp.abs(first_O - slot_logp(WORLD.ref_logp_R, WORLD, 0, OPTIONS))) > 1.0


def test_preference_matrix_is_complementary_and_ordered():
    P_RR = preference_matrix(WORLD.reward_R)
    np.testing.assert_allclose(P_RR + P_RR.T, 1.0, rtol=1e-6)
    np.testing.assert_allclose(P_RR[3, 5], 1 / (1 + np.exp(-float(WORLD.reward_R[3] - WORLD.reward_R[5]))), rtol=1e-5)
    assert jnp.all(
        (preference_matrix(WORLD.reward_R, 0.1) > 0.5) == (WORLD.reward_R[:, None] > WORLD.reward_R[None, :])
    )


def test_sampled_pairs_have_the_exact_agreement():
    """P(the chosen one has the higher reward) is a sum over all pairs; 20,000 draws come within 4 standard errors."""
    n = 20_000
    chosen_N, rejected_N = sample_pairs(jax.random.key(0), WORLD, n)
    ref_R = jnp.exp(WORLD.ref_logp_R)
    higher_RR = WORLD.reward_R[:, None] > WORLD.reward_R[None, :]
    exact = 2 * jnp.sum(ref_R[:, None] * ref_R[None, :] * preference_matrix(WORLD.reward_R) * higher_RR)
    share = jnp.mean(WORLD.reward_R[chosen_N] > WORLD.reward_R[rejected_N])
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / n)
    assert 0.6 < exact < 0.85


@pytest.mark.parametrize("options", [1, 17])
def test_too_few_or_too_many_options(options):
    with refuses(ValueError, f"options {options}", "2 to 16"):
        enumerable(options)
