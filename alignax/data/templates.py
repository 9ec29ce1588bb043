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
import re
from collections.abc import Callable
from typing import NamedTuple

from alignax.data.boundary import Ids, continued, tokenize
from alignax.data.chat import Chat, Turn, check_turns
from alignax.data.counts import DataError, Refused
from alignax.data.dialogue import Prompt
from alignax.data.messages import Turns
from alignax.data.rendering import end_texts
from alignax.data.tokenizer import Tokenizer, control_tokens, eos_id, eos_ids, left_beyond, spelling, told_stops

TEMPLATES = ("plain", "chat")
TRAIN_ON = ("completion", "assistant", "all")


class Reply(NamedTuple):
    """The ids after a prompt, and which of them the policy says: all, but for tool and user turns within a reply, and
    for turns that are not to be learnt; `ends`: each turn that is learnt ends, as far as the template can tell."""

    ids: Ids
    mask: list[bool]
    ends: bool = True


def prompt_ids(tokenizer: Tokenizer, prompts: list[Prompt], template: str) -> list[Ids | str]:
    """Per prompt the ids that a completion follows, or the reason why there are none."""
    forged = _forgery(tokenizer, template)
    if template == "plain":
        bos, asked = _bos(tokenizer), [prompt.said for prompt in prompts]
        found = tokenize(tokenizer, asked, split_special_tokens=True)
        return ["special_token" if forged(ids, "") else bos + ids for ids in found]
    chat = Chat(tokenizer)
    texts = [chat.asked(prompt) for prompt in prompts]
    found = iter(tokenize(tokenizer, [text for text in texts if not isinstance(text, Refused)]))
    return [
        text if isinstance(text, Refused) else "special_token" if forged(ids := next(found), text) else ids
        for text in texts
    ]


def completion_ids(
    tokenizer: Tokenizer, prompts: list[Prompt], prefixes: list[Ids], completions: list[Turns], template: str
) -> list[Reply | str]:
    """Per row what follows its prefix (the prompt's ids), or the reason why there is nothing."""
    forged = _forgery(tokenizer, template)
    if template == "plain":
        eos, begins = eos_id(tokenizer), [not prompt.said for prompt in prompts]
        bodies = continued(tokenizer, completions, begins)  # pyright: ignore[reportArgumentType]  # `fault`: texts
        return [
            ids if isinstance(ids, str) else _checked([*ids, eos], [0, len(ids) + 1], [True], {eos}, forged(ids, ""))
            for ids in bodies
        ]
    chat, stops = Chat(tokenizer), stop_ids(tokenizer, template)
    found = [chat.turns(prompt, reply) for prompt, reply in zip(prompts, completions, strict=True)]
    closed = {i: _close(*one, chat.ends) for i, one in enumerate(found) if not isinstance(one, str)}
    ids = dict(zip(closed, tokenize(tokenizer, [text for text, _ in closed.values()]), strict=True))
    cuts = {i: _cuts(turns, prompts[i]) for i, (_, turns) in closed.items()}
    starts = iter(tokenize(tokenizer, [closed[i][0][:cut] for i in cuts for cut in cuts[i]]))
    parts = {i: [*itertools.islice(starts, len(cuts[i]))] for i in cuts}
    return [
        one
        if isinstance(one, str)
        else _split(
            ids[i],
            prefix,
            parts[i] if prompts[i].whole else [prefix, *parts[i]],
            closed[i][1],
            stops,
            forged(ids[i], closed[i][0]),
        )  # fmt: skip
        for i, (one, prefix) in enumerate(zip(found, prefixes, strict=True))
    ]


def forbidden_tokens(tokenizer: Tokenizer, template: str) -> Callable[[str], bool]:
    """Whether a text spells a control token, which it may not under this template; also checks that the template can
    be used."""
    if template not in TEMPLATES:
        raise DataError(f"template = {template!r}: expected one of {', '.join(TEMPLATES)}")
    if template == "chat" and not tokenizer.chat_template:
        raise DataError("template = 'chat', but the tokenizer has no chat template: use template 'plain', or set one")
    tokens = {*control_tokens(tokenizer), *end_texts(tokenizer)} if template == "chat" else left_beyond(tokenizer)
    return spelling(tokenizer, tokens)


