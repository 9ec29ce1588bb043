"""The whole stack on the embedded harbour desk: SFT, preferences, reward model, PPO and DPO, compared.

Command: alignax run --config=configs/quickstart.py      (no download; results in runs/quickstart)
Another seed: alignax run --config=configs/quickstart.py --config.seed=1 --workdir=runs/quickstart-1
"""

from ml_collections import ConfigDict, FieldReference

from alignax.stages import evaluate
from configs.world import collect, dpo, ppo, reward, sft


def get_config():
    c = ConfigDict()
    seed = FieldReference(0)
    c.seed = seed  # of every step
    c.steps = ("sft", "collect", "reward", "ppo", "dpo", "evaluate")
    c.sft = sft.get_config()
    c.sft.data.seed = seed
    c.collect = collect.get_config()
    c.reward = reward.get_config()
    c.ppo = ppo.get_config()
    c.dpo = dpo.get_config()
    c.evaluate = evaluate.get_config()
    c.evaluate.policies = dict(sft="@sft", ppo="@ppo", dpo="@dpo")
    c.evaluate.probe = dpo.harbor_probe(c.evaluate.probe, count=512)
    for name in c.steps:
        c[name].seed = seed
        if name != "sft":
            c[name].init_from = "@sft"
    c.collect.data.seed = c.ppo.data.seed = seed
    c.reward.data.path = c.dpo.data.path = "@collect"
    c.ppo.reward_from = c.dpo.probe.reward_from = c.evaluate.probe.reward_from = "@reward"
    return c
