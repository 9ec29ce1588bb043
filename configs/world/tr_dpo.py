"""DPO against a reference that follows the policy (TR-DPO, soft updates).

Command: alignax run --config=configs/world/tr_dpo.py --config.init_from=runs/quickstart/sft --workdir=runs/tr_dpo
"""

from configs.world import dpo


def get_config():
    c = dpo.get_config()
    c.reference_args = dict(alpha=0.6, every=30)  # updates; three moves in this run of 120
    return c
