"""A class in TRL's form, unchanged, as an environment."""

import json

import pytest
from errors import refuses
from trl_form import Counter, Toolless, Untyped

from alignax.config import ConfigError
from alignax.envs.protocol import Env, is_env
from alignax.envs.tools import Tools, environment


def call(name, /, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture
def env():
    made = environment(Counter(), "hermes")
    assert isinstance(made, Tools) and isinstance(made, Env) and not is_env(Counter()) and is_env(made)
    assert made.reset({"prompt": "go", "answer": "5"}) is None
    return made


def test_its_tools_are_its_public_methods(env):
    assert {one["function"]["name"] for one in env.tools} == {"add", "wait", "fail", "flood", "hang", "step"}
    add = env.schemas["add"]["function"]
    assert add["parameters"]["properties"]["by"] == {"type": "integer", "description": "how much"}
    assert add["parameters"]["required"] == ["by"] and add["description"] == "Adds to the counter."


def test_calls_act_and_the_last_turn_has_none(env):
    observation, reward, done = env.step(call("add", by=2) + call("add", by=3))
    assert [one["content"] for one in observation] == ["count 2", "count 5"] and (reward, done) == (0.0, False)
    assert all(one["role"] == "tool" and one["name"] == "add" for one in observation)
    assert env.step("done") == (None, 0.0, True) and env.finish() == 1.0
    assert env.counts == {"tools/calls": 2, "tools/failures": 0}


def test_an_asynchronous_tool_is_waited_for(env):
    assert env.step(call("wait", seconds=1))[0][0]["content"] == "waited"


def test_a_tool_may_be_called_step(env):
    assert env.step(call("step", name="x"))[0][0]["content"] == "x"


@pytest.mark.parametrize(
    "text, word",
    [
        (call("divide", by=2), "there is no tool 'divide'; there are add"),
        (call("_private"), "no tool"),
        (call("reset"), "no tool"),
        (call("get_reward"), "no tool"),
        (call("add"), "missing"),
        (call("add", by=1, to=2), "to"),
        (call("add", by="much"), "integer"),
        (call("add", by=True), "integer"),
        (call("add", by=1.5), "integer"),
        (call("fail"), "the counter is broken"),
        ("<tool_call>{</tool_call>", "JSON"),
        ('[TOOL_CALLS][{"name": "add", "arguments": {"by": 1}}]', "<tool_call>"),
    ],
)
def test_what_is_wrong_is_said_and_counted(env, text, word):
    (observation,), _, done = env.step(text)
    assert observation["content"].startswith("Error: ") and word in observation["content"] and not done
    assert env.counts == {"tools/calls": 1, "tools/failures": 1}
    assert env.instance.count == 0 and env.step(call("add", by=5))[0][0]["content"] == "count 5"  # it goes on


def test_whole_numbers_are_taken(env):
    assert env.step(call("add", by=2.0))[0][0]["content"] == "count 2"
    env.format = "xml"  # whose values are texts
    text = "<tool_call><function=add><parameter=by>3</parameter></function></tool_call>"
    assert env.step(text)[0][0]["content"] == "count 5"


def test_text_of_its_own_is_for_the_prompt(env):
    assert env.reset({"prompt": "go", "answer": "5", "told": True}) == " target 5"


@pytest.mark.parametrize("kind, word", [(Untyped, "type hint"), (Toolless, "no public method"), (object, "reset")])
def test_a_class_that_is_none_is_refused(kind, word):
    with refuses(ConfigError, "config.env", word):
        environment(kind(), "hermes")
