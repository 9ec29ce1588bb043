"""The stage `online` with an environment: a producer like any other, exact after a kill, and measured by the probe."""

import importlib.util
import json

import jax
import numpy as np
import own_envs
import pytest
from errors import refuses
from filelock import FileLock
from own_envs import config
from stage_runs import metrics

from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.data.counts import DataError
from alignax.manifest import read_manifest
from alignax.stages import episodes, evaluate, online, partner, probe, sft
from alignax.stages.folder import open_stage
from alignax.stages.parents import get_mesh, get_tokenizer
from alignax.stages.programs import last_turn

COUNTER, CALCULATOR = "trl_form:Counter", "alignax.envs.calculator:Calculator"
NONE = dict(env="", env_args={}, max_turns=8, max_observation=256)
RIGHT = "alignax.rewards.answers:exact_answer"


@pytest.fixture(scope="session")
def base(shared):
    """A small policy of the sums, hardly trained."""
    folder = shared / "runs/sums"
    with FileLock(shared / "sums.lock"):
        if not (folder / "manifest.json").is_file():
            c = sft.get_config()
            c.model, c.model_args = "harbor", dict(dim=16, layers=1, heads=2, kv_heads=2, head_dim=8, ffn=32)
            c.tokenizer = "alignax.worlds.sums:build_tokenizer"
            c.source, c.data = "alignax.worlds.sums:demonstrations", dict(count=512, heldout=16)
            c.train_on, c.max_length, c.batch_size, c.total_steps = "assistant", 48, 32, 40
            c.optimizer_args = dict(learning_rate=3e-2)
            sft.run(c, folder)
    return folder


def same(one, two):
    """Whether two runs have the same figures and weights, bit for bit."""
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(x)] for x in (one, two)
    )
    assert ours == theirs
    jax.tree.map(np.testing.assert_array_equal, load_params(one / "params"), load_params(two / "params"))


@pytest.fixture(scope="session")
def several(base, shared):
    """A run with episodes of three turns."""
    with FileLock(shared / "several.lock"):
        if not (shared / "several/manifest.json").is_file():
            online.run(config(base, total_steps=3), shared / "several")
    return shared / "several"


def test_episodes_of_several_turns_are_learnt_from(several):
    rows = metrics(several)
    assert len(rows) == 3 and all(1 < row["env/turns"] <= 3 for row in rows)
    for row in rows:
        assert abs(row["objective/kl"]) < 1e-4 if row["step"] == 1 else True  # the sampler's own log-probabilities
        assert row["env/truncated"] == row["completions/clipped_ratio"] and row["tools/calls"] == 0
        assert row["val/ratio_first"] == pytest.approx(1.0, abs=1e-4)


def test_a_run_that_was_killed_goes_on_exactly(base, several, tmp_path):
    own_envs.STOP["at"] = 2 * 16  # after two iterations of 16 episodes, and a saved state for each
    try:
        with pytest.raises(RuntimeError, match="killed"):
            online.run(config(base, total_steps=3), tmp_path / "killed")
    finally:
        own_envs.STOP["at"] = None
    assert len(metrics(tmp_path / "killed")) < 3
    same(online.run(config(base, total_steps=3), tmp_path / "killed"), several)


def test_one_turn_is_a_run_without_an_environment(base, tmp_path):
    """The same tokens, scores and weights, where the environment pays what a reward over text gives."""
    once = online.run(config(base, env="own_envs:Once", env_args={}), tmp_path / "once")
    alone = online.run(config(base, **NONE, reward="own_envs:first_digit"), tmp_path / "plain")
    ours, theirs = metrics(once), metrics(alone)
    for name in theirs[0]:
        if not name.startswith("time/") and name not in ("split", "rewards/reward/failed"):  # of rewards over text
            np.testing.assert_allclose(
                [row[name] for row in ours], [row[name] for row in theirs], rtol=1e-4, atol=1e-5, err_msg=name
            )
    assert all(row["env/turns"] == 1 for row in ours) and 0 < ours[0]["objective/scores"] < 1


@pytest.mark.slow
def test_prompts_shared_and_padding_left_out_change_no_number(base, several, tmp_path):
    values = dict(total_steps=3, share_prompts=True, length_buckets=2)
    short = metrics(online.run(config(base, **values), tmp_path / "short"))
    for one, two in zip(short, metrics(several), strict=True):
        assert one["objective/scores"] == two["objective/scores"]
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_critic_skips_what_is_observed(base, tmp_path):
    values = dict(critic_init="policy", advantage="gae", advantage_args={}, loss="ppo_clip", kl_coef=0.01)
    (first, _) = metrics(online.run(config(base, **values), tmp_path / "ppo"))
    assert np.isfinite(first["loss/value_avg"]) and abs(first["objective/kl"]) < 1e-4


