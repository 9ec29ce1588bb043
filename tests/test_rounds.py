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


def test_all_rounds_so_far_and_a_file_of_a_step():
    mine = ConfigDict(dict(stage="mine", seed=0, init_from="@ppo"))
    reward = ConfigDict(dict(stage="reward", seed=0, data=dict(path=("@pairs", "@all.collect", "@all.mine"))))
    ppo = ConfigDict(dict(stage="online", seed=0, data=dict(path="@last.mine/prompts.jsonl")))
    alone = ConfigDict(dict(stage="reward", seed=0, data=dict(path="@all.collect")))
    made = rounds(
        2, dict(collect=COLLECT, reward=reward, ppo=ppo, mine=mine, alone=alone), first=dict(ppo="@sft", mine="@mine")
    )
    assert made["reward_1"].data.path == ("@pairs", "@collect_1")
    assert made["reward_2"].data.path == ("@pairs", "@collect_1", "@collect_2", "@mine_1")  # mine comes after it
    assert made["alone_2"].data.path == ("@collect_1", "@collect_2")
    assert [made[f"ppo_{i}"].data.path for i in (1, 2)] == ["@mine/prompts.jsonl", "@mine_1/prompts.jsonl"]
    with refuses(ConfigError, "'@all.pairs'", "'reward'", "collect, reward"):
        rounds(1, dict(STEPS, reward=ConfigDict(dict(path="@all.pairs"))), first=dict(ppo="@sft"))


@pytest.mark.parametrize(
    "n, first, key, word",
    [(0, dict(ppo="@sft"), "n = 0", "1"), (2, {}, "'@last.ppo'", "first="), (2, dict(pqo="@sft"), "'pqo'", "ppo")],
)
def test_what_cannot_be_is_refused(n, first, key, word):
    with refuses(ConfigError, key, word):
        rounds(n, STEPS, first=first)
