"""Every critic-free recipe from its config: two iterations on the tiny policy, rewarded by the gold program."""

import shutil

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import file_config, metrics

from alignax.checkpoint import load_params
from alignax.config import ConfigError
from alignax.stages import online, probe
from configs.world.online import RECIPES
from tests.marks import quick

GOLD = "alignax.worlds.gold:gold"
RIVALS = ("remax", "vbon", "nash_md", "xpo")  # compared with the reply of another policy


def config(run, recipe, **values):
    """The recipe of configs/world, made tiny, with these settings."""
    c = file_config(f"world/online.py:{recipe}")
    c.init_from, c.total_steps, c.eval_every_steps, c.save_every_steps = str(run / "sft"), 2, 0, 2
    c.reward_from, c.probe = "", probe.get_config()
    if c.rewards:
        c.rewards.judge = dict(function=GOLD, weight=1.0)
    else:
        c.reward = GOLD
    c.data.count, c.max_new_tokens, c.batch_size = 64, 24, 8
    for name, value in values.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", quick(RECIPES, "grpo"))
def test_a_recipe_runs_and_starts_on_policy(run, tmp_path, name):
    c = config(run, name, **({"oversample": 2} if name == "dapo" else {}))
    first, second = metrics(online.run(c, tmp_path / name))
    for row in (first, second):
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
        assert not any(key.startswith(("critic/", "val/clipfrac")) for key in row)
    assert abs(first["objective/kl"]) < 1e-5 < abs(second["objective/kl"])  # the first rollout is the reference's
    replies = 8 * c.oversample * (1 if name in RIVALS else c.samples_per_prompt)
    assert first["episode"] == replies and second["episode"] == 2 * replies
    assert first["grad_norm"] > 0
    if "val/ratio_first" in first:
        assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_further_terms_a_correction_and_a_length_penalty(run, tmp_path):
    """What a recipe may add: an entropy bonus, weights for the sampler's error, DAPO's overlong buffer."""
    more = dict(
        terms=dict(entropy=dict(coefficient=0.01)),
        correction_args=dict(cap=2.0),
        scoring_args=dict(normalize=False, clip=0.0, missing_eos_penalty=0.0, overlong_buffer=24),
    )
    plain, full = (
        metrics(online.run(config(run, "dapo", **values), tmp_path / name))
        for name, values in (("plain", {}), ("full", more))
    )
    assert full[0]["sampling/importance_ratio"] == pytest.approx(1.0, abs=1e-5)  # sampler and learner agree here
    assert full[0]["loss/entropy_avg"] == pytest.approx(-full[0]["policy/entropy_avg"], rel=1e-6)
    total = full[0]["loss/policy_avg"] + 0.01 * full[0]["loss/entropy_avg"]
    assert full[0]["loss/policy_total"] == pytest.approx(total, rel=1e-5)
    # raw scores, less the mean length over a buffer as long as the limit
    want = full[0]["objective/scores"] - full[0]["completions/mean_length"] / 24
    assert full[0]["objective/rlhf_reward"] == pytest.approx(want, rel=1e-4)
    assert full[0]["objective/scores"] == plain[0]["objective/scores"]


MOVING = dict(
    ema=0.75,
    reference_args=dict(alpha=0.5, every=1),
    terms=dict(entropy=dict(coefficient=0.0)),
    entropy_controller="adaptive_entropy",
    entropy_controller_args=dict(target=100.0),
)


@pytest.mark.slow
def test_a_run_saves_the_average_of_its_policy_where_it_keeps_one(run, tmp_path):
    """One iteration with a decay of 0.75, beside a reference and an entropy's coefficient that move after it."""
    plain, averaged = (
        online.run(config(run, "grpo", total_steps=1, **values), tmp_path / name)
        for name, values in (("plain", {}), ("averaged", MOVING))
    )
    first, learnt, saved = (load_params(folder / "params") for folder in (run / "sft", plain, averaged))
    want = jax.tree.map(lambda a, b: 0.75 * np.asarray(a) + 0.25 * np.asarray(b), first, learnt)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), saved, want)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), learnt, saved)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert metrics(averaged)[0]["objective/entropy_coef"] == 0.0


@pytest.mark.slow  # through the arrays of a checkpoint: train/test_moving.py
def test_what_moves_goes_on_from_the_last_save(run, tmp_path):
    """Killed after its second iteration and before anything of it was kept: the same average, bit for bit."""
    c = config(run, "grpo", save_every_steps=1, **MOVING)
    whole = load_params(online.run(c, tmp_path / "x") / "params")
    for name in ("params", "steps/2"):
        shutil.rmtree(tmp_path / "x" / name)
    (tmp_path / "x/manifest.json").unlink()
    jax.tree.map(np.testing.assert_array_equal, load_params(online.run(c, tmp_path / "x") / "params"), whole)
    assert [row["objective/entropy_coef"] for row in metrics(tmp_path / "x")] == pytest.approx([0.0, 0.005])


def test_the_config_names_its_recipes():
    with refuses(Exception, "'grp'", ", ".join(RECIPES)):
        file_config("world/online.py:grp")


