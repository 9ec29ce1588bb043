"""A reward as a constraint: its multiplier over two iterations by hand, in the state, in a config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import close, prompt_batch, rollout_batch
from tiny_online import ALONE, build_actors, build_algorithm, build_frozen, build_state

from alignax.checkpoint import Steps
from alignax.config import ConfigError, Reader, plain
from alignax.rewards.config import rewards_of
from alignax.stages import online as stage
from alignax.stages.algorithm import algorithm_of
from alignax.train import online, rewarded
from alignax.train.algorithm import Constraint
from alignax.train.constraints import lagrangian

HELPFUL = np.array([1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 2.0, 4.0], np.float32)  # mean 1.75
HARMLESS = np.array([0.5, 0.0, 0.0, 1.0, 0.5, 1.0, np.nan, 0.5], np.float32)  # mean 0.5 over those that are known


def build(**settings):
    algorithm = build_algorithm(**ALONE, advantage="reinforce_plus_plus", scoring_args=dict(normalize=False, clip=0.0))
    constraint = Constraint(limit=0.8, sign=1.0, learning_rate=2.0, multiplier=0.5, **settings)
    return dataclasses.replace(algorithm, weights={"r": 1.0, "safe": 0.0}, constraints={"safe": constraint})


def iterations(algorithm, count=2, state=None, harmless=HARMLESS):
    score = lambda frozen, rollout: {"r": jnp.asarray(HELPFUL), "safe": jnp.asarray(harmless)}  # noqa: E731
    actors = build_actors()._replace(critic=None)
    step = jax.jit(lambda s, p: online.iteration(algorithm, actors, score, s, build_frozen(), p))
    state, found = state or build_state(algorithm), []
    for i in range(count):
        state, metrics = step(state, prompt_batch(seed=i))
        found.append(metrics)
    return state, found


def test_two_iterations_by_hand():
    """lambda = 0.5 and a mean margin of 0.5 - 0.8: ln lambda grows by 2 * 0.5 * 0.3, then by 2 * 0.675 * 0.3."""
    state, (first, second) = iterations(build())
    lambdas = [0.5, 0.5 * np.exp(0.3)]
    for metrics, weight in zip((first, second), lambdas, strict=True):
        np.testing.assert_allclose(metrics["rewards/safe/multiplier"], weight, rtol=1e-5)
        want = np.nanmean((HELPFUL + weight * (HARMLESS - 0.8)) / (1 + weight))
        np.testing.assert_allclose(metrics["objective/scores"], want, rtol=1e-5)
        np.testing.assert_allclose(metrics["objective/missing_scores"], 1 / 8)
        np.testing.assert_allclose(metrics["rewards/safe/mean"], 0.5, rtol=1e-6)
    after = np.log(lambdas[1]) + 2.0 * lambdas[1] * 0.3
    np.testing.assert_allclose(state.multipliers["safe"], after, rtol=1e-5)


def test_a_constraint_that_is_kept_loses_weight_and_one_that_is_not_known_none():
    state, _ = iterations(build(), 1, harmless=np.full(8, 1.0, np.float32))
    np.testing.assert_allclose(state.multipliers["safe"], np.log(0.5) - 2.0 * 0.5 * 0.2, rtol=1e-5)
    state, _ = iterations(build(), 1, harmless=np.full(8, np.nan, np.float32))
    np.testing.assert_allclose(state.multipliers["safe"], np.log(0.5), rtol=1e-6)


def test_the_multiplier_has_a_ceiling():
    state, _ = iterations(build(max_multiplier=0.6), 2)
    np.testing.assert_allclose(np.exp(state.multipliers["safe"]), 0.6, rtol=1e-6)


def test_the_multiplier_is_in_the_state_and_comes_back_bit_for_bit(tmp_path):
    algorithm = build()
    want, _ = iterations(algorithm, 2)
    first, _ = iterations(algorithm, 1)
    with Steps(tmp_path / "steps") as steps:
        steps.save(1, first)
        _, restored = steps.restore_latest(first)
    assert restored.multipliers["safe"] == first.multipliers["safe"]
    close(iterations(algorithm, 1, state=restored)[0].multipliers, iterations(algorithm, 1, state=first)[0].multipliers,
          atol=0)  # fmt: skip
    assert want.multipliers["safe"] != first.multipliers["safe"]


def test_at_most_is_at_least_of_what_is_left():
    algorithm = build()
    least = dataclasses.replace(algorithm, constraints={"safe": Constraint(limit=-0.8, sign=1.0)})
    most = dataclasses.replace(algorithm, constraints={"safe": Constraint(limit=0.8, sign=-1.0)})
    r, x, weights = jnp.asarray(HELPFUL), jnp.asarray(HARMLESS), {"safe": jnp.float32(0.3)}
    np.testing.assert_array_equal(
        lagrangian(most, r, {"safe": x}, weights), lagrangian(least, r, {"safe": -x}, weights)
    )


def test_without_constraints_there_is_no_state_for_them():
    state = build_state(build_algorithm())
    assert state.multipliers == () and jax.tree.leaves(state.multipliers) == []


TEXT = dict(function="alignax.rewards.style:ended")


def config(**rewards):
    return Reader(
        plain(stage.get_config()) | dict(rewards=rewards, critic_init="none", advantage="reinforce_plus_plus")
    )


def test_a_config_says_the_limit_and_its_numbers_are_leaves():
    r = config(r=TEXT, safe=TEXT | dict(at_most=0.2, learning_rate=0.05, multiplier=2.0))
    algorithm = algorithm_of(r, rewards_of(r), plain(stage.get_config()))
    assert algorithm.weights == {"r": 1.0, "safe": 0.0}
    want = Constraint(limit=0.2, sign=-1.0, learning_rate=0.05, multiplier=2.0, max_multiplier=10.0)
    assert algorithm.constraints == {"safe": want} and len(jax.tree.leaves(want)) == 5


def test_what_is_made_of_others_may_be_a_constraint():
    both = dict(function="alignax.rewards.combine:minimum", of=("a", "b"), at_most=3.0)
    r = config(a=TEXT, b=TEXT | dict(weight=0.0), both=both)
    algorithm = algorithm_of(r, rewards_of(r), plain(stage.get_config()))
    rollout = rollout_batch()
    given = {"a": jnp.full(8, 2.0), "b": jnp.full(8, 1.0)}
    got = rewarded.scored(algorithm, rollout, given, {"both": jnp.log(jnp.float32(0.5))})
    np.testing.assert_allclose(got.score, (2.0 + 0.5 * (3.0 - 1.0)) / 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    "safe, key, word",
    [
        (dict(at_least=0.5, at_most=0.6), "config.rewards.safe", "'at_most'"),
        (dict(at_least=0.5, weight=1.0), "config.rewards.safe", "no 'weight'"),
        (dict(at_least="much"), "config.rewards.safe.at_least", "float"),
        (dict(at_least=float("inf")), "config.rewards.safe.at_least", "finite"),
        (dict(at_least=0.5, learning_rate=0.0), "config.rewards.safe.learning_rate", "positive"),
        (dict(at_least=0.5, multiplier=-1.0), "config.rewards.safe.multiplier", "positive"),
        (dict(at_least=0.5, lr=1.0), "config.rewards.safe.lr", "argument"),
    ],
)
def test_constraints_that_no_config_can_hold(safe, key, word):
    with refuses(ConfigError, key, word):
        rewards_of(config(r=TEXT, safe=TEXT | safe))
