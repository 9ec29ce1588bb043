"""Replies with a thumb as arrays: goldens, mismatched replies for KTO's KL, and thumbs that tell nothing (trap 35)."""

import pytest
from errors import refuses
from row_goldens import EOS, check_row, layout

from alignax.data import thumbs
from alignax.data.counts import Counts, DataError

THUMBS = [
    {"prompt": "hi", "completion": "fine", "label": True},
    {"prompt": "hi", "completion": "you", "label": False},
    {"prompt": "there", "completion": "thanks you", "label": False},
]


def test_thumbs_golden(words):
    # mismatched: the reply of the next row with another prompt, so rows 0 and 1, of one prompt, both get that of row 2
    batch, counts = thumbs.unpaired_rows(THUMBS, words, template="plain", max_length=16)
    check_row(batch["side"], 0, layout([2, 6, 11, EOS], 8, 1, 2))
    check_row(batch["side"], 2, layout([2, 7, 12, 10, EOS], 8, 1, 2))
    check_row(batch["mismatched"], 0, layout([2, 6, 12, 10, EOS], 8, 1, 2))
    check_row(batch["mismatched"], 1, layout([2, 6, 12, 10, EOS], 8, 1, 2))
    check_row(batch["mismatched"], 2, layout([2, 7, 10, EOS], 8, 1, 2))  # two rows on, of the others
    assert batch["desirable"].tolist() == [True, False, False] and batch["row"].tolist() == [0, 1, 2]
    assert counts == {"rows": 3, "kept": 3}


def test_a_pair_is_two_thumbs(words):
    pairs = [
        {"prompt": "hi", "chosen": "fine", "rejected": "you"},
        {"prompt": "there", "chosen": "are", "rejected": ""},
    ]
    batch, counts = thumbs.unpaired_rows(pairs, words, template="plain", max_length=16, counts=Counts(2))
    assert batch["desirable"].tolist() == [True, False, True] and batch["row"].tolist() == [0, 1, 2]
    assert counts == {"rows": 4, "kept": 3, "dropped_empty_reply": 1}


def test_mismatched_replies_of_pairs_have_both_labels(words):
    # KTO's KL would otherwise follow what happens to chosen replies (trap 35)
    pairs = [{"prompt": p, "chosen": "fine", "rejected": "you"} for p in ("hi", "there", "how", "are")]
    batch, _ = thumbs.unpaired_rows(pairs, words, template="plain", max_length=16)
    replies = [row[mask].tolist() for row, mask in zip(batch["mismatched"]["tokens"], batch["mismatched"]["mask"])]
    assert replies == [[11, EOS], [10, EOS]] * 4


def test_thumbs_carry_the_counts_of_their_source(words):
    source = Counts(4)
    source.drop("human_last")
    assert thumbs.unpaired_rows(THUMBS, words, template="plain", max_length=16, counts=source)[1] == {
        "rows": 4, "kept": 3, "dropped_human_last": 1,
    }  # fmt: skip


def test_a_mismatched_reply_that_does_not_fit_counts_for_nothing(words):
    rows = [THUMBS[0], {"prompt": "there", "completion": "how are you fine thanks", "label": False}]
    batch, _ = thumbs.unpaired_rows(rows, words, template="plain", max_length=8)
    assert batch["mismatched"]["mask"].any(1).tolist() == [True, True]
    rows[0] = rows[0] | {"prompt": "hi hi hi"}  # 4 + 6 tokens are more than 8
    batch, _ = thumbs.unpaired_rows(rows, words, template="plain", max_length=8)
    assert batch["mismatched"]["mask"].any(1).tolist() == [False, True]
    assert batch["side"]["mask"].any(1).all()


@pytest.mark.parametrize(
    "rows, key, word",
    [
        ([{"prompt": "hi", "completion": "fine"}], "thumb", "found completion, prompt"),
        (THUMBS[:2], "all 2 rows", "mismatched"),
        (THUMBS[1:], "label False", "both"),
        ([THUMBS[0] | {"label": 1}], "thumb", "found completion, label, prompt"),
    ],
)
def test_thumbs_that_cannot_be_used(words, rows, key, word):
    with refuses(DataError, key, word):
        thumbs.unpaired_rows(rows, words, template="plain", max_length=16)
