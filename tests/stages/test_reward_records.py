"""Every loss on rankings, ratings and steps, end to end from a config: two updates of a reward model, and its use."""

import json

import numpy as np
import pytest
from errors import refuses
from stage_runs import file_config, metrics, read, tiny, write_rows

from alignax.config import ConfigError
from alignax.data.counts import DataError
from alignax.stages import collect, evaluate, online, pipeline, probe, reward

STEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
PARTS = ["brief", "clean", "harmless", "helpful", "honest", "warm"]  # as the head has them


@pytest.fixture(scope="module")
def judged(run, tmp_path_factory):
    """Folders of the collect stage, by kind: three samples of each of 64 prompts."""
    folder = tmp_path_factory.mktemp("judged")
    for kind in ("rankings", "ratings"):
        c = file_config(f"world/collect.py:{kind}")
        c.init_from, c.data.count, c.batch_size, c.max_new_tokens = str(run / "sft"), 64, 32, 24
        c.samples_per_prompt = 3
        collect.run(c, folder / kind)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Text files of the three kinds, as people write them."""
    folder, words = tmp_path_factory.mktemp("files"), ("tea", "cake", "music")
    prompts = [f"mara asks : {' '.join(words[i % 3 :])} {'soup ' * (i // 3)}" for i in range(40)]
    rankings = [{"prompt": p, "replies": [*words[: 2 + i % 2]]} for i, p in enumerate(prompts)]
    steer = [
        {"prompt": p, "response": words[i % 3]} | {name: (i + k) % 5 for k, name in enumerate(STEER)}
        for i, p in enumerate(prompts)
    ]
    steps = [{"prompt": p, "steps": ["tea", " cake tea"], "verdicts": [0.25, i % 2]} for i, p in enumerate(prompts)]
    write_rows(folder / "rankings.jsonl", rankings)
    write_rows(folder / "steer.jsonl", steer)
    write_rows(folder / "steps.jsonl", steps)
    return folder


def config(run, **values):
    c = tiny()["reward"]
    c.init_from, c.total_steps, c.eval_every_steps, c.save_every_steps, c.loss_args = str(run / "sft"), 2, 0, 2, {}
    for name, value in values.items():
        c[name] = value
    return c


def trained(config, folder):
    """The manifest of a reward model, after looking at its two updates."""
    first, second = metrics(reward.run(config, folder))
    assert np.isfinite(first["loss"]) and first["grad_norm"] > 0 and first["loss"] != second["loss"]
    manifest = read(folder / "manifest.json")
    assert np.isfinite(manifest["calibration"]["mean"]) and manifest["calibration"]["sd"] > 0
    return manifest


@pytest.fixture(scope="module")
def rater(run, judged, tmp_path_factory):
    """The folder of a reward model that rates the parts of the gold reward."""
    folder = tmp_path_factory.mktemp("rater") / "reward"
    data = {"path": str(judged / "ratings"), "heldout_percent": 10.0}
    manifest = trained(config(run, loss="regression", data=data), folder)
    assert manifest["data"]["attributes"] == PARTS
    assert set(manifest["metrics"]["attributes"]) == set(PARTS)
    return folder


@pytest.fixture(scope="module")
def verifier(run, tmp_path_factory):
    """The folder of a process reward model."""
    folder, c = tmp_path_factory.mktemp("verifier") / "reward", config(run, loss="process")
    c.source, c.data = "alignax.worlds.sources:worked_sums", {"count": 64, "heldout": 16}
    found = trained(c, folder)["metrics"]
    assert 0 <= found["accuracy"] <= 1 and 0.5 < found["base_rate"] < 0.8 and found["replies"] == 16
    return folder


@pytest.mark.parametrize("name", [pytest.param("plackett_luce", marks=pytest.mark.slow), "ranked_pairs"])
def test_a_loss_on_rankings_trains(run, judged, files, tmp_path, name):
    """Collected ones, or a text file."""
    path = judged / "rankings" if name == "plackett_luce" else files / "rankings.jsonl"
    c = config(run, loss=name, data={"path": str(path), "heldout_percent": 20.0})
    found = trained(c, tmp_path / name)["metrics"]
    assert 0 <= found["heldout_accuracy"] <= 1 and 1 / 3 <= found["top1_chance"] <= 1 / 2
    assert ("gold_accuracy" in found) == (name == "plackett_luce")


def test_ratings_in_columns_of_a_file_train_the_ordinal_loss(run, files, tmp_path):
    data = {"path": str(files / "steer.jsonl"), "heldout_percent": 20.0, "fields": {"completion": "response"}}
    manifest = trained(config(run, loss="ordinal", data=data | {"attributes": STEER}), tmp_path / "ordinal")
    assert manifest["data"]["attributes"] == sorted(STEER)
    assert all(0 <= one["accuracy"] <= 1 for one in manifest["metrics"]["attributes"].values())


def test_steps_of_a_text_file_train(run, files, tmp_path):
    data = {"path": str(files / "steps.jsonl"), "heldout_percent": 20.0}
    assert trained(config(run, loss="process", data=data), tmp_path / "process")["metrics"]["steps"] > 0


def test_collected_rankings_are_in_the_order_that_their_annotator_prefers(judged):
    manifest = read(judged / "rankings/manifest.json")
    rows = [json.loads(line) for line in (judged / "rankings/rankings.jsonl").read_text().splitlines()]
    assert manifest["metrics"]["rankings"] == len(rows) and manifest["files"] == ["rankings.jsonl"]
    assert all(2 <= len(row["replies"]) == len(row["gold"]) == len(set(row["replies"])) <= 3 for row in rows)
    assert manifest["metrics"]["annotator_agreement"] > 0.6  # T = 1/4 of gaps of about 1.5


def test_collected_ratings_are_the_gold_parts(judged):
    rows = [json.loads(line) for line in (judged / "ratings/ratings.jsonl").read_text().splitlines()]
    assert rows and all(sorted(row["ratings"]) == PARTS for row in rows)
    np.testing.assert_allclose([sum(row["ratings"].values()) for row in rows], [row["gold"] for row in rows])


def proxy(run, folder, reward_from, weights):
    """Scores of the SFT policy's replies by a reward model."""
    c = tiny()["evaluate"]
    c.init_from, c.policies = str(run / "sft"), {"sft": str(run / "sft")}
    c.probe.reward_from, c.probe.reward_weights = str(reward_from), weights
    rows = (evaluate.run(c, folder) / "samples.jsonl").read_text().splitlines()
    return np.array([json.loads(row)["policies"]["sft"]["proxy"] for row in rows])


