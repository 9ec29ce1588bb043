"""`alignax data` shows what the stages read: the counts of their manifests, the tokens and masks of their rows."""

import re

import pytest
from errors import names, refuses
from rich.console import Console
from stage_runs import ROOT, TINY, fails, file_config, tiny, write_rows

from alignax.config import ConfigError, plain
from alignax.data.counts import DataError
from alignax.main import load_config, main
from alignax.report.preview import html, terminal
from alignax.stages import imported, sft
from alignax.stages.preview import preview
from alignax.worlds.tokenizer import build_tokenizer

TEXT = ROOT / "tests/stages/text_sft.py"


def test_sides_of_a_row_and_what_is_learnt_of_them(tmp_path):
    build_tokenizer().save_pretrained(str(tmp_path / "sft/tokenizer"))
    pairs = tiny()["dpo"]  # whose tokenizer is that of the parent
    pairs.init_from, pairs.data.path = str(tmp_path / "sft"), str(write_rows(tmp_path / "pairs.jsonl", PAIRS))
    pairs.data.heldout_percent = 50.0
    (section,) = preview(pairs, rows=2)
    assert section["ends"] == ["<eos> (id 2)"] and len(section["rows"]) == 2
    assert [side["name"] for side in section["rows"][0]["sides"]] == ["chosen", "rejected"]
    pieces = section["rows"][0]["sides"][0]["pieces"]
    assert [piece for piece in pieces if piece[1]] == [[" hello", True], [" <eos>", True]]
    assert [text for text, masked in pieces if not masked][:3] == ["<bos>", " <user>", " tea"]
    assert dict(section["facts"])["chosen longer"] == "0.0%, equally long 100.0%"


def test_what_another_step_has_yet_to_make_waits(tmp_path):
    sections = {one["name"]: one for one in preview(tiny(), rows=1, workdir=tmp_path)}
    assert {name for name, one in sections.items() if "waiting" in one} == {"reward", "dpo"}
    assert "made by the step 'collect', which is not finished" in sections["dpo"]["waiting"]
    assert sections["ppo"]["lengths"]["prompt"]["quantiles"][-1][1] <= 24  # the tokenizer is that of the step sft


def test_a_part_of_a_mixture_that_a_step_has_yet_to_make_waits_too(tmp_path):
    c = plain(tiny())
    part = {"source": "jsonl", "weight": 1.0, "path": "@collect"}
    c["dpo"] |= {"source": "mixture", "data": {"parts": {"ours": part}}}
    sections = {one["name"]: one for one in preview(c, rows=1, workdir=tmp_path)}
    assert "made by the step 'collect'" in sections["dpo"]["waiting"]


def test_the_tokenizer_of_an_imported_step_is_the_one_in_its_folder(tmp_path):
    build_tokenizer().save_pretrained(str(tmp_path / "theirs"))
    c = {"steps": ["base", "sft"], "base": plain(imported.get_config()), "sft": plain(tiny()["sft"])}
    c["base"]["path"] = str(tmp_path / "theirs")
    c["sft"] |= {"init_from": "@base", "model": "", "model_args": {}, "tokenizer": ""}
    (section,) = preview(c, rows=1)
    assert section["ends"] == ["<eos> (id 2)"]


