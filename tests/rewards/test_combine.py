"""Rewards made of others: by hand, in a config, and in the score of a rollout."""

import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.bound import bound
from alignax.config import ConfigError, Reader, plain
from alignax.rewards import combine
from alignax.rewards.config import Reward, rewards_of
from alignax.stages import algorithm as binding
from alignax.stages import online as stage
from alignax.train import rewarded
from alignax.types import Rollout

VALUES = jnp.array([[1.0, 2.0, -1.0], [3.0, 2.0, 0.5], [2.0, 5.0, np.nan]])


@pytest.mark.parametrize(
    "function, settings, want",
    [
        (combine.mean, {}, [2.0, 3.0]),
        (combine.minimum, {}, [1.0, 2.0]),
        (combine.mean_less_variance, {"coef": 0.3}, [2 - 0.3 * 2 / 3, 3 - 0.3 * 2]),  # variances 2/3 and 2
        (combine.mean_less_std, {}, [2 - np.sqrt(2 / 3), 3 - np.sqrt(2)]),
        (combine.gated, {"least": 2.5}, [-1.0, -1.0]),
        (combine.gated, {"least": 2.0, "otherwise": -9.0}, [1.0, 2.0]),
        (combine.squashed, {"centre": 1.0, "scale": 2.0}, [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1))]),
    ],
)
def test_by_hand_and_a_missing_score_stays_missing(function, settings, want):
    got = function(VALUES, **settings)
    np.testing.assert_allclose(got[:2], want, rtol=1e-6)
    assert np.isnan(got[2])


@pytest.mark.parametrize(
    "function, settings", [(combine.mean_less_variance, {"coef": -1.0}), (combine.mean_less_std, {"coef": -0.1}),
                           (combine.squashed, {"scale": 0.0})],
)  # fmt: skip
def test_settings_out_of_range(function, settings):
    ((name, value),) = settings.items()
    with refuses(ValueError, f"{function.__name__}: {name} = {value}:", "such as"):
        function(VALUES, **settings)


def config(**rewards):
    return Reader(plain(stage.get_config()) | dict(rewards=rewards))


TEXT = dict(function="alignax.rewards.style:ended")
BOTH = "alignax.rewards.combine:minimum"


@pytest.mark.parametrize(
    "rewards, key, word",
    [
        (dict(a=TEXT, b=dict(function=BOTH, of=["c"])), "config.rewards.b.of: 'c'", "some of a"),
        (dict(a=TEXT, b=dict(function=BOTH, of=["a"]), c=dict(function=BOTH, of=["b"])), "config.rewards.c.of", "'b'"),
        (dict(a=TEXT, b=dict(function=BOTH, of="a")), "config.rewards.b", "of=('a', 'b')"),
        (dict(a=TEXT, b=dict(function=BOTH, of=[])), "config.rewards.b", "of=('a', 'b')"),
        (dict(a=TEXT, b=dict(of=["a"])), "config.rewards.b", "of=('a', 'b')"),
        (dict(a=TEXT, b=dict(function=BOTH, of=["a"], coef=1.0)), "config.rewards.b.coef", "argument"),
    ],
)  # fmt: skip
def test_what_no_config_can_hold(rewards, key, word):
    with refuses(ConfigError, key, word):
        rewards_of(config(**rewards))


def test_a_config_names_what_a_reward_is_made_of():
    found = rewards_of(config(a=TEXT | dict(weight=0.0), b=TEXT, both=dict(function=BOTH, of=("a", "b"), weight=2.0)))
    assert found["both"].of == ("a", "b") and found["both"].weight == 2.0 and not found["both"].function
    assert found["a"].function and not found["a"].of


def test_the_score_of_a_rollout_and_its_parts():
    """The score is the weighted sum of all; a number of a combination is a leaf."""
    made = dict(
        a=Reward(weight=0.0), b=Reward(weight=0.5),
        bound=Reward(combine=bound(combine.mean_less_std, {"coef": 2.0}, key="x", args_key="x"), of=("a", "b")),
    )  # fmt: skip
    defaults = plain(stage.get_config())
    algorithm = binding.algorithm_of(
        Reader(defaults | dict(critic_init="none", advantage="reinforce_plus_plus")), made, defaults
    )
    assert list(algorithm.combined) == ["bound"]
    shape = (2, 3)
    rollout = Rollout(
        tokens=jnp.zeros(shape, jnp.int32),
        valid=jnp.ones(shape, bool),
        mask=jnp.ones(shape, bool),
        old_logp=jnp.zeros(shape),
    )
    got = rewarded.scored(algorithm, rollout, {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array([3.0, 1.0])})
    # mean 2, standard deviation 1, coefficient 2: 0, and half of 3
    np.testing.assert_allclose(got.rewards["bound"], [0.0, np.nan])
    np.testing.assert_allclose(got.score, [1.5, np.nan])
