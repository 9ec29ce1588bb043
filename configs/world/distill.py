"""A policy learns another's predictions: the quickstart's SFT policy those of its PPO policy, so that what PPO found is
there without a reward. Half of the steps are on the student's own samples (GKD, Agarwal et al. 2023, 2306.13649).

Command: alignax run --config=configs/world/distill.py --workdir=runs/world/distill
About a minute on 2 CPU cores. Another loss: --config=configs/world/distill.py:forward_kl, or :reverse_kl
A fresh, smaller student: --config.init_from= --config.teacher_from=runs/quickstart/ppo --config.model=harbor
--config.model_args.layers=2, and more steps, as it has to learn the language too.
"""

from ml_collections import FieldReference

from alignax.stages import distill
from configs.world.dpo import harbor_probe


def get_config(loss="gkd"):
    c = distill.get_config()
    init = FieldReference("runs/quickstart/sft")
    c.init_from = init
    c.teacher_from = init + "/../ppo"
    c.source = "alignax.worlds.sources:demonstrations"
    c.data = dict(count=4_000, heldout=256)
    c.max_length = 48
    c.max_prompt_length = 24
    c.max_new_tokens = 32
    c.loss = loss
    c.batch_size = 32
    c.total_steps = 150
    c.optimizer_args = dict(learning_rate=5e-4, warmup_percent=10.0)
    c.eval_every_steps = 50
    c.save_every_steps = 50
    c.probe = harbor_probe(c.probe, count=128)
    return c
