"""Every critic-free recipe from its config: two iterations on the tiny policy, rewarded by the gold program."""

import numpy as np
import pytest
from stage_runs import file_config, metrics

from alignax.config import ConfigError
from alignax.stages import online, probe

RECIPES = (
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
)
RECIPES += ("raft", "online_dpo")


def config(run, recipe, **values):
    """The recipe of configs/world, made tiny, with these settings."""
    c = file_config(f"world/online.py:{recipe}")
    c.init_from, c.total_steps, c.eval_every_steps, c.save_every_steps = str(run / "sft"), 2, 0, 2
    c.reward_from, c.reward, c.probe = "", "alignax.worlds.gold:gold", probe.get_config()
    c.data.count, c.max_new_tokens, c.batch_size = 64, 24, 8
    for name, value in values.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_and_starts_on_policy(run, tmp_path, name):
    c = config(run, name, **({"oversample": 2} if name == "dapo" else {}))
    first, second = metrics(online.run(c, tmp_path / name))
    for row in (first, second):
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
        assert not any(key.startswith(("critic/", "val/clipfrac")) for key in row)
    assert abs(first["objective/kl"]) < 1e-5 < abs(second["objective/kl"])  # the first rollout is the reference's
    replies = 8 * c.oversample * c.samples_per_prompt
    assert first["episode"] == replies and second["episode"] == 2 * replies
    assert first["grad_norm"] > 0
    if "val/ratio_first" in first:
        assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)


def test_the_config_names_its_recipes():
    with pytest.raises(Exception, match=f"recipe 'grp': expected one of {', '.join(RECIPES)}"):
        file_config("world/online.py:grp")


@pytest.mark.parametrize(
    "recipe, values, message",
    [
        ("grpo", dict(advantage="gae", advantage_args={}), "advantage = 'gae' needs a critic: set critic_init"),
        ("grpo", dict(critic_init="policy"), "'group_baseline' has no critic; set critic_init to 'none'"),
        ("grpo", dict(samples_per_prompt=1), "samples_per_prompt = 1: a reply is compared with others"),
        ("grpo", dict(value_loss_args=dict(clip=0.1)), "value_loss_args is set, but there is no critic"),
        ("grpo", dict(loss="dpo"), "takes pairs: set advantage to 'best_and_worst', not 'group_baseline'"),
        ("grpo", dict(loss="bradley_terry"), "bradley_terry takes a Scored; this stage feeds a Rollout or Pair"),
        ("grpo", dict(oversample=0), "oversample = 0: expected 1 (off) or more"),
        ("online_dpo", dict(update_args=dict(microbatches=2)), "is not cut into microbatches"),
        ("raft", dict(kl_placement="loss", kl_estimator="k2"), "the KL over those is not the policy's"),
        ("grpo", dict(loss="nash_md"), "needs the preference over replies of a mixture"),
        ("online_dpo", dict(loss="xpo"), "needs pairs of a sample of the policy and one of the reference"),
        ("online_dpo", dict(update_args=dict(kl_limit=0.1)), "a loss on pairs measures no KL to the sampler"),
        (
            "dapo",
            dict(kl_controller="adaptive_kl", kl_controller_args=dict(target=1.0, horizon=1e3)),
            "kl_coef = 0.0: adaptive_kl multiplies it",
        ),
        ("grpo", dict(update_args=dict(minibatches=0)), "update_args.minibatches = 0: expected 1 or more"),
        ("grpo", dict(loss="kl_cov", update_args=dict(microbatches=2)), "'kl_cov' compares the rows of a batch"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused_first(run, tmp_path, recipe, values, message):
    with pytest.raises(ConfigError) as error:
        online.run(config(run, recipe, **values), tmp_path / "x")
    assert message in str(error.value)
    assert not (tmp_path / "x").exists()