def test_a_rating_of_several_attributes_is_one_reward_downstream(run, rater, tmp_path):
    """Weighted scores of the proxy are the weighted sum of those of single attributes: the head is linear."""
    each = {"warm": {"warm": 1.0}, "brief": {"brief": 1.0}, "both": {"warm": 2.0, "brief": -0.5}}
    found = {name: proxy(run, tmp_path / name, rater, dict.fromkeys(PARTS, 0.0) | w) for name, w in each.items()}
    assert np.abs(found["warm"] - found["brief"]).max() > 1e-3
    np.testing.assert_allclose(found["both"], 2 * found["warm"] - 0.5 * found["brief"], atol=1e-5)
    assert np.ptp(proxy(run, tmp_path / "sum", rater, {})) > 0


def test_a_verifier_of_steps_scores_whole_replies(run, verifier, tmp_path):
    assert np.ptp(proxy(run, tmp_path / "verified", verifier, {})) > 0


@pytest.mark.slow
def test_ppo_takes_a_reward_model_of_several_attributes(run, rater, tmp_path):
    c = tiny()["ppo"]
    c.init_from, c.eval_every_steps, c.probe = str(run / "sft"), 0, probe.get_config()
    c.reward_from, c.reward_weights = str(rater), {"warm": 0.5}  # 1 each for the others
    first, *_, last = metrics(online.run(c, tmp_path / "ppo"))
    assert np.isfinite([first["objective/scores"], last["loss/policy_avg"]]).all() and first["grad_norm"] > 0


@pytest.mark.parametrize(
    "reward_from, weights, key, word",
    [
        ("rater", {"warmth": 1.0}, "config.reward_weights.warmth:", "'warm'"),
        ("rater", {"warm": "much"}, "config.reward_weights.warm = 'much'", "float"),
        ("rater", {"warm": float("nan")}, "config.reward_weights.warm = nan", "number"),
        ("verifier", {"warm": 1.0}, "config.reward_weights", "single"),
        ("", {"warm": 1.0}, "config.reward_weights", "config.reward_from"),
    ],
)
def test_weights_that_fit_no_reward_model(run, reward_from, weights, key, word, tmp_path, request):
    c = tiny()["ppo"]
    c.init_from, c.probe, c.reward_weights = str(run / "sft"), probe.get_config(), weights
    c.reward_from = str(request.getfixturevalue(reward_from)) if reward_from else ""
    with refuses(ConfigError, key, word):
        online.run(c, tmp_path / "ppo")


@pytest.mark.parametrize(
    "loss, data, key, word",
    [
        ("regression", "pairs", "found chosen, gold_chosen, gold_rejected,", '"ratings": {attribute:'),
        ("process", "ratings", '"steps": [text', '"verdicts": [true'),
        ("process", "pairs", '"steps": [text', '"verdicts": [true'),
        ("regression", "rankings", '"completion": text', '"ratings": {attribute:'),
    ],
)
def test_a_loss_whose_rows_are_others_names_those_it_reads(run, judged, tmp_path, monkeypatch, loss, data, key, word):
    monkeypatch.setattr("alignax.stages.parents.decoder", None)  # no model is built
    path = run / "collect" if data == "pairs" else judged / data
    c = config(run, loss=loss, data={"path": str(path), "heldout_percent": 10.0})
    with refuses(DataError, key, word):
        reward.run(c, tmp_path / "x")


def test_data_of_a_step_that_collected_nothing(run, tmp_path):
    with refuses(ConfigError, "config.data.path", "'sft'"):
        reward.run(config(run, data={"path": str(run / "sft"), "heldout_percent": 10.0}), tmp_path / "x")


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(kind="ranking"), "config.collect.kind = 'ranking'", "'rankings'"),
        (dict(samples_per_prompt=4), "config.collect.samples_per_prompt = 4:", "2"),
        (dict(kind="rankings", samples_per_prompt=1), "config.collect.samples_per_prompt = 1:", "rankings"),
        (dict(kind="ratings"), "config.collect.annotator_args.mode:", "gold"),
        (
            dict(kind="rankings", annotator_args=dict(tie_below=0.1)),
            "config.collect.annotator_args.tie_below:",
            "rankings",
        ),
    ],
)
def test_judgements_that_cannot_be_collected(values, key, word, tmp_path):
    c = tiny()
    for name, value in values.items():
        c.collect[name] = value
    with refuses(ConfigError, key, word):
        pipeline.run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
