"""Hard negatives on the harbour desk: what a reward model loves and gold does not teaches the next reward model.

Command: alignax run --config=configs/world/hard_negatives.py --workdir=runs/hard_negatives

A round refits the reward model to the first pairs and all that were mined since, trains PPO from the SFT policy against
it, a part of its prompts being those that were most wrongly rewarded the last time, and mines the new policy.
"""

from ml_collections import ConfigDict, FieldReference

from alignax.rounds import rounds
from alignax.stages import mine
from configs.world import collect, ppo, reward, sft
from configs.world.iterated_rlhf import evaluate_config, seeded


def get_config(n="2"):
    seed = FieldReference(0)
    c = ConfigDict(dict(seed=seed, sft=sft.get_config(), collect=collect.get_config(), reward_0=reward.get_config()))
    c.collect.init_from = c.reward_0.init_from = "@sft"
    c.reward_0.data.path = "@collect"
    c.mine_0 = mine_config("@sft", "@reward_0")
    steps = dict(reward=reward.get_config(), ppo=ppo.get_config(), mine=mine_config("@ppo", "@reward"))
    steps["reward"].init_from = steps["ppo"].init_from = "@sft"
    steps["reward"].data = ConfigDict(dict(path=("@collect", "@mine_0", "@all.mine"), heldout_percent=10.0))
    steps["ppo"].reward_from = "@reward"
    world = dict(source=steps["ppo"].source, **steps["ppo"].data, weight=0.8)
    hard = dict(source="jsonl", path="@last.mine/prompts.jsonl", weight=0.2)
    steps["ppo"].source, steps["ppo"].data = "mixture", ConfigDict(dict(parts=dict(world=world, hard=hard)))
    made = rounds(int(n), steps, first=dict(mine="@mine_0"))
    c.update(made)
    c.evaluate = evaluate_config({name: f"@{name}" for name in made if name.startswith("ppo")}, f"@reward_{n}")
    c.steps = ("sft", "collect", "reward_0", "mine_0", *made, "evaluate")
    return seeded(c, seed)


def mine_config(policy, reward_model):
    """Eight replies to each of 512 prompts, scored by a reward model and by gold."""
    c = mine.get_config()
    c.init_from, c.reward_from = policy, reward_model
    c.gold.reward = "alignax.worlds.gold:gold"
    c.source = "alignax.worlds.sources:prompts"
    c.data = dict(count=512, world_split="reward")
    c.max_prompt_length = 24
    c.max_new_tokens = 32
    return c
