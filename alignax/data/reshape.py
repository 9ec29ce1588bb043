"""Rows from rows: each function here makes one form of a row from another, or says why it cannot; see `forms.py`."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from alignax.data.counts import Refused
from alignax.data.messages import role
from alignax.data.transcripts import has_turns, split_last
from alignax.data.values import is_number

Row = dict[str, Any]
# what a row, or the rows of a prompt, become: one row, or the reason (a key of REASONS) why none; or several of these
Made = Row | str | list[Row | str] | list[str]
JUDGED = ("completion", "ratings", "score")  # what a rated reply has beside its prompt
ANSWERED = (*JUDGED, "label", "steps", "verdicts")  # what any judged reply has


# ---- one layout for each form


def split_shared(row: Row) -> Made:
    """An implicit preference, `chosen` and `rejected` whole, with the prompt that they share, which ends as late as can
    be; nothing of either is lost.

    Dialogues part at the first message that differs, which must be the assistant's in both, and dialogues that are one
    text each behind the last "\n\nAssistant:". Other texts part where a run of white space begins, which goes to the
    replies, so that no word is cut and neither reply is empty.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        cut = _shared_messages(chosen, rejected)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        if has_turns(chosen) and has_turns(rejected):
            found = split_last("", [chosen, rejected])
            return found if isinstance(found, str) else row | _pair(*found)
        cut = shared_text(chosen, rejected)
    else:
        return "missing_field"
    if not cut:
        return "prompt_mismatch"
    return row | {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _pair(prompt: str, replies: list[str]) -> Row:
    return {"prompt": prompt, "chosen": replies[0], "rejected": replies[1]}


def ranked(row: Row) -> Made:
    """`completions` with `scores` (most is best) or `ranks` (1 is best) as `replies`, best first.

    A ranking has no ties: of completions that are level the first is kept, and each other one counted.
    """
    judged = row.get("scores", row.get("ranks"))
    completions = row.get("completions")
    if not isinstance(completions, list) or not isinstance(judged, list) or len(completions) != len(judged):
        return "missing_field"
    if not all(map(is_number, judged)):
        return "no_rating"
    level: dict[float, Any] = {}
    for reply, value in zip(completions, judged):
        level.setdefault(value, reply)
    if len(level) < 2:
        return "equal_scores" if len(completions) > 1 else "too_few_replies"
    replies = [level[value] for value in sorted(level, reverse="scores" in row)]
    one = without(row, "completions", "scores", "ranks") | {"replies": replies}
    return [one, *["level_reply"] * (len(completions) - len(level))]


def stepwise(row: Row) -> Made:
    """TRL's stepwise supervision; the line break by which it joins steps begins the next one here."""
    steps = row.get("completions")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return "missing_field"
    joined = [step if i == 0 else "\n" + step for i, step in enumerate(steps)]
    return without(row, "completions", "labels") | {"steps": joined, "verdicts": row.get("labels")}


# ---- one form from another, row by row


def prompt_of(row: Row) -> Made:
    """The row with a prompt: its own, or its dialogue without the assistant's turn at the end, if it has one."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return row
    spoken = [i for i, message in enumerate(messages) if role(message) == "assistant"]
    ends = bool(spoken) and spoken[-1] == len(messages) - 1
    prompt = messages[: spoken[-1]] if ends else messages
    return without(row, "messages") | {"prompt": prompt} if prompt else "empty_prompt"


def chosen_only(row: Row) -> Made:
    """A preference as a demonstration of the chosen reply; a tie has none."""
    if row.get("tie"):
        return Refused("equal_scores", "a tie")
    return without(row, "chosen", "rejected") | {"completion": row.get("chosen")}


def best_only(row: Row) -> Made:
    """A ranking as a demonstration of the best reply."""
    replies = row.get("replies")
    return (
        without(row, "replies") | {"completion": replies[0]}
        if replies and isinstance(replies, list)
        else "missing_field"
    )


def liked_only(row: Row) -> Made:
    """A reply with a thumb up as a demonstration; one with a thumb down is none."""
    if not isinstance(row.get("label"), bool):
        return "missing_field"
    return without(row, "label") if row["label"] else "undesirable"


def both_thumbs(row: Row) -> list[Row | str]:
    """A preference as two replies with a thumb: up for the chosen one, down for the rejected one; a tie has neither."""
    if row.get("tie"):
        return [Refused("equal_scores", "a tie")]
    rest = without(row, "chosen", "rejected")
    return [rest | {"completion": row.get(name), "label": name == "chosen"} for name in ("chosen", "rejected")]


def pairs(row: Row) -> Made:
    """All K (K - 1) / 2 pairs of a ranking of K replies (Ouyang et al. 2022, 2203.02155, section 3.5)."""
    replies = row.get("replies")
    if not isinstance(replies, list):
        return "missing_field"
    if len(replies) < 2:
        return "too_few_replies"
    rest = without(row, "replies")
    return [rest | {"chosen": better, "rejected": worse} for better, worse in itertools.combinations(replies, 2)]


def ranking_of_two(row: Row) -> Made:
    """A preference as a ranking of two replies; a tie is none."""
    if row.get("tie"):
        return Refused("equal_scores", "a tie")
    return without(row, "chosen", "rejected") | {"replies": [row.get("chosen"), row.get("rejected")]}


# ---- the judged replies to one prompt together: what each gives, and the reason for each that gives nothing


def by_prompt(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each prompt, in the order of its first one; of one prompt are those that tell a template the same."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        options = [row[name] for name in ("tools", "chat_template_kwargs") if row.get(name)]
        groups.setdefault(key_of([row.get("prompt"), *options]), []).append(row)
    return iter(groups.values())


def scored(group: list[Row]) -> tuple[list[tuple[float, Row]], list[str]]:
    """(score, row) of the replies to one prompt that are rated, the best first, and a reason for each that is not.

    By `score` where one of them has it, else by the mean of the ratings that all rated replies have: one is no measure
    of the other, and a mean over fewer attributes none of one over more.
    """
    rated = [row for row in group if is_number(row.get("score"))]
    if any(row.get("score") is not None for row in group):
        found = [(float(row["score"]), row) for row in rated]
    else:
        rated = [row for row in group if _rated(row)]
        common = sorted(set.intersection(*({*_rated(row)} for row in rated))) if rated else []
        found = [(math.fsum(_rated(row)[name] for name in common) / len(common), row) for row in rated if common]
    return sorted(found, key=lambda one: -one[0]), ["no_rating"] * (len(group) - len(found))


def _rated(row: Row) -> dict[str, int | float]:
    """The ratings of a reply that were given."""
    ratings = row.get("ratings")
    return {name: one for name, one in ratings.items() if is_number(one)} if isinstance(ratings, dict) else {}


def rated_ranking(group: list[Row]) -> Made:
    """The rated replies to one prompt as a ranking."""
    rated, lost = scored(group)
    if len(rated) < 2:
        return [*["too_few_replies"] * len(rated), *lost]
    replies, scores = [row.get("completion") for _, row in rated], [score for score, _ in rated]
    made = ranked(without(rated[0][1], *JUDGED) | {"completions": replies, "scores": scores})
    return [*(made if isinstance(made, list) else [made]), *lost]


def rated_pairs(group: list[Row]) -> Made:
    """Every pair of the rated replies to one prompt of which one is better, with the `margin` of their scores; a pair
    that is level, or has no attribute in common, is counted."""
    by_score = any(row.get("score") is not None for row in group)
    rated = [row for row in group if (is_number(row.get("score")) if by_score else _rated(row))]
    lost = ["no_rating"] * (len(group) - len(rated))
    if len(rated) < 2:
        return [*["too_few_replies"] * len(rated), *lost]
    return [*(_better(*two) for two in itertools.combinations(rated, 2)), *lost]


def _better(one: Row, other: Row) -> Row | str:
    """The pair of two rated replies, or why there is none."""
    rated, _ = scored([one, other])
    if len(rated) < 2:
        return "no_rating"
    (high, best), (low, worse) = rated
    if high == low:
        return "equal_scores"
    replies = {"chosen": best.get("completion"), "rejected": worse.get("completion")}
    return without(best, *JUDGED) | replies | {"margin": high - low}


def best_rated(group: list[Row]) -> Made:
    """The best of the rated replies to one prompt as a demonstration."""
    rated, lost = scored(group)
    return [*(without(row, "ratings", "score") for _, row in rated[:1]), *["worse_reply"] * (len(rated) - 1), *lost]


def one_prompt(group: list[Row]) -> Made:
    """The prompt of several judged replies, once."""
    if group[0].get("prompt") is None:
        return ["missing_field"] * len(group)
    return [without(group[0], *ANSWERED), *["repeated_prompt"] * (len(group) - 1)]


def key_of(prompt: Any) -> str:
    """The text of a prompt, of messages their JSON: rows that share it share the prompt."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)


def _shared_messages(chosen: list, rejected: list) -> int:
    longest = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(longest) if chosen[i] != rejected[i]), max(longest, 0))
    return shared if shared and role(chosen[shared]) == role(rejected[shared]) == "assistant" else 0


def shared_text(chosen: str, rejected: str) -> int:
    longest = min(len(chosen), len(rejected))
    parted = next((i for i in range(longest) if chosen[i] != rejected[i]), longest)
    for cut in range(parted, 0, -1):
        begins = all(text[cut : cut + 1].isspace() and text[cut:].strip() for text in (chosen, rejected))
        if begins and not chosen[cut - 1].isspace() and chosen[:cut].strip():
            return cut
    return 0


def without(row: Row, *names: str) -> Row:
    """The row without these columns."""
    return {name: value for name, value in row.items() if name not in names}
