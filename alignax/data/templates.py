"""Templates: how prompt and completion become token ids.

Two templates turn a row into tokens, and both give it the same layout, [prompt ids | completion ids], where the
completion ends with exactly one end, of the sequence or of the turn:

- "plain": the prompt, preceded by the beginning of sequence if the tokenizer adds one by itself, then the completion,
  then the end of sequence. Prompt and completion are tokenised apart and their ids concatenated. So the prompt is a
  token prefix by construction, and training sees what the sampler produces: ids after the fixed ids of the prompt.
  A text tokenised whole could merge across the boundary into a token that no sampler can reach. A space that the
  tokenizer puts before every text is kept out of the boundary (`boundary.py`). Control tokens that the text spells are
  read as ordinary characters.
- "chat": the tokenizer's chat template. A text is one turn, the prompt the user's and the completion the assistant's;
  lists of messages are what they are (`dialogue.py`). Here the template decides where the assistant begins to speak and
  by which token its turn ends, so the prefix is checked. Only the template writes control tokens, the beginning of
  sequence among them: text that spells one is refused, as it would forge turns or ends. What the template writes after
  the end of the last turn is left out, since no sampler gets there.

These functions work on whole lists, which the tokenizer encodes in parallel; a row that cannot be encoded comes back as
the reason, a key of `counts.REASONS`. `encode.py` has the same for one row, and the arrays.
"""

import itertools
from typing import NamedTuple

import jinja2

from alignax.data.boundary import Ids, continued, tokenize
from alignax.data.counts import DataError, Refused
from alignax.data.dialogue import Prompt, Said, Span, check_turns, end_of_turn, messages_of, render, turns
from alignax.data.tokenizer import Tokenizer, control_tokens, eos_id, eos_ids, told_stops

TEMPLATES = ("plain", "chat")
TRAIN_ON = ("completion", "assistant", "all")


class Reply(NamedTuple):
    """The ids after a prompt, and which of them the policy says: all, but for tool and user turns within a reply."""

    ids: Ids
    mask: list[bool]


def prompt_ids(tokenizer: Tokenizer, prompts: list[Prompt], template: str) -> list[Ids | str]:
    """Per prompt the ids that a completion follows, or the reason why there are none."""
    bos = _bos(tokenizer) if template == "plain" else []
    if template == "plain":
        told = [prompt.said for prompt in prompts]
        return [bos + ids for ids in tokenize(tokenizer, told, split_special_tokens=True)]
    texts = [_asked(tokenizer, prompt) for prompt in prompts]
    ids = iter(tokenize(tokenizer, [text for text in texts if not isinstance(text, Refused)]))
    return [text if isinstance(text, Refused) else next(ids) for text in texts]


def completion_ids(
    tokenizer: Tokenizer, prompts: list[Prompt], prefixes: list[Ids], completions: list[Said], template: str
) -> list[Reply | str]:
    """Per row what follows its prefix (the prompt's ids), or the reason why there is nothing."""
    if template == "plain":
        eos, begins = eos_id(tokenizer), [not prompt.said for prompt in prompts]
        bodies = continued(tokenizer, completions, begins)  # pyright: ignore[reportArgumentType]  # `fault`: texts
        return [ids if isinstance(ids, str) else _checked([*ids, eos], [0, len(ids) + 1], {eos}) for ids in bodies]
    ends, stops = end_texts(tokenizer), stop_ids(tokenizer, template)
    found = [turns(tokenizer, prompt, reply, ends) for prompt, reply in zip(prompts, completions, strict=True)]
    closed = {i: _close(*one, ends) for i, one in enumerate(found) if not isinstance(one, str)}
    ids = dict(zip(closed, tokenize(tokenizer, [text for text, _ in closed.values()]), strict=True))
    cuts = {i: _cuts(spans, prompts[i]) for i, (_, spans) in closed.items()}
    starts = iter(tokenize(tokenizer, [closed[i][0][:cut] for i in cuts for cut in cuts[i]]))
    parts = {i: [*itertools.islice(starts, len(cuts[i]))] for i in cuts}
    return [
        one
        if isinstance(one, str)
        else _split(ids[i], prefix, parts[i] if prompts[i].whole else [prefix, *parts[i]], stops)
        for i, (one, prefix) in enumerate(zip(found, prefixes, strict=True))
    ]


