"""The pictures: what is drawn is what was logged, and the ink follows the page."""

import json
import re

import numpy as np
import pytest

from alignax.report import plots
from alignax.report.folder import Stage, read_run


def a_stage(tmp_path, rows, kind="sft") -> Stage:
    return Stage(kind, kind, tmp_path, None, None, rows, [])


def test_series_takes_both_spellings_of_an_eval_metric(tmp_path):
    rows = [
        {"step": 1, "split": "train", "loss": 3.0},
        {"step": 1, "split": "eval", "eval/loss": 2.5},
        {"step": 2, "split": "eval", "loss": 2.0},
        {"step": 3, "split": "train", "loss": float("nan")},
    ]
    stage = a_stage(tmp_path, rows)
    for split, expected in (("train", [[1], [3.0]]), ("eval", [[1, 2], [2.5, 2.0]])):
        np.testing.assert_array_equal(np.stack(plots.series(stage, "loss", split)), expected)


def test_long_series_are_averaged_in_bins(tmp_path):
    values = np.random.default_rng(0).normal(size=plots.POINTS * 4)
    rows = [{"step": i, "split": "train", "loss": float(item)} for i, item in enumerate(values)]
    step, value = plots.series(a_stage(tmp_path, rows), "loss", "train")
    np.testing.assert_allclose(value, values.reshape(-1, 4).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(step[:2], [1.5, 5.5])


def test_curves_of_an_unknown_stage_are_drawn_too(tmp_path):
    rows = [{"step": i, "split": "train", "my/metric": i * 1.0, "time/elapsed": 2.0} for i in range(4)]
    (picture,) = plots.learning_curves(a_stage(tmp_path, rows, kind="distill"))
    assert "my/metric" in picture


def test_ink_follows_the_page(make_run):
    run = read_run(make_run())
    pictures = [
        plots.reward_against_kl(run),
        plots.calibration(run.reward_model),
        plots.bars(run.policies, "families", "x"),
    ]
    for picture in [*pictures, *plots.learning_curves(run.stages[0])]:
        assert "currentColor" in picture and plots.INK not in picture
        assert not re.search(r"#(000000|ffffff)|<metadata|xmlns", picture)
        assert re.match(r"<svg role=\"img\" aria-label=\"[^\"]+\"", picture) and "viewBox" in picture


def test_trajectory_reads_the_eval_rows(make_run):
    run = read_run(make_run(["online"]))
    points = plots.trajectory(run.stages[0])
    assert [point["step"] for point in points] == list(range(9))
    assert points[0]["kl"] == 0.0 and points[-1] == {"kl": 8.0, "gold": pytest.approx(1.15), "proxy": 2.2, "step": 8.0}


def test_reward_against_kl_wants_a_base_and_a_kl(make_run):
    root = make_run(["online"])
    assert plots.reward_against_kl(read_run(root)) is not None
    path = root / "online" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] > 0))  # no SFT point any more
    assert plots.reward_against_kl(read_run(root)) is None


def test_negative_kl_estimates_are_drawn_at_zero(make_run):
    root = make_run()
    path = root / "evaluate" / "eval.json"
    evaluation = json.loads(path.read_text())
    evaluation["policies"]["ppo"]["kl"] = -0.01
    path.write_text(json.dumps(evaluation))
    assert "nan" not in plots.reward_against_kl(read_run(root))


def test_wilson_interval():
    # 8 of 10, z = 1.96: Wilson's interval is [0.490, 0.943] (the textbook value)
    low, high = plots.wilson(np.array([0.8]), np.array([10.0]))
    np.testing.assert_allclose([low[0], high[0]], [0.490, 0.943], atol=5e-4)
    low, high = plots.wilson(np.array([0.0, 1.0]), np.array([5.0, 5.0]))
    assert (low >= -1e-12).all() and (high <= 1 + 1e-12).all()


def test_empty_calibration_bins_are_left_out():
    rows = [{"predicted": 0.5, "observed": 0.4, "count": 10}, {"predicted": 0.9, "observed": None, "count": 0}]
    assert plots.calibration({"calibration": rows}) is not None
    assert plots.calibration({"calibration": rows[1:]}) is None and plots.calibration({}) is None


def test_a_dollar_in_a_name_is_a_dollar():
    picture = plots.bars({"a$b$c": {"families": {"$x_1$": 1.0, "costs $5": 2.0}}}, "families", "x")
    assert all(name in picture for name in ("a$b$c", "$x_1$", "costs $5"))


def test_colours_are_fixed_and_apart():
    chosen = plots.colours(["dpo", "grpo", "sft", "kto", "ppo"])
    assert chosen["ppo"] == plots.COLOURS["ppo"] and len(set(chosen.values())) == 5
