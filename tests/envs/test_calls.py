"""Calls in the formats of the families' templates, and what is said of those that are none."""

import json

import pytest

from alignax.data.counts import DataError
from alignax.data.rendering import PING, render
from alignax.envs import calls
from alignax.envs.calls import Call, format_of, parse
from alignax.worlds.sums import build_tokenizer

ADD = {"name": "add", "arguments": {"by": 2}}
TEXT = json.dumps(ADD)
WRITTEN = {  # one call, and two
    "hermes": (
        f"<tool_call>\n{TEXT}\n</tool_call>",
        f"first <tool_call>{TEXT}</tool_call><tool_call>{TEXT}</tool_call>",
    ),
    "xml": (
        "<tool_call>\n<function=add>\n<parameter=by>\n2\n</parameter>\n</function>\n</tool_call>",
        2 * "<tool_call><function=add><parameter=by>2</parameter></function></tool_call>",
    ),
    "llama": (
        '{"name": "add", "parameters": {"by": 2}}',
        '<|python_tag|>{"name": "add", "parameters": {"by": 2}}; {"name": "add", "parameters": {"by": 2}}',
    ),
    "mistral": (f"[TOOL_CALLS][{TEXT}]", '[TOOL_CALLS]add[ARGS]{"by": 2}[TOOL_CALLS]add{"by": 2}'),
    "plain": ('CALL add {"by": 2}', 'now\nCALL add {"by": 2}\n  CALL add {"by": 2} '),
}
TEMPLATES = {  # what each writes of a call
    "hermes": "<tool_call>\n{{ {'name': c.name, 'arguments': c.arguments} | tojson }}\n</tool_call>",
    "xml": "<tool_call><function={{ c.name }}>{% for k, v in c.arguments.items() %}<parameter={{ k }}>{{ v }}"
    "</parameter>{% endfor %}</function></tool_call>",
    "llama": "{{ {'name': c.name, 'parameters': c.arguments} | tojson }}",
    "mistral": "[TOOL_CALLS][{{ {'name': c.name, 'arguments': c.arguments} | tojson }}]",
    "": "<<{{ c.name }}>>",
}


def with_template(name):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% for t in m.tool_calls or [] %}"
        "{% set c = t.function %}" + TEMPLATES[name] + "{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read(name):
    one, two = WRITTEN[name]
    by = "2" if name == "xml" else 2
    assert parse(one, name) == [Call("add", {"by": by})]
    assert parse(two, name) == [Call("add", {"by": by})] * 2
    assert parse("the answer is 12", name) == [] and parse("", name) == []


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name])
def test_the_format_is_that_of_the_template(name):
    tokenizer = with_template(name)
    assert format_of(tokenizer, "chat") == name and format_of(tokenizer, "plain") == "plain"
    function = {"name": "add", "arguments": {"by": 2}}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    text = render(tokenizer, [*PING, turn], {}).rpartition("<assistant>")[2].removesuffix("<eos>")
    assert [call.name for call in parse(text, name)] == ["add"]  # what a template writes is read back


def test_a_format_that_is_not_known_is_refused():
    with pytest.raises(DataError, match="<<ping>>"):
        format_of(with_template(""), "chat")


def test_the_world_writes_as_hermes():
    assert format_of(build_tokenizer(), "chat") == "hermes"


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("other", [name for name in WRITTEN if name != "llama"])
def test_a_call_in_another_format_is_said(name, other):
    if name == other or {name, other} == {"hermes", "xml"}:
        return
    (call,) = parse(WRITTEN[other][0], name)
    assert call.error and calls.FORMATS[name].shown in call.error


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("hermes", "<tool_call>{oops</tool_call>", "JSON"),
        ("hermes", f"<tool_call>{TEXT}", "</tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "name"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "object"),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "JSON"),
        ("xml", "<tool_call><function=add>", "</function>"),
        ("llama", '{"name": "add", "parameters": ', "JSON"),
        ("llama", "<|python_tag|>add(2)", "JSON"),
        ("mistral", "[TOOL_CALLS][{]", "JSON"),
        ("plain", "CALL add {by: 2}", "JSON"),
    ],
)
def test_a_broken_call_is_said(name, text, word):
    (call,) = parse(text, name)
    assert word in call.error


def test_calls_without_end_are_cut():
    found = parse(f"<tool_call>{TEXT}</tool_call>" * 1000, "hermes")
    assert len(found) == calls.MOST + 1 and "more than" in found[-1].error
