"""Stages on mixtures, on rows of other forms than their loss takes, and on encoded data from the disk."""

import json

import numpy as np
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny, write_rows

from alignax.config import plain
from alignax.data import boundary, cache, templates
from alignax.data.counts import DataError
from alignax.data.loader import Loader
from alignax.stages import offline, probe, reward, sft


def collected(run):
    return [json.loads(line) for line in (run / "collect/pairs.jsonl").read_text().splitlines()]


def config(run, step, data, **values):
    c = plain(tiny()[step])
    values = dict(total_steps=2, eval_every_steps=0, save_every_steps=1, source="mixture", data=data) | values
    values |= dict(init_from=str(run / "sft")) if step != "sft" else {}
    return c | values | (dict(probe=plain(probe.get_config())) if "probe" in c else {})


def parts(run, folder):
    """Pairs that a step collected, and as many whole texts, of which the prompt is what they share."""
    rows = [{name: f"{row['prompt']} {row[name]}" for name in ("chosen", "rejected")} for row in collected(run)]
    whole = str(write_rows(folder / "whole.jsonl", [row for row in rows if row["chosen"] != row["rejected"]]))
    own = {"source": "jsonl", "heldout_percent": 25.0}
    return {"step": own | dict(weight=3, path=str(run / "collect")), "texts": own | dict(weight=1, path=whole)}


def test_a_mixture_of_a_step_and_a_file_trains_resumes_and_knows_its_parents(run, tmp_path, monkeypatch):
    c = config(run, "dpo", {"parts": parts(run, tmp_path)})
    whole = read(offline.run(c, tmp_path / "whole") / "manifest.json")
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in metrics(tmp_path / "whole"))
    counts = whole["data"]["counts"]["train"]
    drawn, kept = 2 * c["batch_size"], counts["kept"]
    assert set(counts["epochs"]) == {"step", "texts"} and 0 < counts["epochs"]["texts"] < counts["epochs"]["step"]
    assert counts["epochs"]["step"] > 0.75 * drawn / kept and "epochs" not in whole["data"]["counts"]["heldout"]
    assert {"policy", "data.step"} <= set(whole["parents"]) and "data.texts" not in whole["parents"]

    batch = Loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", lambda self, step: batch(self, step) if step != 1 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            offline.run(c, tmp_path / "killed")
    killed = read(offline.run(c, tmp_path / "killed") / "manifest.json")
    assert killed["content_hash"] == whole["content_hash"] and killed["data"] == whole["data"]


def test_a_part_that_would_be_repeated_too_often_stops_the_run_before_it_starts(run, tmp_path):
    c = config(run, "dpo", {"parts": parts(run, tmp_path), "max_repeats": 2.0}, total_steps=10_000)
    with refuses(DataError, "'step'", "data.max_repeats = 2.0", "lower"):
        offline.run(c, tmp_path / "out")
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_a_reward_model_learns_pairs_from_rankings(run, tmp_path):
    """Rows of another form than the loss takes: three replies make three pairs."""
    rows = [{"prompt": row["prompt"], "replies": [row["chosen"], row["rejected"], "yes ."]} for row in collected(run)]
    data = dict(path=str(write_rows(tmp_path / "rows.jsonl", rows)), heldout_percent=25.0)
    c = config(run, "reward", data, source="jsonl")
    counts = read(reward.run(c, tmp_path / "out") / "manifest.json")["data"]["counts"]
    assert counts["train"]["rows"] + counts["heldout"]["rows"] == 3 * len(rows) and counts["train"]["rows"] % 3 == 0


def test_a_second_run_needs_no_tokenizer_for_its_data_and_is_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_ROWS", 1)
    world = dict(source="alignax.worlds.sources:demonstrations", weight=0.5, count=64, heldout=16)
    data = {"parts": {"world": world, "pairs": parts(run, tmp_path)["step"]}}
    first = read(sft.run(config(run, "sft", data), tmp_path / "first") / "manifest.json")
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2  # to train on, and held out
    for module in (boundary, templates):
        monkeypatch.setattr(module, "tokenize", lambda *args, **options: pytest.fail("the tokenizer was called"))
    again = read(sft.run(config(run, "sft", data), tmp_path / "again") / "manifest.json")
    assert again["content_hash"] == first["content_hash"] and again["data"] == first["data"]
    assert set(first["data"]["counts"]["train"]["epochs"]) == {"world", "pairs"}


def test_demonstrations_that_a_step_made_are_a_parent(run, tmp_path):
    c = config(run, "sft", {"path": str(run / "collect"), "heldout_percent": 25.0})
    c |= dict(source="jsonl", template="chat")
    found = read(sft.run(c, tmp_path / "sft") / "manifest.json")["parents"]["data"]
    assert found["content_hash"] == read(run / "collect/manifest.json")["content_hash"]
