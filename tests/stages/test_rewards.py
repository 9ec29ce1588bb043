"""Several rewards, other references and parts of one's own, in runs."""

import functools

import jax.numpy as jnp
import numpy as np
import own_parts
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny

from alignax.config import ConfigError, code_of, plain, spelled
from alignax.stages import offline, online, plans, probe


def config(run, step, **values):
    """A stage of the tiny pipeline on its finished steps, two updates, no probe."""
    c = plain(tiny()[step])
    shared = {
        "init_from": str(run / "sft"),
        "probe": plain(probe.get_config()),
        "total_steps": 2,
        "eval_every_steps": 0,
    }
    return c | shared | ({"data": c["data"] | {"path": str(run / "collect")}} if step == "dpo" else {}) | values


def ppo(run, **values):
    """PPO whose reward is still to be said."""
    return config(run, "ppo", reward_from="", critic_init="policy", **values)


@pytest.mark.slow  # their sum and its metrics: tests/train/test_online_parts
def test_rewards_are_summed_by_weight_and_each_is_in_the_log(run, tmp_path):
    """On the device and on the host at once; the same seed, so that both runs sample the same first replies."""
    judge, gold = {"from": str(run / "reward"), "weight": 2.0}, {"function": "alignax.worlds.gold:gold", "weight": 0.5}
    row = metrics(online.run(ppo(run, rewards={"judge": judge, "gold": gold}), tmp_path / "both"))[0]
    parts = [row[f"rewards/{name}/mean"] for name in ("judge", "gold")]
    assert row["objective/scores"] == pytest.approx(2 * parts[0] + 0.5 * parts[1], rel=1e-5)
    alone = metrics(online.run(ppo(run, rewards={"judge": judge}), tmp_path / "one"))[0]
    assert alone["objective/scores"] == pytest.approx(2 * parts[0], rel=1e-5)
    single = config(run, "ppo", reward_from=str(run / "reward"), critic_init="policy")
    assert metrics(online.run(single, tmp_path / "single"))[0]["objective/scores"] == pytest.approx(parts[0], rel=1e-5)
    assert set(read(tmp_path / "both/manifest.json")["parents"]) == {"policy", "reward.judge"}


@pytest.mark.slow
def test_a_reward_that_is_late_leaves_its_replies_without_a_score(run, tmp_path, capsys):
    slow = {"function": "own_parts:slow_for_some"}
    rows = metrics(online.run(ppo(run, rewards={"slow": slow}, reward_timeout_s=1.0), tmp_path / "ppo"))
    assert len(rows) == 2 and all(0 < row["objective/missing_scores"] < 1 for row in rows)
    assert all(row["objective/scores"] == 1.0 for row in rows)  # of those that came in time
    assert "the reward 'slow' did not score" in " ".join(capsys.readouterr().err.split())


def test_a_reward_that_fails_ends_the_run_or_leaves_its_replies_without_a_score(run, tmp_path, capsys):
    fails = ppo(run, rewards={"all": {"function": "own_parts:raises_for_some"}}, samples_per_prompt=2, batch_size=16)
    with refuses(OSError, "no answer"):
        online.run(fails, tmp_path / "ppo")
    rows = metrics(online.run(fails | {"reward_failure": "missing", "reward_retries": 1}, tmp_path / "missing"))
    assert len(rows) == 2 and all(0 < row["rewards/all/failed"] < 32 for row in rows)
    for row in rows:
        assert row["objective/missing_scores"] == pytest.approx(row["rewards/all/failed"] / 32)
    assert "the reward 'all' failed on" in (said := " ".join(capsys.readouterr().err.split()))
    assert "to row" in said and "OSError: no answer" in said


@pytest.mark.parametrize(
    "rewards, key, word",
    [
        ({"a": {"weight": 1.0}}, "config.rewards.a", "function"),
        ({"a": {"from": "x", "function": "own_parts:partial_gold"}}, "config.rewards.a", "from"),
        ({"a": {"function": "own_parts:nowhere"}}, "config.rewards.a.function", "nowhere"),
        ({"a": {"function": "own_parts:slow_for_some", "second": 1.0}}, "config.rewards.a.second", "'seconds'"),
        ({"a": {"from": "x", "weight": "much"}}, "config.rewards.a.weight", "float"),
        ({"a": {"from": "x", "attribute": {}}}, "config.rewards.a.attribute", "attributes"),
        ({"a": {"from": 5}}, "config.rewards.a", "folder"),
        ({"a": {"from": "x", "attributes": "abc"}}, "config.rewards.a", "attributes"),
        ({"a": {"from": "x", "weight": float("inf")}}, "config.rewards.a.weight = inf", "finite"),
        (["x"], "config.rewards", "function"),
        ({}, "config.rewards", "set exactly one"),
    ],
)
def test_rewards_that_cannot_be(run, tmp_path, rewards, key, word):
    with refuses(ConfigError, key, word):
        online.run(ppo(run, rewards=rewards), tmp_path / "ppo")
    assert not (tmp_path / "ppo").exists()


