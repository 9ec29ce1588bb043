"""Every critic-free recipe as a config: two iterations on the tiny policy, rewarded by the gold program."""

import numpy as np
import pytest
from stage_runs import metrics, tiny

from alignax.config import ConfigError
from alignax.stages import online, probe

GROUP = dict(advantage="group_baseline")
RECIPES = {  # name -> (loss, what else the config says)
    "reinforce": ("reinforce", dict(advantage="reinforce_plus_plus", samples_per_prompt=1)),
    "rloo": ("reinforce", GROUP | dict(advantage_args=dict(baseline="leave_one_out"))),
    "grpo": ("grpo", GROUP | dict(advantage_args=dict(baseline="standardise"), kl_placement="loss", kl_estimator="k3")),
    "dr_grpo": ("dr_grpo", GROUP | dict(advantage_args=dict(baseline="mean"))),
    "dapo": ("dapo", GROUP | dict(advantage_args=dict(baseline="standardise", only_informative=True), oversample=2)),
    "gspo": ("gspo", GROUP | dict(advantage_args=dict(baseline="standardise"))),
    "raft": ("reinforce", dict(advantage="winners", samples_per_prompt=4)),
    "online_dpo": ("dpo", dict(advantage="best_and_worst")),
}


def config(run, loss, **values):
    c = tiny(size="short").ppo
    c.init_from, c.total_steps, c.eval_every_steps, c.probe = str(run / "sft"), 2, 0, probe.get_config()
    c.critic_init, c.samples_per_prompt, c.loss, c.batch_size = "none", 2, loss, 8
    c.kl_controller, c.kl_controller_args = "fixed_kl", {}
    c.value_optimizer_args = online.get_config().value_optimizer_args
    c.update_args = dict(epochs=1, minibatches=2)
    for name, value in values.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_and_starts_on_policy(run, tmp_path, name):
    loss, values = RECIPES[name]
    first, second = metrics(online.run(config(run, loss, **values), tmp_path / name))
    for row in (first, second):
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
        assert not any(key.startswith(("critic/", "val/clipfrac")) for key in row)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5) != second["objective/kl"]
    replies = 8 * values.get("oversample", 1) * values.get("samples_per_prompt", 2)
    assert first["episode"] == replies and second["episode"] == 2 * replies
    assert first["grad_norm"] > 0
    if "val/ratio_first" in first:
        assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "loss, values, message",
    [
        ("ppo_clip", dict(), "advantage = 'gae' needs a critic: set critic_init"),
        ("grpo", GROUP | dict(critic_init="policy"), "'group_baseline' has no critic; set critic_init to 'none'"),
        ("grpo", GROUP | dict(samples_per_prompt=1), "samples_per_prompt = 1: a reply is compared with others"),
        ("grpo", GROUP | dict(value_loss_args=dict(clip=0.1)), "value_loss_args is set, but there is no critic"),
        ("dpo", GROUP, "takes pairs: set advantage to 'best_and_worst', not 'group_baseline'"),
        ("bradley_terry", GROUP, "bradley_terry takes a Scored; this stage feeds a Rollout or Pair"),
        ("grpo", GROUP | dict(oversample=0), "oversample = 0: expected 1 (off) or more"),
        ("dpo", dict(advantage="best_and_worst", update_args=dict(microbatches=2)), "is not cut into microbatches"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused_first(run, tmp_path, loss, values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        online.run(config(run, loss, **values), tmp_path / "x")
    assert not (tmp_path / "x").exists()
