"""Rankings, ratings and judged steps as arrays: goldens, counts of every bad row, judgements of the wrong kind."""

import numpy as np
import pytest
from errors import refuses

from alignax.data.counts import REASONS, DataError
from alignax.data.judged import attributes_of, ranking_rows, rating_rows, step_rows
from alignax.data.sources.jsonl import jsonl

EOS, PAD = 3, 1
OPTIONS = {"template": "plain", "max_length": 8}


def test_rankings_golden(words):
    rows = [{"prompt": "hi", "replies": ["fine", "you", "thanks you"]}, {"prompt": "there", "replies": ["are", "how"]}]
    batch, counts = ranking_rows(rows, words, **OPTIONS)
    fill = [PAD] * 4
    assert batch["replies"]["tokens"].tolist() == [
        [[2, 6, 11, EOS, *fill], [2, 6, 10, EOS, *fill], [2, 6, 12, 10, EOS, *fill[1:]]],
        [[2, 7, 9, EOS, *fill], [2, 7, 8, EOS, *fill], [2, 7, *fill, PAD, PAD]],  # the prompt alone fills up
    ]
    assert batch["replies"]["mask"].sum(2).tolist() == [[2, 2, 3], [2, 2, 0]]
    assert batch["replies"]["valid"].sum(2).tolist() == [[4, 4, 5], [4, 4, 2]]
    assert batch["row"].tolist() == [0, 1] and counts == {"rows": 2, "kept": 2}


RANKING = {"prompt": "hi", "replies": ["fine", "you"]}
BAD_RANKINGS = {
    "too_few_replies": [RANKING | {"replies": ["fine"]}],
    "identical_replies": [RANKING | {"replies": ["fine", "you", " fine"]}],
    "missing_field": [RANKING | {"replies": "fine"}, RANKING | {"replies": []}, RANKING | {"replies": ["fine", 3]}],
    "empty_reply": [RANKING | {"replies": ["fine", " ", "you"]}],
    "too_long": [RANKING | {"replies": ["fine", "you", "hi " * 7]}],
}


@pytest.mark.parametrize("reason", BAD_RANKINGS)
def test_a_ranking_is_refused_as_a_whole(words, reason):
    bad = BAD_RANKINGS[reason]
    batch, counts = ranking_rows([*bad, RANKING], words, **OPTIONS)
    assert counts == {"rows": len(bad) + 1, "kept": 1, f"dropped_{reason}": len(bad)}
    assert batch["row"].tolist() == [len(bad)] and batch["replies"]["tokens"].shape == (1, 2, 8)
    with pytest.raises(DataError) as error:
        ranking_rows(bad, words, **OPTIONS)
    assert "no ranking left" in str(error.value) and REASONS[reason][1] in str(error.value)


def rating(**ratings):
    return {"prompt": "hi", "completion": "fine", "ratings": ratings}


def test_ratings_golden(words):
    rows = [rating(warm=4, clear=None), rating(clear=0.5, warm=-1.5), rating(clear=2), rating(clear=None)]
    assert attributes_of(rows) == ("clear", "warm")
    batch, counts = rating_rows(rows, words, **OPTIONS)
    assert batch["target"].tolist() == [[0.0, 4.0], [0.5, -1.5], [2.0, 0.0]] and batch["target"].dtype == np.float32
    assert batch["given"].tolist() == [[False, True], [True, True], [True, False]]
    assert batch["reply"]["tokens"][0].tolist() == [2, 6, 11, EOS] + [PAD] * 4 and batch["row"].tolist() == [0, 1, 2]
    assert counts == {"rows": 4, "kept": 3, "dropped_no_rating": 1}
    held, _ = rating_rows(rows[2:3], words, attributes=("clear", "warm"), **OPTIONS)  # as many columns as in training
    assert held["target"].tolist() == [[2.0, 0.0]] and held["given"].tolist() == [[True, False]]


@pytest.mark.parametrize(
    "rows, key, word",
    [
        ([rating(warm=float("nan"))], "'ratings.warm' = nan of the row 'hi'", "null"),
        ([rating(warm="good")], "'ratings.warm' = 'good' of the row 'hi'", "finite"),
        ([rating(warm=True)], "'ratings.warm' = True of the row 'hi'", "finite"),
        ([rating(warm=1) | {"ratings": 5}], "'ratings' = 5 of the row 'hi'", "{attribute:"),
        ([rating(warm=None)], "rating", "'ratings'"),
        ([{"prompt": "hi", "chosen": "a", "rejected": "b"}], "'completion': found chosen, prompt, rejected",
         '"ratings": {attribute: number or null, ...}'),
    ],
)  # fmt: skip
def test_ratings_that_cannot_be_used(words, rows, key, word):
    with refuses(DataError, key, word):
        rating_rows(rows, words, **OPTIONS)


def test_a_rating_that_training_did_not_know(words):
    with refuses(DataError, "'ratings.brief' = 1", "'hi'", "clear, warm"):
        rating_rows([rating(brief=1)], words, attributes=("clear", "warm"), **OPTIONS)


