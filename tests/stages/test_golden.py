"""A golden set: known pairs that reward models and policies are asked for as they learn."""

import json

import jax.numpy as jnp
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny, write_rows

from alignax.config import ConfigError, plain
from alignax.data.counts import DataError
from alignax.stages import golden, online, probe, reward

KEYS = ("eval/golden/policy_accuracy", "eval/golden/policy_margin", "eval/golden/reward_accuracy",
        "eval/golden/reward_margin")  # fmt: skip


def pairs(run):
    return [json.loads(line) for line in (run / "collect/pairs.jsonl").read_text().splitlines()]


def config(run, step, rows, tmp_path, **values):
    """A stage of the tiny pipeline on its finished steps, with the rows as its golden set."""
    c = plain(tiny()[step]) | dict(init_from=str(run / "sft"), total_steps=2, eval_every_steps=1)
    path = str(write_rows(tmp_path / f"golden-{len(list(tmp_path.iterdir()))}.jsonl", rows))
    c["golden"] = plain(golden.get_config()) | dict(source="jsonl", data=dict(path=path), max_length=48, batch_size=8)
    if step == "ppo":
        return c | dict(reward_from=str(run / "reward"), probe=plain(probe.get_config())) | values
    return c | dict(data=c["data"] | dict(path=str(run / "collect"))) | values


def turned(rows):
    return [dict(prompt=row["prompt"], chosen=row["rejected"], rejected=row["chosen"]) for row in rows]


def test_a_reward_model_is_asked_at_each_evaluation_and_at_its_end(run, tmp_path):
    rows = pairs(run)[:11]  # the last batch is not full
    one = reward.run(config(run, "reward", rows, tmp_path), tmp_path / "one")
    other = reward.run(config(run, "reward", turned(rows), tmp_path), tmp_path / "other")
    first, second = (read(folder / "manifest.json") for folder in (one, other))
    assert first["content_hash"] == second["content_hash"]  # nothing is learnt of it
    assert first["metrics"]["golden/accuracy"] + second["metrics"]["golden/accuracy"] == pytest.approx(1.0)
    assert first["metrics"]["golden/margin"] == pytest.approx(-second["metrics"]["golden/margin"], abs=1e-6)
    assert round(11 * first["metrics"]["golden/accuracy"], 5) in range(12)
    evaluated = metrics(one, "eval")
    assert len(evaluated) == 3 and evaluated[-1]["eval/golden/accuracy"] == first["metrics"]["golden/accuracy"]


@pytest.mark.slow
def test_a_policy_that_has_not_moved_orders_nothing_and_then_it_does(run, tmp_path):
    """At the reference every margin is 0, a tie; the frozen reward model says the same at each evaluation."""
    rows = pairs(run)[:8]
    folder = online.run(config(run, "ppo", rows, tmp_path), tmp_path / "ppo")
    start, *_, end = metrics(folder, "eval")
    assert start["eval/golden/policy_margin"] == pytest.approx(0.0, abs=1e-5)
    assert abs(end["eval/golden/policy_margin"]) > 1e-4 and 0 <= end["eval/golden/policy_accuracy"] <= 1
    assert end["eval/golden/reward_margin"] == start["eval/golden/reward_margin"] != 0.0
    told = read(folder / "manifest.json")["metrics"]
    assert {name: told[name] for name in KEYS} == {name: end[name] for name in KEYS}


@pytest.mark.slow
def test_the_reward_of_the_run_is_that_of_the_reward_model(run, tmp_path):
    """The golden accuracy in PPO is that which the reward model's own run ends with."""
    rows = pairs(run)[:8]
    own = reward.run(config(run, "reward", rows, tmp_path), tmp_path / "reward")
    c = config(run, "ppo", rows, tmp_path, reward_from=str(own), total_steps=1)
    told = read(online.run(c, tmp_path / "ppo") / "manifest.json")["metrics"]
    said = read(own / "manifest.json")["metrics"]
    assert told["eval/golden/reward_accuracy"] == said["golden/accuracy"]
    assert told["eval/golden/reward_margin"] == pytest.approx(said["golden/margin"], abs=1e-5)


def test_replies_with_known_gold_make_pairs_and_a_step_is_a_parent(run, tmp_path):
    rows = [dict(prompt=row["prompt"], completion=row[side], ratings=dict(gold=row[f"gold_{side}"]))
            for row in pairs(run) if row["gold_chosen"] != row["gold_rejected"]
            for side in ("chosen", "rejected")]  # fmt: skip
    c = config(run, "reward", rows, tmp_path, total_steps=1)
    assert 0 <= read(reward.run(c, tmp_path / "rated") / "manifest.json")["metrics"]["golden/accuracy"] <= 1
    c["golden"]["data"] = dict(path=str(run / "collect"))
    parents = read(reward.run(c, tmp_path / "step") / "manifest.json")["parents"]
    assert parents["golden.data"]["content_hash"] == read(run / "collect/manifest.json")["content_hash"]


def test_the_share_counts_a_tie_as_half_and_padding_not_at_all():
    chosen, mask = jnp.array([2.0, 1.0, 0.0, 9.0]), jnp.array([[True], [True], [True], [False]])
    batch = {"chosen": {"mask": mask, "score": chosen}}
    known = golden.Golden(golden.Plan(source=None, template="", max_length=1, batch_size=4), {}, None)  # pyright: ignore
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden.fitting, "evaluator", lambda f, *rest: found.update(f(batch)) or (dict))
        known.measure(lambda batch: batch["chosen"]["score"] - 1.0)
    value, weight = found["golden/accuracy"]
    assert value.tolist() == [1.0, 0.5, 0.0, 1.0] and weight.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    "rows, error, key, word",
    [
        ([dict(prompt=[1, 2], chosen=[3], rejected=[4])], DataError, "config.golden: prompt, chosen", "texts"),
        ([dict(prompt="a", chosen="b", rejected="c", input_ids=[1])], DataError, "config.golden: input_ids", "own"),
        ([dict(prompt="a", completion="b")], DataError, "config.golden", "chosen"),
        ([dict(prompt="tea ", chosen="cake " * 99, rejected="tea")], DataError, "config.golden", "max_length"),
    ],
)
def test_what_is_no_golden_set_is_refused(run, tmp_path, rows, error, key, word):
    with refuses(error, key, word):
        reward.run(config(run, "reward", rows, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(source="", data=dict(path="x")), "config.golden.data", "config.golden.source"),
        (dict(batch_size=12), "config.golden.batch_size: 12", "8 devices"),
        (dict(max_length=0), "config.golden.max_length = 0", "1 or more"),
        (dict(source="mixture", data=dict(parts={})), "config.golden.source = 'mixture'", "one source"),
    ],
)
@pytest.mark.parametrize("step", ["reward", "ppo"])
def test_keys_that_cannot_be_are_refused(run, tmp_path, step, values, key, word):
    c = config(run, step, [], tmp_path)
    c["golden"] |= values
    with refuses(ConfigError, key, word):
        (reward if step == "reward" else online).plan(c)
