"""Files in, text rows out: exact counts, held-out splits, and errors that name file, line, field and fix."""

import gzip
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from errors import refuses

from alignax.data.counts import DataError
from alignax.data.encode import pair_rows
from alignax.data.read import is_heldout
from alignax.data.sources.hh import hh
from alignax.data.sources.jsonl import jsonl

SHARED = Path(__file__).parents[2].parent / "shared/data"
FIRST = "\n\nHuman: Hi {}?\n\nAssistant: Yes.\n\nHuman: Go on.\n\nAssistant:"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows) -> str:
    """JSON lines, gzip-compressed if the name says so; bytes go in as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def dialogue(i: int, chosen=" Good.", rejected=" Bad.") -> dict[str, str]:
    return {"chosen": FIRST.format(i) + chosen, "rejected": FIRST.format(i) + rejected}


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_hh_splits_at_the_last_assistant_turn(tmp_path, name):
    rows, counts = hh(path=write(tmp_path / name, [dialogue(0), dialogue(1, " A\n\nB", "")]))
    assert rows[0] == {"prompt": FIRST.format(0), "chosen": " Good.", "rejected": " Bad."}
    assert rows[1] == {"prompt": FIRST.format(1), "chosen": " A\n\nB", "rejected": ""}  # counted when it is encoded
    assert counts == {"rows": 2, "kept": 2}


def test_hh_counts_what_it_refuses(tmp_path):
    other = FIRST.format("you") + " Bad."
    rows = [
        dialogue(0),
        dialogue(1) | {"rejected": other},
        dialogue(2) | {"rejected": None},
        {"chosen": dialogue(3)["chosen"]},
        {"chosen": "hi", "rejected": "ho"},
        dialogue(4, " Good.\n\nHuman: Bye.", " Bad."),
    ]
    kept, counts = hh(path=write(tmp_path / "hh.jsonl", rows))
    assert [row["prompt"] for row in kept] == [FIRST.format(0)]
    assert counts == {
        "rows": 6,
        "kept": 1,
        "dropped_prompt_mismatch": 1,
        "dropped_missing_field": 2,
        "dropped_no_reply_turn": 1,
        "dropped_human_last": 1,
    }
    with refuses(DataError, "bad.jsonl", "1 rows, kept 0, dropped 1 prompt_mismatch"):
        hh(path=write(tmp_path / "bad.jsonl", rows[1:2]))


def test_heldout_rows_are_disjoint_complete_and_stable(tmp_path):
    rows = [dialogue(i) for i in range(300)]
    path = write(tmp_path / "a.jsonl", rows)
    train, train_counts = hh(path=path, heldout_percent=20.0)
    heldout, heldout_counts = hh(path=path, split="heldout", heldout_percent=20.0)
    prompts = [{row["prompt"] for row in side} for side in (train, heldout)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 300
    assert train_counts["rows"] + heldout_counts["rows"] == 300
    assert 35 <= len(heldout) <= 85  # 60 expected, standard deviation 7
    shuffled = write(tmp_path / "b.jsonl", rows[::-1])
    assert {row["prompt"] for row in hh(path=shuffled, split="heldout", heldout_percent=20.0)[0]} == prompts[1]
    assert len(hh(path=path)[0]) == 300


def test_later_turns_of_a_conversation_stay_on_its_side(tmp_path):
    later = "{}\n\nHuman: And?\n\nAssistant:"
    rows = [dialogue(i) for i in range(40)]
    for row in rows[:40]:
        rows.append({name: later.format(row["chosen"]) + text for name, text in (("chosen", " 1"), ("rejected", " 2"))})
    path = write(tmp_path / "a.jsonl", rows)
    sides = [hh(path=path, split=split, heldout_percent=50.0)[0] for split in ("train", "heldout")]
    assert all(side and len(side) % 2 == 0 for side in sides) and sum(map(len, sides)) == 80


def test_is_heldout_is_fixed_for_ever():
    # by hand: the first 8 bytes of sha256("a") are ca978112ca1bbdca, a fraction 0.79137 of their range
    assert not is_heldout("a", 79.1) and is_heldout("a", 79.2)
    assert not is_heldout("a", 0.0)


def test_jsonl_forms(tmp_path):
    demo = {"prompt": "p", "completion": "c", "label": 2}
    assert jsonl(path=write(tmp_path / "a.jsonl", [demo])) == ([demo], {"rows": 1, "kept": 1})
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "p"}, {"prompt": "q"}], indent=1))
    assert jsonl(path=str(tmp_path / "b.json"))[0] == [{"prompt": "p"}, {"prompt": "q"}]
    path = write(tmp_path / "c.jsonl", [{"question": "p", "answer": "c"}])
    assert jsonl(path=path, fields={"prompt": "question", "completion": "answer"})[0] == [
        {"prompt": "p", "completion": "c"}
    ]
    path = write(tmp_path / "e.jsonl", [{"question": "p", "prompt": "not this"}])
    assert jsonl(path=path, fields={"prompt": "question"})[0] == [{"prompt": "p"}]
    with refuses(DataError, "fields.promt", "prompt, completion"):
        jsonl(path=path, fields={"promt": "question"})
    mixed = write(
        tmp_path / "d.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "q"}, {"prompt": "r", "completion": 5}]
    )
    assert jsonl(path=mixed)[0] == [
        {"prompt": "p", "completion": "c"},
        {"prompt": "q"},
        {"prompt": "r", "completion": 5},
    ]


def test_jsonl_holds_out_by_prompt(tmp_path):
    rows = [{"prompt": f"p{i % 20}", "completion": str(i)} for i in range(80)]
    path = write(tmp_path / "a.jsonl", rows)
    train, heldout = (jsonl(path=path, split=split, heldout_percent=30.0)[0] for split in ("train", "heldout"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in heldout}
    assert len(train) + len(heldout) == 80 and len(heldout) % 4 == 0 and heldout


def test_missing_field(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"body": "x", "label": 1}])
    with refuses(DataError, "a.jsonl", "body, label", "config.data.f"):
        jsonl(path=path)
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": 1}])
    with refuses(DataError, "no row", "'answer'"):
        jsonl(path=path, fields={"prompt": "text", "completion": "answer"})
    with refuses(DataError, "a.jsonl", "'chosen': found label, text", "'hh'"):
        hh(path=path)


GOOD = b'{"prompt": "a"}'
BAD_FILES = {
    "utf8": ([GOOD, b'{"prompt": "\xff\xfe"}'], "line 2", "UTF-8", "byte 12"),
    "json": ([GOOD, GOOD, b'{"prompt": '], "line 3", "JSON", "column"),
    "rest": ([GOOD, GOOD + b" x"], "line 2", "invalid JSON"),
    "number": ([GOOD, b"5"], "line 2", "int", "object"),
    "surrogate": ([GOOD, b'{"prompt": "a\\ud83d"}'], "line 2", "surrogate"),
    "twice": ([GOOD, b'{"prompt": {"a": 1, "a": 2}}'], "line 2", "'a' twice"),
    "long": ([GOOD, b'{"score": ' + b"1" * 5000 + b"}"], "line 2", "digits"),
    "empty": ([], "no rows", "object"),
    "blank": ([b"", b"  "], "no rows", "object"),
    "list": ([b"[]"], "no rows", "list"),
    "objects": ([b"{}", b"{}"], "no rows", "object"),
    "item": ([b"[", GOOD, b", 5]"], "item 2", "int", "object"),
    "item_twice": ([b"[", GOOD, b', {"a": 1, "a": 2}]'], "item 2", "'a' twice"),
    "item_surrogate": ([b"[", GOOD, b",", GOOD, b', {"prompt": "a\\ud83d"}]'], "item 3", "surrogate"),
    "item_long": ([b'[{"score": ' + b"1" * 5000 + b"},", GOOD, b"]"], "item 1", "digits"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_damaged_files_name_the_line(tmp_path, name, suffix):
    lines, *named = BAD_FILES[name]
    path = tmp_path / f"{name}{suffix}"
    if lines:
        write(path, lines)
    else:
        path.write_bytes(gzip.compress(b"") if suffix.endswith("gz") else b"")
    with refuses(DataError, str(path), *named):
        jsonl(path=str(path))


def test_damage_in_a_later_block_and_in_a_list(tmp_path):
    rows = [json.dumps({"prompt": "x" * 1000}).encode()] * 1200 + [b"", b"{"]  # blank lines count as lines
    with refuses(DataError, "line 1202", "JSON"):
        jsonl(path=write(tmp_path / "a.jsonl", rows))
    assert len(jsonl(path=str(tmp_path / "a.jsonl"), max_rows=1200)[0]) == 1200  # what comes later is not read
    (tmp_path / "b.json").write_text('\n[{"prompt": "a"},\n {"prompt": }]')
    with refuses(DataError, "b.json, line 3", "JSON"):
        jsonl(path=str(tmp_path / "b.json"))


def test_a_cut_off_gzip_file(tmp_path):
    path = Path(write(tmp_path / "a.jsonl.gz", [json.dumps({"prompt": str(i)}).encode() for i in range(5000)]))
    path.write_bytes(path.read_bytes()[:-200])
    with refuses(DataError, "a.jsonl.gz", "damaged", "fetch"):
        jsonl(path=str(path))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "/nowhere/hh.json.gz", "~/nowhere"])
def test_missing_file(path):
    with refuses(DataError, "nowhere", "data.path"):
        hh(path=path)


def test_wrong_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with refuses(DataError, "a.txt", ".jsonl"):
        jsonl(path=str(tmp_path / "a.txt"))


def test_splits_that_are_not_there(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with refuses(DataError, "(found: train)", "data.heldout_percent"):
        jsonl(path=path, split="heldout")
    with refuses(DataError, "split = 'test'", "train, heldout"):
        jsonl(path=path, split="test")
    with pytest.raises(DataError, match="heldout_percent = 100"):
        jsonl(path=path, heldout_percent=100.0)
    with refuses(DataError, "heldout", "rows"):
        jsonl(path=path, split="heldout", heldout_percent=0.001)


def test_the_hub_has_its_own_splits(monkeypatch):
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        return datasets.DatasetDict(
            {name: datasets.Dataset.from_list([dialogue(i)]) for i, name in enumerate(("train", "test"))}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert hh()[0][0]["prompt"] == FIRST.format(0)
    assert hh(split="heldout", subset="harmless-base")[0][0]["prompt"] == FIRST.format(1)
    assert hh(train_split="test")[0][0]["prompt"] == FIRST.format(1)
    assert calls[:2] == [("Anthropic/hh-rlhf", {}), ("Anthropic/hh-rlhf", {"data_dir": "harmless-base"})]
    with refuses(DataError, "dev", "(found: train, test)", "data.heldout_split"):
        hh(split="heldout", heldout_split="dev")


def test_the_hub_out_of_reach(monkeypatch):
    def load_dataset(path, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with refuses(DataError, "'Anthropic/hh-rlhf'", "offline", "data.path"):
        hh()


# ---- kinds of files

ROWS = [{"prompt": f"p{i}", "completion": "c"} for i in range(9)]


def compressed(path: Path) -> Path:
    """The file, compressed as zstd."""
    packed = path.with_name(path.name + ".zst")
    with pa.output_stream(str(packed), compression="zstd") as stream:
        stream.write(path.read_bytes())
    return packed


def files(folder: Path) -> dict[str, Path]:
    """The same rows in every kind of file."""
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(folder / "a.parquet")
    table.to_csv(folder / "a.csv", index=False)
    (folder / "a.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
    table.save_to_disk(folder / "saved")
    shutil.copy(next((folder / "saved").glob("*.arrow")), folder / "a.arrow")
    write(folder / "a.jsonl", ROWS)
    write(folder / "a.jsonl.gz", ROWS)
    (folder / "a.json").write_text(json.dumps(ROWS))
    datasets.DatasetDict({"train": table, "dev": table.select(range(2))}).save_to_disk(folder / "splits")
    (folder / "mixed").mkdir()
    table.to_parquet(folder / "mixed/train-0.parquet")
    table.select(range(3)).to_parquet(folder / "mixed/test-0.parquet")
    names = ("a.parquet", "a.csv", "a.csv.gz", "a.arrow", "a.jsonl", "a.jsonl.gz", "a.json", "saved", "splits", "mixed")
    return {name: folder / name for name in names}


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    for name, path in files(tmp_path).items():
        assert jsonl(path=str(path))[0] == ROWS, name
        assert jsonl(path=str(path), max_rows=4)[0] == ROWS[:4], name
        if name not in ("saved", "splits"):  # those are mapped into memory, not read
            assert jsonl(path=str(path), max_rows=4, streaming=True)[0] == ROWS[:4], name
    assert jsonl(path=str(tmp_path / "mixed"), split="heldout")[0] == ROWS[:3]
    assert jsonl(path=str(tmp_path / "splits"), split="heldout", heldout_split="dev")[0] == ROWS[:2]
    with refuses(DataError, "data.max_rows = 0", "streaming"):
        jsonl(path=str(tmp_path / "a.csv"), streaming=True)


def test_zstd(tmp_path):
    path = str(compressed(Path(write(tmp_path / "a.jsonl", ROWS))))
    assert jsonl(path=path)[0] == ROWS and jsonl(path=path, streaming=True, max_rows=2)[0] == ROWS[:2]


def test_damage_in_zstd(tmp_path):
    path = compressed(Path(write(tmp_path / "a.jsonl", [GOOD, b"{"])))
    with refuses(DataError, "a.jsonl.zst, line 2", "JSON"):
        jsonl(path=str(path))
    path.write_bytes(path.read_bytes()[:-4])
    with refuses(DataError, "a.jsonl.zst", "damaged", "fetch"):
        jsonl(path=str(path))


def test_max_rows_come_before_any_are_held_out(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"p{i}"} for i in range(100)])
    sides = [jsonl(path=path, split=s, max_rows=50, heldout_percent=30.0)[0] for s in ("train", "heldout")]
    assert {row["prompt"] for side in sides for row in side} == {f"p{i}" for i in range(50)} and all(sides)


def test_cells_of_csv_are_text_but_for_judgements(tmp_path):
    (tmp_path / "a.csv").write_text(
        'prompt,completion,label,help,note\n007,"a, ""b""\nc",True,3,\nNA,null,false,2.5,x\n', encoding="utf-8-sig"
    )
    rows, _ = jsonl(path=str(tmp_path / "a.csv"), attributes=["help"])
    assert rows == [
        {"prompt": "007", "completion": 'a, "b"\nc', "label": True, "ratings": {"help": 3}},
        {"prompt": "NA", "completion": "null", "label": False, "note": "x", "ratings": {"help": 2.5}},
    ]
    (tmp_path / "c.csv").write_text("prompt,label,liked\np,c,true\nq,7,FALSE\n")
    rows, _ = jsonl(path=str(tmp_path / "c.csv"), fields={"completion": "label", "label": "liked"})
    assert rows == [
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "q", "completion": "7", "label": False},
    ]
    (tmp_path / "d.csv").write_text("prompt,completion,label,margin\np,c,maths,N/A\n")  # a class, and nothing
    assert jsonl(path=str(tmp_path / "d.csv"))[0] == [{"prompt": "p", "completion": "c", "label": "maths"}]
    (tmp_path / "b.csv").write_text("prompt,completion,score\np,c,maths\n")
    with refuses(DataError, "b.csv, line 2", "'score'", "'maths'", "number"):
        jsonl(path=str(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    ("name", "content", "key", "word"),
    [
        ("a.csv", b"prompt,completion\np,c\nq,d,e\n", "a.csv, line 3: 3 cells", "2"),
        ("a.csv", b"prompt,completion\np,\xff\n", "a.csv, line 2", "UTF-8"),
        ("a.csv", b"", "a.csv has no rows", "header"),
        ("a.csv", b"prompt,completion\n\n", "a.csv has no rows", "header"),
        ("a.parquet", b"PAR1 no table", "a.parquet cannot be read as Parquet", "fetch"),
        ("a.arrow", b"ARROW1", "a.arrow", "Arrow"),
        ("folder/state.json", b"{", "folder'", "data set"),
        ("folder/b.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "folder/b.jsonl, line 2", "JSON"),
    ],
)
def test_other_damaged_files(name, content, key, word, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with refuses(DataError, key, word):
        jsonl(path=str(path if path.parent == tmp_path else path.parent))


def test_rows_that_are_empty_identical_or_of_another_type_are_counted(tmp_path, words):
    pair = {"prompt": "hi", "chosen": "fine", "rejected": "thanks"}
    faults = [{"chosen": ""}, {"rejected": "fine"}, {"chosen": 5}, {"prompt": None}, {"rejected": {"text": "you"}}]
    rows, counts = jsonl(path=write(tmp_path / "a.jsonl", [pair, pair, *(pair | fault for fault in faults)]))
    _, counts = pair_rows(rows, words, template="plain", max_length=8, counts=counts)
    assert counts == {
        "rows": 7,
        "kept": 2,
        "dropped_missing_field": 3,
        "dropped_empty_reply": 1,
        "dropped_identical_replies": 1,
    }


def test_local_files_load_without_progress_bars(tmp_path, capfd):
    assert not datasets.are_progress_bars_disabled()
    jsonl(path=write(tmp_path / "a.jsonl", [{"prompt": "a"}]))
    assert "examples" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.skipif(not (SHARED / "hh_harmless.jsonl.gz").exists(), reason="the real preferences are not here")
def test_real_preferences(gpt2):
    rows, counts = hh(path=str(SHARED / "hh_harmless.jsonl.gz"))
    assert counts == {"rows": 1900, "kept": 1896, "dropped_prompt_mismatch": 4}
    batch, counts = pair_rows(rows[:200], gpt2, template="plain", max_length=256)
    for i in (0, len(batch["row"]) - 1):
        row = rows[batch["row"][i]]
        for name in ("chosen", "rejected"):
            side = batch[name]
            assert gpt2.decode(side["tokens"][i][side["mask"][i]][:-1]) == row[name]
            assert gpt2.decode(side["tokens"][i][side["valid"][i] & ~side["mask"][i]]) == row["prompt"]
    assert counts["kept"] + sum(counts.dropped.values()) == 200
