"""Every form is recognised, each conversion says what it keeps, and no token of a row is lost on the way."""

import json

import pytest
from errors import refuses

from alignax.data import openings, reshape, values
from alignax.data.counts import Counts, DataError
from alignax.data.dialogue import read_rows
from alignax.data.forms import SHAPES, convert, form_of


def said(role, content):
    return {"role": role, "content": content}


SYSTEM, ASK, GOOD, BAD = said("system", "s"), said("user", "hi"), said("assistant", "good"), said("assistant", "bad")
MORE = [said("user", "and?"), said("assistant", "so")]
PAIR = {"prompt": "p", "chosen": " a", "rejected": " b", "id": 7}
RATED = [
    {"prompt": "p", "completion": "x", "ratings": {"help": 1, "truth": 3}},
    {"prompt": "q", "completion": "alone", "ratings": {"help": 5}},
    {"prompt": "p", "completion": "y", "ratings": {"help": 4, "truth": 4}},
    {"prompt": "p", "completion": "z", "ratings": {"help": 2, "truth": None}},
]
FORMS = {
    "language_modelling": [
        {"text": "t"},
        {"messages": [ASK, GOOD]},
        {"conversations": [{"from": "human", "value": "h"}]},
    ],
    "prompt_only": [{"prompt": "p"}, {"prompt": [ASK], "tools": [{}]}],
    "prompt_completion": [{"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c", "label": 2}],
    "preference": [PAIR, {"chosen": "a b", "rejected": "a c"}, {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}],
    "unpaired": [{"prompt": "p", "completion": "c", "label": False}],
    "ranked": [{"prompt": "p", "replies": ["a", "b"]}, {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}],
    "ratings": RATED[:1],
    "stepwise": [{"prompt": "p", "steps": ["a"], "verdicts": [True]}, {"prompt": "p", "completions": [], "labels": []}],
}


@pytest.mark.parametrize(("form", "row"), [(form, row) for form, rows in FORMS.items() for row in rows])
def test_a_form_is_recognised(form, row):
    assert form_of([{"prompt": None}, row]) == form
    assert set(FORMS) == {name for name, _ in SHAPES}


@pytest.mark.parametrize(
    ("rows", "found"), [([{"query": "q", "answer": "a"}], "answer, query"), ([{}, {}], "no column")]
)
def test_rows_of_no_form_are_named(rows, found):
    with refuses(DataError, f"found {found};", "prompt_only {prompt}"):
        convert(rows, "preference")


@pytest.mark.parametrize("form", ["prompt_completion", "preference", "unpaired", "ranked", "ratings", "stepwise"])
def test_rows_of_the_right_form_are_left_alone(form):
    rows = [next(row for row in FORMS[form] if "completions" not in row and "prompt" in row), {"other": 1}]
    counts = Counts(5)
    for reason in ("human_last",) * 3:
        counts.drop(reason)
    if form == "ratings":
        rows = rows[:1] * 2
    got, after = convert(rows, form, counts)
    if form == "unpaired":  # the encoder would not miss the thumb
        rows, counts = rows[:1], counts.then(1, {"no_thumb": 1})
    counts.leave(["id"] * ("id" in rows[0]) + ["other"] * (form not in ("ratings", "unpaired")))
    assert got == rows and after == counts


# ---- one layout


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: sky?\n\nA: Blue.", "Q: sky?\n\nA: Black.", "Q: sky?\n\nA:"),  # no word is cut: not after "Bl"
        ("Q? yes", "Q?\nno", "Q?"),  # they part within the white space
        ("a b c", "a b c d", "a b"),  # one is the beginning of the other, and no reply is empty
        ("a  b c ", "a  b c", "a  b"),  # a reply that would be blank
        ("日本 東京", "日本 大阪", "日本"),
    ],
)
def test_texts_part_where_white_space_begins_and_nothing_is_lost(chosen, rejected, prompt):
    """Trap 31: a common prefix that shrinks must not drop what it gives back."""
    for row in ({"chosen": chosen, "rejected": rejected}, {"chosen": rejected, "rejected": chosen}):
        ((got,), counts) = convert([row], "preference")
        assert got["prompt"] == prompt and counts == {"rows": 1, "kept": 1}
        assert all(got["prompt"] + got[name] == row[name] and got[name].strip() for name in ("chosen", "rejected"))


