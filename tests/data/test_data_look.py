"""What a preview says of arrays: lengths, duplicates, balance, and rows as text with their masks."""

import numpy as np
from row_goldens import EOS

from alignax.data import look
from alignax.data.encode import demo_rows, pair_rows, prompt_rows
from alignax.data.judged import ranking_rows, rating_rows, step_rows
from alignax.data.thumbs import unpaired_rows

PLAIN = {"template": "plain", "max_length": 16}


def facts(batch, **options):
    return dict(look.facts(batch, look.sides_of(batch), **options))


def test_lengths():
    found = look.lengths(np.array([2, 4, 4, 12]), 16)
    assert found["quantiles"][0] == [0, 2.0, 0.125] and found["quantiles"][-1] == [100, 12.0, 0.75]
    assert [row for row in found["bins"] if row[2]] == [[2, 2, 1], [4, 4, 2], [12, 12, 1]]
    assert found["bins"][0][0] == 1 and all(a[1] + 1 == b[0] for a, b in zip(found["bins"], found["bins"][1:]))
    wide = look.lengths(np.arange(1, 1001), 1000)["bins"]
    assert len(wide) == look.BINS and sum(rows for _, _, rows in wide) == 1000


def test_pairs(words):
    rows = [
        {"prompt": "hi", "chosen": "fine thanks", "rejected": "you", "tie": False},  # 2 + 3 and 2 + 2 tokens
        {"prompt": "hi", "chosen": "fine", "rejected": "you", "tie": True},
        {"prompt": "there", "chosen": "fine", "rejected": "how are you", "tie": False},
        {"prompt": "there", "chosen": "fine", "rejected": "how are you", "tie": False},
    ]
    found = facts(pair_rows(rows, words, **PLAIN)[0])
    assert found["chosen longer"] == "25.0%, equally long 25.0%"
    assert found["mean tokens of a reply"] == "chosen 2.2, rejected 3.0" and found["ties"] == "25.0%"
    assert found["identical rows"] == "1 of 4" and found["prompts seen before"] == "2 of 4"
    # masked 9 + 12 of 9 + 12 and eight prompts of 2 tokens; of the 64 slots of two sides padded to 8, 27 are empty
    assert found["tokens in the mask"] == "21 of 37, 56.8%" and found["padding"] == "42.2%"


def test_other_judgements(words):
    thumbs = [{"prompt": p, "completion": "fine", "label": p == "hi"} for p in ("hi", "there", "how")]
    found = facts(unpaired_rows(thumbs, words, **PLAIN)[0])
    assert found["thumbs up"] == "33.3% of 3 replies" and found["no mismatched reply fits"] == "0.0%"
    said = [("hi", "fine", True), ("there", "you", False), ("how", "are", False), ("hi", "fine", True)]
    thumbs = [{"prompt": p, "completion": reply, "label": label} for p, reply, label in said]
    found = facts(unpaired_rows(thumbs, words, **PLAIN)[0])  # the mismatched replies of rows 0 and 3 differ
    assert found["identical rows"] == "1 of 4" and found["thumbs up"] == "50.0% of 4 replies"
    ratings = [{"prompt": "hi", "completion": "fine", "ratings": r} for r in ({"a": 1, "b": None}, {"a": 2, "b": 5})]
    found = facts(rating_rows(ratings, words, **PLAIN)[0], attributes=("a", "b"))
    assert found["rating of a"] == "given in 100.0%, mean 1.50" and found["rating of b"] == "given in 50.0%, mean 5.00"
    assert found["identical rows"] == "1 of 2"
    steps = [{"prompt": "hi", "steps": ["how", " are", " you"], "verdicts": [1, 0.5, 0]}]
    assert facts(step_rows(steps, words, **PLAIN)[0])["steps"] == "3.0 a row, mean verdict 0.50"
    ranked = [{"prompt": "hi", "replies": ["how", "are", "you"]}, {"prompt": "hi", "replies": ["how", "are"]}]
    sides = look.sides_of(ranking_rows(ranked, words, **PLAIN)[0])
    assert list(sides) == ["reply 1", "reply 2", "reply 3"]
    assert [len(look.show(words, sides, 0, i)["sides"]) for i in (0, 1)] == [3, 2]  # an empty reply is no reply


def test_prompts_have_no_mask(words):
    batch, _ = prompt_rows([{"prompt": "hi"}, {"prompt": "hi there"}], words, template="plain", max_prompt_length=8)
    found = facts(batch)
    assert "tokens in the mask" not in found and found["prompts seen before"] == "0 of 2"
    assert look.show(words, look.sides_of(batch), 7, 1) == {
        "row": 7,
        "sides": [
            {"name": "prompt", "pieces": [["[BOS]", False], [" hi", False], [" there", False]], "tokens": [3, 0]}
        ],
    }


def test_rows_that_are_all_learnt_have_no_prompt(words):
    batch, _ = demo_rows([{"text": "hi there"}] * 2, words, train_on="all", **PLAIN)
    assert "prompts seen before" not in facts(batch) and facts(batch)["identical rows"] == "1 of 2"


def test_held_out_prompts_that_are_trained_on(words):
    rows = [{"prompt": p, "completion": "fine"} for p in ("hi", "there", "how")]
    made = {"train": demo_rows(rows[:2], words, **PLAIN), "heldout": demo_rows(rows[1:], words, **PLAIN)}
    sides = look.sides_of(made["train"][0])
    assert look.leaks(sides, made) == [["held-out prompts also trained on", "1 of 2"]]
    assert look.leaks(sides, {"train": made["train"]}) == []


def test_pieces_follow_the_mask_and_put_the_text_together(words, gpt2):
    ids, mask = [2, 6, 7, 11, EOS], [False, False, False, True, True]
    assert list(look.pieces(words, ids, mask)) == [
        ["[BOS]", False], [" hi", False], [" there", False], [" fine", True], [" [EOS]", True],
    ]  # fmt: skip
    text = "naïve “quotes” 日本 🙂 end"
    ids = gpt2(text)["input_ids"]
    found = list(look.pieces(gpt2, ids, [True] * len(ids)))
    assert "".join(piece for piece, _ in found) == text and not any("\ufffd" in piece for piece, _ in found)
    assert 5 < len(found) < len(ids)  # characters of several tokens are shown as one
