"""Kinds of training on the tiny pipeline's data, two updates each: what several processes are tried on."""

import os


def get_config(parent=""):
    """The steps; with a `parent`, a pipeline's folder, they start from its SFT policy and its reward model."""
    from ml_collections import ConfigDict

    from alignax.stages import probe
    from benchmarks import kill_resume

    c = kill_resume.get_config()
    c.sft.total_steps, c.sft.save_every_steps, c.sft.eval_every_steps, c.sft.data.count = 2, 1, 2, 64
    for name in ("reward", "ppo", "dpo"):
        c[name].total_steps, c[name].save_every_steps, c[name].eval_every_steps = 2, 1, 0
        c[name].init_from = f"{parent}/sft"
    for name in ("ppo", "dpo"):
        c[name].probe = probe.get_config()
    for name in ("reward", "dpo"):
        c[name].data.path = f"{parent}/collect"
    c.ppo.max_new_tokens, c.ppo.reward_from = 8, f"{parent}/reward"
    text = ConfigDict(c.ppo.to_dict())
    text.reward_from, text.reward, text.critic_init = "", "alignax.worlds.gold:gold", "policy"
    c.text = text
    c.probed = ConfigDict(c.evaluate.to_dict())
    c.probed.init_from, c.probed.policies = f"{parent}/sft", {"sft": f"{parent}/sft", "ppo": "@ppo"}
    c.probed.probe.reward_from = f"{parent}/reward"
    del c.collect, c.evaluate
    c.steps = tuple(os.environ.get("STEPS", "sft reward dpo ppo text probed").split())
    for name in {"sft", "reward", "dpo", "ppo", "text", "probed"} - {*c.steps}:
        del c[name]
    return c


if "PARENT" in os.environ:  # a config file takes its argument after a colon, and a path may hold one
    _of, get_config = get_config, lambda: _of(os.environ["PARENT"])
