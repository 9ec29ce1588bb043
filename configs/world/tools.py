"""Sums with a calculator: SFT on demonstrations that call it now and then, and GRPO with the tool and without.

Command: alignax run --config=configs/world/tools.py --workdir=runs/tools
"""

from ml_collections import ConfigDict, FieldReference

from alignax.stages import evaluate, online
from configs.world import sft

TOOL = "alignax.envs.calculator:Calculator"
RIGHT = "alignax.rewards.answers:exact_answer"


def get_config():
    c = ConfigDict()
    seed = FieldReference(0)
    c.seed = seed  # of every step
    c.steps = ("sft", "grpo_tool", "grpo", "with_tool", "without")
    c.sft = demonstrated()
    c.sft.data.seed = seed
    c.grpo_tool, c.grpo = grpo(TOOL), grpo("")
    c.with_tool, c.without = measured(TOOL), measured("")
    c.with_tool.policies = dict(sft="@sft", grpo_tool="@grpo_tool")
    c.without.policies = dict(sft="@sft", grpo="@grpo", grpo_tool="@grpo_tool")
    for name in c.steps:
        c[name].seed = seed
        if name != "sft":
            c[name].init_from = "@sft"
    c.grpo_tool.data.seed = c.grpo.data.seed = seed
    return c


def demonstrated():
    c = sft.get_config()  # the harbour desk's
    c.tokenizer = "alignax.worlds.sums:build_tokenizer"
    c.source = "alignax.worlds.sums:demonstrations"
    c.data.count = 12_000
    c.train_on = "assistant"
    c.total_steps = 600
    c.eval_every_steps = c.save_every_steps = 300
    return c


def grpo(env):
    """GRPO whose reward is a right answer; a policy that may not call the tool is not shown it."""
    c = online.get_config()
    c.source, c.data = "alignax.worlds.sums:prompts", dict(count=1_000, world_split="online")
    c.env = env
    c.max_turns = 4 if env else c.max_turns
    c.max_observation = 24 if env else c.max_observation
    c.rewards = dict(right=dict(function=RIGHT))
    c.max_prompt_length, c.max_new_tokens = 16, 40
    c.samples_per_prompt, c.batch_size, c.total_steps = 8, 16, 40
    c.compute.remat = "dots"
    c.critic_init, c.advantage, c.advantage_args = "none", "group_baseline", dict(baseline="standardise")
    # where few replies are right, a faster policy without a KL penalty leaves the language
    c.loss, c.kl_coef, c.kl_placement, c.kl_estimator = "grpo", 0.02, "loss", "k3"
    c.update_args = dict(epochs=2, minibatches=2)
    c.optimizer_args = dict(learning_rate=1e-4, schedule="linear", warmup_percent=5.0)
    c.eval_every_steps = 0
    c.save_every_steps = 20
    return c


def measured(env):
    """Accuracy on held-out prompts: the gold reward is a right answer in the last turn."""
    c = evaluate.get_config()
    p = c.probe
    p.source, p.data = "alignax.worlds.sums:prompts", dict(count=512, world_split="eval")
    p.env = env
    p.max_turns = 4 if env else p.max_turns
    p.max_observation = 24 if env else p.max_observation
    p.max_prompt_length, p.max_new_tokens, p.batch_size = 16, 40, 256
    p.reward = RIGHT
    return c
