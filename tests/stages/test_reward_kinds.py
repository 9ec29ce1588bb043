"""Constraints, rewards of steps and shaping by the reference, in runs: what they log, and that they resume exactly."""

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import file_config, metrics, tiny

from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.stages import online, probe, reward
from configs.world.rewards import RECIPES


def config(run, **values):
    """Two iterations of PPO in which every reply is scored, without a probe."""
    c = plain(tiny()["ppo"]) | {"init_from": str(run / "sft"), "reward_from": "", "critic_init": "policy"}
    return c | {"probe": plain(probe.get_config()), "total_steps": 2, "eval_every_steps": 0} | values


LENGTH = {"function": "alignax.rewards.style:length", "most": 4, "fall": 4}
PLAIN = {"normalize": False, "clip": 0.0, "missing_eos_penalty": 0.0}


def same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, *(load_params(folder / "params") for folder in (a, b)))


@pytest.mark.slow
def test_a_constraint_on_a_text_reward_is_logged_and_resumes_exactly(run, tmp_path):
    judge = {"from": str(run / "reward")}
    rewards = {"judge": judge, "brief": LENGTH | {"at_least": 5.0, "learning_rate": 0.2, "multiplier": 0.5}}
    c = config(run, rewards=rewards, scoring_args=PLAIN, save_every_steps=1)
    whole = online.run(c, tmp_path / "whole")
    first, second = metrics(whole)
    weight, margin = 0.5, first["rewards/brief/mean"] - 5.0
    assert first["rewards/brief/multiplier"] == pytest.approx(weight)
    want = (first["rewards/judge/mean"] + weight * margin) / (1 + weight)
    assert first["objective/scores"] == pytest.approx(want, rel=1e-4)
    assert second["rewards/brief/multiplier"] == pytest.approx(weight * np.exp(-0.2 * weight * margin), rel=1e-4)
    # stopped after the first iteration, and gone on from its checkpoint
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignax.stages.programs.report", stop_at(2))
        online.run(c, stopped)
    again = online.run(c, stopped)
    assert metrics(again)[-1]["rewards/brief/multiplier"] == second["rewards/brief/multiplier"]
    same_params(again, whole)


def stop_at(call):
    """A function that ends the process's run at its call of this number."""
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    return stop


def words(row, steps, *, finished):
    """The number of words of each step."""
    return [float(len(step.split())) for step in steps]


@pytest.mark.slow
def test_rewards_of_steps_over_text_and_of_a_process_reward_model(run, tmp_path):
    c = plain(tiny()["reward"]) | {"init_from": str(run / "sft"), "total_steps": 1, "eval_every_steps": 0}
    c |= {"loss": "process", "source": "alignax.worlds.sources:worked_sums", "data": {"count": 64, "heldout": 16}}
    prm = reward.run(c | {"loss_args": {}}, tmp_path / "prm")
    rewards = {
        "steps": {"from": str(prm), "per_step": "probability", "step_ends": ".", "weight": 0.5},
        "words": {"function": words, "step_ends": "."},
        "length": {"function": "alignax.rewards.style:length", "most": 0, "fall": 1, "weight": 0.0},
    }
    (row, _) = metrics(online.run(config(run, rewards=rewards, scoring_args=PLAIN), tmp_path / "ppo"))
    assert row["rewards/steps/mean"] > 0
    # the words of the steps are the words of the reply
    assert row["rewards/words/mean"] == pytest.approx(-row["rewards/length/mean"], rel=1e-5)
    total = 0.5 * row["rewards/steps/mean"] + row["rewards/words/mean"]
    assert row["objective/scores"] == pytest.approx(total, rel=1e-4)
    with refuses(ConfigError, "config.rewards.words.step_ends = 'nowhere'", "token"):
        bad = {"words": {"function": words, "step_ends": "nowhere"}}
        online.run(config(run, rewards=bad, scoring_args=PLAIN), tmp_path / "bad")


@pytest.mark.slow
def test_scores_are_shaped_by_the_references_replies_which_are_scored_once(run, tmp_path, monkeypatch):
    shaping = {"reward_shaping": "preference", "reference_replies": 2, "scoring_args": PLAIN}
    rewards = {"judge": {"from": str(run / "reward")}, "brief": LENGTH | {"weight": 0.5}}
    c = config(run, rewards=rewards, **shaping)
    first = online.run(c, tmp_path / "ppo")
    with np.load(first / "reference_rewards.npz") as file:
        table = {name: file[name] for name in ("judge", "brief")}
    assert all(x.shape[1] == 2 and 0 < np.isfinite(x).all(1).sum() <= 32 for x in table.values())
    row = metrics(first)[0]
    assert 0 < row["objective/rlhf_reward"] + row["objective/kl"] * row["objective/kl_coef"] < 1  # a probability
    # what is there is read again, and nothing differs
    monkeypatch.setattr("alignax.stages.reference_rewards.computed", lambda *_: pytest.fail("computed again"))
    second = tmp_path / "second"
    second.mkdir()
    (second / "reference_rewards.npz").write_bytes((first / "reference_rewards.npz").read_bytes())
    for name in ("started.json", "config.json"):
        (second / name).write_bytes((first / name).read_bytes())
    same_params(online.run(c, second), first)


@pytest.mark.slow
def test_prompts_that_begin_ahead_have_scores_of_the_reference_too(run, tmp_path):
    shaping = {"reward_shaping": "preference", "scoring_args": PLAIN, "total_steps": 1}
    known = []
    for ahead in (0, 1):
        c = config(run, rewards={"judge": {"from": str(run / "reward")}}, partial_rollouts=ahead, **shaping)
        with np.load(online.run(c, tmp_path / str(ahead)) / "reference_rewards.npz") as file:
            known.append(int(np.isfinite(file["judge"]).all(1).sum()))
    assert known[0] == 16 < known[1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_of_the_world_make_plans(recipe):
    made = online.plan(file_config(f"world/rewards.py:{recipe}"))
    assert made.rewards and made.critic_init == "policy"