def test_a_critic_starts_from_one_reward_model(run, tmp_path):
    two = {name: {"from": str(run / "reward")} for name in ("a", "b")}
    with refuses(ConfigError, "config.critic_init = 'reward'", "one"):
        online.run(ppo(run, rewards=two) | {"critic_init": "reward"}, tmp_path / "ppo")


@pytest.mark.slow
def test_another_reference_is_what_the_policy_is_compared_with(run, tmp_path):
    first = lambda **values: metrics(offline.run(config(run, "dpo", **values), tmp_path / str(len(values))))[0]  # noqa: E731
    own, other = first(), first(reference_from=str(run / "ppo"))
    assert own["loss"] == pytest.approx(np.log(2), abs=1e-6) and abs(other["loss"] - np.log(2)) > 1e-4
    assert read(tmp_path / "1/manifest.json")["parents"].keys() >= {"policy", "reference"}
    judge = dict(reward_from=str(run / "reward"), critic_init="policy", reference_from=str(run / "dpo"))
    row = metrics(online.run(config(run, "ppo", **judge), tmp_path / "ppo"))[0]
    assert abs(row["objective/kl"]) > 1e-4  # at its own start it would be 0 to rounding


@pytest.mark.slow
def test_a_reference_that_moves_begins_where_it_is_named(run, tmp_path):
    values = dict(reference_args={"alpha": 0.5, "every": 10}, reference_from=str(run / "ppo"))  # it has not moved yet
    first = [metrics(offline.run(config(run, "dpo", **kept), tmp_path / str(len(kept))))[0]["loss"]
             for kept in (values, {"reference_from": values["reference_from"]})]  # fmt: skip
    assert first[0] == pytest.approx(first[1], abs=1e-6) and abs(first[0] - np.log(2)) > 1e-4


def test_a_reference_of_another_shape_is_refused(run, tmp_path):
    with refuses(Exception, "parent reference", "expected policy"):
        offline.run(config(run, "dpo", reference_from=str(run / "reward")), tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()


@pytest.mark.slow
def test_an_opponent_of_ones_own_by_its_path(run, tmp_path):
    values = dict(opponent="own_parts:greedy_reference", samples_per_prompt=2, advantage="win_probability")
    values |= dict(reward_from=str(run / "reward"), critic_init="none", loss="reinforce", loss_args={}, kl_coef=0.0)
    values |= dict(kl_controller="fixed_kl", kl_controller_args={}, value_loss_args={})
    values["value_optimizer_args"] = plain(online.get_config().value_optimizer_args)
    row = metrics(online.run(config(run, "ppo", **values), tmp_path / "ppo"))[0]
    assert 0 < row["objective/win_rate"] < 1 and row["episode"] == 16
    with pytest.raises(ConfigError, match="config.samples_per_prompt = 3"):  # what it says of itself counts too
        online.plan(config(run, "ppo", **values) | {"samples_per_prompt": 3})


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(template=len), "config.template", "str"),
        (dict(init_from=len), "config.init_from", "str"),
        (dict(loss=functools.partial(own_parts.dpo_by_hand, beta=0.3)), "config.loss", "function"),
        (dict(source="", data={}), "config.source = ''", "alignax.data.sources"),
        (dict(optimizer_args={"learning_rate": 1e-3, "warmup_percent": jnp.float32(3)}),
         "config.optimizer_args.warmup_percent", "array"),
        (dict(stage=".x"), "config.stage = '.x'", "stage"),
        (dict(stage="json"), "config.stage = 'json'", "stage"),
        (dict(stage=None), "config.stage = None", "stage"),
    ],
)  # fmt: skip
def test_what_no_config_can_hold(run, values, key, word):
    with refuses(ConfigError, key, word):
        plans.made(config(run, "dpo", **values))


@pytest.mark.parametrize(
    "values, key",
    [
        (dict(reward_workers=0), "config.reward_workers = 0"),
        (dict(reward_timeout_s=-1.0), "config.reward_timeout_s = -1.0"),
        (dict(advantage="own_parts:no_advantage", critic_init="none", value_loss_args={"clip": 0.1}),
         "config.value_loss_args"),
    ],
)  # fmt: skip
def test_what_no_online_config_can_hold(run, values, key):
    with refuses(ConfigError, key):
        online.plan(config(run, "ppo", reward_from=str(run / "reward"), **values))


def test_a_function_that_no_import_finds_is_known_by_its_code():
    first, second = (eval(f"lambda pair: {i}") for i in range(2))  # noqa: S307
    assert code_of(first) != code_of(second) and spelled(own_parts.dpo_by_hand) == "own_parts:dpo_by_hand"


def test_a_loss_is_the_function_itself(run, tmp_path):
    named = metrics(offline.run(config(run, "dpo", loss_args={"beta": 0.3}), tmp_path / "named"))
    passed = config(run, "dpo", loss=own_parts.dpo_by_hand, loss_args={"beta": 0.3})
    rows = metrics(offline.run(passed, tmp_path / "passed"))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in named], rel=1e-5)
    assert read(tmp_path / "passed/manifest.json")["config"]["loss"] == "own_parts:dpo_by_hand"
