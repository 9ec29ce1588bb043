"""Rounds of the same steps as a pipeline."""

import pytest
from errors import refuses
from ml_collections import ConfigDict

from alignax.config import ConfigError
from alignax.rounds import rounds

COLLECT = ConfigDict(dict(stage="collect", seed=3, init_from="@last.ppo", data=dict(path="x")))
PPO = ConfigDict(dict(stage="online", seed=0, init_from="@last.ppo", reward_from="@reward", reference_from="@sft"))
REWARD = ConfigDict(dict(stage="reward", seed=0, init_from="@sft", data=dict(path="@collect")))
STEPS = dict(collect=COLLECT, reward=REWARD, ppo=PPO)


def test_references_are_to_this_round_and_the_last():
    made = rounds(2, STEPS, first=dict(ppo="@sft"))
    assert list(made) == ["collect_1", "reward_1", "ppo_1", "collect_2", "reward_2", "ppo_2"]
    assert [made[name].init_from for name in ("collect_1", "ppo_1")] == ["@sft", "@sft"]
    assert [made[name].init_from for name in ("collect_2", "ppo_2")] == ["@ppo_1", "@ppo_1"]
    assert made["reward_2"].data.path == "@collect_2" and made["reward_2"].init_from == "@sft"
    assert made["ppo_2"].reward_from == "@reward_2" and made["ppo_2"].reference_from == "@sft"


def test_no_two_rounds_sample_alike_and_the_given_steps_stay():
    made = rounds(3, STEPS, first=dict(ppo="@sft"))
    assert [made[f"collect_{i}"].seed for i in (1, 2, 3)] == [3, 4, 5]
    assert COLLECT.seed == 3 and COLLECT.init_from == "@last.ppo"


@pytest.mark.parametrize(
    "n, first, key, word",
    [(0, dict(ppo="@sft"), "n = 0", "1"), (2, {}, "'@last.ppo'", "first="), (2, dict(pqo="@sft"), "'pqo'", "ppo")],
)
def test_what_cannot_be_is_refused(n, first, key, word):
    with refuses(ConfigError, key, word):
        rounds(n, STEPS, first=first)
