"""The environments that are there: calculator, search, Python, questions."""

import json
import math

import pytest
from errors import refuses

from alignax.config import ConfigError
from alignax.envs.calculator import Calculator, value
from alignax.envs.protocol import is_env
from alignax.envs.python import Python
from alignax.envs.questions import Questions, TwoPolicies, guesses
from alignax.envs.search import Search, index_of
from alignax.envs.tools import Tools, environment
from alignax.ops.checks import Refused
from alignax.rewards.sandbox.run import SandboxError, run


def say(made, name, /, **arguments):
    """What a tool says to one call."""
    env = environment(made, "hermes")
    assert isinstance(env, Tools) and not env.pays
    env.reset({"prompt": "x", "answer": "y"})
    call = json.dumps({"name": name, "arguments": arguments})
    return env.step(f"<tool_call>{call}</tool_call>")[0][0]["content"]


@pytest.mark.parametrize(
    "expression, want",
    [
        ("37*84", "3108"),
        ("(1+2)*-3", "-9"),
        ("7/2", "3.5"),
        ("6/2", "3"),
        ("1,200 + 34", "1234"),
        ("1/3", "0.3333333333"),
    ],
)
def test_the_calculator_calculates(expression, want):
    assert say(Calculator(), "calculate", expression=expression) == want


@pytest.mark.parametrize(
    "expression", ["", "2**99999999", "__import__('os')", "1/0", "x", "'a'*9", "9" * 300, "(" * 150, "1e308*10", "True"]
)
def test_the_calculator_refuses_what_is_no_sum(expression):
    assert say(Calculator(), "calculate", expression=expression).startswith("Error: ")
    with pytest.raises(ValueError):
        value(expression)


@pytest.fixture
def corpus(tmp_path):
    texts = ["the cat sat on the mat", "a dog and a cat", "ships lie in the harbor", "the harbor is closed in winter"]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_search_finds_what_has_the_words(corpus):
    found = say(Search(corpus=str(corpus), count=2), "search", query="Winter harbor")
    assert found == "[1] the harbor is closed in winter\n[2] ships lie in the harbor"
    assert say(Search(corpus=str(corpus)), "search", query="giraffe") == "nothing was found"


def test_bm25_by_hand(corpus):
    """'harbor' is in 2 of 4 texts of 6, 5, 5 and 6 words, 5.5 in the mean, once in each."""
    index = index_of(str(corpus), "text")
    rare = math.log(1 + 2.5 / 2.5)
    want = [rare * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / 5.5)) for length in (5, 6)]
    assert [index.score(["harbor"], i) for i in (2, 3)] == pytest.approx(want)
    assert index.score(["harbor", "harbor"], 2) == pytest.approx(want[0])


def test_a_corpus_that_is_none_is_refused(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"body": "x"}\n')
    with refuses(Refused, "line 1", "'text'"):
        Search(corpus=str(path))
    path.write_text("")
    with refuses(Refused, "corpus", "none"):
        Search(corpus=str(path), field="body")


def sandboxed():
    try:
        return run("pass").passed
    except SandboxError:
        return False


@pytest.mark.skipif(not sandboxed(), reason="this machine has no sandbox")
def test_python_runs_in_the_sandbox():
    made = Python(seconds=1.0)
    assert say(made, "python", code="print(6 * 7)") == "42\n"
    assert say(made, "python", code="x = 1") == "(nothing was printed)"
    assert say(made, "python", code="1 / 0") == "Error: ZeroDivisionError: division by zero"
    assert say(made, "python", code="while True: pass") == "Error: the code ran too long"
    assert say(made, "python", code="while True: print('x' * 1000)") == "Error: the code wrote too much"
    assert "Error: " in say(made, "python", code="import socket; socket.create_connection(('127.0.0.1', 9))")


ROW = {"prompt": "ask", "answer": "cat", "facts": ["animal", "purrs"]}


def test_questions_are_answered_until_it_is_named():
    game = Questions(cost=0.05)
    assert is_env(game) and game.reset(ROW) is None
    assert game.step("is it an animal?") == ("yes", 0.0, False)
    assert game.step("does it bark?") == ("no", 0.0, False)
    assert game.step("is it a category?") == ("no", 0.0, False)
    observation, reward, done = game.step("Is it a CAT?")
    assert observation is None and reward == pytest.approx(0.85) and done


def test_the_last_question_ends_a_game():
    game = Questions(count=2)
    game.reset(ROW)
    assert game.step("is it red?") == ("no", 0.0, False) and game.step("is it blue?") == (None, 0.0, True)
    game.reset(ROW)
    assert game.asked == 0


def test_another_policy_may_answer():
    heard = []

    def second(row, question):
        heard.append((row["answer"], question))
        return "perhaps"

    game = Questions(answerer=second)
    game.reset(ROW)
    assert game.step("is it red?") == ("perhaps", 0.0, False) and heard == [("cat", "is it red?")]


def test_a_second_policy_is_asked_for_all_games_at_once():
    heard = []

    def partner(questions):
        heard.append(list(questions))
        return [f"answer {i}" for i, _ in enumerate(questions)]

    games = [TwoPolicies(partner=partner, ask="{answer}? {question}", count=2) for _ in range(3)]
    assert is_env(games[0])
    for game in games:
        game.reset(ROW)
    said = TwoPolicies.steps(games, ["is it red?", "is it a cat?", "is it blue?"])
    assert said == [("answer 0", 0.0, False), (None, 1.0, True), ("answer 1", 0.0, False)]
    assert heard == [["cat? is it red?", "cat? is it blue?"]]
    assert [game.counts["questions/won"] for game in games] == [0.0, 1.0, 0.0]
    # the last question is not answered, and nobody is asked
    assert TwoPolicies.steps([games[0], games[2]], ["is it old?", "is it a cat?"]) == [
        (None, 0.0, True),
        (None, 1.0, True),
    ]
    assert len(heard) == 1
    games[0].reset(ROW)
    assert games[0].step("is it red?") == ("answer 0", 0.0, False) and heard[-1] == ["cat? is it red?"]
    with refuses(Refused, "ask", "{question}"):
        TwoPolicies(partner=partner, ask="{answer}")


def test_a_game_that_cannot_be_played_is_refused():
    with refuses(Refused, "count", "1"):
        Questions(count=0)
    with refuses(Refused, "cost", "0"):
        Questions(cost=0.1)
    with refuses(ConfigError, "env_args.answerer", "module:function"):
        Questions(answerer="nobody")
    with pytest.raises(KeyError, match="answer"):
        Questions().reset({"prompt": "x"})
    with pytest.raises(KeyError, match="env_args.ask names 'thing'"):
        TwoPolicies(partner=list, ask="{thing} {question}").reset(ROW)


@pytest.mark.parametrize(
    "text, is_one",
    [
        ("is it a cat", True),
        ("Is it a CAT ?", True),
        ("cat.", True),
        ("I guess: the cat!", True),
        ("could it be a cat?", True),
        ("concatenate", False),
        ("is it a cat or a dog?", False),
        ("is it a dog ? is it a cat ?", False),
        ("is it no cat?", False),
    ],
)
def test_a_guess_is_one_thing_and_nothing_else(text, is_one):
    assert guesses(text, "cat") == is_one