def test_dialogues_part_at_the_first_message_that_differs():
    shared = [SYSTEM, ASK]
    row = {"chosen": [*shared, GOOD], "rejected": [*shared, BAD, *MORE], "tools": [{"name": "f"}]}
    ((got,), _) = convert([row], "preference")
    assert got == {"prompt": shared, "chosen": [GOOD], "rejected": [BAD, *MORE], "tools": [{"name": "f"}]}
    # a text prompt beside whole dialogues holds the same first turn (UltraFeedback); beside replies alone it is one
    ((got,), _) = convert([row | {"prompt": "hi"}], "preference")
    assert got["prompt"] == shared
    plain = {"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]}
    assert convert([plain], "preference")[0] == [plain]


def test_preferences_without_a_shared_prompt_are_counted():
    other = [said("user", "other"), GOOD]
    rows = [
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": other},
        {
            "chosen": [ASK, GOOD, *MORE],
            "rejected": [ASK, GOOD, said("user", "or?"), BAD],
        },  # the users part, not the replies
        {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]},  # identical: the encoder refuses them
        {"chosen": "word", "rejected": "word"},
        {"chosen": "ab", "rejected": "cd"},
        {"chosen": "", "rejected": ""},
        {"chosen": [], "rejected": []},
        {"chosen": [ASK, GOOD], "rejected": "text"},
        {"chosen": [1, 2], "rejected": [1, 3]},
        {"chosen": 5, "rejected": "a b"},
    ]
    got, counts = convert(rows, "preference")
    assert got == [{"prompt": [ASK], "chosen": [GOOD], "rejected": [last]} for last in (BAD, GOOD)]
    assert counts == {"rows": 11, "kept": 2, "dropped_prompt_mismatch": 7, "dropped_missing_field": 2}
    with refuses(DataError, "'preference'", "1 prompt_mismatch"):
        convert(rows[1:2], "preference")


def test_scored_and_ranked_completions_become_replies_best_first():
    row = {"prompt": "p", "completions": ["a", "b", "c"]}
    for judged, best_first in (
        ({"scores": [0.1, 0.9, -1.0]}, ["b", "a", "c"]),
        ({"ranks": [3, 1, 2]}, ["b", "c", "a"]),
        ({"scores": [1, 0, 1]}, ["a", "b"]),  # of those that are level, the first
    ):
        assert convert([row | judged], "ranked")[0] == [{"prompt": "p", "replies": best_first}]
    faults = [{"scores": [1, 1, 1]}, {"scores": [1, 2]}, {"scores": [1, "x", 2]}, {"scores": [1, float("nan"), 2]}]
    assert convert([row | {"scores": [1, 0, 1]}], "ranked")[1] == {"rows": 2, "kept": 1, "dropped_level_reply": 1}
    _, counts = convert([row | {"scores": [1, 2, 3]}, *(row | fault for fault in faults)], "ranked")
    assert counts.dropped == {"no_rating": 2, "equal_scores": 1, "missing_field": 1}


def test_an_integer_beyond_every_float_is_no_number():
    assert not any(map(values.is_number, (10**400, -(10**400), float("inf"), float("nan"), True, "1", None)))
    assert all(map(values.is_number, (0, -1, 1.5, 10**300)))


def test_trl_steps_begin_with_the_line_break_that_joins_them():
    row = {"prompt": "p", "completions": ["one", "two", "three"], "labels": [True, True, False]}
    ((got,), _) = convert([row], "stepwise")
    assert got == {"prompt": "p", "steps": ["one", "\ntwo", "\nthree"], "verdicts": [True, True, False]}
    assert "".join(got["steps"]) == "\n".join(row["completions"])


@pytest.mark.parametrize("form", ["preference", "ranked", "prompt_completion"])
def test_ratings_that_are_no_attributes_are_none(form):
    bad = [{"prompt": "p", "completion": text, "ratings": value} for text, value in (("v", 5), ("w", "4"), ("u", [3]))]
    _, counts = convert([*RATED[:1], *RATED[2:3], *bad], form)
    assert counts["kept"] == 1 and counts["dropped_no_rating"] == 3


def test_sharegpt_conversations_become_messages():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "good"}]
    for told in (turns, json.dumps(turns), [SYSTEM, ASK, GOOD]):
        rows, _ = convert([{"conversations": told}], "prompt_completion")
        assert read_rows(rows)[0] == [{"messages": [SYSTEM, ASK, GOOD]}]
    nobody = [{"from": ["human"], "value": "h"}, GOOD]
    ((row,), _) = read_rows(convert([{"conversations": nobody}], "prompt_completion")[0])
    assert row["messages"] == "bad_message" and "human" in row["messages"].told


