"""DPO on collected preferences.

Command: alignax run --config=configs/world/dpo.py --config.init_from=runs/quickstart/sft --workdir=runs/world/dpo
"""

from ml_collections import FieldReference

from alignax.stages import offline


def get_config():
    c = offline.get_config()
    init = FieldReference("runs/quickstart/sft")
    c.init_from = init
    c.data = dict(path=init + "/../collect", heldout_percent=10.0)  # the pairs collected beside the policy
    c.max_length = 48
    c.loss = "dpo"
    c.loss_args = dict(beta=0.1)
    c.batch_size = 32
    c.compute.remat = "dots"  # a small model on a CPU: to compute again is cheaper than to keep
    c.total_steps = 120
    c.optimizer_args = dict(learning_rate=3e-4, warmup_percent=10.0)
    c.eval_every_steps = 60
    c.save_every_steps = 60
    c.probe = harbor_probe(c.probe, count=128)
    return c


def harbor_probe(probe, *, count, reward_from=""):
    """Held-out prompts of the harbour desk with its gold reward."""
    probe.source = "alignax.worlds.sources:prompts"
    probe.data = dict(count=count, world_split="eval")
    probe.max_prompt_length = 24
    probe.max_new_tokens = 32
    probe.batch_size = 128
    probe.reward = "alignax.worlds.gold:gold"
    probe.reward_from = reward_from
    return probe
