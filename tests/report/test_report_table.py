"""The table in both forms says the same, and the sentences say no more than the intervals."""

import io
import json

import pytest
from errors import refuses
from rich.console import Console

from alignax.report.folder import ReportError, Run, label, read_run
from alignax.report.readings import compare, readings
from alignax.report.table import cells, duration, final_values, markdown, table, value


def printed(root) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(table(root))
    return out.getvalue()


def test_table_and_markdown_agree(make_run):
    root = make_run()
    rich = table(root)
    header, _, *rows = [line.strip("| ").split(" | ") for line in markdown(root).splitlines() if line.startswith("|")]
    assert [str(column.header) for column in rich.columns] == header
    columns = [[cell.plain.replace("\n", " ") for cell in column.cells] for column in rich.columns]
    assert [list(row) for row in zip(*columns)] == rows
    assert rich.caption.plain == markdown(root).splitlines()[-1]
    assert rows[1] == [
        "PPO",
        "1.17 [1.06, 1.28]",
        "2.18 [2.10, 2.26]",
        "8.04 [7.74, 8.34]",
        "0.73 [0.70, 0.76]",
        "21.4",
    ]


def test_table_fits_a_terminal(make_run):
    text = printed(make_run())
    assert max(map(len, text.splitlines())) <= 80
    assert "[18.90, 19.50]" in text and "held-out accuracy 0.731 [0.702, 0.758]" in text


def test_numbers_follow_the_input(make_run):
    root = make_run()
    path = root / "evaluate" / "eval.json"
    evaluation = json.loads(path.read_text())
    evaluation["policies"]["dpo"] |= {"kl": 33.25, "kl_ci95": [31.5, 35.0]}
    path.write_text(json.dumps(evaluation))
    assert "33.25 [31.50, 35.00]" in markdown(root) and "[31.50, 35.00]" in printed(root)


def test_without_evaluation_the_stages_are_listed(make_run):
    root = make_run(["sft", "offline"])
    text = markdown(root)
    assert "| sft | finished | 8 | eval/loss" in text and "| offline | finished | 8 | eval/gold_reward 0.65" in text
    assert "reward model" not in text
    assert "finished" in printed(root / "sft")


def test_final_values_are_the_last_logged(make_run):
    run = read_run(make_run(["offline"]))
    assert final_values(run.stages[0])["eval/kl"] == 19.0
    run.stages[0].manifest["metrics"] = {"eval/kl": 18.5}  # the manifest's word counts for more
    assert final_values(run.stages[0])["eval/kl"] == 18.5


def test_a_bracketed_name_is_no_markup(make_run):
    root = make_run(["sft"])
    path = root / "sft" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "sft"', '"name": "[bold]a|b"'))
    assert "[bold]a|b" in printed(root) and "[bold]a\\|b" in markdown(root)


def test_an_empty_folder_is_an_error(tmp_path):
    with refuses(ReportError, str(tmp_path), "metrics.jsonl"):
        table(tmp_path)
    with refuses(ReportError, str(tmp_path), "metrics.jsonl"):
        markdown(tmp_path)


@pytest.mark.parametrize(
    "record, text",
    [
        ({"x": 1.234, "x_ci95": [1.0, 1.5]}, "1.23 [1.00, 1.50]"),
        ({"x": 1.234}, "1.23"),
        ({"x": 1.234, "x_ci95": None}, "1.23"),
        ({"x": None, "x_ci95": None}, "-"),
        ({}, "-"),
        ({"x": 0.0}, "0.00"),  # zero is a value
    ],
)
def test_value(record, text):
    assert value(record, "x", 2) == text


@pytest.mark.parametrize("seconds, text", [(3.2, "3.2 s"), (48, "48 s"), (185, "3 min 05 s"), (7440, "2 h 04 min")])
def test_duration(seconds, text):
    assert duration(float(seconds)) == text


def a_run(tmp_path, **policies) -> Run:
    records = {name: {"gold_reward": sum(ends) / 2, "gold_reward_ci95": list(ends)} for name, ends in policies.items()}
    return Run(tmp_path, [], {"policies": records}, {}, [])