# ---- one form from another


def converted(rows, form):
    return convert(rows, form)[0]


def test_preferences_become_other_forms():
    assert converted([PAIR], "prompt_completion") == [{"prompt": "p", "completion": " a", "id": 7}]
    assert converted([PAIR], "unpaired") == [
        {"prompt": "p", "completion": " a", "label": True, "id": 7},
        {"prompt": "p", "completion": " b", "label": False, "id": 7},
    ]
    assert converted([PAIR], "ranked") == [{"prompt": "p", "replies": [" a", " b"], "id": 7}]
    assert converted([PAIR], "prompt_only") == [PAIR]  # it has one
    assert convert([PAIR] * 3, "unpaired")[1] == {"rows": 6, "kept": 6, "unread": ["id"]}


def test_rankings_become_all_their_pairs():
    row = {"prompt": "p", "replies": ["a", "b", "c"], "id": 1}
    got, counts = convert([row, {"prompt": "q", "replies": ["a"]}, {"prompt": "q", "replies": "ab"}], "preference")
    assert [(one["chosen"], one["rejected"], one["id"]) for one in got] == [("a", "b", 1), ("a", "c", 1), ("b", "c", 1)]
    lost = {"dropped_too_few_replies": 1, "dropped_missing_field": 1}
    assert counts == {"rows": 5, "kept": 3, "unread": ["id"]} | lost
    assert converted([row], "prompt_completion") == [{"prompt": "p", "completion": "a", "id": 1}]


def test_ratings_become_pairs_with_a_margin_rankings_and_demonstrations():
    # x 1, 3 and y 4, 4 by both attributes; z 2 by help alone, as is what it is compared with; alone has no rival
    got, counts = convert(RATED, "preference")
    assert [(one["chosen"], one["rejected"], one["margin"]) for one in got] == [
        ("y", "x", 2.0),
        ("z", "x", 1.0),
        ("y", "z", 2.0),
    ]
    assert counts == {"rows": 4, "kept": 3, "dropped_too_few_replies": 1}
    got, counts = convert(RATED, "ranked")
    assert got == [{"prompt": "p", "replies": ["y", "z", "x"]}]
    assert counts == {"rows": 2, "kept": 1, "dropped_too_few_replies": 1}
    got, counts = convert(RATED, "prompt_completion")
    assert got == [{"prompt": "p", "completion": "y"}, {"prompt": "q", "completion": "alone"}]
    assert counts == {"rows": 4, "kept": 2, "dropped_worse_reply": 2}
    unrated = [*RATED, *({"prompt": prompt, "completion": "u", "ratings": {}} for prompt in "pqr")]
    for form in ("preference", "ranked", "prompt_completion"):
        assert convert(unrated, form)[1].dropped == convert(RATED, form)[1].dropped | {"no_rating": 3}
    by_score = [row | {"score": score} for row, score in zip(RATED, (9, 1, 3, 3))]
    assert [(one["chosen"], one["rejected"], one["margin"]) for one in converted(by_score, "preference")] == [
        ("x", "y", 6.0),
        ("x", "z", 6.0),
    ]
    by_score[2]["score"] = None  # a mean of ratings is no score: of this reply to p nothing is known
    got, counts = convert(by_score, "preference")
    assert [(one["chosen"], one["rejected"]) for one in got] == [("x", "z")] and counts["dropped_no_rating"] == 1
    level = [{"prompt": "p", "completion": c, "ratings": {"a": 1}} for c in "xy"]
    both = [*level, *RATED]  # of one prompt: x and y are rated by "a", and by nothing that the others are rated by
    assert convert(both, "preference")[1].dropped == {"no_rating": 6, "too_few_replies": 1, "equal_scores": 1}
    with pytest.raises(DataError, match="1 equal_scores"):
        convert(level, "preference")


@pytest.mark.parametrize("form", ["ratings", "unpaired", "stepwise"])
def test_judged_replies_become_each_prompt_once(form):
    row = next(row for row in FORMS[form] if "completions" not in row) | {"id": 1}
    rows = [row, row | {"prompt": [ASK]}, row | {"id": 2}, row | {"prompt": [ASK]}, row | {"prompt": None}]
    got, counts = convert(rows, "prompt_only")
    assert got == [{"prompt": "p", "id": 1}, {"prompt": [ASK], "id": 1}]
    lost = {"dropped_repeated_prompt": 2, "dropped_missing_field": 1}
    assert counts == {"rows": 5, "kept": 2, "unread": ["id"]} | lost


