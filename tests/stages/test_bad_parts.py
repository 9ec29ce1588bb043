"""Parts of an algorithm from elsewhere that cannot work: refused when they are bound, or named where they fail."""

import jax.numpy as jnp
import pytest
from errors import refuses

from alignax.config import ConfigError, plain
from alignax.rewards.text import total_reward
from alignax.stages import online
from alignax.types import Loss, Rollout


def planned(**values):
    c = plain(online.get_config()) | {"init_from": "somewhere", "data": {"path": "rows.jsonl"}, "batch_size": 8}
    c |= {"advantage": "group_baseline", "samples_per_prompt": 2, "critic_init": "none", "reward": good}
    return online.plan(c | values)


def good(row: dict, completion: str, *, finished: bool) -> float:
    """A reward."""
    del row, finished
    return float(len(completion))


def without_finished(row: dict, completion: str) -> float:
    """Called in another way than a reward is."""
    del row
    return float(len(completion))


def of_a_missing_field(rollout: Rollout) -> Loss:
    """Reads the values of a critic that is not there."""
    return Loss(rollout.value * 2.0, rollout.mask.astype(jnp.float32), {})


def keyed_memory(kl_coef, kl, *, memory=()):
    """A controller whose memory is not where it is looked for."""
    return kl_coef, memory


def nothing_of_it(rollout, score_B, kl_coef):
    """An advantage that gives one thing where three are expected."""
    return score_B.nowhere


def test_a_good_one_is_planned():
    assert planned().algorithm.policy


@pytest.mark.parametrize(
    "values, key, words",
    [
        (dict(reward=without_finished), "config.reward = 'without_finished':", ["finished"]),
        (dict(reward="", rewards={"one": {"function": without_finished}}), "config.rewards.one.function", ["finished"]),
        (dict(reward="", rewards={"a.b": {"function": good}}), "config.rewards.a.b", ["name"]),
        (dict(loss=of_a_missing_field), "TypeError", ["'of_a_missing_field'", "config.loss_args"]),
        (dict(kl_controller=keyed_memory), "config.kl_controller", ["position"]),
        (dict(advantage=nothing_of_it), "AttributeError", ["'nothing_of_it'", "config.advantage_args"]),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(values, key, words):
    with refuses(ConfigError, key, *words):
        planned(**values)


def test_a_reward_that_raises_names_its_reply():
    def broken(row, completion, *, finished):
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        total_reward(broken, {"prompt": "2 + 2"}, "five", True)
    assert "'five'" in caught.value.__notes__[0] and "2 + 2" in caught.value.__notes__[0]
