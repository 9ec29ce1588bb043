"""Text rows to arrays of fixed shape: templates, loss masks, padding, and a count for every row that is refused.

Text rows are dicts: {"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"prompt"}, or, for demonstrations,
{"messages"} or {"text"}; other keys are allowed. A prompt and a reply are a text or a list of messages (`dialogue.py`);
`tools` and `chat_template_kwargs` go to the chat template.
"""

import copy
import itertools
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from alignax.data.arrays import Kept, pad, padded_length, row_ids, side_arrays
from alignax.data.chat import Chat
from alignax.data.counts import REASONS, Counts, DataError, Refused, Said, meaning
from alignax.data.demonstrations import check_fields, demos
from alignax.data.dialogue import Prompt, fault, prompt_of, read_rows
from alignax.data.forms import takes
from alignax.data.messages import Turns, texts
from alignax.data.reshape import Row
from alignax.data.templates import Ids, Reply, check_train_on, completion_ids, forbidden_tokens, prompt_ids
from alignax.data.tokenizer import Tokenizer, added_tokens, pad_id, spelling
from alignax.data.values import is_number


def encode_prompt(tokenizer: Tokenizer, prompt: Turns, template: str, **told: Any) -> Ids:
    """The ids that a completion follows: what the sampler is given. `told`: `tools` and `chat_template_kwargs`.

    Raises DataError for an unknown template, an empty prompt, bad messages, and control tokens in a chat.
    """
    ((row,), _) = read_rows([{"prompt": prompt} | told])
    asked = prompt_of(row)
    wrong = fault(asked, (), template, forbidden_tokens(tokenizer, template))
    ids = wrong or prompt_ids(tokenizer, [asked], template)[0] or "empty_prompt"
    return ids if isinstance(ids, list) else _refuse(ids, prompt)


def encode_completion(tokenizer: Tokenizer, prompt: Turns, completion: Turns, template: str) -> Ids:
    """The ids after `encode_prompt`'s, up to and with the one end: the tokens to learn.

    Raises DataError if the completion is empty or holds an end, if it spells control tokens in a chat, and if the
    prompt's ids are no prefix of the row's.
    """
    ((row,), _) = read_rows([{"prompt": prompt, "completion": completion}])
    asked, turns = prompt_of(row), row["completion"]
    if wrong := fault(asked, (turns,), template, forbidden_tokens(tokenizer, template)):
        return _refuse(wrong, completion)
    before = encode_prompt(tokenizer, prompt, template)
    reply = completion_ids(tokenizer, [asked], [before], [turns], template)[0]
    return reply.ids if isinstance(reply, Reply) else _refuse(reply, completion)


@takes("prompt_completion")
def demo_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    train_on: str = "completion",
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Demonstrations as arrays: tokens, valid, mask [N T], padded on the right, and row [N], the index into `rows`.

    Rows are {"prompt", "completion"}; of preference pairs, demonstrations of the chosen reply; {"messages"}, a dialogue
    that the assistant ends; or {"text"}: the first of these that is there, as in `forms`. `mask` is what `train_on`
    names:

    - "completion": the completion with its end; of messages the last turn. Tool turns within a completion are left out;
    - "assistant": every assistant turn of the dialogue, each with its end, those of the prompt included;
    - "all": every token but the first, which nothing predicts.

    A turn of the weight 0 (`messages.py`) is in no mask; a row that has one cannot be learnt whole.

    T is the longest row rounded up to a multiple of 8, at most `max_length` tokens; `pad_to` fixes it. `counts` of the
    source go on here. Raises DataError if a field is missing in all rows, if no row is left, and if `train_on` does not
    fit the rows or the template.
    """
    rows, remarks = read_rows(rows)
    check_train_on(tokenizer, train_on, template)
    kept, counts = encode_texts(demos(rows, template, train_on), tokenizer, template, max_length, counts, remarks)
    counts.require_rows("demonstration")
    length = padded_length([len(prompt) + len(side.ids) for _, prompt, (side,) in kept], max_length, pad_to)
    batch = side_arrays([(prompt, side) for _, prompt, (side,) in kept], length, pad_id(tokenizer))
    if train_on == "all":
        batch["mask"] = batch["valid"] & (np.arange(length)[None] > 0)
    return batch | {"row": row_ids(kept)}, counts


@takes("preference")
def pair_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Preference pairs as arrays: chosen and rejected, each {tokens, valid, mask} [N T] of one T, and row [N].

    A pair is refused as a whole, if either side is. Where the rows say them: margin [N], by how much the chosen reply
    is better, and tie [N], whether the annotator could not decide; not where a whole part of a mixture lacks them.
    Otherwise as `demo_rows`; raises DataError as well for a margin that is no finite number, for a tie that is neither
    true nor false, and where some rows of a data set have one of them and others do not.
    """
    rows, remarks = read_rows(rows)
    fields = ("prompt", "chosen", "rejected")
    kept, counts = encode_fields(rows, fields, tokenizer, template, max_length, counts, remarks)
    counts.require_rows("preference pair")
    lengths = [len(prompt) + len(side.ids) for _, prompt, sides in kept for side in sides]
    length = padded_length(lengths, max_length, pad_to)
    fill = pad_id(tokenizer)
    chosen, rejected = (side_arrays([(prompt, sides[k]) for _, prompt, sides in kept], length, fill) for k in (0, 1))
    verdicts = _verdicts([rows[row] for row, _, _ in kept])
    return {"chosen": chosen, "rejected": rejected, "row": row_ids(kept)} | verdicts, counts