def test_a_thumb_down_is_no_demonstration():
    rows = [{"prompt": "p", "completion": c, "label": label} for c, label in (("a", True), ("b", False), ("c", 2))]
    got, counts = convert(rows, "prompt_completion")
    assert got == [{"prompt": "p", "completion": "a"}]
    assert counts == {"rows": 3, "kept": 1, "dropped_undesirable": 1, "dropped_no_thumb": 1}
    assert "label 2" in str(counts)
    numbers = [{"prompt": "p", "completion": c, "label": label} for c, label in (("a", 1), ("b", 0))]
    assert converted(numbers, "unpaired") == rows[:2] and converted(numbers, "prompt_completion") == got
    assert form_of([*numbers, rows[2]]) == "prompt_completion"  # of three classes


def test_dialogues_become_prompts_up_to_the_last_reply():
    row = {"messages": [SYSTEM, ASK, GOOD, *MORE], "tools": [{}]}
    assert converted([row], "prompt_only") == [{"prompt": [SYSTEM, ASK, GOOD, MORE[0]], "tools": [{}]}]
    assert converted([{"messages": [ASK]}], "prompt_only") == [{"prompt": [ASK]}]
    assert converted([row], "prompt_completion") == [row]  # the encoder takes it whole


def test_what_cannot_be_made_is_left_for_the_encoder_to_name():
    demo = {"prompt": "p", "completion": "c"}
    assert convert([demo], "preference") == ([demo], {"rows": 1, "kept": 1})


def test_conversations_share_their_opening():
    opening = openings.opening
    assert opening({"prompt": "hi"}) == opening({"prompt": [ASK]}) == "hi"  # a text is one turn of the user
    assert opening({"messages": [ASK, GOOD]}) == opening({"messages": [ASK, BAD, *MORE]}) == "hi"
    layouts = [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "good"}]},
        {"messages": json.dumps([ASK, GOOD])},
        {"messages": [ASK | {"id": 3, "weight": 0}, GOOD], "prompt": "another", "system": ""},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, GOOD]},
        {"history": [["hi", "good"]], "prompt": "and?", "completion": "so"},
        {"prompt": [ASK], "chosen": GOOD, "rejected": BAD},
    ]
    assert {opening(row) for row in layouts} == {"hi"}
    shorter, longer = (
        [{"from": who, "value": "v"} for who in turns] for turns in (("human", "gpt"), ("human", "gpt") * 2)
    )
    assert opening({"conversations": shorter}) == opening({"conversations": longer})
    assert opening({"chosen": "q? a", "rejected": "q? b"}) == "q?"
    talk = [SYSTEM, said("assistant", "hello"), ASK]
    assert opening({"prompt": [ASK, GOOD, MORE[0]]}) == opening({"messages": [ASK, BAD]}) == opening({"prompt": [ASK]})
    told = reshape.key_of([("system", "s"), ("assistant", "hello"), ("user", "hi")])
    assert opening({"prompt": [*talk, GOOD, MORE[0]]}) == opening({"messages": [*talk, BAD]}) == told
    hh = "\n\nHuman: q\n\nAssistant:"
    assert opening({"text": "t"}) == "t" and opening({"other": 1}) == '{"other": 1}'
    assert opening({"prompt": hh}) == opening({"prompt": f"{hh} a\n\nHuman: r\n\nAssistant:"}) == "\n\nHuman: q"


def test_words_that_replies_share_are_no_part_of_the_opening():
    """Or the pairs of one question would be held out one by one, and the question trained on as well."""
    for question in (
        "Why is\nit so?\n\n",
        "\nWhy is it so? ",
        "Why is it so. Do tell! ",
        "\n\nHuman: q\n\nAssistant: ",
    ):
        pairs = [
            {"chosen": f"{question}The sky {w} on", "rejected": f"{question}The sky {w} off"} for w in ("is", "was")
        ]
        keys = {openings.opening(pair) for pair in [*pairs, {"chosen": question + "Yes", "rejected": question + "No"}]}
        assert len(keys) == 1 and keys.pop().strip()
    unmarked = {"chosen": "the sky is blue", "rejected": "the sky is black"}  # nothing tells where the reply begins
    assert (
        openings.opening(unmarked) == "the sky is"
        and openings.opening(unmarked | {"rejected": "no"}) == unmarked["chosen"]
    )
