"""Hard negatives and the prompts of them, and rounds that learn from both."""

import dataclasses
import json
import math

import numpy as np
import pytest
from errors import refuses
from stage_runs import file_config, metrics, read, tiny

from alignax.config import ConfigError, plain
from alignax.data.counts import DataError
from alignax.lineage import lineage
from alignax.stages import mine, online, pipeline, preview, probe, reward
from alignax.stages.samples import Replies

GOLD = "alignax.worlds.gold:gold"


def config(run, **values):
    """Four samples of the tiny policy to each of 32 prompts, its reward model against gold."""
    c = plain(file_config("world/hard_negatives.py").mine_0)
    c |= dict(init_from=str(run / "sft"), reward_from=str(run / "reward"), batch_size=16, max_new_tokens=24)
    return c | dict(samples_per_prompt=4, gold_margin=0.1, prompts=5, data=c["data"] | dict(count=32)) | values


def rows(folder, name="pairs"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def compared(proxy, gold, *, done=(True, True, True), **values):
    """What is found of three replies whose scores are these, in standard deviations."""
    p = dataclasses.replace(mine.plan(file_config("world/hard_negatives.py").mine_0), **values)
    replies = Replies({"prompt": "p", "n": 1}, ["a", "b", "c"], list(done), {"proxy": proxy, "gold": gold})
    return mine.contradiction(p, replies, np.array(proxy), np.array(gold))


def test_a_pair_is_golds_reply_against_the_proxys():
    found = compared([0.0, 2.0, 1.0], [1.5, -1.0, 0.0])
    assert found.pair == {
        "prompt": "p", "chosen": "a", "rejected": "b", "gold_chosen": 1.5, "gold_rejected": -1.0, "proxy_chosen": 0.0,
        "proxy_rejected": 2.0, "margin": 2.5, "tie": False,
    }  # fmt: skip
    assert found.gap == 3.0 and found.lost == "" and found.row == {"prompt": "p", "n": 1}


@pytest.mark.parametrize(
    "proxy, gold, values, gap",
    [
        ([0.0, 2.0, 1.0], [0.0, 1.0, 0.5], {}, 1.0),  # they agree
        ([0.0, 2.0, 1.0], [1.5, -1.0, 0.0], dict(gold_margin=2.5), 3.0),  # by no more than the margin
        ([0.0, 2.0, 1.0], [1.5, -1.0, 0.0], dict(proxy_margin=2.0), 3.0),
        ([2.0, 2.0, 1.0], [-1.0, 1.0, 0.0], {}, 3.0),  # the proxy finds both equally good: it contradicts nobody
        ([0.0, 2.0, math.nan], [0.5, 0.5, 9.0], {}, 1.5),  # what has no score is not compared
    ],
)
def test_what_is_no_contradiction(proxy, gold, values, gap):
    found = compared(proxy, gold, **values)
    assert found.pair is None and found.lost == "agreed" and found.gap == gap


def test_a_reply_that_was_cut_off_is_in_no_pair():
    assert compared([0.0, 2.0, 1.0], [1.5, -1.0, 0.0], done=(True, False, True)).pair["rejected"] == "c"
    none = compared([0.0, 2.0, 1.0], [1.5, -1.0, 0.0], done=(False,) * 3)
    assert none.pair is None and math.isnan(none.gap) and none.lost == "unusable"


def test_scores_are_read_in_their_standard_deviations():
    found = mine.standardised([[1.0, 3.0], [math.nan, 5.0]])  # mean 3, variance (4 + 0 + 4) / 3
    sd = math.sqrt(8 / 3)
    np.testing.assert_allclose(found, [[-2 / sd, 0.0], [math.nan, 2 / sd]])
    assert mine.standardised([[2.0, 2.0]]).tolist() == [[0.0, 0.0]]


@pytest.fixture(scope="module")
def mined(run, tmp_path_factory):
    return mine.run(config(run), tmp_path_factory.mktemp("mine") / "mine")


def test_every_pair_contradicts_the_reward_model(mined):
    manifest, pairs, prompts = read(mined / "manifest.json"), rows(mined), rows(mined, "prompts")
    for row in pairs:
        assert row["gold_chosen"] > row["gold_rejected"] and row["proxy_rejected"] > row["proxy_chosen"]
    gaps = [row["gap"] for row in prompts]
    assert (
        len(prompts) == 5
        and gaps == sorted(gaps, reverse=True)
        and gaps[-1] > 0
        and gaps[0] >= manifest["metrics"]["mean_gap"]
    )
    assert all(row["family"] for row in prompts)  # whole rows: a reward over text may need what else they say
    counts = manifest["data"]["counts"]
    assert len(pairs) == counts["pairs"] == 32 - counts.get("dropped_agreed", 0) - counts.get("dropped_unusable", 0)
    assert manifest["files"] == ["pairs.jsonl", "prompts.jsonl"]


def test_a_reward_that_is_gold_contradicts_itself_nowhere(run, tmp_path):
    with refuses(DataError, "no hard negative", "agreed", "gold_margin"):
        mine.run(config(run, reward_from="", reward=GOLD), tmp_path / "out")


def test_a_held_out_reward_model_may_be_the_gold_one(run, tmp_path):
    """The parts are found by their roles: the judge's own opposite as gold contradicts it wherever scores differ."""
    gold = dict(reward="", reward_args={}, reward_from=str(run / "reward"), reward_weights={})
    opposite = {"bad": {"from": str(run / "reward"), "weight": -1.0}}
    folder = mine.run(config(run, reward_from="", rewards=opposite, gold=gold), tmp_path / "out")
    assert read(folder / "manifest.json")["metrics"]["correlation"] == pytest.approx(-1.0)
    assert set(read(folder / "manifest.json")["parents"]) == {"policy", "reward.bad", "gold"}
    assert all(row["gold_chosen"] == pytest.approx(-row["proxy_chosen"], abs=1e-5) for row in rows(folder))


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(samples_per_prompt=1), "config.samples_per_prompt = 1", "2 or more"),
        (dict(gold_margin=-1.0), "config.gold_margin = -1.0", "0 or more"),
        (dict(prompts=-1), "config.prompts = -1", "0"),
        (dict(reward_from=""), "config.reward_from", "exactly one"),
        (dict(gold=dict(reward="", reward_args={}, reward_from="", reward_weights={})), "config.gold.reward", "one"),
        (dict(gold=dict(reward="builtins:len", reward_args={}, reward_from="", reward_weights={})),
         "config.gold.reward = 'len'", "finished"),
    ],
)  # fmt: skip
def test_what_cannot_be_mined_is_refused(run, tmp_path, values, key, word):
    with refuses(ConfigError, key, word):
        mine.run(config(run, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_pairs_teach_the_next_reward_model_beside_the_first_ones(run, mined, tmp_path):
    """A union of two steps, both of them parents, whose rows are read once each."""
    c = plain(tiny().reward) | dict(init_from=str(run / "sft"), total_steps=2, eval_every_steps=0)
    c["data"] = dict(path=[str(run / "collect"), str(mined)], heldout_percent=25.0)
    manifest = read(reward.run(c, tmp_path / "reward") / "manifest.json")
    counts, steps = manifest["data"]["counts"], (run / "collect", mined)
    assert counts["train"]["rows"] + counts["heldout"]["rows"] == sum(len(rows(step)) for step in steps)
    found = [manifest["parents"][f"data.{i}"]["content_hash"] for i in (0, 1)]
    assert found == [read(step / "manifest.json")["content_hash"] for step in steps]
    c["data"] = dict(path=[], heldout_percent=25.0)
    with refuses(DataError, "data.path", "list"):
        reward.run(c, tmp_path / "none")


@pytest.mark.slow
def test_a_pipeline_mines_and_learns_from_it_by_name(run, tmp_path):
    """A file of a step by its name, in a mixture of prompts; lineage and `alignax data` know the steps."""
    c = plain(tiny())
    steps = {"sft": c["sft"], "collect": c["collect"], "reward": c["reward"]}
    steps["mine"] = config(run, init_from="@sft", reward_from="@reward")
    short = dict(init_from="@sft", total_steps=1, eval_every_steps=0)
    path = ["@collect", "@mine"]
    steps["again"] = c["reward"] | short | dict(data=dict(path=path, heldout_percent=25.0))
    world = dict(source="alignax.worlds.sources:prompts", count=32, world_split="online", weight=0.5)
    hard = dict(source="jsonl", path="@mine/prompts.jsonl", weight=0.5)
    steps["ppo"] = c["ppo"] | short | dict(reward_from="@again", probe=plain(probe.get_config()))
    steps["ppo"] |= dict(source="mixture", data=dict(parts=dict(world=world, hard=hard)))
    whole = dict(steps=tuple(steps), **steps)
    waiting = {one["name"]: one.get("waiting", "") for one in preview.preview(whole, workdir=tmp_path / "none", rows=1)
               if one["name"] in ("again", "ppo")}  # fmt: skip
    assert "'collect'" in waiting["again"] and "'mine'" in waiting["ppo"]
    folder = pipeline.run(whole, tmp_path / "run")
    tree = lineage(folder / "ppo")
    assert "data.hard: mine  mine" in tree and "data.0: collect" in tree and "data.1: mine" in tree
    assert metrics(folder / "ppo")[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    counts = read(folder / "ppo/manifest.json")["data"]["counts"]
    assert counts["rows"] == 32 + 5 and set(counts["epochs"]) == {"world", "hard"}
    whole["ppo"]["data"]["parts"]["hard"]["path"] = "@mine/replies.jsonl"
    with refuses(ConfigError, "config.ppo.data.parts.hard.path", "makes pairs.jsonl, prompts.jsonl", "replies.jsonl"):
        pipeline.run(whole, folder)


def test_rounds_of_every_kind_are_plans():
    for name in ("hard_negatives", "rejection", "iterated_dpo", "iterated_rlhf"):
        c = plain(file_config(f"world/{name}.py:3"))
        made = pipeline.planned(c)
        assert tuple(made) == tuple(c["steps"]) and f"{list(made)[-2][:-2]}_3" == list(made)[-2]


def test_the_reward_models_of_iterated_rlhf_learn_from_all_rounds():
    c = plain(file_config("world/iterated_rlhf.py", "--config.seed=4"))
    assert c["reward_3"]["data"]["path"] == ["@collect_1", "@collect_2", "@collect_3"]
    assert c["ppo_3"]["init_from"] == "@ppo_2" and c["ppo_3"]["reference_from"] == "@sft"
    assert [c[f"collect_{i}"]["seed"] for i in (1, 2, 3)] == [4, 5, 6] and c["collect_2"]["data"]["seed"] == 5
    assert isinstance(online.plan(c["ppo_2"], "ppo_2."), online.Plan)
