"""Local files come in as they were written: no text is guessed at, no row depends on others, no file on its past."""

import csv
import gzip
import json
import os
import sys
from pathlib import Path

import datasets
import pytest
from errors import refuses

from alignax import data
from alignax.config import resolve
from alignax.data.counts import DataError
from alignax.data.files import format_of, rows_of
from alignax.data.sources.gsm8k import gsm8k
from alignax.data.sources.hh import hh
from alignax.data.sources.jsonl import jsonl
from alignax.data.sources.ultrafeedback_binarized import ultrafeedback_binarized


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, rows) -> str:
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


def says(*texts):
    return {"messages": [{"role": "user", "content": text} for text in texts]}


# ---- what a column holds in other rows changes nothing

MIXED = {
    "texts and others": [{"prompt": text} for text in ("5", '"5"', '"hi"', "null", "[1]", 5, {"a": None}, ["x"])],
    "messages": [says('"5"', "null", "true"), says("a"), {"messages": [{"role": "user", "content": [{"type": "t"}]}]}],
    "dates": [{"prompt": "2024-01-01"}, {"prompt": "2024-01-02"}],
    "late fields": [{"prompt": "a", "tools": [], "margin": 1}, {"prompt": "b", "tools": [{"n": 1}], "margin": 1.5}],
    "other keys": [{"prompt": "a", "ratings": {"x": 1}}, {"prompt": "b", "ratings": {"y": 2.5, "z": None}}],
}


@pytest.mark.parametrize("name", MIXED)
def test_json_is_read_as_it_was_written(name, tmp_path):
    rows = MIXED[name]
    path = write(tmp_path / "a.jsonl", rows)
    assert jsonl(path=path)[0] == rows == jsonl(path=path, streaming=True, max_rows=9)[0]
    assert jsonl(path=write(tmp_path / "a.json", json.dumps(rows, indent=1)))[0] == rows
    for number, row in enumerate(rows):
        write(tmp_path / f"folder/{number}.jsonl", [row])
    assert jsonl(path=str(tmp_path / "folder"))[0] == rows


def test_later_blocks_of_a_file_have_other_fields(tmp_path):
    # pyarrow takes 10 MB for a block, of which the first decides what the columns are
    rows = [{"prompt": "x" * 4_000_000, "tools": [], "margin": 1}] * 3
    rows = [*rows, {"prompt": "p", "tools": [{"a": 1}], "margin": 1.5, "tie": True}]
    assert jsonl(path=write(tmp_path / "a.jsonl", rows))[0] == rows


def test_no_file_is_remembered(tmp_path):
    for name, put in (("a.jsonl", write), ("a.csv", None), ("a.parquet", parquet)):
        for text in ("old", "new"):
            path = tmp_path / name
            put(path, [{"prompt": text}]) if put else write(path, f"prompt\n{text}\n")
            os.utime(path, (1e9, 1e9))
            assert jsonl(path=str(path))[0] == [{"prompt": text}], name


def test_errors_of_datasets_stay_out_of_the_terminal(tmp_path, capfd):
    for name, content in (("a.jsonl", '{"prompt"'), ("a.parquet", "PAR1 no table"), ("a.arrow", "ARROW1")):
        with pytest.raises(DataError, match=name):
            jsonl(path=write(tmp_path / name, content))
    assert capfd.readouterr().err == ""


# ---- CSV

CSV = {
    "more cells in every row": ("prompt,completion\na,b,c\nd,e,f\n", "line 2: 3 cells", "2"),
    "fewer": ('prompt,completion\n"a\n",b\nd\n', "line 4: 1 cells", "2"),
    "twice": ("prompt,completion,prompt\na,b,c\n", "line 1", "'prompt' twice"),
    "no name": ("prompt,\na,b\n", "line 1", "name for column 2"),
    "open quote": ('prompt,completion\na,b\nc,"d\ne,f\n', "line 3", "closed"),
    "quote within": ('prompt,completion\n"a "b" c",d\n', "line 2", "no CSV"),
    "list": ("prompt,score\na,[1]\n", "line 2: column 'score' holds '[1]'", "number"),
    "word": ("prompt,score\na,high\n", "line 2: column 'score' holds 'high'", "empty"),
}


@pytest.mark.parametrize("name", CSV)
def test_csv_that_is_refused(name, tmp_path):
    content, line, word = CSV[name]
    with refuses(DataError, f"a.csv, {line}", word):
        jsonl(path=write(tmp_path / "a.csv", content))


