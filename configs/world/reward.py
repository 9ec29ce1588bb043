"""A Bradley-Terry reward model on collected preferences.

Command: alignax run --config=configs/world/reward.py --config.init_from=runs/quickstart/sft --workdir=runs/world/reward
"""

from ml_collections import FieldReference

from alignax.stages import reward


def get_config():
    c = reward.get_config()
    init = FieldReference("runs/quickstart/sft")
    c.init_from = init
    c.data = dict(path=init + "/../collect", heldout_percent=10.0)  # the pairs collected beside the policy
    c.max_length = 48
    c.batch_size = 16
    c.compute.remat = "dots"  # a small model on a CPU: to compute again is cheaper than to keep
    c.total_steps = 1100
    c.optimizer_args = dict(learning_rate=1e-3, warmup_percent=5.0)
    c.eval_every_steps = 275
    c.save_every_steps = 275
    return c
