"""PPO with a KL penalty against a reward model.

Command: alignax run --config=configs/world/ppo.py --config.init_from=runs/quickstart/sft --workdir=runs/world/ppo
"""

from ml_collections import FieldReference

from alignax.stages import online
from configs.world.dpo import harbor_probe


def get_config():
    c = online.get_config()
    init = FieldReference("runs/quickstart/sft")
    c.init_from = init
    c.reward_from = init + "/../reward"
    c.source = "alignax.worlds.sources:prompts"
    c.data = dict(count=4_000, world_split="online")
    c.max_prompt_length = 24
    c.max_new_tokens = 32
    c.batch_size = 64
    c.compute.remat = "dots"  # a small model on a CPU: to compute again is cheaper than to keep
    c.total_steps = 48
    c.kl_coef = 0.05  # to begin with: a weak reward model pulls harder than a strong one, so it follows the KL
    c.kl_controller, c.kl_controller_args = "adaptive_kl", dict(target=3.0, horizon=320.0)  # nats; episodes
    c.update_args = dict(epochs=2, minibatches=2)
    c.optimizer_args = dict(learning_rate=5e-4, schedule="linear", warmup_percent=4.0)
    c.value_optimizer_args = dict(learning_rate=1e-3, schedule="linear", warmup_percent=4.0)
    c.eval_every_steps = 12
    c.save_every_steps = 12
    c.probe = harbor_probe(c.probe, count=128)
    return c
