"""The published data sets by name: tiny files in their layout, and the real ones where they are at hand."""

import json
from pathlib import Path

import datasets
import pytest
from errors import refuses

from alignax.config import bind, names_of, resolve
from alignax.data.counts import DataError
from alignax.data.forms import convert, form_of

SHARED = Path(__file__).parents[2].parent / "shared/data"
PACKAGE = "alignax.data.sources"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(name, tmp_path, rows, **options):
    """The rows and counts of a source, from a JSON-lines file of these rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return resolve(name, PACKAGE, key="source")(path=str(path), **options)


def said(role, content):
    return {"role": role, "content": content}


def rating(value):
    return {"Rating": value, "Rationale": "because"}


def completion(response, *values):
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = dict(zip(names, map(rating, values)))
    return {"model": "m", "response": response, "annotations": annotations, "overall_score": 1.0, "critique": "c"}


def step(*ratings, chosen=None, human=None):
    texts = [{"text": f"s{r}", "rating": r, "flagged": None} for r in ratings]
    return {"completions": texts, "chosen_completion": chosen, "human_completion": human and {"text": human}}


DIALOGUE = [said("user", "u"), said("assistant", "a")]
ROUNDS = "why?\n<extra_id_1>Assistant\nso\n<extra_id_1>User\nand?"
POST = {"subreddit": "tea", "title": "T", "post": "P", "id": "t3_1", "article": None}
PROMPT = "SUBREDDIT: r/tea\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
HELP = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
SUM = {"problem": "1+1?", "ground_truth_answer": "2"}
# source -> published rows, what becomes of them, the form, and what is dropped
SETS = {
    "gsm8k": (
        [{"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"}, {"question": "q", "answer": 2}],
        [{"prompt": "q", "completion": "1+1=<<1+1=2>>2\n#### 2", "answer": "2"}],
        "prompt_completion",
        {"missing_field": 1},
    ),
    "alpaca": (
        [
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is ..."},
            {"instruction": "Sing.", "input": "", "output": "la", "text": "Below is ..."},
            {"instruction": None, "input": "", "output": "la", "text": ""},
        ],
        [{"prompt": "Add.\n\n1 2", "completion": "3"}, {"prompt": "Sing.", "completion": "la"}],
        "prompt_completion",
        {"missing_field": 1},
    ),
    "tulu": (
        [{"id": "a", "messages": DIALOGUE, "source": "flan"}, {"id": "b", "source": "x"}],
        [{"messages": DIALOGUE, "source": "flan"}],
        "language_modelling",
        {"missing_field": 1},
    ),
    "shp": (
        [
            {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_ratio": 2.0, "score_A": 4},
            {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_ratio": 3.0, "score_A": 1},
            {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 2, "score_ratio": 3.0, "score_A": 1},
        ],
        [
            {"prompt": "h", "chosen": "a", "rejected": "b", "score_ratio": 2.0},
            {"prompt": "h", "chosen": "b", "rejected": "a", "score_ratio": 3.0},
        ],
        "preference",
        {"missing_field": 1},
    ),
    "helpsteer2": (
        [{"prompt": "c#", "response": "r"} | HELP, {"prompt": ROUNDS, "response": "r"} | HELP, {"prompt": "p"} | HELP],
        [
            {"prompt": "c#", "completion": "r", "ratings": HELP, "score": 3},
            {
                "prompt": [said("user", "why?"), said("assistant", "so"), said("user", "and?")],
                "completion": "r", "ratings": HELP, "score": 3,
            },
        ],
        "ratings",
        {"missing_field": 1},
    ),
    "ultrafeedback": (
        [
            {
                "source": "s", "instruction": "i", "models": ["m", "n"], "correct_answers": ["None"],
                "completions": [completion("a", "5", "N/A", "4", "3"), completion("b", "2", "2", "2", "2")],
            },
            {"instruction": "i", "completions": []},
            {"instruction": None, "completions": [completion("a")]},
            {"instruction": "j", "completions": [completion(None, "5"), completion(None, "4")]},
        ],
        [
            {"prompt": "i", "completion": "a",
             "ratings": {"helpfulness": 5, "instruction_following": 4, "truthfulness": 3}},
            {"prompt": "i", "completion": "b",
             "ratings": {"helpfulness": 2, "honesty": 2, "instruction_following": 2, "truthfulness": 2}},
        ],
        "ratings",
        {"missing_field": 3, "too_few_replies": 1},
    ),
    "ultrafeedback_binarized": (
        [
            {
                "prompt": "u", "prompt_id": "1", "score_chosen": 8.0, "score_rejected": 2.0,
                "messages": DIALOGUE, "chosen": DIALOGUE,
                "rejected": [said("user", "u"), said("assistant", "b")],
            },
            {"prompt": "u", "chosen": DIALOGUE, "rejected": [said("user", "v")]},
        ],
        [{"prompt": [said("user", "u")], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")],
          "score_chosen": 8.0, "score_rejected": 2.0}],
        "preference",
        {"prompt_mismatch": 1},
    ),
    "tldr": (
        [{"prompt": PROMPT, "completion": " C"}, {"prompt": PROMPT, "completion": None}],
        [{"prompt": PROMPT, "completion": " C"}],
        "prompt_completion",
        {"missing_field": 1},
    ),
    "tldr_comparisons": (
        [
            {"info": POST, "summaries": [{"text": " A", "policy": "sup1"}, {"text": "B"}], "choice": 1, "worker": "w"},
            {"info": POST | {"post": None}, "summaries": [{"text": " A"}, {"text": "B"}], "choice": 0},
            {"info": POST, "summaries": [{"text": " A"}], "choice": 0},
        ],
        [{"prompt": PROMPT, "chosen": " B", "rejected": " A"}],
        "preference",
        {"missing_field": 2},
    ),
    "prm800k": (
        [
            {"question": SUM, "label": {"steps": [step(1, chosen=0), step(-1, 0, chosen=1), step(1, chosen=0)]}},
            {"question": SUM, "label": {"steps": [step(1, chosen=0), step(-1, human="mine"), step(-1)]}},
            {"question": SUM, "label": {"steps": [step(1, chosen=0), {"completions": None}]}},
            {"question": SUM, "label": {"steps": []}},
            {"question": {"problem": None}, "label": {"steps": [step(1, chosen=0)]}},
        ],
        [
            {"prompt": "1+1?", "steps": ["s1", "\ns-1"], "verdicts": [True, False]},
            {"prompt": "1+1?", "steps": ["s1", "\ns0", "\ns1"], "verdicts": [True, True, True]},
            {"prompt": "1+1?", "steps": ["s1", "\ns-1"], "verdicts": [True, False]},
            {"prompt": "1+1?", "steps": ["s1", "\nmine", "\ns-1"], "verdicts": [True, True, False]},
            {"prompt": "1+1?", "steps": ["s1"], "verdicts": [True]},
        ],
        "stepwise",
        {"no_rating": 1, "missing_field": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_published_set(name, tmp_path):
    rows, expected, form, dropped = SETS[name]
    got, counts = load(name, tmp_path, rows)
    assert got == expected and form_of(got) == form
    assert counts["kept"] == len(got) and counts.dropped == dropped
    with pytest.raises(DataError, match=r"rows.jsonl"):
        load(name, tmp_path, [{"other": 1}])


def spoilt(value):
    """The value with each part of it, and it as a whole, in turn of a type that it should not have."""
    yield from (wrong for wrong in (None, "x", 7, 0.5, True, [], {}, [5], [None], {"text": None}) if wrong != value)
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for wrong in spoilt(part):
            copy = value.copy()
            copy[key] = wrong
            yield copy


@pytest.mark.parametrize("name", SETS)
def test_rows_of_wrong_types_are_counted_or_left_to_the_encoder(name, tmp_path):
    good = SETS[name][0][0]
    rows = [good, *(row for row in spoilt(good) if isinstance(row, dict))]
    got, counts = load(name, tmp_path, rows, heldout_percent=0.001)
    assert counts["rows"] == counts["kept"] + sum(counts.dropped.values()) >= len(rows) and got[0] in SETS[name][1]
    assert counts.dropped["missing_field"] > 5


def test_prm800k_reads_no_rating_into_words(tmp_path):
    steps = [step(1, chosen=0), step("good", 2, -1, chosen=0)]
    rows, _ = load("prm800k", tmp_path, [{"question": SUM, "label": {"steps": steps}}])
    assert [row["verdicts"] for row in rows] == [[True, False]]


def test_every_source_has_a_test_and_takes_the_options_of_reading():
    assert set(names_of(PACKAGE)) == {*SETS, "hh", "jsonl", "mixture"}
    for name in {*SETS, "hh"}:
        source = resolve(name, PACKAGE, key="source")
        options = bind(source, {"streaming": True, "max_rows": 5, "heldout_percent": 1}, key="data", given=("split",))
        assert options["heldout_percent"] == 1.0 and "/" in options["path"]


def test_other_layouts_of_the_same_sets(tmp_path):
    pair = {"prompt": PROMPT, "chosen": " a", "rejected": " b"}
    assert load("tldr", tmp_path, [pair])[0] == [pair]
    ask, better, worse = said("user", PROMPT), said("assistant", "a"), said("assistant", "b")
    told = {"prompt": PROMPT, "chosen": [ask, better], "rejected": [ask, worse]}
    assert load("tldr", tmp_path, [told])[0] == [{"prompt": [ask], "chosen": [better], "rejected": [worse]}]
    trl = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    assert load("prm800k", tmp_path, [trl])[0] == [{"prompt": "p", "steps": ["a", "\nb"], "verdicts": [True, False]}]
    wrong = load("prm800k", tmp_path, SETS["prm800k"][0], neutral=False)[0]
    assert [row["verdicts"] for row in wrong][1] == [True, False, True]
    old = {"dataset": "flan", "id": "a", "messages": [said("user", "u")]}
    assert load("tulu", tmp_path, [old])[0] == [{"messages": [said("user", "u")], "source": "flan"}]


def test_ratings_of_a_prompt_become_rankings_and_pairs(tmp_path):
    rows, counts = load("ultrafeedback", tmp_path, SETS["ultrafeedback"][0])
    assert convert(rows, "ranked", counts)[0] == [{"prompt": "i", "replies": ["a", "b"]}]
    assert convert(rows, "preference", counts)[0] == [{"prompt": "i", "chosen": "a", "rejected": "b", "margin": 2.0}]


def test_missing_columns_are_named(tmp_path):
    with refuses(DataError, "'question': found q;", "'gsm8k'"):
        load("gsm8k", tmp_path, [{"q": "x"}])


def test_names_splits_and_folders_reach_the_hub(monkeypatch):
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        row = {"prompt": "u", "chosen": [said("user", "u"), said("assistant", "a")],
               "rejected": [said("user", "u"), said("assistant", "b")], "question": "q", "answer": "a",
               "history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}  # fmt: skip
        names = ("train", "test", "train_prefs", "test_prefs")
        return datasets.DatasetDict({name: datasets.Dataset.from_list([row]) for name in names})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, options in (("gsm8k", {}), ("gsm8k", {"name": "socratic"}), ("shp", {"data_dir": "askdocs"})):
        resolve(name, PACKAGE, key="source")(**options)
    ((row,), _) = resolve("ultrafeedback_binarized", PACKAGE, key="source")(split="heldout")
    assert row["prompt"] == [said("user", "u")]
    assert calls == [
        ("openai/gsm8k", {"name": "main"}),
        ("openai/gsm8k", {"name": "socratic"}),
        ("stanfordnlp/SHP", {"data_dir": "askdocs"}),
        ("HuggingFaceH4/ultrafeedback_binarized", {}),
    ]


def test_a_question_of_gsm8k_may_be_asked_in_ones_own_words(tmp_path):
    rows = [{"question": "1+{1}?", "answer": "#### 2"}]
    found, _ = load("gsm8k", tmp_path, rows, ask="{question} End with a number.")
    assert found[0]["prompt"] == "1+{1}? End with a number."
    with refuses(DataError, "data.ask", "{question}"):
        load("gsm8k", tmp_path, rows, ask="question")


@pytest.mark.skipif(not (SHARED / "gsm8k.jsonl.gz").exists(), reason="the real files are not here")
def test_real_files(gpt2):
    from alignax.data.encode import demo_rows

    gsm8k, jsonl = (resolve(name, PACKAGE, key="source") for name in ("gsm8k", "jsonl"))
    rows, counts = gsm8k(path=str(SHARED / "gsm8k.jsonl.gz"))
    assert counts == {"rows": 2500, "kept": 2500} and rows[0]["answer"] == "72"
    assert all(row["completion"].endswith(f"#### {row['answer']}") for row in rows)
    batch, _ = demo_rows(rows[:20], gpt2, template="plain", max_length=512)
    assert gpt2.decode(batch["tokens"][0][batch["mask"][0]][:-1]) == rows[0]["completion"]
    reviews = str(SHARED / "movie_reviews.jsonl.gz")
    assert len(jsonl(path=reviews)[0]) == 9000 and form_of(jsonl(path=reviews, max_rows=3)[0]) == "language_modelling"
    prompts, _ = jsonl(path=reviews, fields={"prompt": "text"}, streaming=True, max_rows=7)
    assert len(prompts) == 7 and form_of(prompts) == "prompt_only"
    # HH's dialogues as plain text without a prompt: nothing is lost where they part
    whole, counts = jsonl(path=str(SHARED / "hh_harmless.jsonl.gz"), max_rows=300)
    pairs, counts = convert(whole, "preference", counts)
    assert counts["kept"] + sum(counts.dropped.values()) == 300 and counts["kept"] > 290
    texts = {(row["chosen"], row["rejected"]) for row in whole}
    assert all((row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) in texts for row in pairs)
