"""The harbour desk's tokenizer: one token per word, as a `transformers` fast tokenizer with a chat template."""

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from alignax.worlds.grammar import vocabulary

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' <user> ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' <assistant> ' }}"
    "{% generation %}{{ message['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('the harbour desk has no role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world; ids 0-5 are `SPECIALS`. Pad is not the end of sequence.

    A conversation is `<bos> <user> prompt <assistant> completion <eos>`; a plain text gets no special token. Decoding
    joins the words by one space, which is the world's own text form, so decode(encode(text)) == text.
    """
    ids = {word: index for index, word in enumerate([*SPECIALS, *vocabulary()])}
    backend = tokenizers.Tokenizer(WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    return fast(backend, CHAT_TEMPLATE, SPECIALS)


def fast(backend: tokenizers.Tokenizer, chat_template: str, specials: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A tokenizer of a world for `transformers`; its special tokens begin with pad, bos, eos and unk."""
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        additional_special_tokens=list(specials[len(named) :]),
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )
