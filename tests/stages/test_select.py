"""Replies chosen by their rewards: what is kept, what is counted, and what cannot be asked for."""

import dataclasses
import json
import math

import numpy as np
import pytest
from errors import refuses
from stage_runs import file_config, metrics, read, tiny

from alignax.config import ConfigError, plain
from alignax.data.counts import DataError
from alignax.stages import offline, probe, select, sft
from alignax.stages.samples import Replies

GOLD = "alignax.worlds.gold:gold"


def config(run, keep="best", **values):
    """Four samples of the tiny policy to each of 16 prompts, by gold unless another reward is said."""
    c = plain(file_config(f"world/select.py:{keep}"))
    c |= dict(init_from=str(run / "sft"), reward_from="", batch_size=16, max_new_tokens=24, samples_per_prompt=4)
    c["data"] = c["data"] | dict(count=32)
    return c | ({} if {"reward", "rewards", "reward_from"} & {*values} else {"reward": GOLD}) | values


def rows(folder, name="demonstrations"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def chosen(replies, **values):
    return select.chosen(dataclasses.replace(select.plan(file_config("world/select.py")), **values), replies)


SAID = Replies(
    {"prompt": "p", "family": "f"},
    ["a", "b", "b", "cut", "none", "c"],
    [True, True, True, False, True, True],
    {"score": [1.0, 3.0, 3.0, 9.0, math.nan, 2.0]},
)
LOST = ["identical", "unfinished", "unscorable"]  # the second "b", "cut", "none"


@pytest.mark.parametrize(
    "values, expected, lost",
    [
        (dict(), [("b", 3.0)], ["not_best"] * 2),
        (dict(top_k=2), [("b", 3.0), ("c", 2.0)], ["not_best"]),
        (dict(keep="above", least=2.0), [("b", 3.0), ("c", 2.0)], ["below"]),
        (dict(keep="above", least=3.5), [], ["below"] * 3),
    ],
)
def test_demonstrations_are_chosen_by_score(values, expected, lost):
    found, dropped = chosen(SAID, **values)
    assert [(row["completion"], row["score"]) for row in found] == expected
    assert all(row.keys() == {"prompt", "completion", "score"} for row in found)
    assert sorted(dropped) == sorted(LOST + lost)


def test_a_pair_is_the_best_and_the_worst():
    (row,), dropped = chosen(SAID, keep="best_and_worst")
    judged = {"score_chosen": 3.0, "score_rejected": 1.0, "margin": 2.0, "tie": False}
    assert row == {"prompt": "p", "chosen": "b", "rejected": "a"} | judged
    assert sorted(dropped) == sorted([*LOST, "between"])
    assert chosen(SAID, keep="best_and_worst", least_margin=2.5) == ([], LOST + ["level"] * 3)
    level = SAID._replace(scores={"score": [1.0] * 6})
    assert chosen(level, keep="best_and_worst")[0] == [] and "level" in chosen(level, keep="best_and_worst")[1]
    lone = SAID._replace(done=[True] + [False] * 5)
    assert chosen(lone, keep="best_and_worst") == ([], ["unfinished"] * 5 + ["alone"])


def test_the_bound_is_the_divergence_of_the_best_of_n():
    """Of uniform scores the best of n has the density n u^(n - 1): KL = integral of it times its logarithm."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 8):
        density = n * u ** (n - 1)
        assert select.best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


@pytest.fixture(scope="module")
def best(run, tmp_path_factory):
    return select.run(config(run), tmp_path_factory.mktemp("select") / "best")


def test_the_best_score_more_than_all_and_all_are_accounted_for(best):
    manifest = read(best / "manifest.json")
    found, counts, told = rows(best), manifest["data"]["counts"], manifest["metrics"]
    assert told["mean_score_kept"] == pytest.approx(np.mean([row["score"] for row in found]))
    assert told["mean_score_kept"] > told["mean_score"] and told["kl_bound"] == pytest.approx(math.log(4) - 0.75)
    assert told["share_kept"] == len(found) / 128 and manifest["makes"] == "files"
    assert len(found) + sum(n for name, n in counts.items() if name.startswith("dropped_replies_")) == 128


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(run, best, tmp_path):
    again = select.run(config(run), tmp_path / "again")
    assert (again / "demonstrations.jsonl").read_bytes() == (best / "demonstrations.jsonl").read_bytes()
    other = select.run(config(run, seed=1), tmp_path / "other")
    assert rows(other) != rows(best)


def test_rewards_of_all_kinds_are_mixed_as_online_mixes_them(run, tmp_path):
    judge, gold = {"from": str(run / "reward"), "weight": 2.0}, {"function": GOLD, "weight": 0.5}
    least = {"function": "alignax.rewards.combine:minimum", "of": ("judge", "gold"), "weight": -1.0}
    folder = select.run(config(run, rewards={"judge": judge, "gold": gold, "least": least}), tmp_path / "both")
    for row in rows(folder):
        of = row["rewards"]
        assert of["least"] == pytest.approx(min(of["judge"], of["gold"]), abs=1e-5)
        assert row["score"] == pytest.approx(2 * of["judge"] + 0.5 * of["gold"] - of["least"], abs=1e-4)
    assert set(read(folder / "manifest.json")["parents"]) == {"policy", "reward.judge"}


def test_what_cannot_be_scored_is_counted(run, tmp_path):
    folder = select.run(config(run, reward="own_parts:partial_gold"), tmp_path / "part")
    told = read(folder / "manifest.json")
    assert told["data"]["counts"]["dropped_replies_unscorable"] > 0 and 0 < told["metrics"]["missing_scores"] < 1
    assert all(len(row["completion"]) % 2 == 0 for row in rows(folder))


@pytest.mark.slow
def test_what_is_kept_trains_the_next_policy(run, best, tmp_path):
    """Demonstrations by SFT, pairs by a loss on pairs: the step is a parent of what it taught."""
    pairs = select.run(config(run, "best_and_worst"), tmp_path / "pairs")
    assert all(row["margin"] > 0 for row in rows(pairs, "pairs"))
    short = dict(init_from=str(run / "sft"), total_steps=2, eval_every_steps=0)
    c = plain(tiny().dpo) | short | dict(probe=plain(probe.get_config()))
    offline.run(c | dict(data=dict(path=str(pairs), heldout_percent=25.0)), tmp_path / "dpo")
    c = plain(tiny().sft) | short | dict(source="jsonl", data=dict(path=str(best), heldout_percent=25.0))
    sft.run(c, tmp_path / "sft")
    for name, parent in (("dpo", pairs), ("sft", best)):
        found = read(tmp_path / name / "manifest.json")["parents"]["data"]
        assert found["content_hash"] == read(parent / "manifest.json")["content_hash"]
        assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path / name))


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(keep="worst"), "config.keep = 'worst'", "'best_and_worst'"),
        (dict(keep="best_and_worst", samples_per_prompt=1), "config.samples_per_prompt = 1", "2 or more"),
        (dict(samples_per_prompt=0), "config.samples_per_prompt = 0", "1 or more"),
        (dict(top_k=5), "config.top_k = 5", "1 to 4"),
        (dict(least=2.0), "config.least = 2.0", "'best'"),
        (dict(keep="above", least_margin=0.5), "config.least_margin = 0.5", "'above'"),
        (dict(keep="best_and_worst", least_margin=-1.0), "config.least_margin = -1.0", "0 or more"),
        (dict(reward=""), "config.reward", "exactly one"),
        (dict(reward_weights={"a": 1.0}), "config.reward_weights", "config.reward_from"),
        (dict(rewards={"a": {"function": "alignax.rewards.combine:mean", "of": ("b",)}}), "config.rewards.a.of", "'b'"),
        (dict(reward_workers=0), "config.reward_workers = 0", "threads"),
        (dict(source="mixture", data=dict(parts={})), "config.source = 'mixture'", "one source"),
    ],
)
def test_what_cannot_be_chosen_is_refused(run, tmp_path, values, key, word):
    with refuses(ConfigError, key, word):
        select.run(config(run, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values, reason, fix",
    [
        (dict(keep="above", least=100.0), "'below'", "lower least (100)"),
        (dict(keep="best_and_worst", least_margin=100.0), "'level'", "least_margin (100)"),
        (dict(max_new_tokens=1), "'unfinished'", "max_new_tokens"),
    ],
)
def test_nothing_kept_is_an_error_with_a_fix(run, tmp_path, values, reason, fix):
    with refuses(DataError, "none of", reason, fix):
        select.run(config(run, **values), tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_weights_of_a_model_that_rates_nothing_are_refused(run, tmp_path):
    with refuses(ConfigError, "config.reward_weights", "single score"):
        select.run(config(run, reward_from=str(run / "reward"), reward_weights={"harm": 1.0}), tmp_path / "out")
