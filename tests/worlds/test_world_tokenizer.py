"""The tokenizer: no unknown word, exact round trips, and a chat template whose prompt is a token prefix."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from alignax.worlds import harbor
from alignax.worlds.grammar import FAMILIES
from alignax.worlds.tokenizer import SPECIALS, build_tokenizer

TOK = build_tokenizer()
CHAT = [
    {"role": "user", "content": "lena asks : how to open the jar ."},
    {"role": "assistant", "content": "use a wire on the jar ."},
]


def test_no_text_of_the_world_has_an_unknown_word():
    texts = []
    for split in harbor.SPLITS:
        rows = harbor.demonstrations(300, 0, split=split, families=tuple(FAMILIES), min_quality=0.0)
        texts += [text for row in rows for text in (row["prompt"], row["completion"], harbor.ideal_reply(row))]
    for ids, text in zip(TOK(texts)["input_ids"], texts, strict=True):
        assert TOK.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert TOK.decode(ids) == text


def test_special_tokens_are_distinct_and_known():
    ids = [TOK.pad_token_id, TOK.bos_token_id, TOK.eos_token_id, TOK.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert TOK.convert_tokens_to_ids(list(SPECIALS)) == list(range(6))
    assert 200 <= len(TOK) <= 300
    assert TOK("lena likes jazz")["input_ids"][1:] == [TOK.unk_token_id] * 2


def test_chat_template_by_hand():
    text = TOK.apply_chat_template(CHAT, tokenize=False)
    assert text == "<bos> <user> lena asks : how to open the jar . <assistant> use a wire on the jar . <eos>"
    prompt = TOK.apply_chat_template(CHAT[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    whole = TOK.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == TOK.eos_token_id
    assert TOK.decode(whole[len(prompt) :], skip_special_tokens=True) == CHAT[1]["content"]


def test_template_marks_the_completion():
    out = TOK.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert np.sum(out["assistant_masks"]) == len(CHAT[1]["content"].split()) + 1  # and the end of sequence
    assert out["assistant_masks"][-1] == 1


def test_an_empty_reply_and_an_unknown_role():
    empty = TOK.apply_chat_template([CHAT[0], {"role": "assistant", "content": ""}], tokenize=True, return_dict=False)
    prompt = TOK.apply_chat_template(CHAT[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert empty == [*prompt, TOK.eos_token_id]
    with pytest.raises(Exception, match="no role judge"):
        TOK.apply_chat_template([{"role": "judge", "content": "a ."}], tokenize=False)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    TOK.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOK.get_vocab()
    assert loaded.chat_template == TOK.chat_template
    assert loaded.apply_chat_template(CHAT, tokenize=False) == TOK.apply_chat_template(CHAT, tokenize=False)
