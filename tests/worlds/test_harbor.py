"""The grammar, the splits and the clerks."""

import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from errors import refuses

from alignax.worlds import harbor
from alignax.worlds.gold import gold
from alignax.worlds.grammar import FAMILIES, FORMS, KINDS, Asked, neutral_slots, parse_prompt, parse_reply, vocabulary

EVERY = tuple(FAMILIES)


@pytest.mark.parametrize("split", harbor.SPLITS)
def test_prompts_read_back_and_stay_in_their_split(split):
    for row in harbor.prompts(split, 400, 0, EVERY):
        asked = parse_prompt(row["prompt"])
        assert asked == Asked(**{field: row[field] for field in Asked._fields})
        assert harbor.split_of(asked) == split


def test_family_shares():
    counts = Counter(row["family"] for row in harbor.prompts("sft", 4000, 0, EVERY))
    for family, share in FAMILIES.items():
        assert counts[family] / 4000 == pytest.approx(share, abs=0.02)
    default = Counter(row["family"] for row in harbor.prompts("sft", 4000, 0))
    assert "sums" not in default
    assert default["recommend"] / 4000 == pytest.approx(0.65 / 0.90, abs=0.02)


def test_one_want_is_absent_in_three_prompts_of_five():
    rows = harbor.prompts("reward", 4000, 0, ("recommend",))
    absent = [sum(want not in row["facts"] for want in row["wants"]) for row in rows]
    assert set(absent) == {0, 1}
    assert np.mean(absent) == pytest.approx(0.6, abs=0.03)


def test_same_arguments_same_rows_and_another_seed_other_rows():
    assert harbor.demonstrations(50, 3) == harbor.demonstrations(50, 3)
    assert harbor.demonstrations(50, 3) != harbor.demonstrations(50, 4)
    assert harbor.prompts("eval", 50, 3) != harbor.prompts("sft", 50, 3)


def test_rows_do_not_depend_on_the_hash_seed():
    program = (
        "from alignax.worlds import grammar, harbor; "
        "print(harbor.demonstrations(20, 1), harbor.prompts('ood', 20, 1), grammar.vocabulary())"
    )
    run = [
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, **CAPTURE).stdout
        for seed in ("1", "2")
    ]
    assert run[0] == run[1]
    assert run[0].strip() == f"{harbor.demonstrations(20, 1)} {harbor.prompts('ood', 20, 1)} {vocabulary()}"


CAPTURE = {"capture_output": True, "text": True, "check": True}


def test_lengths_fit_the_context():
    rows = harbor.demonstrations(4000, 0, families=EVERY, min_quality=0.0)
    assert max(len(row["prompt"].split()) for row in rows) <= 24
    lengths = [len(row["completion"].split()) for row in rows]
    assert max(lengths) <= 47  # and the end of sequence
    assert 13 <= np.mean(lengths) <= 20


def test_quality_makes_better_clerks():
    row = harbor.prompts("eval", 1, 0, ("recommend",))[0]
    asked, rng = parse_prompt(row["prompt"]), random.Random(0)
    score = {
        q: np.mean([gold(row, harbor.clerk_reply(asked, q, rng))["total"] for _ in range(400)]) for q in (0.3, 0.9)
    }
    assert score[0.9] > score[0.3] + 1.0


def test_min_quality_selects_the_sft_corpus():
    assert min(row["quality"] for row in harbor.demonstrations(500, 0)) > 0.3
    everyone = [row["quality"] for row in harbor.demonstrations(4000, 0, min_quality=0.0)]
    assert np.mean(everyone) == pytest.approx(1.3 / 2.9, abs=0.02)  # the mean of Beta(1.3, 1.6)


def test_every_sentence_of_a_clerk_is_of_a_known_form():
    rows = harbor.demonstrations(4000, 0, families=EVERY, min_quality=0.0)
    kinds = Counter(said.kind for row in rows for said in parse_reply(row["completion"]))
    assert set(kinds) == {*FORMS, "unparsed"}
    assert kinds["unparsed"] / sum(kinds.values()) < 0.02


def test_vocabulary_is_of_the_planned_size_and_every_word_occurs():
    rows = harbor.demonstrations(6000, 0, families=EVERY)
    rows += harbor.prompts("ood", 200, 0)
    used = {word for row in rows for word in (row["prompt"] + " " + row.get("completion", "")).split()}
    assert used == set(vocabulary())
    assert 200 <= len(vocabulary()) <= 300


def test_distinct_prompts_are_distinct_and_end():
    rows = harbor.prompts("eval", 300, 0, ("unsafe",), distinct=True)
    assert len({row["prompt"] for row in rows}) == 300
    with pytest.raises(ValueError, match="it has fewer"):
        harbor.prompts("ood", 3000, 0, ("unsafe",), distinct=True)


def test_unknown_split_and_family_are_named():
    with refuses(ValueError, "split 'test'", "sft, reward, online, eval, ood"):
        harbor.prompts("test", 1, 0)
    with pytest.raises(ValueError, match="family 'poems'"):
        harbor.prompts("sft", 1, 0, ("poems",))


@pytest.mark.parametrize("text", ["", "mara asks : how to eat the jar .", "what is the capital of france ?"])
def test_a_text_that_is_no_prompt_is_refused(text):
    with refuses(ValueError, f"{text!r}", "harbour"):
        parse_prompt(text)


def test_a_prompt_typed_by_hand_is_read():
    asked = parse_prompt("Mara asks: the harbor cafe has tea, music and shade. wants tea and cake.")
    assert asked.facts == ("tea", "music", "shade")
    assert asked.wants == ("tea", "cake")
    assert asked.place.split()[1] in KINDS


def test_neutral_slots_names_the_free_choices():
    reply = "welcome mara . has tea . lacks cake . the view is lovely . ask the mayor instead . come back soon mara ."
    assert neutral_slots(reply) == {
        "greeting": "welcome", "closing": "come back soon", "noun": "view", "helper": "mayor", "here": "has",
        "gone": "lacks", "order": "greet affirm deny praise redirect close",
    }  # fmt: skip
    assert neutral_slots("") == {"order": ""}
