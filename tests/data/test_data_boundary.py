"""Tokenizers that put a space before every text: prompt and reply are the text that was given, and no more."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignax.data import boundary
from alignax.data.counts import REASONS
from alignax.data.encode import demo_rows, encode_completion, encode_prompt
from alignax.data.judged import step_rows
from alignax.sampling.sampler import texts

SPECIAL = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES = ["\n", "▁", *"abcdef:1", "▁d", "de", "▁de", "▁a", "▁:", "def"]
MERGES = [("▁", "d"), ("d", "e"), ("▁d", "e"), ("▁", "a"), ("▁", ":"), ("de", "f")]
SPACE = decoders.Replace("▁", " ")
LEGACY = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
TRIMMED = decoders.Sequence([SPACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def metaspace(scheme):
    joined = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme=scheme), "decoder": joined}


KINDS = {
    "always": metaspace("always"),
    "first": metaspace("first"),
    "never": metaspace("never"),
    "legacy": {"normalizer": normalizers.Sequence(LEGACY), "decoder": TRIMMED},
    "nested": {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first")]),
        "decoder": TRIMMED,
    },
}


def tokenizer_of(kind, merges=MERGES):
    """A BPE over a few letters that falls back to bytes, as Llama 2's."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *PIECES, *{a + b for a, b in merges} - {*PIECES}])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    for name, part in KINDS[kind].items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


PAIRS = [
    ("abc\n", "def"),
    ("abc", " def"),
    ("abc", "def"),
    ("abc ", "def"),
    ("abc", "\n\ndef"),
    ("abc\n", "  def f"),
    ("é", "é"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt, reply", PAIRS)
def test_prompt_and_reply_are_the_text(kind, prompt, reply):
    tokenizer = tokenizer_of(kind)
    before = encode_prompt(tokenizer, prompt, "plain")
    after = encode_completion(tokenizer, prompt, reply, "plain")
    assert tokenizer.decode(before + after) == prompt + reply + "</s>"
    alone = tokenizer(reply)["input_ids"]
    assert boundary.adds_space(tokenizer) == (kind != "never")
    assert after[:-1] == alone or kind != "never"
    if (prompt, reply) == ("abc\n", "def") and kind != "never":
        assert tokenizer.convert_ids_to_tokens(after) == ["def", "</s>"] and alone != after[:-1]


def test_a_tokenizer_without_the_space_is_asked_once(words, letters, gpt2, monkeypatch):
    tokenize, calls = boundary.tokenize, []
    monkeypatch.setattr(boundary, "tokenize", lambda *args, **options: calls.append(args) or tokenize(*args, **options))
    for tokenizer in (words, letters, gpt2):
        calls.clear()
        alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("b a", "a")]
        assert boundary.continued(tokenizer, ["b a", "a"], [False, True]) == alone and len(calls) == 1


def test_a_reply_that_begins_a_text_keeps_the_space():
    ids = boundary.continued(tokenizer_of("legacy"), ["def", "def"], [True, False])
    assert [tokenizer_of("legacy").convert_ids_to_tokens(one) for one in ids] == [["▁de", "f"], ["def"]]


def test_another_anchor_where_the_first_would_merge():
    tokenizer = tokenizer_of("legacy", [("\n", "d"), *MERGES])
    assert "\nd" in tokenizer.tokenize("\ndef")
    ids = boundary.continued(tokenizer, ["def"], [False])[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["def"]


def test_rows_of_text_begin_a_text():
    tokenizer = tokenizer_of("legacy")
    batch, _ = demo_rows([{"text": "def"}], tokenizer, template="plain", max_length=8, train_on="all")
    tokens = tokenizer.convert_ids_to_tokens(batch["tokens"][0][batch["valid"][0]])
    assert tokens == ["▁de", "f", "</s>"]  # as a model of these tokenizers knows it


def test_a_boundary_that_cannot_be_had_is_counted():
    """Every word is split off and gets the mark: nothing of this tokenizer begins without one."""
    split = [pre_tokenizers.Split("d", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="always")]
    tokenizer = tokenizer_of("always")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    rows = [{"prompt": "abc", "completion": reply} for reply in ("def", " abc")]
    batch, counts = demo_rows(rows, tokenizer, template="plain", max_length=16)
    assert counts == {"rows": 2, "kept": 1, "dropped_added_space": 1} and batch["row"].tolist() == [1]
    assert "use template 'chat'" in REASONS["added_space"][1]


def test_judged_steps_are_cut_where_they_were():
    rows = [{"prompt": "abc\n", "steps": ["def", "\ndef"], "verdicts": [1, 0]}]
    batch, counts = step_rows(rows, tokenizer_of("legacy"), template="plain", max_length=16)
    assert counts["kept"] == 1 and batch["step_end"].sum() == 2


def test_what_was_sampled_is_not_cleaned_up():
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, ".": 2}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=True)
    assert tokenizer.decode([1, 2]) == "a."
    tokens, mask = np.array([[1, 2, 2, 0]], np.int32), np.ones((1, 4), bool)
    assert texts(tokenizer, tokens, mask, [0]) == ["a . ."] and texts(tokenizer, tokens, mask, [0], [1, 2]) == [
        " a . ."
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt, reply", PAIRS)
def test_what_was_sampled_is_the_reply_again(kind, prompt, reply):
    tokenizer = tokenizer_of(kind)
    ids = encode_completion(tokenizer, prompt, reply, "plain")
    tokens, mask = np.array([ids], np.int32), np.ones((1, len(ids)), bool)
    assert texts(tokenizer, tokens, mask, [tokenizer.eos_token_id], boundary.lead(tokenizer, "plain")) == [reply]
    assert boundary.lead(tokenizer, "chat") == []
