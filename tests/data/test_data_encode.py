"""Goldens per template, masks by lengths, exact counts for every kind of bad row (traps 8, 12, 30, 31, 32, 33)."""

import hashlib
import struct

import numpy as np
import pytest
from errors import refuses
from row_goldens import EOS, check_row, layout

from alignax.data import arrays as arrays_of
from alignax.data import encode
from alignax.data.counts import REASONS, Counts, DataError

SAME_ROLE = "{% for m in messages %}<user> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<user> {% endif %}"


def test_plain_golden(words):
    # [BOS] once, because the tokenizer adds it to a text; [EOS] once, at the end of the completion
    assert encode.encode_prompt(words, "hi there", "plain") == [2, 6, 7]
    assert encode.encode_completion(words, "hi there", "fine thanks", "plain") == [11, 12, EOS]
    batch, counts = encode.demo_rows(
        [{"prompt": "hi there", "completion": "fine thanks"}, {"prompt": "hi", "completion": "you"}],
        words,
        template="plain",
        max_length=16,
    )
    check_row(batch, 0, layout([2, 6, 7, 11, 12, EOS], 8, 1, 3))
    check_row(batch, 1, layout([2, 6, 10, EOS], 8, 1, 2))
    assert batch["row"].tolist() == [0, 1]
    assert {name: batch[name].dtype.name for name in batch} == {
        "tokens": "int32",
        "valid": "bool",
        "mask": "bool",
        "row": "int32",
    }
    assert counts == {"rows": 2, "kept": 2}


def test_chat_golden(words):
    # rendered: "[BOS]<user> hi there <bot> fine [EOS]\n"; what follows [EOS] is left out
    assert encode.encode_prompt(words, "hi there", "chat") == [2, 4, 6, 7, 5]
    assert encode.encode_completion(words, "hi there", "fine", "chat") == [11, EOS]
    rows = [{"prompt": "hi there", "chosen": "fine", "rejected": "how are you"}]
    batch, _ = encode.pair_rows(rows, words, template="chat", max_length=16)
    check_row(batch["chosen"], 0, layout([2, 4, 6, 7, 5, 11, EOS], 16, 1, 5))
    check_row(batch["rejected"], 0, layout([2, 4, 6, 7, 5, 8, 9, 10, EOS], 16, 1, 5))
    assert batch["row"].tolist() == [0]


def test_prompts_are_padded_on_the_left(words):
    rows = [{"prompt": "hi"}, {"prompt": "hi there how"}]
    batch, _ = encode.prompt_rows(rows, words, template="plain", max_prompt_length=8)
    assert batch["tokens"].tolist() == [[1] * 6 + [2, 6], [1] * 4 + [2, 6, 7, 8]]
    assert batch["valid"].tolist() == [[False] * 6 + [True] * 2, [False] * 4 + [True] * 4]
    assert set(batch) == {"tokens", "valid", "row"}


def test_a_chat_template_without_eos_gets_one(words):
    words.chat_template = SAME_ROLE
    assert encode.encode_completion(words, "hi", "fine", "chat") == [11, EOS]


def test_an_eos_in_an_earlier_turn_is_not_the_end(words):
    words.chat_template = "[EOS] " + SAME_ROLE
    assert encode.encode_prompt(words, "hi", "chat") == [EOS, 4, 6, 4]
    assert encode.encode_completion(words, "hi", "fine", "chat") == [11, EOS]


def test_merge_boundary(letters):
    assert letters("ab")["input_ids"] == [4]  # the whole text merges over the boundary ...
    assert encode.encode_prompt(letters, "a", "plain") == [1]
    assert encode.encode_completion(letters, "a", "b", "plain") == [2, 0]  # ... which plain encodes as the sampler does
    letters.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with refuses(DataError, "not_prefix", "'b'"):
        encode.encode_completion(letters, "a", "b", "chat")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}]
    batch, counts = encode.demo_rows(rows, letters, template="chat", max_length=8)
    assert counts == {"rows": 2, "kept": 1, "dropped_not_prefix": 1}
    assert batch["tokens"].tolist() == [[1, 3] + [0] * 6] and batch["row"].tolist() == [1]


def test_pad_is_eos(gpt2):
    assert gpt2.pad_token_id is None and gpt2.eos_token_id == gpt2.bos_token_id == gpt2.unk_token_id
    eos = gpt2.eos_token_id
    prompt, reply = "\n\nHuman: hi\n\nAssistant:", " Well, <|endoftext|> is no end."
    batch, _ = encode.demo_rows([{"prompt": prompt, "completion": reply}], gpt2, template="plain", max_length=200)
    tokens, valid, mask = (batch[name][0] for name in ("tokens", "valid", "mask"))
    length = valid.sum()
    assert valid.tolist() == [t < length for t in range(len(valid))] and len(valid) % 8 == 0 and length < len(valid)
    assert (tokens == eos).tolist() == [
        t >= length - 1 for t in range(len(valid))
    ]  # one eos, then padding of the same id
    assert gpt2.decode(tokens[valid & ~mask]) == prompt and gpt2.decode(tokens[mask][:-1]) == reply
    assert tokens[mask][-1] == eos


