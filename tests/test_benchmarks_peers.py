"""The race with the peers counts what it says: tokens, steps, ratios. The peers themselves are not needed here."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from errors import refuses

from alignax.data.encode import demo_rows, pair_rows
from alignax.data.sources.hh import hh
from alignax.worlds.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TINY = {"dim": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "ffn": 8}


def script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "benchmarks" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers, measure = script("peers.py"), script("contenders/measure.py")


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """(folder, what `prepare` says, the source's rows) of dialogues of unequal length; the longest is left out."""
    folder = tmp_path_factory.mktemp("race")
    said = [f"\n\nHuman: {'tea ' * n}?\n\nAssistant:" for n in (*range(1, 13), 40)]
    rows = [{"chosen": p + " cake" * (n % 3 + 1), "rejected": p + " no" * (n % 5 + 1)} for n, p in enumerate(said)]
    (folder / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = peers.prepare(folder / "hh.jsonl", "alignax.worlds.tokenizer:build_tokenizer", folder, 4, 30)
    return folder, data, hh(path=str(folder / "hh.jsonl"))[0]


def read(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "data" / f"{split}.jsonl").read_text().splitlines()]


def test_prepared_pairs_are_those_of_the_stages_and_their_real_tokens_what_the_stages_read(race):
    folder, data, rows = race
    pairs, tokenizer = read(folder, "train"), build_tokenizer()
    assert [len(pairs), len(read(folder, "test"))] == [4, peers.HELD_OUT]
    options = {"template": "plain", "max_length": 30}
    both, demos = pair_rows(rows[:4], tokenizer, **options)[0], demo_rows(rows[:4], tokenizer, **options)[0]
    counted = [measure.real_tokens("dpo", pair) for pair in pairs]
    assert counted == (both["chosen"]["valid"].sum(1) + both["rejected"]["valid"].sum(1)).tolist()
    assert [measure.real_tokens("sft", pair) for pair in pairs] == demos["valid"].sum(1).tolist()
    assert data["vocab_size"] == len(tokenizer)
    assert data["longest"] <= 30
    ids = both["chosen"]["tokens"][2][both["chosen"]["valid"][2]].tolist()
    assert pairs[2]["prompt_ids"] + pairs[2]["chosen_ids"] == ids


def test_too_few_pairs_are_refused_with_their_number(race, tmp_path):
    folder, tokenizer = race[0], "alignax.worlds.tokenizer:build_tokenizer"
    with refuses(SystemExit, "--pairs 9", "12", "30"):
        peers.prepare(folder / "hh.jsonl", tokenizer, tmp_path, 9, 30)


def test_steps_of_the_warm_up_and_those_that_compile_do_not_count():
    ends = SimpleNamespace(wall=[10.0, 11.0, 12.0, 19.0, 20.0])
    compiles = SimpleNamespace(events=[(9.0, 5.0), (18.5, 6.0)])  # for the first step, and while the fourth ran
    assert measure.counted({"warmup_steps": 2}, ends, compiles) == [2, 4]
    assert measure.counted({"warmup_steps": 2}, ends, None) == [2, 3, 4]


def test_ratios_are_those_of_neighbouring_runs():
    """3, 2 and 1.5: the median is 2, where the ratio of the medians is 100 / 60."""
    speeds = {"alignax": (300, 100, 90), "trl": (100, 50, 60)}
    runs = [
        {"loss": "sft", "dtype": "float32", "repeat": k, "contender": name, "tokens_per_s": speed}
        | {"tokens_per_cpu_s": speed, "peak_mb": 1.0}
        for name, all_ in speeds.items()
        for k, speed in enumerate(all_)
    ]
    rows = {row["contender"]: row for row in peers.summary(runs)}
    assert [rows["trl"][key] for key in ("alignax_is", "least", "most")] == pytest.approx([2, 1.5, 3])
    assert rows["alignax"]["alignax_is"] == 1


def test_a_variant_is_a_contender_with_settings_for_some_losses():
    found = peers.contenders("trl=/a/python", ["trl@sft,dpo packing=true beta=0.5", "alignax packing=off"])
    assert [one["name"] for one in found] == ["alignax", "trl", "trl packing=true beta=0.5", "alignax packing=off"]
    assert found[2]["options"] == {"packing": True, "beta": 0.5}
    assert found[2]["losses"] == ["sft", "dpo"]
    assert [found[2]["python"], found[3]["python"]] == ["/a/python", sys.executable]
    with pytest.raises(SystemExit, match="'trll packing=true'"):
        peers.contenders("trl=/a/python", ["trll packing=true"])


@pytest.mark.slow
def test_alignax_runs_its_stage_and_reports_what_it_read(race, tmp_path):
    """Every step reads all four pairs, so the count of tokens is known; of 8 steps 2 are warm-up, one may compile."""
    folder, data, _ = race
    asked = SimpleNamespace(
        shape=[f"{k}={v}" for k, v in TINY.items()], pairs=24, batch=4, max_length=32, warmup_steps=2
    )
    settings = peers.shared_settings(asked, folder, data) | {"loss": "sft", "dtype": "float32", "learning_rate": 0.1}
    result = peers.launch(peers.contenders("", [])[0], settings, tmp_path / "run")
    whole = sum(measure.real_tokens("sft", pair) for pair in read(folder, "train"))
    assert result["tokens"] == result["steps"] * whole
    assert result["steps"] + result["left_out"] == 6
    assert result["last_loss"] < result["first_loss"]
    assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["seconds"])