def test_the_command_shows_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = [{"prompt": f"tea {i}"} | ({"completion": "hello"} if i % 2 else {}) for i in range(24)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "pages/new/data.html"
    command = ["data", f"--config={TEXT}:{path}", "--config.data.heldout_percent=40.0", "--rows=1", f"--html={out}"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert (
        re.search(r"missing_field +[1-9]", shown)
        and "check the field names of the file" in shown
        and "hello <eos>" in shown
    )
    assert "hello" in out.read_text() and f"page: {out}" in shown


def test_the_parts_of_a_mixture_and_what_would_stop_the_run(tmp_path, capsys):
    rows = [{"prompt": f"tea {i}", "completion": "hello"} for i in range(60)]
    paths = {"whole": write_rows(tmp_path / "a.jsonl", rows), "few": tmp_path / "b.jsonl"}
    write_rows(paths["few"], [row | {"completion": "hello" if i % 4 else " "} for i, row in enumerate(rows)])
    own = {"source": "jsonl", "heldout_percent": 30.0}
    parts = {name: own | {"path": str(path), "weight": 1.0 + 2 * (name == "few")} for name, path in paths.items()}
    c = plain(load_config(f"{TEXT}:{paths['few']}", [])) | {"source": "mixture", "data": {"parts": parts}}
    (section,) = preview(c, rows=1)  # of 4 steps with 8 rows
    (few, share, found, kept, dropped, epochs), whole = section["parts"]
    assert (few, share, dropped) == ("few", "75.0%", f"{int(found) - int(kept)} empty_reply") and int(found) > int(kept)
    assert epochs == str(round(24 / int(kept), 3)) and whole[2] == whole[3] and whole[4] == "0"
    assert f"; few: {epochs} epochs; whole: {whole[5]} epochs" in section["counts"]["train"]

    def stops(*named):
        (section,) = preview(c, rows=1)
        names(section["error"], *named)
        with refuses(DataError, *named):
            sft.run(c, tmp_path / "out")
        Console(width=200).print(terminal([section]))
        shown = capsys.readouterr().out
        assert all(part[4] in shown and part[4] in html([section]) for part in section["parts"])
        return section["parts"]

    c["data"]["max_repeats"] = float(epochs) - 0.1
    assert stops("part 'few'", "exhausted")[0][2:5] == [found, kept, dropped]
    write_rows(paths["few"], [row | {"completion": " "} for row in rows])
    assert stops("part 'few'", "rows left", "counts")[0][3:] == [
        "0", f"{found} empty_reply", "-",
    ]  # fmt: skip


def mixed(stage, tmp_path, **values):
    """The config of a stage on a mixture of pairs: 60, and 60 of which every fourth chosen reply is blank."""
    build_tokenizer().save_pretrained(str(tmp_path / "sft/tokenizer"))
    rows = [{"prompt": f"tea {i}", "chosen": "hello", "rejected": "tea"} for i in range(60)]
    few = [row | {"chosen": "hello" if i % 4 else " "} for i, row in enumerate(rows)]
    paths = {name: write_rows(tmp_path / f"{name}.jsonl", one) for name, one in (("few", few), ("whole", rows))}
    own = {"source": "jsonl", "heldout_percent": 30.0, "weight": 1.0}
    c = plain({"kto": tiny()["dpo"], "distill": file_config("world/distill.py")}.get(stage) or tiny()[stage])
    c |= {"loss": "kto", "loss_args": {}} if stage == "kto" else {}
    c |= {key: str(tmp_path / "sft") for key in ("init_from", "teacher_from") if c.get(key)}
    return c | {"source": "mixture", "data": {"parts": {n: own | {"path": str(p)} for n, p in paths.items()}}} | values


@pytest.mark.parametrize("stage, unit", [("sft", 1), ("kto", 2), ("reward", 1), ("distill", 1)])
def test_the_parts_of_a_mixture_of_every_form(stage, unit, tmp_path):
    (section,) = preview(mixed(stage, tmp_path), rows=1)
    few, whole, *prompts = section["parts"]
    blank = int(few[2]) - int(few[3])
    assert 0 < blank < 60 and few[4] == f"{blank} empty_reply" and few[:2] == ["few", "50.0%"]
    assert whole[2] == whole[3] and whole[4] == "0" and int(few[2]) == int(whole[2]) and int(few[2]) % unit == 0
    assert f"; few: {few[5]} epochs; whole: {whole[5]} epochs" in section["counts"]["train"]
    if stage == "distill":  # half of its steps are on the student's own samples
        assert [(one[0], one[2], one[3]) for one in prompts] == [
            (f"{name}, prompts", few[2], few[2]) for name in ("few", "whole")
        ]
        assert f"few: {prompts[0][5]} epochs" in section["counts"]["prompts"]
    assert prompts or stage != "distill"


def test_a_distillation_is_refused_for_the_prompts_that_it_would_repeat(tmp_path):
    c = mixed("distill", tmp_path, on_policy=0.8)
    times = [float(part[5]) for part in preview(c, rows=1)[0]["parts"]]
    assert max(times[:2]) < min(times[2:])
    c["data"]["max_repeats"] = (max(times[:2]) + min(times[2:])) / 2
    assert "exhausted" in preview(c, rows=1)[0]["error"]
    c["on_policy"] = 1.0  # prompts alone are trained on, completions held out
    c["data"]["max_repeats"] = 0.0
    (section,) = preview(c, rows=1)
    assert set(section["counts"]) == {"train", "heldout"} and list(section["lengths"]) == ["prompt"]


def test_data_that_cannot_be_used_is_an_error_in_its_place(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"tea {i}", "completion": " "} for i in range(20)])
    assert main(["data", f"--config={TEXT}:{path}", "--config.data.heldout_percent=50.0"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    names(shown, "demonstration left", "empty_reply", "write")


def test_what_the_config_lacks(tmp_path, capsys):
    message = fails(capsys, "data", f"--config={ROOT}/configs/hh/dpo.py", "--rows=-1")
    names(message, "--rows=-1", "0")
    config = tiny()["dpo"]
    config.init_from, config.data.path = "runs/nowhere", str(write_rows(tmp_path / "p.jsonl", PAIRS))
    config.data.heldout_percent = 50.0
    with refuses(ConfigError, "init_from = 'runs/nowhere'", "--tokenizer=FOLDER"):
        preview(config)
    (section,) = preview(config, tokenizer=f"{build_tokenizer.__module__}:build_tokenizer")
    assert list(section["lengths"]) == ["chosen", "rejected"]
    with refuses(ConfigError, "stage = 'evaluate'", "data"):
        preview(tiny()["evaluate"])
    overrides = ("--config.sft.total_steps=2", "--config.total_stpes=2")
    names(fails(capsys, "data", f"--config={TINY}", *overrides), "--config.total_stpes", "no such key")


PAIRS = [{"prompt": f"tea {word}", "chosen": "hello", "rejected": "tea"} for word in "abcdefghijklmnop"]