def test_csv_with_an_index_and_with_long_texts(tmp_path):
    path = write(tmp_path / "a.csv", f",prompt,score\n0,{'x' * 200_000},1\n\n1,b,\n")  # as df.to_csv() writes it
    assert jsonl(path=path)[0] == [{"prompt": "x" * 200_000, "score": 1}, {"prompt": "b"}]


def test_published_sets_as_csv(tmp_path):
    path = write(tmp_path / "a.csv", "history,human_ref_A,human_ref_B,labels,score_ratio\nh,a,b,1,2.0\nh,a,b,0,3\n")
    rows, _ = resolve("shp", "alignax.data.sources", key="source")(path=path)
    assert [(row["chosen"], row["score_ratio"]) for row in rows] == [("a", 2.0), ("b", 3)]
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    path = write(tmp_path / "b.csv", f"prompt,response,{','.join(names)}\np,r,3,4,4,2,1\n")
    ((row,), _) = resolve("helpsteer2", "alignax.data.sources", key="source")(path=path)
    assert row["ratings"] == dict(zip(names, (3, 4, 4, 2, 1))) and row["score"] == 3


def test_a_limit_of_the_process_is_left_alone(tmp_path):
    before = csv.field_size_limit(300_000)
    try:
        jsonl(path=write(tmp_path / "a.csv", "prompt\na\n"))
        assert csv.field_size_limit() == 300_000
    finally:
        csv.field_size_limit(before)


def test_between_two_rows_the_library_speaks_as_before(tmp_path):
    rows = rows_of(Path(parquet(tmp_path / "a.parquet", [{"prompt": "a"}, {"prompt": "b"}])), set())
    assert next(rows) == {"prompt": "a"} and not datasets.are_progress_bars_disabled()
    assert [*rows] == [{"prompt": "b"}] and not datasets.are_progress_bars_disabled()


# ---- folders and names


def test_a_folder_may_mix_kinds(tmp_path):
    write(tmp_path / "f/train-0.jsonl", [{"prompt": "a"}, {"prompt": "b", "extra": {"n": None}}])
    write(tmp_path / "f/train-1.csv", "prompt,note\n42,NA\n")
    parquet(tmp_path / "f/train-2.parquet", [{"prompt": "c"}])
    (tmp_path / "f/test.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "d"}\n'))
    write(tmp_path / "f/README.md", "notes")
    rows = jsonl(path=str(tmp_path / "f"))[0]
    assert rows[:2] == [{"prompt": "a"}, {"prompt": "b", "extra": {"n": None}}]
    assert rows[2:] == [{"prompt": "42", "note": "NA"}, {"prompt": "c"}]
    assert jsonl(path=str(tmp_path / "f"), split="heldout")[0] == [{"prompt": "d"}]
    assert jsonl(path=str(tmp_path), data_dir="f", max_rows=1)[0] == [{"prompt": "a"}]
    with refuses(DataError, "data.data_dir = 'g'", "folder"):
        jsonl(path=str(tmp_path), data_dir="g")
    write(tmp_path / "none/a.txt", "x")
    with refuses(DataError, str(tmp_path / "none"), ".jsonl"):
        jsonl(path=str(tmp_path / "none"))


def test_the_card_of_a_folder_names_its_parts(tmp_path):
    for name in ("main", "socratic"):
        write(tmp_path / f"f [1]/{name}/train.jsonl", [{"question": name, "answer": "#### 1"}])
    parts = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("main", "socratic"))
    write(tmp_path / "f [1]/README.md", f"---\nconfigs:\n{parts}---\n")
    assert gsm8k(path=str(tmp_path / "f [1]"))[0][0]["prompt"] == "main"
    assert gsm8k(path=str(tmp_path / "f [1]"), name="socratic")[0][0]["prompt"] == "socratic"
    with refuses(DataError, "main, socratic, not 'other'", "data.name"):
        gsm8k(path=str(tmp_path / "f [1]"), name="other")


UNREAD = ("train-1.jsonl.xz", "train-1.jsonl.bz2", "train-1.tsv", "train-1.parquet.gz", "train-1.JSONL", "train.txt")