def forbidden_tokens(tokenizer: Tokenizer, template: str) -> tuple[str, ...]:
    """The control tokens that a text may not spell under this template; also checks that the template can be used."""
    if template not in TEMPLATES:
        raise DataError(f"template = {template!r}: expected one of {', '.join(TEMPLATES)}")
    if template == "chat" and not tokenizer.chat_template:
        raise DataError("template = 'chat', but the tokenizer has no chat template: use template 'plain', or set one")
    return tuple({*control_tokens(tokenizer), *end_texts(tokenizer)}) if template == "chat" else ()


def check_train_on(tokenizer: Tokenizer, train_on: str, template: str) -> None:
    """Raises DataError for an unknown `train_on`, and where no assistant turns can be found to train on."""
    if train_on not in TRAIN_ON:
        raise DataError(f"train_on = {train_on!r}: expected one of {', '.join(TRAIN_ON)}")
    if train_on == "assistant":
        if template != "chat":
            raise DataError(f"train_on = 'assistant' with template {template!r}: turns need template 'chat'")
        check_turns(tokenizer, end_texts(tokenizer))


def end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What ends the assistant's words in a chat, as text: the template's own token, if any, and the tokenizer's."""
    eos_id(tokenizer)  # raises if there is none
    return tuple(dict.fromkeys(filter(None, (end_of_turn(tokenizer), tokenizer.eos_token))))


def stop_ids(tokenizer: Tokenizer, template: str) -> frozenset[int]:
    """The ids that end a reply in training and stop the sampler: `eos_ids`, and in a chat the template's end of turn.

    The two may differ: Gemma's turns end with <end_of_turn>, its texts with <eos>. An imported checkpoint may have
    named more (`told_stops`).
    """
    told = told_stops(tokenizer)
    if template != "chat":
        return eos_ids(tokenizer, told)
    return eos_ids(tokenizer, (*told, *(tokenizer.convert_tokens_to_ids(end) for end in end_texts(tokenizer))))


def _asked(tokenizer: Tokenizer, prompt: Prompt) -> str | Refused:
    """The text of a prompt, "" where nothing is asked; or that the template refuses it."""
    try:
        return "" if prompt.whole else render(tokenizer, messages_of(prompt.said, "user"), prompt.options, ask=True)
    except jinja2.TemplateError as error:
        return Refused("template_refused", str(error))


def _close(text: str, spans: list[Span], ends: tuple[str, ...]) -> tuple[str, list[Span]]:
    """The text up to the end of the last turn, which gets one if the template writes none."""
    text = text[: spans[-1][1]]
    text = text if text.endswith(ends) else text + ends[-1]
    return text, [*spans[:-1], (spans[-1][0], len(text))]


def _cuts(spans: list[Span], prompt: Prompt) -> list[int]:
    """The offsets whose tokens have to be found: not that of the end, nor of the start where the prompt's are known."""
    return list(itertools.chain(*spans))[0 if prompt.whole else 1 : -1]


def _split(ids: Ids, prefix: Ids, parts: list[Ids], stops: frozenset[int]) -> Reply | str:
    """The reply of a row. `parts`: the ids up to where each turn begins or ends, which must be how the row begins.

    Checked by tokenising, since a tokenizer that trims white space reports offsets that hide a merge over a boundary.
    """
    if any(ids[: len(part)] != part for part in parts):
        return "not_prefix"
    return _checked(ids[len(prefix) :], [len(part) - len(prefix) for part in [*parts, ids]], stops)


def _checked(ids: Ids, cuts: list[int], stops: frozenset[int] | set[int]) -> Reply | str:
    """The reply whose turns lie between pairs of `cuts`; refused if one holds an end (unk?) or the last is empty."""
    spans = list(zip(cuts[::2], cuts[1::2], strict=True))
    if any(token in stops for start, stop in spans for token in ids[start : stop - 1]):
        return "eos_inside"
    if spans[-1][1] - spans[-1][0] < 2:
        return "empty_reply"
    mask = [False] * len(ids)
    for start, stop in spans:
        mask[start:stop] = [True] * (stop - start)
    return Reply(ids, mask)


def _bos(tokenizer: Tokenizer) -> Ids:
    """[bos] if the tokenizer puts one before a text by itself, else []."""
    bare, dressed = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and len(dressed) > len(bare) and dressed[0] == bos else []
