"""Prompts with tools and with what an environment adds."""

import pytest

from alignax.envs.prompts import tool_prompt_rows, with_text, with_tools
from alignax.worlds import sums, tokenizer

ROWS = [{"prompt": "37*84", "answer": "3108"}, {"prompt": [{"role": "user", "content": "2*3"}], "answer": "6"}]


def test_tools_are_shown_as_the_template_shows_them():
    own = sums.build_tokenizer()
    arrays, counts = tool_prompt_rows(ROWS, own, template="chat", max_prompt_length=16, tools=(sums.TOOL,))
    texts = [own.decode(t[v]) for t, v in zip(arrays["tokens"], arrays["valid"], strict=True)]
    assert texts == [f"<bos><tools>calculate<user>{x}<assistant>" for x in ("37*84", "2*3")] and counts["kept"] == 2


@pytest.mark.parametrize("own, template", [(sums.build_tokenizer, "plain"), (tokenizer.build_tokenizer, "chat")])
def test_tools_are_told_where_the_template_has_none(own, template):
    first, second = with_tools(ROWS, own(), template, (sums.TOOL,))
    assert "tools" not in first and first["prompt"].startswith("37*84\nTools:\n") and '"calculate"' in first["prompt"]
    assert "CALL NAME" in first["prompt"] and "CALL NAME" in second["prompt"][0]["content"]


def test_text_goes_to_the_end_of_the_last_user_turn():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert with_text({"prompt": turns}, " d")["prompt"] == [*turns[:2], {"role": "user", "content": "c d"}]
    assert turns[2]["content"] == "c"  # the row is left as it is
    asked = [{"role": "system", "content": "s"}]
    assert with_text({"prompt": asked}, " d")["prompt"] == [*asked, {"role": "user", "content": "d"}]
    assert with_tools(ROWS, None, "chat", ()) == ROWS