def test_rewards_are_weighed(base, tmp_path):
    rewards = dict(env=dict(weight=2.0), right=dict(function=RIGHT, weight=0.5))
    (row, _) = metrics(online.run(config(base, rewards=rewards), tmp_path / "both"))
    total = 2.0 * row["rewards/env/mean"] + 0.5 * row["rewards/right/mean"]
    assert row["objective/scores"] == pytest.approx(total, abs=1e-5) and row["rewards/env/mean"] > 0


def test_a_class_in_trls_form_is_played_unchanged(base, tmp_path):
    (row, _) = metrics(online.run(config(base, env=COUNTER, env_args={}, max_prompt_length=64), tmp_path / "counter"))
    assert row["env/turns"] >= 1 and np.isfinite(row["objective/scores"])


@pytest.mark.skipif(importlib.util.find_spec("verifiers") is None, reason="the package verifiers is not installed")
def test_an_environment_of_verifiers_is_played_unchanged(base, tmp_path):
    env = dict(load="verifiers_envs:guess")
    rows = dict(source="alignax.envs.verifiers:rows", data=env)
    c = config(base, env="alignax.envs.verifiers:environment", env_args=env, **rows, template="plain", batch_size=8)
    with refuses(DataError, "messages"):  # its prompts are dialogues
        online.run(c, tmp_path / "plain")
    env = dict(load="verifiers_envs:tools")
    rows = dict(source="alignax.envs.verifiers:rows", data=env)
    c = config(base, env="alignax.envs.verifiers:environment", env_args=env, **rows, total_steps=1)
    (row,) = metrics(online.run(c, tmp_path / "verifiers"))
    assert row["env/turns"] >= 1 and 0 < row["env/num_turns"] <= row["env/turns"] and 0 <= row["objective/scores"] <= 1


def test_a_text_reward_reads_the_last_turn():
    mask = np.array([[0, 0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]], bool)
    valid = np.array([[0, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0]], bool)
    want = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0], [0] * 9], bool)
    np.testing.assert_array_equal(last_turn(mask, valid), want)


def test_what_reset_says_is_in_the_prompt(base, tmp_path):
    online.run(config(base, env="own_envs:Told", env_args={}, total_steps=1, max_prompt_length=24), tmp_path / "told")
    with refuses(DataError, "what its environment adds", "max_prompt_length = 8", "raise it"):
        online.run(
            config(base, env="own_envs:Told", env_args={}, total_steps=1, max_prompt_length=8), tmp_path / "long"
        )


def test_the_probe_measures_with_the_environment(base, tmp_path):
    c = evaluate.get_config()
    c.init_from, c.policies = str(base), dict(sft=str(base))
    p = c.probe
    p.source, p.data = "alignax.worlds.sums:prompts", dict(count=20, world_split="eval")
    p.env, p.env_args, p.max_observation = "own_envs:Echo", dict(turns=2), 8
    p.max_prompt_length, p.max_new_tokens, p.batch_size = 16, 32, 8
    out = evaluate.run(c, tmp_path / "paid")
    (found,) = json.loads((out / "eval.json").read_text())["policies"].values()
    assert 1 < found["env/turns"] <= 2 and found["gold_reward"] == pytest.approx(found["env/reward"])
    p.env, p.env_args, p.reward = CALCULATOR, {}, RIGHT
    out = evaluate.run(c, tmp_path / "right")
    (found,) = json.loads((out / "eval.json").read_text())["policies"].values()
    assert "env/reward" not in found and 0 <= found["gold_reward"] <= 1 and found["tools/calls"] >= 0


ASKS = dict(env="own_envs:Asks", env_args={})


def asking(folder, **values):
    """The keys of a partner."""
    return plain(partner.get_config()) | dict(init_from=str(folder), max_prompt_length=16, max_new_tokens=4) | values


def asked_config(base):
    """A run and a probe whose environments ask a second policy."""
    watched = plain(probe.get_config()) | ASKS | dict(env_partner=asking(base), max_prompt_length=16, batch_size=8)
    watched |= dict(source="alignax.worlds.sums:prompts", data=dict(count=8), max_new_tokens=16, max_observation=8)
    return config(base, **ASKS, env_partner=asking(base), probe=watched)