def _verdicts(rows: list[Row]) -> dict[str, np.ndarray]:
    """The margins and ties of pairs, where every row has them; those of some rows alone are refused."""
    out = {}
    kinds = (
        ("margin", np.float32, is_number, "a finite number"),
        ("tie", np.bool_, lambda value: isinstance(value, bool), "true or false"),
    )
    for name, dtype, fits, expected in kinds:
        if _all_have(rows, name):
            for row in rows:
                if not fits(row[name]):
                    raise DataError(
                        f"field {name!r} = {row[name]!r} of the pair {str(row['prompt'])[:80]!r}: expected {expected}"
                    )
            out[name] = np.array([row[name] for row in rows], dtype)
    return out


def _all_have(rows: list[Row], name: str) -> bool:
    """Whether all pairs have the field; raises DataError where some of a data set, or of a mixture's part, do."""
    having: dict[str, list[bool]] = {}
    for row in rows:
        having.setdefault(str(row.get("part", "")), []).append(row.get(name) is not None)
    for part, have in having.items():
        if any(have) and not all(have):
            whose = f" of the part {part!r}" if part else ""
            raise DataError(
                f"field {name!r}: {sum(have)} of {len(have)} pairs{whose} have it and {len(have) - sum(have)} do not; "
                "expected it in all of them or in none: fill it in, or remove it"
            )
    return all(all(have) for have in having.values())


