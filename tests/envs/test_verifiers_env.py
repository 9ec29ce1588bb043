"""Environments of the real package `verifiers`, unchanged; and what is said where it is missing."""

import importlib.util
import sys
import types

import pytest

from alignax.envs import verifiers
from alignax.envs.play import begun
from alignax.envs.protocol import is_env
from alignax.rewards.workers import LATE, Workers

there = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None, reason="the package verifiers is not installed"
)
CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "3*4"}}</tool_call>'


def began(load, row=0):
    rows, counts = verifiers.rows(split="train", load=load)
    env = verifiers.environment(load=load)
    assert is_env(env) and counts["kept"] == 4 and env.reset(rows[row]) is None
    return env


@there
def test_a_tool_environment_is_played():
    env = began("verifiers_envs:tools")
    assert env.tools[0]["function"]["name"] == "calculate"
    observation, reward, done = env.step(CALL)
    assert [one["content"] for one in observation] == ["12"] and observation[0]["role"] == "tool"
    assert (reward, done) == (0.0, False)
    assert env.step("12") == (None, 0.0, True) and env.finish() == 1.0
    assert env.counts["tools/calls"] == 1 and env.counts["env/num_turns"] == 2 and env.counts["env/right"] == 1


@there
def test_a_wrong_call_is_said_to_the_policy():
    env = began("verifiers_envs:tools")
    observation, _, done = env.step("<tool_call>{nonsense</tool_call>")
    assert "JSON" in observation[0]["content"] and not done and env.counts["tools/failures"] == 1
    observation, _, done = env.step(CALL.replace("calculate", "guess"))  # the package's own word for it
    assert "guess" in observation[0]["content"] and not done
    assert env.step("13") == (None, 0.0, True) and env.finish() == 0.0


@there
def test_a_dialogue_is_played_to_its_end():
    env = began("verifiers_envs:guess", row=1)  # 30
    assert env.step("10")[0] == [{"role": "user", "content": "higher"}]
    assert env.step("40")[0] == [{"role": "user", "content": "lower"}]
    assert env.step("30") == (None, 0.0, True) and env.finish() == pytest.approx(1 / 3)


@there
def test_one_that_is_cut_off_is_scored():
    env = began("verifiers_envs:guess")
    env.step("1")
    assert env.finish() == 0.0 and env.state["is_truncated"]


@there
def test_episodes_of_one_environment_do_not_meet():
    one, two = began("verifiers_envs:guess"), began("verifiers_envs:guess", row=1)
    assert one.own is two.own
    assert one.step("20")[0][0]["content"] == "lower" and two.step("20")[0][0]["content"] == "higher"
    assert two.step("30")[2] and two.finish() == 0.5
    assert one.step("12")[2] and one.finish() == 0.5


@there
def test_many_episodes_begin_at_once(monkeypatch):
    """In threads, the first of which starts the event loop: none waits for a word that another loop has."""
    rows, _ = verifiers.rows(split="train", load="verifiers_envs:tools")
    for _ in range(20):
        monkeypatch.setattr(verifiers.Loop, "made", None)
        workers = Workers(8, 10.0)
        envs, _ = begun(lambda: verifiers.environment(load="verifiers_envs:tools"), rows * 4, 2, workers)
        assert LATE not in workers.map(lambda env: env.step(CALL), [(env,) for env in envs])
        assert LATE not in workers.map(lambda env: env.finish(), [(env,) for env in envs])


@there
def test_rows_of_elsewhere_are_refused():
    env = verifiers.environment(load="verifiers_envs:guess")
    with pytest.raises(ValueError, match="alignax.envs.verifiers:rows"):
        env.reset({"prompt": "3*4", "answer": "12"})


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(ImportError, match=r"alignax\[verifiers\]"):
        verifiers.package()


def test_another_release_names_the_one_that_is_needed(monkeypatch):
    later = types.ModuleType("verifiers")
    later.__version__ = "0.4.0"
    monkeypatch.setitem(sys.modules, "verifiers", later)
    with pytest.raises(ImportError, match=r"0\.4\.0.*verifiers 0\.2"):
        verifiers.package()
