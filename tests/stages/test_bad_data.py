"""Rows and files that cannot be used: each is counted under a name, or stops with file and line."""

from pathlib import Path

import pytest
from errors import names
from stage_runs import ROOT, fails, write_rows

from alignax.main import main
from alignax.manifest import read_manifest

SFT = Path(__file__).with_name("text_sft.py")
REWARD = ROOT / "configs/world/reward.py"
NAMES = ("mara", "teo")


def demo(index, words=4):
    """A row of words of the world: prompt of 5 tokens, reply of `words` tokens (and its end)."""
    return {"prompt": f"{NAMES[index % 2]} asks : harbor {'tea ' * (index // 2 + 1)}", "completion": "tea " * words}


def pair(index, **changes):
    """A preference pair."""
    return {"prompt": demo(index)["prompt"], "chosen": "tea cake", "rejected": "cake"} | changes


def sft(path, workdir):
    return ["run", f"--config={SFT}:{path}", f"--workdir={workdir}"]


def test_each_bad_row_is_counted_and_the_good_ones_are_learned(tmp_path):
    good = [demo(index) for index in range(16)]
    bad = [
        demo(1, words=30),  # longer than max_length = 24 together
        {"prompt": "tea " * 24, "completion": "tea"},  # the prompt fills the context
        {"prompt": "mara", "completion": "  "},
        {"prompt": "mara"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", good + bad)
    assert main(sft(path, tmp_path / "sft") + ["--config.data.heldout_percent=30.0"]) == 0
    counts = read_manifest(tmp_path / "sft")["data"]["counts"]
    total = {name: sum(split.get(name, 0) for split in counts.values()) for split in counts.values() for name in split}
    assert total == {
        "rows": 20,
        "kept": 16,
        "dropped_too_long": 1,
        "dropped_prompt_fills_context": 1,
        "dropped_empty_reply": 1,
        "dropped_missing_field": 1,
    }


@pytest.mark.parametrize(
    "change, reason, word",
    [
        ({"rejected": "tea cake"}, "identical_replies", "different"),
        ({"chosen": " "}, "empty_reply", "write"),
        ({"chosen": None}, "missing_field", "names"),
        ({"chosen": "tea " * 60}, "too_long", "raise max_length"),
        ({"prompt": "tea " * 70}, "prompt_fills_context", "raise max_length"),
        ({"chosen": "tea <eos>"}, "special_token", "clean"),
    ],
)
def test_pairs_of_which_none_can_be_used_say_why(run, change, reason, word, tmp_path, capsys):
    rows = [pair(index, **change) for index in range(12)]
    rows[0] = rows[0] | {"chosen": rows[0]["chosen"] or "tea"}  # a field that no row has is another error
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    if reason == "missing_field":
        path = write_rows(tmp_path / "pairs.jsonl", [*rows, pair(0, prompt="once", chosen="tea", rejected="tea")])
    values = [f"--config.init_from={run / 'sft'}", f"--config.data.path={path}", "--config.data.heldout_percent=50.0"]
    err = fails(capsys, "run", f"--config={REWARD}", f"--workdir={tmp_path / 'reward'}", *values)
    names(err, "preference pair left", reason, word)
    assert not (tmp_path / "reward/steps").exists()


@pytest.mark.parametrize(
    "content, line, word",
    [
        (b'{"prompt": "mara", "completion": "tea"}\n{"prompt": "mara", "completion": "\xff"}\n', "line 2", "UTF-8"),
        (b'{"prompt": "mara", "completion": "tea"}\n{"prompt": "mara", "completion"\n', "line 2", "JSON"),
        (b'{"question": "mara", "completion": "tea"}\n', "found completion, question", "one of"),
        (b"", "no rows", "object"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(content, line, word, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    err = fails(capsys, *sft(path, tmp_path / "sft"))
    names(err, str(path), line, word)
    assert not (tmp_path / "sft/steps").exists()


def test_a_missing_file_and_a_field_missing_from_every_row(tmp_path, capsys):
    names(fails(capsys, *sft(tmp_path / "nowhere.jsonl", tmp_path / "sft")), "data file", "nowhere.jsonl")
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": demo(index)["prompt"]} for index in range(12)])
    assert "'completion'" in fails(capsys, *sft(path, tmp_path / "sft"))


def test_a_prompt_that_fills_the_context_of_the_sampler(run, tmp_path, capsys):
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "tea " * 30}, {"prompt": "cake " * 40}])
    values = ["source=jsonl", f"init_from={run / 'sft'}", f"reward_from={run / 'reward'}", "batch_size=16"]
    config = tmp_path / "ppo.py"
    config.write_text(
        "from configs.world import ppo\n\n\ndef get_config():\n    c = ppo.get_config()\n"
        f"    del c.data['count'], c.data['world_split']\n    c.data.path = {str(path)!r}\n    return c\n"
    )
    err = fails(
        capsys, "run", f"--config={config}", f"--workdir={tmp_path / 'ppo'}", *(f"--config.{v}" for v in values)
    )
    names(err, "prompt left", "2 rows, kept 0, dropped 2 prompt_too_long", "max_prompt_length")


def test_a_policy_that_never_ends_its_replies_gives_no_pairs(run, tmp_path, capsys):
    """One token of room: no sample is finished, and the reason is counted."""
    values = [f"--config.init_from={run / 'sft'}", "--config.max_new_tokens=1", "--config.data.count=8"]
    values += ["--config.batch_size=8"]
    config = ROOT / "configs/world/collect.py"
    err = fails(capsys, "run", f"--config={config}", f"--workdir={tmp_path / 'collect'}", *values)
    names(err, "8 prompts ({'unfinished': 8, 'identical': 0})", "longer")
