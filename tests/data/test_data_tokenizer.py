"""Loading tokenizers, pad and end-of-sequence ids (traps 12, 13), and hashes that survive a save."""

import pytest
from errors import refuses

from alignax.data.counts import DataError
from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import control_tokens, eos_ids, load_tokenizer, pad_id, template_hash, tokenizer_hash


def test_pad_and_eos(words, gpt2):
    assert pad_id(words) == 1 and eos_ids(words) == {3}
    assert pad_id(gpt2) == gpt2.eos_token_id and eos_ids(gpt2) == {gpt2.eos_token_id}
    assert eos_ids(words, (3, 5)) == {3, 5}
    with refuses(DataError, "id 99", "14"):
        eos_ids(words, (99,))


def test_no_eos(letters):
    letters.eos_token = None
    for function in (pad_id, eos_ids):
        with pytest.raises(DataError, match="no end-of-sequence token"):
            function(letters)


def test_control_tokens(words):
    assert set(control_tokens(words)) == {"[UNK]", "[PAD]", "[BOS]", "[EOS]", "<user>", "<bot>"}


def test_save_and_load(words, tmp_path):
    before = tokenizer_hash(words), template_hash(words, "chat")
    words.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert encode_prompt(loaded, "hi there", "chat") == [2, 4, 6, 7, 5]
    assert (tokenizer_hash(loaded), template_hash(loaded, "chat")) == before


def test_hashes_tell_tokenizers_and_templates_apart(words, letters, gpt2):
    assert len({tokenizer_hash(tokenizer) for tokenizer in (words, letters, gpt2)}) == 3
    before, templates = tokenizer_hash(words), {template_hash(words, name) for name in ("plain", "chat")}
    words(["hi", "hi there"], padding=True, truncation=True, max_length=2)  # leaves its settings in the backend
    assert tokenizer_hash(words) == before
    words.chat_template += " "
    assert tokenizer_hash(words) == before and template_hash(words, "chat") not in templates
    words.pad_token = "[UNK]"
    assert tokenizer_hash(words) != before


@pytest.mark.parametrize("name", ["/nowhere/tokenizer", "./nowhere", "~/nowhere"])
def test_missing_folder(name):
    with refuses(DataError, "tokenizer folder", "nowhere", "tokenizer.json"):
        load_tokenizer(name)


def test_folder_without_a_tokenizer(tmp_path):
    with refuses(DataError, "loaded from", str(tmp_path), "tokenizer.json"):
        load_tokenizer(str(tmp_path))
