"""What happened to the rows of a data set: each is kept, or dropped under a name. Nothing is cut silently."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping


class DataError(ValueError):
    """Data that cannot be used. The message names the file, row or field, what was expected and the fix."""


# reason -> (what it means, what to do about it)
REASONS = {
    "missing_field": ("a field is absent, null, or neither text nor messages", "check the field names of the file"),
    "no_reply_turn": ("the dialogue has no '\\n\\nAssistant:' turn", "check that config.source fits the file"),
    "human_last": ("the dialogue ends with a human turn", "check that config.source fits the file"),
    "prompt_mismatch": ("chosen and rejected do not share the prompt", "compare replies to the same prompt"),
    "needs_chat": (
        "a prompt or reply is a list of messages, or the row has a system prompt, tools or chat_template_kwargs",
        "use template 'chat', or write them as one text",
    ),
    "bad_message": (
        "a message lacks its role or text, or has an unknown role",
        'write {"role": ..., "content": text}; roles are system, developer, user, assistant, tool and function',
    ),
    "bad_call": (
        "the arguments of a tool call are no JSON object, or the call has no name",
        'write {"function": {"name": ..., "arguments": {...}}}, the arguments as an object or as JSON text of one',
    ),
    "not_text": ("the row holds an image, a sound or a file, which no text model reads", "remove the row"),
    "not_written": (
        "the chat template leaves out a message, the tools, or words of a turn that is learnt",
        "use a template that writes them, or remove them from the row",
    ),
    "turn_weight": (
        "a turn says in a way that is not read how much it counts",
        "give assistant turns the weight 0 or 1, and none under train_on = 'all'",
    ),
    "nothing_learnt": (
        "every turn that could be learnt has the weight 0",
        "remove the row, or use train_on 'assistant'",
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
    "no_thumb": ("the label says neither up nor down", 'write true or false, 1 or 0 (or -1), or "yes" or "no"'),
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

# what is said of rows that are kept -> (what it means, what to do about it)
NOTES = {
    "added_token": (
        "a text spells a token that was added to the vocabulary, and is read as that token",
        "nothing, if it is meant: a call or a thought that is written out",
    ),
    "nulls_left_out": (
        "null keys of tools or of arguments of calls are left out: what pads a table and what was meant look the same",
        "nothing, if no argument is meant to be null",
    ),
    "prompt_repeated": (
        "the replies begin with their prompt, which is taken off",
        "nothing, if they are whole texts or dialogues",
    ),
    "prompt_echoed": (
        "the replies begin with their prompt, as those of most rows do not, and are learnt as they are",
        "take the prompt off, if these are whole texts",
    ),
    "turn_without_end": (
        "the template ends turns by no token, so that earlier turns are learnt without an end",
        "use train_on = 'completion', whose one turn gets the end of sequence, or a template that ends turns",
    ),
}


class Refused(str):
    """A key of REASONS, with what was `told` of the one row that it is about: what was found there."""

    told: str

    def __new__(cls, reason: str, told: str) -> "Refused":
        out = super().__new__(cls, reason)
        out.told = " ".join(told.split())[:200]
        return out


def meaning(reason: str, found: str = "") -> str:
    """What a reason or a note means, and what was found in the first row that it is about."""
    found = found or getattr(reason, "told", "")
    return {**REASONS, **NOTES}[reason][0] + (f" ({found})" if found else "")


@dataclasses.dataclass
class Said:
    """What the reading of one row came upon beside its tokens."""

    columns: str = ""  # the names of those that hold something
    notes: set[str] = dataclasses.field(default_factory=set)  # keys of NOTES
    unread: set[str] = dataclasses.field(default_factory=set)  # names of columns, and of keys within messages


class Counts(dict):
    """Row counts of one data set: `rows`, `kept` and `dropped_<reason>`, with rows = kept + all dropped.

    Where rows are made into others (replies into pairs), `kept` counts what was made, and a reason what it speaks of:
    "no_rating" replies, "equal_scores" pairs that are level. `noted_<note>` counts rows that are kept and of which
    something is to be said (NOTES), and `unread` lists the columns of which no token is made.
    A plain dict, so that it goes into a manifest as it is; `str()` is one line for people. Those of a mixture have
    `epochs` as well, {part: how often a run reads each of its rows}. Beside the dict, and not in a manifest: `made`,
    columns that a source made, for rewards and reports, and that are none of the file's; `found`, {reason: what was
    found in the first row that was dropped for it}; `lost`, {index of a row that an encoder dropped: reason}, and
    `parts`, {part of a mixture: its own counts}, which the source gives and no encoder hands on.
    """

    def __init__(self, rows: int = 0):
        super().__init__(rows=rows, kept=rows)
        self.made: set[str] = set()
        self.found: dict[str, str] = {}
        self.lost: dict[int, str] = {}
        self.parts: dict[str, Counts] = {}

    def __copy__(self) -> "Counts":
        out = Counts()
        out.clear()
        out.update(self)
        out.made, out.found, out.lost = {*self.made}, dict(self.found), dict(self.lost)
        return out

    def drop(self, reason: str, row: int | None = None) -> None:
        """Moves one row, of this index, from kept to dropped; `reason` is a key of REASONS (KeyError otherwise)."""
        REASONS[reason]
        self["kept"] -= 1
        self[f"dropped_{reason}"] = self.get(f"dropped_{reason}", 0) + 1
        if detail := getattr(reason, "told", ""):
            self.found.setdefault(str(reason), detail)
        if row is not None:
            self.lost[row] = reason

    def say(self, remarks: Said) -> None:
        """What was said of one row that is kept."""
        for note in remarks.notes:
            NOTES[note]
            self[f"noted_{note}"] = self.get(f"noted_{note}", 0) + 1
        self.leave(remarks.unread)

    def leave(self, unread: Iterable[str]) -> None:
        """Names columns of which no token is made."""
        if names := {*self.get("unread", ()), *unread}:
            self["unread"] = sorted(names)

    def then(self, kept: int, lost: Mapping[str, int]) -> "Counts":
        """The counts once the kept rows were made into `kept` others, and some lost; what was said before stays."""
        out = Counts.of(kept, Counter(self.dropped) + Counter(lost))
        out |= {name: value for name, value in self.items() if name.startswith("noted_") or name == "unread"}
        out.made = {*self.made}
        out.found = {str(reason): detail for reason in lost if (detail := getattr(reason, "told", ""))} | self.found
        return out

    @classmethod
    def of(cls, kept: int, dropped: Mapping[str, int]) -> "Counts":
        """The counts of that many kept rows and of those dropped for each reason."""
        counts = cls(kept + sum(dropped.values()))
        for reason, number in dropped.items():
            for _ in range(number):
                counts.drop(reason)
        return counts

    @classmethod
    def sum(cls, parts: Iterable["Counts"]) -> "Counts":
        """The counts of all the parts of a mixture."""
        out = cls()
        for one in parts:
            kept, noted = out["kept"] + one["kept"], {n: out.get(n, 0) + one[n] for n in one if n.startswith("noted_")}
            found = one.found | out.found
            out = out.then(kept, one.dropped)
            out |= noted
            out.made, out.found = out.made | one.made, found
            out.leave(one.get("unread", ()))
        return out

    @property
    def dropped(self) -> dict[str, int]:
        """{reason: rows}, the most frequent first."""
        return self._named("dropped_")

    @property
    def noted(self) -> dict[str, int]:
        """{note: rows}, the most frequent first."""
        return self._named("noted_")

    def _named(self, prefix: str) -> dict[str, int]:
        found = {name.removeprefix(prefix): n for name, n in self.items() if name.startswith(prefix)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        details = {reason: f" ({found})" for reason, found in self.found.items()}
        dropped = ", ".join(f"{n} {reason}{details.get(reason, '')}" for reason, n in self.dropped.items())
        noted = "".join(f"; {n} {note}" for note, n in self.noted.items())
        unread = f"; not among the tokens: {', '.join(self['unread'])}" if "unread" in self else ""
        epochs = "".join(f"; {name}: {times} epochs" for name, times in self.get("epochs", {}).items())
        return f"{self['rows']} rows, kept {self['kept']}, dropped {dropped or 0}{noted}{unread}{epochs}"

    def require_rows(self, what: str) -> None:
        """Raises DataError if no row is left, with the counts and a fix for each reason."""
        if self["kept"]:
            return
        why = [f"{meaning(reason, self.found.get(reason, ''))}; {REASONS[reason][1]}" for reason in self.dropped]
        lines = [f"\n  {reason}: {text}" for reason, text in zip(self.dropped, why)]
        raise DataError(f"no {what} left of the data ({self}){''.join(lines)}")