@takes("prompt_only")
def prompt_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_prompt_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Prompts for the sampler as arrays: tokens, valid [N T], padded on the LEFT, and row [N]; see `demo_rows`."""
    rows, remarks = read_rows(rows)
    kept, counts = encode_fields(rows, ("prompt",), tokenizer, template, max_prompt_length, counts, remarks)
    counts.require_rows("prompt")
    prompts = [prompt for _, prompt, _ in kept]
    length = padded_length([len(prompt) for prompt in prompts], max_prompt_length, pad_to)
    tokens_BT, valid_BT = pad(prompts, length, pad_id(tokenizer), left=True)
    return {"tokens": tokens_BT, "valid": valid_BT, "row": row_ids(kept)}, counts


def encode_fields(
    rows: list[Row], fields: tuple[str, ...], tokenizer: Tokenizer, template: str, limit: int, counts: Counts | None,
    remarks: list[Said],
) -> tuple[list[Kept], Counts]:  # fmt: skip
    """`encode_texts` of the named fields of the rows: the prompt, then its replies."""
    check_fields(rows, dict.fromkeys(fields, "text"))
    dialogues = [(prompt_of(row), *map(row.get, fields[1:])) for row in rows]
    return encode_texts(dialogues, tokenizer, template, limit, counts, remarks)


def encode_texts(
    dialogues: list[tuple], tokenizer: Tokenizer, template: str, limit: int, counts: Counts | None, remarks: list[Said]
) -> tuple[list[Kept], Counts]:
    """[(row index, prompt ids, [reply, ...])] of the good rows, and the counts with the others.

    `dialogues` holds per row its `Prompt` and its replies, as many as there are, and `remarks` what `read_rows` came
    upon. A row is refused as a whole.
    """
    forbidden = forbidden_tokens(tokenizer, template)
    counts = Counts(len(dialogues)) if counts is None else copy.copy(counts)
    if counts["kept"] != len(dialogues):
        raise DataError(
            f"the source's counts say {counts['kept']} rows, but there are {len(dialogues)}: pass all, or no counts"
        )
    faults = [fault(prompt, replies, template, forbidden) for prompt, *replies in dialogues]
    faults = [
        Refused(wrong, f"found {one.columns}") if wrong == "missing_field" and not isinstance(wrong, Refused) else wrong
        for wrong, one in zip(faults, remarks, strict=True)
    ]
    good = [row for row, wrong in enumerate(faults) if wrong is None]
    prompts = dict(zip(good, prompt_ids(tokenizer, [dialogues[row][0] for row in good], template), strict=True))
    faults = [found if isinstance(found := prompts.get(row), str) else faults[row] for row in range(len(dialogues))]
    asked = {row: ids for row, ids in prompts.items() if not isinstance(ids, str)}
    # the replies of all rows go through the tokenizer in one call, since it works on many texts at once
    owners = [row for row in asked for _ in dialogues[row][1:]]
    questions, before = [dialogues[row][0] for row in owners], [asked[row] for row in owners]
    unencoded = [one for row in asked for one in dialogues[row][1:]]
    replies = iter(completion_ids(tokenizer, questions, before, unencoded, template))
    kept = []
    for row, ids in asked.items():
        sides = list(itertools.islice(replies, len(dialogues[row]) - 1))
        if (wrong := _token_fault(dialogues[row][0], ids, sides, limit)) is None:
            kept.append((row, ids, sides))
        else:
            faults[row] = wrong
    for row, wrong in enumerate(faults):
        if wrong:
            counts.drop(wrong, row)
    remark(kept, dialogues, remarks, tokenizer, template, counts)
    return kept, counts


def remark(
    kept: list[Kept], dialogues: list[tuple], remarks: list[Said], tokenizer: Tokenizer, template: str, counts: Counts
) -> None:
    """Puts into the counts what is to be said of the rows that are kept: what no token was made of, and what is read
    otherwise than it seems to stand there."""
    spelt = spelling(tokenizer, added_tokens(tokenizer))
    chat = Chat(tokenizer) if template == "chat" else None
    for row, _, sides in kept:
        prompt, *replies = dialogues[row]
        asked = [] if prompt.whole else [prompt.said]
        turns = [one for words in (*asked, *replies) if isinstance(words, list) for one in words]
        if chat:
            remarks[row].unread |= chat.unread(turns, prompt.options)
        if any(map(spelt, texts([asked, replies, prompt.options]))):
            remarks[row].notes.add("added_token")
        if not all(side.ends for side in sides if isinstance(side, Reply)):
            remarks[row].notes.add("turn_without_end")
        counts.say(remarks[row])


def _token_fault(asked: Prompt, prompt: Ids, sides: list[Reply | str], limit: int) -> str | None:
    """Why the tokens of a row cannot be used: a key of REASONS, or None."""
    if not prompt and not asked.whole:
        return "empty_prompt"
    if len(prompt) >= limit and (sides or len(prompt) > limit):
        return "prompt_fills_context" if sides else "prompt_too_long"
    replies = [side for side in sides if isinstance(side, Reply)]
    if len(replies) < len(sides):
        return next(side for side in sides if isinstance(side, str))
    if len({tuple(reply.ids) for reply in replies}) < len(replies):
        return "identical_replies"
    return "too_long" if any(len(prompt) + len(reply.ids) > limit for reply in replies) else None


def _refuse(reason: str, turns: Turns) -> NoReturn:
    raise DataError(f"{reason}: {meaning(reason)}, in {str(turns)[:80]!r}; {REASONS[reason][1]}")
