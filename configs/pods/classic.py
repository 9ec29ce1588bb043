"""SFT -> reward model -> PPO, and DPO, of a large model on a pod: human preferences (Anthropic HH-RLHF), long texts.

Plan first, it takes no chip: alignax plan --config=configs/pods/classic.py:256 --topology=v5e:16x16 \
    --model=configs/models/llama3_8b
Command, on every worker: alignax run --config=configs/pods/classic.py:256 --workdir=gs://BUCKET/runs/classic
The number is that of the chips: rows of a batch are as many. The policy is imported before:
alignax import meta-llama/Meta-Llama-3-8B models/llama3
"""

from alignax.stages import offline, online, probe, reward, sft
from configs.hh.sft import hh_data


def get_config(chips="256"):
    from ml_collections import ConfigDict

    c, rows = ConfigDict(), int(chips)
    c.steps = ("sft", "reward", "ppo", "dpo")
    c.sft, c.reward, c.ppo, c.dpo = (module.get_config() for module in (sft, reward, online, offline))
    c.sft.init_from = "models/llama3"
    c.reward.init_from = c.ppo.init_from = c.dpo.init_from = "@sft"
    c.ppo.reward_from = "@reward"
    for name in c.steps:
        one = c[name]
        one.mesh = dict(replica=1, data=1, fsdp=-1, tensor=1)
        one.compute = dict(dtype="bfloat16", remat="full", attention="auto")
        one.template, one.batch_size = "plain", rows
        one.save_every_steps = 100
    for name in ("sft", "reward", "dpo"):
        hh_data(c[name])
        c[name].max_length = 4096
    c.sft.optimizer_args = dict(learning_rate=1e-5, warmup_percent=3.0)
    c.reward.optimizer_args = dict(learning_rate=3e-6, warmup_percent=3.0)
    c.dpo.optimizer_args = dict(learning_rate=5e-7, warmup_percent=10.0)
    c.ppo.source, c.ppo.data = c.dpo.source, ConfigDict(c.dpo.data.to_dict())
    c.ppo.max_prompt_length = c.ppo.max_new_tokens = 1024
    c.ppo.update_args = dict(epochs=1, minibatches=1)
    c.ppo.optimizer_args = dict(learning_rate=1e-6)
    c.ppo.value_optimizer_args = dict(learning_rate=5e-6)
    for name in ("ppo", "dpo"):
        c[name].probe = probe.get_config()
    return c
