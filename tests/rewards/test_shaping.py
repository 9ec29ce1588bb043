"""Scores beside those of the reference's replies to the same prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import prompt_batch
from tiny_online import ALONE, build_actors, build_algorithm, build_frozen, build_state

from alignax.bound import bound
from alignax.config import ConfigError
from alignax.rewards.shaping import centred, preference
from alignax.train import online
from alignax.train.scores import shape_scores

SCORE = jnp.array([1.0, 0.0, jnp.nan, 2.0])
REFERENCE = jnp.array([[1.0, 3.0], [0.0, jnp.nan], [1.0, 1.0], [jnp.nan, jnp.nan]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    "function, settings, want",
    [
        (preference, {}, [(0.5 + sigmoid(-2.0)) / 2, 0.5, np.nan, np.nan]),
        (preference, {"scale": 2.0}, [(0.5 + sigmoid(-1.0)) / 2, 0.5, np.nan, np.nan]),
        (centred, {}, [-1.0, 0.0, np.nan, np.nan]),
    ],
)
def test_by_hand_and_what_is_missing_takes_no_part(function, settings, want):
    np.testing.assert_allclose(function(SCORE, REFERENCE, **settings), want, rtol=1e-6)


def test_a_preference_is_bounded_and_does_not_see_what_is_in_the_prompt():
    far = preference(jnp.array([100.0, -100.0]), jnp.zeros((2, 3)))
    np.testing.assert_allclose(far, [1.0, 0.0], atol=1e-6)
    shift = jnp.array([5.0, -7.0, 1.0, 0.0])
    for function in (preference, centred):
        moved = function(SCORE + shift, REFERENCE + shift[:, None])
        np.testing.assert_allclose(moved, function(SCORE, REFERENCE), rtol=1e-4, atol=1e-5)


def test_a_scale_has_to_be_positive():
    with refuses(ValueError, "scale = 0.0", "such as"):
        preference(SCORE, REFERENCE, scale=0.0)


def seen(algorithm, state, frozen, prompts):
    """The scores that an advantage estimator gets in an iteration."""
    found = []

    def estimator(rollout, score_B, kl_coef):
        found.append(score_B)
        return rollout.replace(advantage=jnp.zeros_like(rollout.old_logp)), jnp.float32(0), {}

    algorithm = dataclasses.replace(algorithm, advantage=bound(estimator, {}, key="x"))
    score = lambda frozen, rollout: {"a": rollout.mask.sum(1).astype(jnp.float32), "b": jnp.ones(16)}  # noqa: E731
    actors = build_actors()._replace(critic=None)
    _, metrics = online.iteration(algorithm, actors, score, state, frozen, prompts)
    return found[0], metrics


@pytest.mark.slow
def test_an_iteration_reads_the_rewards_of_its_prompts_by_their_rows():
    settings = dict(**ALONE, advantage="group_baseline", samples_per_prompt=2)
    algorithm = build_algorithm(**settings)
    raw = bound(shape_scores, {"normalize": False, "clip": 0.0, "missing_eos_penalty": 0.0}, key="x",
                given=("max_tokens",)).given(max_tokens=4)  # fmt: skip
    plain = dataclasses.replace(algorithm, weights={"a": 1.0, "b": 3.0}, scoring=raw)
    shaped = dataclasses.replace(plain, shaping=bound(centred, {}, key="x"))
    rng = np.random.default_rng(0)
    table = {name: jnp.asarray(rng.normal(size=(20, 3)), jnp.float32) for name in ("a", "b")}
    frozen, prompts = build_frozen() | {"reference_rewards": table}, prompt_batch()
    prompts = prompts | {"row": jnp.array([19, 3, 4, 0, 7, 9, 1, 2], jnp.int32)}
    state = build_state(plain)
    with jax.disable_jit(False):
        score_B, before = seen(plain, state, build_frozen(), prompts)
        got_B, after = seen(shaped, state, frozen, prompts)
    baseline_N = (table["a"] + 3.0 * table["b"]).mean(1)
    np.testing.assert_allclose(got_B, score_B - jnp.repeat(baseline_N[prompts["row"]], 2), rtol=1e-4, atol=1e-5)
    assert after["objective/scores"] == before["objective/scores"]  # the log has the reward as it is


def test_a_shaping_that_no_config_can_hold():
    with refuses(ConfigError, "config.reward_shaping", "'centered'", "centred"):
        build_algorithm(reward_shaping="centered")
    with refuses(ConfigError, "config.reward_shaping_args"):
        build_algorithm(reward_shaping_args={"scale": 1.0})
    with refuses(ConfigError, "config.reference_replies = 0", "1 or more"):
        build_algorithm(reward_shaping="preference", reference_replies=0)
