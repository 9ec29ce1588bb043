"""Token rewards and advantages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.ops.returns import gae, token_rewards


def random_case(seed=0, B=4, T=9):
    rng = np.random.default_rng(seed)
    mask = rng.random((B, T)) < 0.6  # holes included: tool tokens between actions
    mask[:, 0], mask[-1] = False, False  # position 0 has no context; the last row has no action at all
    rewards, values, kl = (rng.normal(size=(B, T)).astype(np.float32) for _ in range(3))
    return jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(kl), jnp.asarray(mask)


def oracle(rewards, values, mask, gamma, lam):
    """The definition, per row, over the actions alone: A_i = sum_j (gamma lam)^j delta_{i+j}. Float64."""
    advantages = np.zeros(mask.shape)
    for b in range(mask.shape[0]):
        at = np.flatnonzero(mask[b])
        v = np.append(np.asarray(values[b], np.float64)[at], 0.0)
        delta = np.asarray(rewards[b], np.float64)[at] + gamma * v[1:] - v[:-1]
        for i, t in enumerate(at):
            advantages[b, t] = sum((gamma * lam) ** j * d for j, d in enumerate(delta[i:]))
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
def test_gae_is_its_definition(gamma, lam):
    rewards, values, _, mask = random_case()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    want = oracle(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, np.where(mask, want + values, 0), rtol=1e-5, atol=1e-6)


def test_gae_by_hand():
    # Actions at 0 and 2, a tool token at 1. V = (1, -, 2), r = (0, -, 3), gamma = 1/2, lam = 1/2, nothing after:
    # delta_2 = 3 - 2 = 1, A_2 = 1; delta_0 = 0 + 2 / 2 - 1 = 0, A_0 = 0 + 1/4 * 1 = 0.25.
    rewards, values = jnp.array([[0.0, 70.0, 3.0]]), jnp.array([[1.0, 50.0, 2.0]])
    advantages, returns = gae(rewards, values, jnp.array([[True, False, True]]), gamma=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[0.25, 0, 1]])
    np.testing.assert_allclose(returns, [[1.25, 0, 3]])


def test_lambda_one_is_monte_carlo_minus_baseline():
    rewards, values, _, mask = random_case(1)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    masked = np.where(mask, rewards, 0)
    to_go = np.cumsum(masked[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(advantages, np.where(mask, to_go - values, 0), atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), atol=1e-5)


def test_without_discount_or_critic_every_action_gets_the_score_minus_the_kl_to_go():
    _, _, kl, mask = random_case(2)
    score, coef = jnp.array([0.7, -0.3, 1.5, 9.0]), 0.05
    advantages, _ = gae(token_rewards(score, kl, mask, coef), jnp.zeros(mask.shape), mask, gamma=1.0, lam=1.0)
    kl_to_go = np.cumsum(np.where(mask, kl, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(advantages, np.where(mask, score[:, None] - coef * kl_to_go, 0), atol=1e-6)


def test_tool_tokens_leave_the_actions_advantages_as_they_are():
    rewards, values, _, _ = random_case(3, B=2, T=6)
    mask = jnp.ones((2, 6), bool)
    spread = np.array([0, 1, 4, 5, 7, 9])  # the same actions with tool tokens at 2, 3, 6 and 8
    put = lambda x, fill: jnp.full((2, 10), fill, x.dtype).at[:, spread].set(x)  # noqa: E731
    plain = gae(rewards, values, mask, gamma=0.9, lam=0.7)
    holed = gae(put(rewards, 5.0), put(values, -4.0), put(mask, False), gamma=0.9, lam=0.7)
    chex.assert_trees_all_close(tuple(x[:, spread] for x in holed), plain, rtol=1e-6)


def test_rewards_land_on_the_last_action_token():
    mask = jnp.array([[False, True, True, False], [False, True, False, True], [False] * 4])
    rewards = token_rewards(jnp.array([0.7, -0.25, 3.0]), jnp.ones((3, 4)), mask, 0.5)
    # Fractional scores survive; a row without actions has nowhere to put its score.
    np.testing.assert_allclose(rewards, [[0, -0.5, 0.2, 0], [0, -0.5, 0, -0.75], [0, 0, 0, 0]], rtol=1e-6)
    assert rewards.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(4, 4), (1, 5), (1, 1), (3, 1)])
def test_shapes_that_could_broadcast(shape):
    rewards, values, kl, mask = random_case(4, *shape)
    mask = jnp.ones(shape, bool)
    score = jnp.arange(shape[0], dtype=jnp.float32)
    tokens = token_rewards(score, kl, mask, 0.1)
    np.testing.assert_allclose(tokens.sum(1), score - 0.1 * kl.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gae(rewards, values, mask)[0], oracle(rewards, values, mask, 1.0, 0.95), atol=1e-5)


def test_masked_lanes_may_hold_nan():
    rewards, values, kl, mask = random_case(5)
    dirty = [jnp.where(mask, x, jnp.nan) for x in (rewards, values, kl)]
    chex.assert_trees_all_close(gae(dirty[0], dirty[1], mask), gae(rewards, values, mask))
    score = jnp.ones(4)
    chex.assert_trees_all_close(token_rewards(score, dirty[2], mask, 0.1), token_rewards(score, kl, mask, 0.1))
    chex.assert_tree_all_finite(jax.grad(lambda v: jnp.sum(gae(dirty[0], v, mask)[0] ** 2))(dirty[1]))


def test_padding_and_rows_do_not_interact():
    rewards, values, _, mask = random_case(6)
    wide = [jnp.pad(x, ((0, 0), (2, 3))) for x in (rewards, values, mask)]
    chex.assert_trees_all_close(tuple(x[:, 2:-3] for x in gae(*wide)), gae(rewards, values, mask))
    order = jnp.array([2, 0, 3, 1])
    permuted = gae(rewards[order], values[order], mask[order])
    chex.assert_trees_all_close(permuted, tuple(x[order] for x in gae(rewards, values, mask)))


@pytest.mark.parametrize("name", ["gamma", "lam"])
def test_a_discount_is_a_number_in_the_unit_interval(name):
    rewards, values, _, mask = random_case()
    for wrong in (np.nan, -0.1, 1.5):
        with refuses(ValueError, f"gae: {name} = {wrong}:", "expected"):
            gae(rewards, values, mask, **{name: wrong})