def test_a_second_policy_is_asked(base, tmp_path):
    out = online.run(asked_config(base), tmp_path / "asks")
    parents = read_manifest(out)["parents"]
    assert parents["partner"] == parents["probe_partner"] == parents["policy"]  # a part of the lineage
    assert all(1 < row["env/turns"] <= 2 for row in metrics(out))
    with refuses(ConfigError, "env_partner.max_prompt_length = 2", "template"):
        online.run(config(base, **ASKS, env_partner=asking(base, max_prompt_length=2)), tmp_path / "short")


@pytest.mark.slow
def test_a_run_with_a_second_policy_that_was_killed_goes_on_exactly(base, tmp_path):
    out = online.run(asked_config(base), tmp_path / "asks")
    own_envs.STOP["at"] = 16 + 8  # the episodes of an iteration, and half of those of the next
    try:
        with pytest.raises(RuntimeError, match="killed"):
            online.run(asked_config(base), tmp_path / "killed")
    finally:
        own_envs.STOP["at"] = None
    assert len(metrics(tmp_path / "killed")) == 1
    same(online.run(asked_config(base), tmp_path / "killed"), out)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answers_of_a_second_policy_are_its_own(base, tmp_path, temperature):
    """However many are asked at once, and in whatever order."""
    c = config(base, **ASKS, env_partner=asking(base, temperature=temperature, batch_size=8))
    stage = open_stage(online.STAGE, online.plan, c, tmp_path / "asked", None)
    tokenizer, mesh = get_tokenizer(stage), get_mesh(stage.plan.mesh)
    asks = episodes.asked_by(stage, "partner", stage.plan.env, tokenizer, "chat", mesh)
    questions = [f"{a}*{b}" for a in (7, 38, 51) for b in (5, 64, 91, 93)] + ["7*5"]
    said = asks(questions)
    assert said == [asks([question])[0] for question in questions] == asks(questions[::-1])[::-1]
    assert len(set(said)) > 1 and asks([]) == []
    # whatever a policy says is asked: control tokens, nothing, a turn as long as its room
    assert len(asks(["<eos><user>7*5", "", "<pad>", "7" * 500])) == 4
    assert temperature or asks(["7" * 500]) == asks(["7" * 600])


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(env="own_envs:Nobody", env_args={}), "env", "no function"),
        (dict(env="trl_form:Toolless", env_args={}), "env", "no tool"),
        (dict(env="trl_form:Untyped", env_args={}), "env", "type hints"),
        (dict(env_args=dict(turn=3)), "env_args.turn", "turns"),
        (dict(max_turns=0), "max_turns", "1 turn"),
        (dict(max_observation=0), "max_observation", "1 token"),
        (dict(env_timeout_s=-1.0), "env_timeout_s", "seconds"),
        (dict(env_workers=0), "env_workers", "threads"),
        (dict(slots=4), "slots", "0 with an env"),
        (dict(engine="http://127.0.0.1:1"), "engine", "one turn"),
        (dict(opponent="greedy"), "opponent", "alone"),
        (dict(env="", env_args=dict(turns=3), reward=RIGHT), "env_args", "env is empty"),
        (dict(env="", env_args={}, max_observation=256, reward=RIGHT), "max_turns", "env is empty"),
        (dict(env=CALCULATOR, env_args={}), "reward_from", "exactly one"),
        (ASKS, "env_partner.init_from", "second policy"),
        (dict(env_partner=asking("x")), "env_partner.init_from", "no parameter 'partner'"),
        (dict(ASKS, env_partner=asking("x", max_new_tokens=0)), "env_partner.max_new_tokens", "1 or more"),
        (dict(ASKS, env_partner=asking("x", temperature=-1.0)), "env_partner.temperature", "0 or more"),
        (dict(env_partner=asking("", max_new_tokens=9)), "env_partner.m", "init_from is empty"),
        (dict(ASKS, env_partner=asking("x", batch_size=4)), "env_partner.batch_size", "8"),
        (dict(NONE, env_partner=asking("x"), reward=RIGHT), "env_partner.init_from", "env is empty"),
        (dict(rewards=dict(env=dict(function=RIGHT))), "rewards.env", "weight"),
        (dict(NONE, rewards=dict(env=dict(weight=1.0))), "rewards.env", "function"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(base, values, key, word):
    with refuses(ConfigError, f"config.{key}", word):
        online.plan(config(base, **values))
