"""Prompts that show tools, and the text that an environment adds to one."""

import json
from collections.abc import Iterable
from typing import Any

from alignax.data.counts import Counts
from alignax.data.encode import prompt_rows
from alignax.data.forms import takes
from alignax.data.reshape import Row
from alignax.data.tokenizer import Tokenizer
from alignax.envs.calls import FORMATS, format_of


@takes("prompt_only")
def tool_prompt_rows(
    rows: Iterable[Row], tokenizer: Tokenizer, *, template: str, max_prompt_length: int, tools: tuple[dict, ...] = (),
    pad_to: int | None = None, counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:  # fmt: skip
    """`prompt_rows` of prompts that show the `tools`."""
    shown = with_tools(rows, tokenizer, template, tools)
    return prompt_rows(
        shown, tokenizer, template=template, max_prompt_length=max_prompt_length, pad_to=pad_to, counts=counts
    )


def with_tools(rows: Iterable[Row], tokenizer: Tokenizer, template: str, tools: tuple[dict, ...]) -> list[Row]:
    """The rows with tools that a template shows; where it has none, with a text that says what there is and how to call
    it. A row with tools of its own keeps them beside these."""
    if not tools:
        return list(rows)
    name = format_of(tokenizer, template)
    if name != "plain":
        return [row | {"tools": [*(row.get("tools") or ()), *tools]} for row in rows]
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return [with_text(row, f"\nTools:\n{listed}\nTo call one: {FORMATS[name].shown}") for row in rows]


def with_text(row: Row, text: str) -> Row:
    """The row with text at the end of its prompt's last user turn."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return row | {"prompt": prompt + text}
    at = max((i for i, one in enumerate(prompt) if one["role"] == "user"), default=None)
    if at is None:
        return row | {"prompt": [*prompt, {"role": "user", "content": text.strip()}]}
    said = prompt[at] | {"content": prompt[at]["content"] + text}
    return row | {"prompt": [*prompt[:at], said, *prompt[at + 1 :]]}
