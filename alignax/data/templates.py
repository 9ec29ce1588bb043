"""Templates: how prompt and completion become token ids.

Two templates turn a row into tokens, and both give it the same layout, [prompt ids | completion ids], where the
completion ends with exactly one end of sequence:

- "plain": the prompt, preceded by the beginning of sequence if the tokenizer adds one by itself, then the completion,
  then the end of sequence. Prompt and completion are tokenised apart and their ids concatenated. So the prompt is a
  token prefix by construction, and training sees what the sampler produces: ids after the fixed ids of the prompt.
  A text tokenised whole could merge across the boundary into a token that no sampler can reach. Control tokens that the
  text spells are read as ordinary characters.
- "chat": the prompt is a user turn and the completion an assistant turn of the tokenizer's chat template. Here the
  template decides the boundary, so the prefix is checked. Text that spells a control token is refused: it would forge
  turns or ends. What the template writes after the end of sequence is left out, since no sampler gets there.

These functions work on whole lists, which the tokenizer encodes in parallel; a row that cannot be encoded comes back as
the reason, a key of `counts.REASONS`. `encode.py` has the same for one row, and the arrays.
"""

from alignax.data.counts import DataError
from alignax.data.tokenizer import Tokenizer, control_tokens, eos_id

TEMPLATES = ("plain", "chat")
Ids = list[int]


def prompt_ids(tokenizer: Tokenizer, prompts: list[str], template: str) -> list[Ids]:
    """Per prompt the ids that a completion follows."""
    if template == "chat":
        return _tokenize(tokenizer, _chat(tokenizer, prompts))
    bos = _bos(tokenizer)
    return [bos + ids for ids in _tokenize(tokenizer, prompts, split_special_tokens=True)]


def completion_ids(
    tokenizer: Tokenizer, prompts: list[str], prefixes: list[Ids], completions: list[str], template: str
) -> list[Ids | str]:
    """Per row the ids after its prefix (the prompt's ids), or the reason why there are none."""
    eos = eos_id(tokenizer)
    if template == "plain":
        return [_close(ids, eos) for ids in _tokenize(tokenizer, completions, split_special_tokens=True)]
    starts = [len(text) for text in _chat(tokenizer, prompts)]
    texts = map(_end, _chat(tokenizer, prompts, completions), starts, [tokenizer.eos_token] * len(prompts))
    return [
        _close(row[len(ids) : -1], eos) if row[: len(ids)] == ids else "not_prefix"
        for row, ids in zip(_tokenize(tokenizer, list(texts)), prefixes, strict=True)
    ]


def forbidden_tokens(tokenizer: Tokenizer, template: str) -> tuple[str, ...]:
    """The control tokens that a text may not spell under this template; also checks that the template can be used."""
    if template not in TEMPLATES:
        raise DataError(f"template = {template!r}: expected one of {', '.join(TEMPLATES)}")
    if template == "chat" and not tokenizer.chat_template:
        raise DataError("template = 'chat', but the tokenizer has no chat template: use template 'plain', or set one")
    return control_tokens(tokenizer) if template == "chat" else ()


def _close(body: Ids, eos: int) -> Ids | str:
    """The body of a completion with its one end of sequence; a body that holds the id (as unk, say) is refused."""
    return "eos_inside" if eos in body else "empty_reply" if not body else [*body, eos]


def _end(text: str, start: int, eos: str) -> str:
    """The text up to the template's end of sequence, the first after `start`, or with one added if there is none."""
    end = text.find(eos, start)
    return text[: end if end >= 0 else None] + eos


def _chat(tokenizer: Tokenizer, prompts: list[str], completions: list[str] | None = None) -> list[str]:
    if not prompts:  # an empty list is taken for one empty conversation
        return []
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for chat, completion in zip(chats, completions or ()):
        chat.append({"role": "assistant", "content": completion})
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=completions is None)


def _tokenize(tokenizer: Tokenizer, texts: list[str], **options) -> list[Ids]:
    if not texts:  # the tokenizer takes an empty list for an empty text
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)
    return encoded["input_ids"]


def _bos(tokenizer: Tokenizer) -> Ids:
    """[bos] if the tokenizer puts one before a text by itself, else []."""
    bare, dressed = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and len(dressed) > len(bare) and dressed[0] == bos else []
