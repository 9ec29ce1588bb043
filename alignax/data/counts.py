"""What happened to the rows of a data set: each is kept, or dropped under a name. Nothing is cut silently."""

from collections.abc import Mapping


class DataError(ValueError):
    """Data that cannot be used. The message names the file, row or field, what was expected and the fix."""


# reason -> (what it means, what to do about it)
REASONS = {
    "missing_field": ("a field is absent, null, or neither text nor messages", "check the field names of the file"),
    "no_reply_turn": ("the dialogue has no '\\n\\nAssistant:' turn", "check that config.source fits the file"),
    "human_last": ("the dialogue ends with a human turn", "check that config.source fits the file"),
    "prompt_mismatch": ("chosen and rejected do not share the prompt", "compare replies to the same prompt"),
    "needs_chat": (
        "a prompt or reply is a list of messages, or the row has tools or chat_template_kwargs",
        "use template 'chat', or write them as one text",
    ),
    "bad_message": (
        "a message lacks its role or text, or has an unknown role",
        'write {"role": ..., "content": text}; roles are system, developer, user, assistant, tool and function',
    ),
    "bad_turns": (
        "the assistant has the last word in a prompt, or lacks the first or last one in a reply or the last one in a "
        "dialogue, or opens a dialogue under a template without an assistant marker",
        "open dialogues with a user turn, end prompts with one or a tool turn, and the rest with an assistant turn",
    ),
    "template_refused": (
        "the chat template refuses these turns",
        "change the dialogue or the template: some take no system turn, or no two turns of one role in a row",
    ),
    "rewritten_turns": (
        "the chat template writes an earlier turn in another way once others follow",
        "mark the assistant's words by {% generation %} in the template, or train on the last turn only",
    ),
    "unmarked_turns": (
        "the template's {% generation %} marks do not hold one stretch for each assistant turn",
        "mark each assistant turn once, whatever it holds",
    ),
    "special_token": ("the text spells a control token of the tokenizer", "clean the text, or use template 'plain'"),
    "empty_prompt": ("the prompt has no tokens", "give every row a prompt, or use template 'chat'"),
    "empty_reply": ("a reply is empty or white space", "remove the row, or write the reply"),
    "identical_replies": ("two replies have the same tokens", "a pair needs two different replies"),
    "too_few_replies": ("a ranking has fewer than two replies", "rank two or more replies to a prompt"),
    "no_rating": (
        "no attribute of the reply is rated, or it has no score where another reply to the prompt has one",
        "rate it, or remove the row",
    ),
    "equal_scores": ("judged replies to a prompt score the same", "none is better: judge again, or remove the row"),
    "level_reply": ("another reply of the ranking is as good, and came first", "a ranking has no ties: judge again"),
    "worse_reply": (
        "a better reply to the prompt is the demonstration",
        "nothing, if one per prompt is what is wanted",
    ),
    "repeated_prompt": ("another row has the prompt", "nothing, if each prompt once is what is wanted"),
    "undesirable": ("a thumb down is no demonstration", "nothing, if the replies with a thumb up are what is wanted"),
    "step_not_prefix": (
        "the tokens up to the end of a step are no prefix of the whole row's",
        "end steps where tokens end: white space begins the next step and does not end this one",
    ),
    "added_space": (
        "the tokenizer puts a space before every text, and merges the reply's beginning with whatever stands before it",
        "begin the reply with white space, or use template 'chat'",
    ),
    "not_prefix": ("the prompt's tokens are no prefix of the whole row's", "mend the chat template, or use 'plain'"),
    "eos_inside": ("the end-of-sequence id is inside the reply", "clean the text, or give unk another id than eos"),
    "prompt_fills_context": ("the prompt leaves no room for a reply", "raise max_length"),
    "prompt_too_long": ("the prompt is longer than max_prompt_length", "raise max_prompt_length"),
    "too_long": ("prompt and reply are longer than max_length", "raise max_length"),
}


class Refused(str):
    """A key of REASONS, with what was `told` of the one row that it is about: the chat template's own words."""

    told: str

    def __new__(cls, reason: str, told: str) -> "Refused":
        out = super().__new__(cls, reason)
        out.told = " ".join(told.split())[:200]
        return out


def meaning(reason: str) -> str:
    """What a reason means, and what was told of the row."""
    return REASONS[reason][0] + (f" ({reason.told})" if isinstance(reason, Refused) and reason.told else "")


class Counts(dict):
    """Row counts of one data set: `rows`, `kept` and `dropped_<reason>`, with rows = kept + all dropped.

    Where rows are made into others (replies into pairs), `kept` counts what was made, and a reason what it speaks of:
    "no_rating" replies, "equal_scores" pairs that are level.
    A plain dict of ints, so that it goes into a manifest as it is; `str()` is one line for people. Those of a mixture
    have `epochs` as well, {part: how often a run reads each of its rows}. Beside the dict, and neither in a manifest
    nor in the cache: `lost`, {index of a row that an encoder dropped: reason}, and `parts`, {part of a mixture: its own
    counts}, which the source gives and no encoder hands on.
    """

    def __init__(self, rows: int = 0):
        super().__init__(rows=rows, kept=rows)
        self.lost: dict[int, str] = {}
        self.parts: dict[str, Counts] = {}

    def __copy__(self) -> "Counts":
        out = Counts()
        out.clear()
        out.update(self)
        out.lost = dict(self.lost)
        return out

    def drop(self, reason: str, row: int | None = None) -> None:
        """Moves one row, of this index, from kept to dropped; `reason` is a key of REASONS (KeyError otherwise)."""
        REASONS[reason]
        self["kept"] -= 1
        self[f"dropped_{reason}"] = self.get(f"dropped_{reason}", 0) + 1
        if row is not None:
            self.lost[row] = reason

    @classmethod
    def of(cls, kept: int, dropped: Mapping[str, int]) -> "Counts":
        """The counts of that many kept rows and of those dropped for each reason."""
        counts = cls(kept + sum(dropped.values()))
        for reason, number in dropped.items():
            for _ in range(number):
                counts.drop(reason)
        return counts

    @property
    def dropped(self) -> dict[str, int]:
        """{reason: rows}, the most frequent first."""
        reasons = {name.removeprefix("dropped_"): n for name, n in self.items() if name.startswith("dropped_")}
        return dict(sorted(reasons.items(), key=lambda item: -item[1]))

    def first(self, reason: str) -> str:
        """The reason as it was given for the first row that an encoder dropped for it."""
        return next((why for why in self.lost.values() if why == reason), reason)

    def __str__(self) -> str:
        dropped = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items())
        epochs = "".join(f"; {name}: {times} epochs" for name, times in self.get("epochs", {}).items())
        return f"{self['rows']} rows, kept {self['kept']}, dropped {dropped or 0}{epochs}"

    def require_rows(self, what: str) -> None:
        """Raises DataError if no row is left, with the counts and a fix for each reason."""
        if self["kept"]:
            return
        lines = [f"\n  {reason}: {meaning(self.first(reason))}; {REASONS[reason][1]}" for reason in self.dropped]
        raise DataError(f"no {what} left of the data ({self}){''.join(lines)}")