def check_train_on(tokenizer: Tokenizer, train_on: str, template: str) -> None:
    """Raises DataError for an unknown `train_on`, and where no assistant turns can be found to train on."""
    if train_on not in TRAIN_ON:
        raise DataError(f"train_on = {train_on!r}: expected one of {', '.join(TRAIN_ON)}")
    if train_on == "assistant":
        if template != "chat":
            raise DataError(f"train_on = 'assistant' with template {template!r}: turns need template 'chat'")
        check_turns(tokenizer)


def stop_ids(tokenizer: Tokenizer, template: str) -> frozenset[int]:
    """The ids that end a reply in training and stop the sampler: `eos_ids`, and in a chat the template's end of turn.

    The two may differ: Gemma's turns end with <end_of_turn>, its texts with <eos>. An imported checkpoint may have
    named more (`told_stops`).
    """
    extra = told_stops(tokenizer)
    if template != "chat":
        return eos_ids(tokenizer, extra)
    return eos_ids(tokenizer, (*extra, *(tokenizer.convert_tokens_to_ids(end) for end in end_texts(tokenizer))))


def _close(text: str, turns: list[Turn], ends: tuple[str, ...]) -> tuple[str, list[Turn]]:
    """The text up to the end of the last turn, which gets one if the template writes none."""
    *others, last = turns
    text = text[: last.stop] if last.closed else text[: last.stop] + ends[-1]
    return text, [*others, last._replace(stop=len(text), closed=True)]


def _cuts(turns: list[Turn], prompt: Prompt) -> list[int]:
    """The offsets whose tokens have to be found: not that of the end, nor of the start where the prompt's are known."""
    return [at for turn in turns for at in turn[:2]][0 if prompt.whole else 1 : -1]


def _split(
    ids: Ids, prefix: Ids, parts: list[Ids], turns: list[Turn], stops: frozenset[int], forged: bool
) -> Reply | str:
    """The reply of a row. `parts`: the ids up to where each turn begins or ends, which must be how the row begins.

    Checked by tokenising, since a tokenizer that trims white space reports offsets that hide a merge over a boundary.
    """
    if any(ids[: len(part)] != part for part in parts):
        return "not_prefix"
    cuts = [len(part) - len(prefix) for part in [*parts, ids]]
    reply = _checked(ids[len(prefix) :], cuts, [turn.learnt for turn in turns], stops, forged)
    ends = all(turn.closed for turn in turns if turn.learnt)
    return reply if isinstance(reply, str) or ends else reply._replace(ends=False)


def _checked(
    ids: Ids, cuts: list[int], learnt: list[bool], stops: frozenset[int] | set[int], forged: bool
) -> Reply | str:
    """The reply whose turns lie between pairs of `cuts`; refused if one holds an end (unk?), if the last is empty, if
    none is learnt, and if the text was `forged`."""
    spans = list(zip(cuts[::2], cuts[1::2], strict=True))
    if any(token in stops for start, stop in spans for token in ids[start : stop - 1]):
        return "eos_inside"
    if spans[-1][1] - spans[-1][0] < 2:
        return "empty_reply"
    if forged:
        return "special_token"
    mask = [False] * len(ids)
    for (start, stop), counts in zip(spans, learnt, strict=True):
        mask[start:stop] = [counts] * (stop - start)
    return Reply(ids, mask) if any(mask) else "nothing_learnt"


def _forgery(tokenizer: Tokenizer, template: str) -> Callable[[Ids, str], bool]:
    """Whether ids hold more control tokens than their text spells, none of which it may hold under "plain": words may
    become one in the tokenizer's own normalisation, or be one in its vocabulary. The unknown token is no such."""
    tokens = control_tokens(tokenizer)
    ids = {i for i in map(tokenizer.convert_tokens_to_ids, tokens) if i not in (None, tokenizer.unk_token_id)}
    spelt = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None
    count = lambda text: len(spelt.findall(text)) if spelt and template == "chat" else 0  # noqa: E731
    return lambda found, text: (n := sum(map(ids.__contains__, found))) > 0 and n > count(text)


def _bos(tokenizer: Tokenizer) -> Ids:
    """[bos] if the tokenizer puts one before a text by itself, else []."""
    bare, dressed = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and len(dressed) > len(bare) and dressed[0] == bos else []