@pytest.mark.parametrize("name", UNREAD)
def test_no_file_of_a_split_is_left_out(name, tmp_path):
    for own in ("train-0.jsonl", "test.jsonl", name):
        write(tmp_path / own, [{"prompt": own}])
    with refuses(DataError, f"'{name}'", "'train'", "ending"):
        jsonl(path=str(tmp_path))
    assert jsonl(path=str(tmp_path), split="heldout")[0] == [{"prompt": "test.jsonl"}]


def test_what_lies_beside_the_data_is_not_missed(tmp_path):
    for name in ("README.txt", "LICENSE", "NOTES.md", "plot.png", "_SUCCESS", ".gitattributes", "licences.jsonl"):
        write(tmp_path / name, [{"prompt": name}])
    assert jsonl(path=str(tmp_path))[0] == [{"prompt": "licences.jsonl"}]


def test_a_file_of_both_splits(tmp_path):
    write(tmp_path / "train-test.jsonl", [{"prompt": f"p{i}"} for i in range(20)])
    write(tmp_path / "train.jsonl", [{"prompt": "q"}])
    for split in ("train", "heldout"):
        with refuses(DataError, "'train-test.jsonl'", "'train' and 'test'", "rename"):
            jsonl(path=str(tmp_path), split=split)
    sides = [jsonl(path=str(tmp_path), split=split, heldout_percent=50.0)[0] for split in ("train", "heldout")]
    assert all(sides) and sum(map(len, sides)) == 21


def test_options_that_a_folder_has_no_use_for(tmp_path):
    rows = [{"question": "q", "answer": "#### 1"}]
    write(tmp_path / "files/train.jsonl", rows)
    write(tmp_path / "card/train.jsonl", rows)
    write(tmp_path / "card/README.md", "---\nlicense: mit\n---\n")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "splits")
    for folder in ("files", "card", "saved", "splits"):
        with refuses(DataError, "data.name = 'main'", f"{folder}'", "configurations"):
            gsm8k(path=str(tmp_path / folder), name="main")
        options = {"train_split": "dev"} if folder == "splits" else {}
        assert gsm8k(path=str(tmp_path / folder), **options)[0][0]["answer"] == "1"  # the set's own name is for the hub
    with refuses(DataError, "data.train_split = 'dev'", "saved'", "splits"):
        gsm8k(path=str(tmp_path / "saved"), train_split="dev")


def test_a_row_of_a_saved_set_that_cannot_be_read(tmp_path, monkeypatch):
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets.Dataset, "iter", lambda self, batch_size: iter([1 / 0]))
    with refuses(DataError, "saved'", "division"):
        jsonl(path=str(tmp_path / "saved"))


def test_a_library_without_what_is_imported_is_no_fault_of_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", [{"prompt": "a"}])
    monkeypatch.setitem(sys.modules, "datasets.data_files", None)
    monkeypatch.delitem(sys.modules, "alignax.data.folders", raising=False)
    monkeypatch.delattr(data, "folders", raising=False)
    with pytest.raises(ImportError):
        jsonl(path=str(tmp_path))


def test_options_that_a_file_has_no_use_for(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "question": "q", "answer": "#### 1"}])
    for options in ({"name": "main"}, {"data_dir": "x"}, {"train_split": "dev"}):
        (name, value), = options.items()  # fmt: skip
        for source in (jsonl, gsm8k):
            with refuses(DataError, f"data.{name} = '{value}'", "file", "leave"):
                source(path=path, **options)
    assert gsm8k(path=path)[0][0]["answer"] == "1"  # the defaults of a set are for the hub
    text = "\n\nHuman: Hi?\n\nAssistant:"
    pair = {"chosen": text + " a", "rejected": text + " b"}
    assert hh(path=write(tmp_path / "b.jsonl", [pair]), subset="harmless-base")[0][0]["chosen"] == " a"
    sides = {name: says("u")["messages"] + [{"role": "assistant", "content": name}] for name in pair}
    assert len(ultrafeedback_binarized(path=write(tmp_path / "c.jsonl", [sides]))[0]) == 1


def test_tables_are_not_packed_from_outside(tmp_path):
    assert [format_of(f"a.{name}") for name in ("jsonl.gz", "csv.zst", "parquet", "parquet.gz", "arrow.zst")] == [
        "json", "csv", "parquet", None, None,
    ]  # fmt: skip
    with refuses(DataError, ".jsonl[.gz|.zst]", ".parquet, .arrow", "inside"):
        jsonl(path=write(tmp_path / "a.parquet.gz", "x"))
