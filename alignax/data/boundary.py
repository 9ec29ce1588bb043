"""Where a reply goes on a prompt, for tokenizers that put a space before every text.

Llama 2's tokenizer and its descendants read "def" as " def", so that words are the same wherever they stand; decoding
takes the space of a whole text away again. A reply that is tokenised apart from its prompt would keep it: "abc\\n" and
"def" would be learnt as "abc\\n def". Here such a reply is read behind a short anchor, whose ids are then cut off, and
one that was sampled is decoded behind an anchor. Other tokenizers give a reply the ids that it has alone.
"""

import json
from collections.abc import Sequence
from typing import Any

from alignax.data.tokenizer import Tokenizer

# texts to read a reply behind, of different kinds: one at least merges with nothing that the reply may begin with
ANCHORS = ("\n", ":", "a", "1")
Ids = list[int]


def tokenize(tokenizer: Tokenizer, texts: Sequence[Any], **options: Any) -> list[Ids]:
    """The ids of each text, without special tokens around it."""
    if not texts:  # the tokenizer takes an empty list for an empty text
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)
    return encoded["input_ids"]


def continued(tokenizer: Tokenizer, replies: Sequence[str], begins: Sequence[bool]) -> list[Ids | str]:
    """The ids of each reply as it goes on whatever stands before it, or, where it `begins` a text, those that it has
    alone; or the reason, a key of REASONS, why the space cannot be kept out. The prompt itself is not needed: its ids
    stay as they are. Control tokens that a reply spells are ordinary characters."""
    ids: list[Ids | str] = [*tokenize(tokenizer, replies, split_special_tokens=True)]
    if not adds_space(tokenizer):
        return ids
    ids = [alone if begun else "added_space" for begun, alone in zip(begins, ids, strict=True)]
    for anchor, before in anchors(tokenizer):
        left = [i for i, found in enumerate(ids) if found == "added_space"]
        whole = tokenize(tokenizer, [anchor + replies[i] for i in left], split_special_tokens=True)
        for i, found in zip(left, whole, strict=True):
            if _goes_on(tokenizer, before, found, replies[i]):
                ids[i] = found[len(before) :]
    return ids


def adds_space(tokenizer: Tokenizer) -> bool:
    """Whether a text that is tokenised alone gets a space in front."""
    backend = tokenizer.backend_tokenizer
    return any(_puts_space(json.loads(part.__getstate__())) for part in (backend.normalizer, backend.pre_tokenizer)
               if part is not None)  # fmt: skip


def anchors(tokenizer: Tokenizer) -> list[tuple[str, Ids]]:
    """The anchors that the tokenizer keeps, with their ids: one without a token for line breaks loses that one."""
    found = zip(ANCHORS, tokenize(tokenizer, ANCHORS), strict=True)
    return [(anchor, ids) for anchor, ids in found if ids and text_of(tokenizer, ids).lstrip(" ") == anchor]


def lead(tokenizer: Tokenizer, template: str) -> Ids:
    """What a sampled reply is decoded behind, so that its text has the space that it begins with; [] for nothing.

    In a chat nothing: templates of these tokenizers write the space before a reply themselves.
    """
    plain = template == "plain" and adds_space(tokenizer)
    return next((ids for _, ids in reversed(anchors(tokenizer))), []) if plain else []  # the last are no byte tokens


def _puts_space(part: dict[str, Any]) -> bool:
    """Whether a normalizer or pre-tokenizer of the tokenizers library, as it describes itself, does."""
    kind = part.get("type")
    if kind == "Sequence":
        return any(map(_puts_space, [*part.get("normalizers", ()), *part.get("pretokenizers", ())]))
    if kind == "Metaspace":
        return part.get("prepend_scheme", "always") != "never"
    return kind == "Prepend" or (kind == "ByteLevel" and part.get("add_prefix_space", False))


def _goes_on(tokenizer: Tokenizer, before: Ids, whole: Ids, reply: str) -> bool:
    """Whether `whole` begins with the anchor's ids, and goes on with the reply's first character: with a space only if
    the reply begins with one."""
    if whole[: len(before)] != before or len(whole) == len(before):
        return False
    decoded = text_of(tokenizer, whole[: len(before) + 1]).removeprefix(text_of(tokenizer, before))
    return decoded.startswith(" ") == reply.startswith(" ")


def text_of(tokenizer: Tokenizer, ids: Ids) -> str:
    """The text of the ids as it stands: no special token left out, no space before a full stop taken away."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