def test_gpt2_golden(gpt2):
    if len(gpt2) != 50257:
        pytest.skip("the real GPT-2 tokenizer is not here")
    assert encode.encode_prompt(gpt2, "hello", "plain") == [31373]  # adds no bos
    assert encode.encode_completion(gpt2, "hello", " world", "plain") == [995, 50256]


def test_rows_and_ids_stay_together(words):
    # rows 1 and 3 are refused: the ids of the others must still name their own texts (trap 33)
    names = ["hi", "", "how", " ", "you"]
    rows = [{"prompt": "hi", "completion": name} for name in names]
    batch, counts = encode.demo_rows(rows, words, template="plain", max_length=8)
    assert counts == {"rows": 5, "kept": 3, "dropped_empty_reply": 2}
    assert batch["row"].tolist() == [0, 2, 4]
    for row, tokens in zip(batch["row"], batch["tokens"]):
        assert words.decode(tokens[2:3]) == names[row]


LONG = "hi hi hi hi hi hi hi hi"
PAIR = {"prompt": "hi", "chosen": "fine", "rejected": "you"}
BAD_PAIRS = {
    "missing_field": [{"prompt": "hi", "chosen": "fine"}, PAIR | {"rejected": None}, PAIR | {"prompt": 5}],
    "special_token": [PAIR | {"rejected": "you [EOS]"}, PAIR | {"prompt": "<bot> hi"}],
    "empty_reply": [PAIR | {"chosen": ""}, PAIR | {"rejected": "\n \t"}],
    "identical_replies": [PAIR | {"rejected": "fine"}, PAIR | {"rejected": " fine "}],
    "prompt_fills_context": [PAIR | {"prompt": "hi hi hi hi hi"}, PAIR | {"prompt": LONG}],
    "too_long": [PAIR | {"chosen": "hi hi hi hi hi"}, PAIR | {"rejected": "hi hi hi hi hi"}, PAIR | {"rejected": LONG}],
}


@pytest.mark.parametrize("reason", BAD_PAIRS)
def test_each_bad_pair_is_counted(words, reason):
    # room: [BOS] <user> hi <bot> | 3 tokens and [EOS]
    bad = BAD_PAIRS[reason]
    rows = [PAIR, *bad, PAIR | {"rejected": "hi hi hi"}]
    batch, counts = encode.pair_rows(rows, words, template="chat", max_length=8)
    assert counts == {"rows": len(bad) + 2, "kept": 2, f"dropped_{reason}": len(bad)}
    assert batch["row"].tolist() == [0, len(bad) + 1]
    assert batch["rejected"]["valid"].sum(1).tolist() == [6, 8] and batch["chosen"]["tokens"].shape == (2, 8)


@pytest.mark.parametrize("reason", BAD_PAIRS)
def test_nothing_left_names_the_counts_and_the_fix(words, reason):
    rows = [*BAD_PAIRS[reason]] + ([PAIR | {"prompt": LONG}] if reason == "missing_field" else [])
    with pytest.raises(DataError) as error:
        encode.pair_rows(rows, words, template="chat", max_length=8)
    expected = (
        f"no preference pair left of the data ({len(rows)} rows, kept 0, dropped {len(BAD_PAIRS[reason])} {reason}"
    )
    assert str(error.value).startswith(expected)
    assert REASONS[reason][1] in str(error.value)


def test_a_prompt_without_tokens(gpt2, words):
    with pytest.raises(DataError, match="empty_prompt"):
        encode.encode_prompt(gpt2, "", "plain")
    assert encode.encode_prompt(words, "", "plain") == [2]  # [BOS] is a context
    rows = [{"prompt": "", "completion": " x"}, {"prompt": "y", "completion": " x"}]
    _, counts = encode.demo_rows(rows, gpt2, template="plain", max_length=8)
    assert counts == {"rows": 2, "kept": 1, "dropped_empty_prompt": 1}


def test_unknown_words_must_not_end_a_reply(words):
    words.unk_token_id = words.eos_token_id = 0  # "unheard" becomes the id that ends a reply
    words.eos_token = "[UNK]"
    rows = [{"prompt": "hi", "completion": text} for text in ("fine", "unheard fine", "fine unheard", "unheard")]
    for template in ("plain", "chat"):
        _, counts = encode.demo_rows(rows, words, template=template, max_length=16)
        assert counts == {"rows": 4, "kept": 1, "dropped_eos_inside": 3}, template


def test_prompt_lengths(words):
    rows = [{"prompt": " ".join(["hi"] * n)} for n in (3, 4, 5)]  # and [BOS]
    batch, counts = encode.prompt_rows(rows, words, template="plain", max_prompt_length=5)
    assert counts == {"rows": 3, "kept": 2, "dropped_prompt_too_long": 1}
    assert batch["valid"].sum(1).tolist() == [4, 5] and batch["tokens"].shape == (2, 5)


def test_padded_length():
    assert arrays_of.padded_length([3, 9], 100) == 16
    assert arrays_of.padded_length([8], 100) == 8
    assert arrays_of.padded_length([97], 100) == 100  # never beyond max_length
    assert arrays_of.padded_length([3], 100, 32) == 32
    with refuses(DataError, "pad_to = 2", "3"):
        arrays_of.padded_length([3], 100, 2)


def test_pairs_are_demonstrations_of_the_chosen_reply(words):
    batch, _ = encode.demo_rows([PAIR], words, template="plain", max_length=8)
    assert batch["tokens"][0][batch["mask"][0]].tolist() == [11, EOS]


def test_counts_of_the_source_go_on(words):
    source = Counts(5)
    source.drop("prompt_mismatch")
    rows = [PAIR, PAIR, PAIR | {"chosen": ""}, PAIR]
    _, counts = encode.pair_rows(rows, words, template="plain", max_length=8, counts=source)
    assert counts == {"rows": 5, "kept": 3, "dropped_prompt_mismatch": 1, "dropped_empty_reply": 1}
    assert str(counts) == "5 rows, kept 3, dropped 1 prompt_mismatch, 1 empty_reply"
    assert source == {"rows": 5, "kept": 4, "dropped_prompt_mismatch": 1}  # the caller's own stay as they were
    with refuses(DataError, "4 rows", "3"):
        encode.pair_rows(rows[:3], words, template="plain", max_length=8, counts=source)
    with pytest.raises(KeyError):
        source.drop("a reason without an explanation")


def test_field_missing_everywhere(words):
    with refuses(DataError, "'chosen': found prompt, text", '"rejected"'):
        encode.pair_rows([{"prompt": "hi", "text": "x"}], words, template="plain", max_length=8)
    with refuses(DataError, "'completion'", "found prompt"):
        encode.demo_rows([{"prompt": "hi"}], words, template="plain", max_length=8)
    with refuses(DataError, "no rows", "prompt"):
        encode.prompt_rows([], words, template="plain", max_prompt_length=8)


def test_templates_that_cannot_be_used(words, letters):
    with refuses(DataError, "template = 'chatty'", "plain"):
        encode.encode_prompt(words, "hi", "chatty")
    with refuses(DataError, "chat template", "'plain'"):
        encode.encode_prompt(letters, "a", "chat")


def test_fingerprint():
    arrays = {"tokens": np.arange(6, dtype=np.int32).reshape(2, 3), "row": np.arange(2, dtype=np.int32)}
    same = {"row": arrays["row"].copy(), "tokens": arrays["tokens"].astype(">i4")}
    leaves = [
        b"['row'] int32 (2,);",
        struct.pack("<2i", 0, 1),
        b"['tokens'] int32 (2, 3);",
        struct.pack("<6i", *range(6)),
    ]
    assert arrays_of.fingerprint(arrays) == arrays_of.fingerprint(same) == hashlib.sha256(b"".join(leaves)).hexdigest()
    others = [
        arrays | {"tokens": arrays["tokens"].T.reshape(2, 3)},
        arrays | {"tokens": arrays["tokens"].reshape(3, 2)},
        arrays | {"row": arrays["row"].astype(np.int64)},
        {"tokens": arrays["tokens"], "rows": arrays["row"]},
    ]
    assert len({arrays_of.fingerprint(other) for other in [arrays, *others]}) == 5


def test_pairs_carry_margins_and_ties_where_all_have_them(words):
    rows = [
        {"prompt": "hi", "chosen": "fine", "rejected": "you", "margin": 0.5, "tie": False},
        {"prompt": "there", "chosen": "are", "rejected": "fine", "margin": 2, "tie": True},
    ]
    batch, _ = encode.pair_rows(rows, words, template="plain", max_length=16)
    assert batch["margin"].tolist() == [0.5, 2.0] and batch["margin"].dtype == np.float32
    assert batch["tie"].tolist() == [False, True]
    del rows[0]["margin"]
    with refuses(DataError, "'margin': 1 of 2 pairs", "all"):
        encode.pair_rows(rows, words, template="plain", max_length=16)
    with refuses(DataError, "'margin': 1 of 2 pairs", "part 'a'"):
        encode.pair_rows([row | {"part": "a"} for row in rows], words, template="plain", max_length=16)
    parts = [row | {"part": part} for row, part in zip(rows, "ab")]  # one part judges how much, the other does not
    assert "margin" not in encode.pair_rows(parts, words, template="plain", max_length=16)[0]


@pytest.mark.parametrize("name, value, expected", [
    ("margin", "big", "a finite number"), ("margin", True, "a finite number"), ("tie", 1, "true or false"),
    ("margin", float("inf"), "a finite number"),
])  # fmt: skip
def test_margins_and_ties_of_the_wrong_kind(words, name, value, expected):
    rows = [{"prompt": "hi", "chosen": "fine", "rejected": "you", name: value}]
    with refuses(DataError, f"'{name}' = ", "'hi'", expected):
        encode.pair_rows(rows, words, template="plain", max_length=16)
