"""Which part of a row is the prompt of a demonstration, and which the reply, in the form that `train_on` asks for."""

from typing import Any

from alignax.data.counts import DataError, Refused
from alignax.data.dialogue import Prompt, prompt_of
from alignax.data.messages import is_learnt
from alignax.data.reshape import Row


def demos(rows: list[Row], template: str, train_on: str) -> list[tuple]:
    """(prompt, reply) of each row, in the form that `train_on` asks for."""
    given = rows
    rows = [row if row.get("messages") is None or _is_answered([row]) else _last_turn(row) for row in rows]
    if _has(rows, "text") and not _is_answered(rows):
        if train_on != "all" or template != "plain":
            raise DataError(
                f"rows of text, with train_on = {train_on!r} and template {template!r}: no turn of them is a reply; "
                "use train_on = 'all' and template = 'plain', or rows {\"prompt\": ..., \"completion\": ...}"
            )
        return [(Prompt("", whole=True), row.get("text")) for row in rows]
    reply = "completion" if any("completion" in row for row in rows) or not _has(rows, "chosen") else "chosen"
    if _has(given, "messages") and not _has(rows, reply):
        talk = next(row["messages"] for row in given if row.get("messages") is not None)
        raise DataError(
            f"the field 'messages' is a list in no row, the first is {str(talk)[:80]!r}: expected "
            '[{"role": ..., "content": text}, ...]; a whole text goes into the field "text"'
        )
    check_fields(rows, {"prompt": "text or messages", reply: "text or messages"})
    if train_on == "all":
        return [(prompt_of(row), _all_learnt(row.get("prompt"), row.get(reply))) for row in rows]
    if train_on != "assistant":
        return [(prompt_of(row), row.get(reply)) for row in rows]
    return [_dialogue(prompt_of(row), row.get(reply)) for row in rows]


def _all_learnt(prompt: Any, reply: Any) -> Any:
    """The reply, or that the row has a turn which is not to be learnt."""
    turns = [one for part in (prompt, reply) if isinstance(part, list) for one in part]
    return reply if all(map(is_learnt, turns)) else Refused("turn_weight", "a weight of 0, and train_on = 'all'")


def _is_answered(rows: list[Row]) -> bool:
    """Whether the rows hold prompts and replies; else a column of whole dialogues or texts is what they are."""
    return _has(rows, "prompt") and (_has(rows, "completion") or _has(rows, "chosen"))


def _last_turn(row: Row) -> Row:
    """A row of a dialogue as prompt and completion."""
    turns = row["messages"]
    if isinstance(turns, Refused):
        return row | {"prompt": turns, "completion": turns}
    return row | ({"prompt": turns[:-1], "completion": turns[-1:]} if isinstance(turns, list) else {"prompt": turns})


def _dialogue(prompt: Prompt, reply: Any) -> tuple[Prompt, Any]:
    """Prompt and reply as one dialogue; as they are where they are neither text nor messages, and will be refused."""
    if not all(isinstance(part, (str, list)) and not isinstance(part, Refused) for part in (prompt.said, reply)):
        return prompt, reply
    asked, answered = ([{"role": role, "content": part}] if isinstance(part, str) else part
                   for role, part in (("user", prompt.said), ("assistant", reply)))  # fmt: skip
    return prompt._replace(whole=True), [*asked, *answered]


def check_fields(rows: list[Row], form: dict[str, str]) -> None:
    """Raises DataError, saying what was found and the form that is expected, if a field is missing in all rows."""
    if not rows:
        raise DataError(f"no rows: expected rows with the fields {', '.join(form)}")
    for field in form:
        if not _has(rows, field):
            found = sorted({name for row in rows for name in row})
            expected = "{" + ", ".join(f'"{name}": {what}' for name, what in form.items()) + "}"
            raise DataError(f"no row has the field {field!r}: found {', '.join(found) or 'none'}; expected {expected}")


def _has(rows: list[Row], field: str) -> bool:
    return any(row.get(field) is not None for row in rows)