@pytest.mark.parametrize(
    "recipe, values, key, word",
    [
        ("grpo", dict(advantage="gae", advantage_args={}), "advantage = 'gae'", "critic_init"),
        ("grpo", dict(critic_init="policy"), "'group_baseline'", "critic_init to 'none'"),
        ("grpo", dict(samples_per_prompt=1), "samples_per_prompt = 1:", "others"),
        ("grpo", dict(value_loss_args=dict(clip=0.1)), "value_loss_args", "critic"),
        ("grpo", dict(loss="dpo"), "dpo", "'best_and_worst'"),
        ("grpo", dict(loss="bradley_terry"), "bradley_terry takes a Scored", "Rollout or Pair"),
        ("grpo", dict(oversample=0), "oversample = 0:", "off"),
        ("raft", dict(kl_placement="loss", kl_estimator="k2"), "kl_placement = 'loss'", "'reward'"),
        ("grpo", dict(loss="nash_md"), "advantage = 'group_baseline': the loss 'nash_md'", "'win_probability'"),
        ("online_dpo", dict(loss="xpo"), "opponent = 'none': the loss 'xpo'", "'reference'"),
        ("grpo", dict(opponent="greedy"), "opponent = 'greedy': expected 'none'", "'group_baseline'"),
        ("remax", dict(opponent="none"), "opponent = 'none': expected 'greedy'", "'remax'"),
        ("remax", dict(opponent="gredy"), "config.opponent = 'gredy'", "no module"),
        ("remax", dict(samples_per_prompt=4), "samples_per_prompt = 4:", "'greedy' make 2"),
        ("remax", dict(samples_per_prompt=1), "samples_per_prompt = 1:", "others"),
        ("nash_md", dict(opponent_args=dict(share=1.5)), "config.opponent_args: mixture: share = 1.5:", "[0, 1]"),
        ("remax", dict(opponent_args=dict(share=0.9)), "config.opponent_args.share:", "greedy"),
        ("nash_md", dict(kl_coef=0.05), "config.kl_coef = 0.05:", "nash_md"),
        ("xpo", dict(kl_coef=0.05), "kl_coef = 0.05:", "side"),
        ("xpo", dict(correction_args=dict(cap=2.0)), "correction_args", "pairs"),
        ("xpo", dict(terms=dict(wpo={})), "'wpo'", "others"),
        ("grpo", dict(terms=dict(kl=dict(coefficient=5.0))), "terms.kl:", "kl_placement = 'loss'"),
        ("grpo", dict(advantage="own"), "config.advantage = 'own'", "no module"),
        (
            "grpo",
            dict(kl_controller="adaptive_kl", kl_controller_args=dict(target=-1.0, horizon=1e3)),
            "config.kl_controller_args: adaptive_kl: target = -1.0:",
            "expected",
        ),
        (  # 8 prompts with 4 replies each: the episodes that the run counts
            "grpo",
            dict(kl_controller="own_parts:small_batches", kl_controller_args=dict(most=31)),
            "config.kl_controller_args: batch_size = 32:",
            "31",
        ),
        (
            "grpo",
            dict(optimizer_args=dict(schedule="linnear")),
            "config.optimizer_args: schedule = 'linnear'",
            "'linear'",
        ),
        ("grpo", dict(top_p=0.0), "config.top_p = 0.0:", "0.95"),
        ("grpo", dict(top_p=1.5), "config.top_p = 1.5:", "0.95"),
        ("grpo", dict(top_k=1), "config.top_k = 1:", "2 tokens"),
        ("grpo", dict(top_k=-5), "config.top_k = -5:", "0 (off)"),
        ("grpo", dict(min_p=1.0), "config.min_p = 1.0:", "below 1"),
        ("grpo", dict(temperature=0.0), "config.temperature = 0.0:", "> 0"),
        ("grpo", dict(terms=dict(entropy=dict(coef=0.1))), "config.terms.entropy.coef:", "argument"),
        ("grpo", dict(scoring_args=dict(max_tokens=5)), "config.scoring_args.max_tokens:", "argument"),
        ("grpo", dict(loss_args=dict(clip_low=-0.2)), "config.loss_args: grpo: clip_low = -0.2:", "positive"),
        (
            "grpo",
            dict(advantage_args=dict(baseline="median")),
            "config.advantage_args: baseline = 'median'",
            "standardise",
        ),
        ("vbon", dict(advantage_args=dict(n=1)), "config.advantage_args: vbon: n = 1:", "best-of-n"),
        ("dapo", dict(scoring_args=dict(overlong_buffer=99)), "overlong_penalty: buffer_tokens = 99:", "1 to"),
        (
            "grpo",
            dict(correction_args=dict(cap=0.0)),
            "config.correction_args: truncated_weights: cap = 0.0:",
            "positive",
        ),
        ("grpo", dict(correction_args=dict(cup=2.0)), "config.correction_args.cup:", "argument"),
        ("online_dpo", dict(update_args=dict(kl_limit=0.1)), "config.update_args.kl_limit:", "losses"),
        ("nash_md", dict(update_args=dict(kl_limit=0.1)), "config.update_args.kl_limit:", "losses"),
        (
            "dapo",
            dict(kl_controller="adaptive_kl", kl_controller_args=dict(target=1.0, horizon=1e3)),
            "kl_coef = 0.0:",
            "adaptive_kl",
        ),
        ("gdpo", dict(samples_per_prompt=1), "samples_per_prompt = 1:", "others"),
        (
            "gdpo",
            dict(scoring_args=dict(clip=5.0)),
            "config.scoring_args.normalize = True:",
            "alignax.rewards.style:ended",
        ),
        ("gdpo", dict(kl_coef=0.1), "config.kl_coef = 0.1:", "kl_placement to 'loss'"),
        ("gdpo", dict(advantage_args=dict(weights={})), "config.advantage_args.weights:", "argument"),
        ("grpo", dict(update_args=dict(minibatches=0)), "config.update_args.minibatches = 0:", "1"),
        ("grpo", dict(loss="kl_cov", update_args=dict(microbatches=2)), "'kl_cov'", "rows"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused_first(run, tmp_path, recipe, values, key, word):
    with refuses(ConfigError, key, word):
        online.run(config(run, recipe, **values), tmp_path / "x")
    assert not (tmp_path / "x").exists()