def steps(*texts, verdicts, prompt="hi"):
    return {"prompt": prompt, "steps": list(texts), "verdicts": list(verdicts)}


@pytest.mark.parametrize("template, start", [("plain", 2), ("chat", 4)])
def test_verdicts_sit_at_the_last_token_of_their_step(words, template, start):
    # prompt | how are / you / fine thanks [EOS]: ends 1, 2 and 5 positions behind the prompt
    rows = [steps("how are", " you", " fine thanks", verdicts=[True, 0.25, False]), steps("fine", verdicts=[1])]
    batch, counts = step_rows(rows, words, template=template, max_length=16)
    ends = [np.flatnonzero(row).tolist() for row in batch["step_end"]]
    assert ends == [[start + 1, start + 2, start + 5], [start + 1]]
    assert batch["target"][batch["step_end"]].tolist() == [1.0, 0.25, 0.0, 1.0]
    assert not batch["target"][~batch["step_end"]].any() and counts == {"rows": 2, "kept": 2}
    last = batch["reply"]["valid"].sum(1) - 1
    assert (batch["reply"]["tokens"][[0, 1], last] == EOS).all() and batch["step_end"][[0, 1], last].all()


def test_steps_of_a_tokenizer_that_merges(letters, gpt2):
    rows = [steps("c", "ab", verdicts=[1, 0], prompt="a"), steps("ca", "b", verdicts=[1, 0], prompt="a")]
    batch, counts = step_rows(rows, letters, template="plain", max_length=8)  # "ca" + "b" is c, ab: no place to cut
    assert counts == {"rows": 2, "kept": 1, "dropped_step_not_prefix": 1}
    assert batch["row"].tolist() == [0] and batch["reply"]["tokens"][0, :4].tolist() == [1, 3, 4, 0]
    assert np.flatnonzero(batch["step_end"][0]).tolist() == [1, 3]
    parts = ["First, 3 + 4 = 7.\n", "Then 7 * 2 = 14.\n", "So the answer is 14."]
    batch, _ = step_rows([steps(*parts, verdicts=[1, 1, 0])], gpt2, template="plain", max_length=64)
    tokens, ends = batch["reply"]["tokens"][0], np.flatnonzero(batch["step_end"][0])
    start = batch["reply"]["mask"][0].argmax()
    cuts = [start, *(ends[:-1] + 1), ends[-1]]  # the last token of all is the end of sequence
    assert [gpt2.decode(tokens[a:b]) for a, b in zip(cuts, cuts[1:])] == parts


@pytest.mark.parametrize(
    "bad, reason",
    [
        (steps("fine", " ", verdicts=[1, 1]), "empty_reply"),
        ({"prompt": "hi", "steps": ["fine"]}, "missing_field"),
        (steps("fine", 3, verdicts=[1, 1]), "missing_field"),
        (steps("fine", " you" * 8, verdicts=[1, 1]), "too_long"),
    ],
)
def test_rows_of_steps_that_are_refused(words, bad, reason):
    good = steps("fine", verdicts=[True])
    batch, counts = step_rows([bad, good], words, **OPTIONS)
    assert counts == {"rows": 2, "kept": 1, f"dropped_{reason}": 1} and batch["row"].tolist() == [1]


@pytest.mark.parametrize(
    "row, key, word",
    [
        (steps("how", " are", verdicts=[True]), "'verdicts' = [True] of the row 'hi'", "2 steps"),
        (steps("how", verdicts=[1.5]), "'verdicts' = 1.5 of the row 'hi'", "rate"),
        (steps("how", verdicts=[float("nan")]), "'verdicts' = nan of the row 'hi'", "rate"),
        (steps("how", verdicts=["yes"]), "'verdicts' = 'yes' of the row 'hi'", "rate"),
        ({"prompt": "hi", "completion": "fine"}, '"steps": [text', '"verdicts": [true'),
    ],
)
def test_steps_that_cannot_be_used(words, row, key, word):
    with refuses(DataError, key, word):
        step_rows([row], words, **OPTIONS)


def test_columns_of_a_file_become_ratings(tmp_path, words):
    """The form of HelpSteer2."""
    path = tmp_path / "steer.jsonl"
    path.write_text('{"prompt": "hi", "response": "fine", "helpfulness": 4, "verbosity": 1}\n'
                    '{"prompt": "there", "response": "you", "helpfulness": null, "verbosity": 2}\n')  # fmt: skip
    options = {"path": str(path), "fields": {"completion": "response"}}
    rows, counts = jsonl(attributes=["helpfulness", "verbosity"], **options)
    assert rows[0] == {"prompt": "hi", "completion": "fine", "ratings": {"helpfulness": 4, "verbosity": 1}}
    batch, _ = rating_rows(rows, words, counts=counts, **OPTIONS)
    assert batch["target"].tolist() == [[4.0, 1.0], [0.0, 2.0]]
    assert batch["given"].tolist() == [[True, True], [False, True]]
    with refuses(DataError, "'humour'", "data.attributes", "helpfulness"):
        jsonl(attributes=["humour"], **options)