@pytest.mark.parametrize(
    "ends, mark, words",
    [
        ((0.5, 0.9), "up", "PPO's gold reward is above SFT's (0.70 against 0.10): intervals do not overlap"),
        ((-0.9, -0.5), "down", "is below"),
        ((0.2, 0.6), "open", "not shown to differ"),  # touching intervals overlap
        ((-0.5, 0.9), "open", "not shown to differ"),
    ],
)
def test_gold_readings_follow_the_intervals(tmp_path, ends, mark, words):
    (reading,) = readings(a_run(tmp_path, sft=(0.0, 0.2), ppo=ends))
    assert reading.mark == mark and words in reading.text


def test_no_interval_shows_nothing(tmp_path):
    run = a_run(tmp_path, sft=(0.0, 0.2), ppo=(5.0, 6.0))
    del run.policies["ppo"]["gold_reward_ci95"]
    (reading,) = readings(run)
    assert reading.mark == "open" and "not shown" in reading.text
    assert compare(run.policies["ppo"], run.policies["sft"], "gold_reward") is None


@pytest.mark.parametrize(
    "gold, expected", [((-1.0, -0.5), "over-optimised"), ((0.1, 0.3), "watch it"), ((1.0, 2.0), None)]
)
def test_over_optimisation_is_named(tmp_path, gold, expected):
    run = a_run(tmp_path, sft=(0.0, 0.2), ppo=gold)
    run.policies["sft"] |= {"proxy_reward": 0.0, "proxy_reward_ci95": [-0.1, 0.1]}
    run.policies["ppo"] |= {"proxy_reward": 3.0, "proxy_reward_ci95": [2.9, 3.1]}
    found = [reading.text for reading in readings(run) if "proxy" in reading.text]
    assert (expected is None and not found) or expected in found[0]


@pytest.mark.parametrize("ends, mark", [([0.55, 0.7], "up"), ([0.3, 0.45], "down"), ([0.45, 0.6], "open")])
def test_win_rate_against_one_half(tmp_path, ends, mark):
    run = a_run(tmp_path, sft=(0.0, 0.2), ppo=(0.0, 0.2))
    run.policies["ppo"] |= {"win_rate": sum(ends) / 2, "win_rate_ci95": ends}
    assert [reading.mark for reading in readings(run) if "wins" in reading.text] == [mark]


def test_length_endings_and_unequal_kl_are_said(tmp_path):
    run = a_run(tmp_path, sft=(0.0, 0.2), ppo=(1.0, 1.2), dpo=(2.0, 2.2))
    run.policies["sft"] |= {"length": 16.0, "kl": 0.0}
    run.policies["ppo"] |= {"length": 30.0, "eos_rate": 0.8, "kl": 5.0}
    run.policies["dpo"] |= {"length": 16.5, "eos_rate": 0.99, "kl": 20.0}
    text = " ".join(reading.text for reading in readings(run))
    assert "PPO's replies are longer: 30.0 tokens" in text and "PPO ends 80%" in text
    assert "DPO's replies" not in text and "DPO ends" not in text
    assert "PPO's gold reward is below DPO's" in text and "not a comparison at matched KL" in text


def test_the_golden_set_is_said_where_there_is_one(tmp_path):
    run = a_run(tmp_path)
    run.evaluation["reward_model"] = {"heldout_accuracy": 0.7, "heldout_accuracy_ci95": [0.6, 0.8]}
    assert [reading.mark for reading in readings(run)] == ["up"]
    run.evaluation["reward_model"]["golden/accuracy"] = 0.875
    assert [reading.text for reading in readings(run)][1:] == ["It orders 88% of its golden set as it should."]


def test_labels():
    assert (label("ppo"), label("sft"), label("best_of_n")) == ("PPO", "SFT", "best_of_n")


def test_cells_have_one_row_per_policy(make_run):
    header, rows = cells(read_run(make_run()))
    assert [row[0] for row in rows] == ["SFT", "PPO", "DPO"] and all(len(row) == len(header) for row in rows)
