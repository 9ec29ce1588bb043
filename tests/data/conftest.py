"""Tokenizers of a few tokens, whose ids can be read off, and the real GPT-2 tokenizer where it is at hand."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SHARED = Path(__file__).parents[2].parent / "shared/data"
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }} "
    "{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)
SPECIAL = ["[UNK]", "[PAD]", "[BOS]", "[EOS]", "<user>", "<bot>"]
WORDS = ["hi", "there", "how", "are", "you", "fine", "thanks", "\n"]


def fast(model, *, pre=None, post=None, decoder=None, chat=None, **special):
    """A `transformers` tokenizer around a `tokenizers` model."""
    backend = Tokenizer(model)
    for name, part in (("pre_tokenizer", pre), ("post_processor", post), ("decoder", decoder)):
        if part is not None:
            setattr(backend, name, part)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = chat
    return tokenizer


@pytest.fixture
def words():
    """Ids: [UNK] 0, [PAD] 1, [BOS] 2, [EOS] 3, <user> 4, <bot> 5, hi 6, there 7, how 8, are 9, you 10, fine 11, ..."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    post = processors.TemplateProcessing("[BOS] $A", special_tokens=[("[BOS]", 2)])
    return fast(
        models.WordLevel(vocabulary, unk_token="[UNK]"),
        pre=pre_tokenizers.WhitespaceSplit(),
        post=post,
        chat=CHAT,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        additional_special_tokens=["<user>", "<bot>"],
    )


@pytest.fixture
def letters():
    """A BPE with one merge, a b -> ab. Ids: <eos> 0, a 1, b 2, c 3, ab 4. No pad, no bos."""
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "ab": 4}
    return fast(models.BPE(vocabulary, [("a", "b")]), decoder=decoders.Fuse(), eos_token="<eos>")


@pytest.fixture(scope="session")
def gpt2():
    """The real GPT-2 tokenizer, or one like it over bytes: no pad token, and one id for bos, eos and unk."""
    if (SHARED / "gpt2_tokenizer").exists():
        return AutoTokenizer.from_pretrained(SHARED / "gpt2_tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}
    end = "<|endoftext|>"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model, decoder = models.BPE(vocabulary, []), decoders.ByteLevel()
    return fast(model, pre=byte_level, decoder=decoder, bos_token=end, eos_token=end, unk_token=end)
