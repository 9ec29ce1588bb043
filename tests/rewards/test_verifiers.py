"""Verifiers of answers, form and code, and rewards for style: on replies as models write them."""

import importlib

import pytest
from errors import refuses

from alignax.rewards import answers, code, forms, style
from alignax.rewards.answers import exact_answer, math_answer, number_of
from tests.marks import needs_sandbox

SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = 72 altogether.\n#### 72"


def score(function, completion, row=None, **settings):
    return function(row or {}, completion, finished=True, **settings)


@pytest.mark.parametrize(
    "answer, completion, want",
    [
        ("72", "She sold 48 + 24 = 72 clips.\n#### 72", 1),
        ("72", "48 + 24 = 72, so the answer is 72.", 1),
        (SOLUTION, "The answer is \\boxed{72}", 1),
        (SOLUTION, "It is 48 in April, and so 72", 1),  # the last number where nothing is marked
        (SOLUTION, "#### 72 at first, but no:\n#### 24", 0),  # the last mark counts
        (SOLUTION, "72 clips and 24 more", 0),
        ("1,200", "#### $1200.00", 1),
        ("0.5", "<answer>1/2</answer>", 1),
        ("-3", "Answer: −3", 1),  # a minus sign that is no hyphen
        ("-3", "Answer: 3", 0),
        ("-5", "it is −5", 1),
        ("5", "it is −5", 0),
        ("5", "pages 3-5", 1),  # no sign behind a number
        ("7", "#### 1e999999999", 0),  # which as a fraction would fill the memory
        ("7", "#### 1/1e-999999999", 0),
        ("10%", "\\boxed{10}", 1),
        ("1e3", "#### 1000", 1),
        ("7", "", 0),
        ("7", "no number at all", 0),
        ("7", "#### 1/0", 0),
        ("72", "\\boxed{72", 1),  # cut off
        ("Paris", "The answer is  paris.", 1),
        ("Paris", "paris", 1),
        ("Paris", "\\boxed{\\text{London}}", 0),
        ("3.0", "the answer is 3", 1),
    ],
)
def test_exact_answers(answer, completion, want):
    assert score(exact_answer, completion, {"answer": answer}) == want


def test_answers_that_are_words_or_numbers_of_a_file():
    assert score(exact_answer, "#### 007", {"answer": "7"}, number=False) == 0
    assert (
        score(exact_answer, "#### 7", {"sum": 7}, field="sum")
        == score(exact_answer, "7", {"sum": 7.0}, field="sum")
        == 1
    )
    with refuses(KeyError, "answer: expected a column", "question"):
        score(exact_answer, "7", {"question": "x"})
    assert number_of("about 3/4 of it") == number_of("0.75") and number_of("none") is None


@pytest.mark.parametrize(
    "answer, completion, want",
    [
        ("\\frac{1}{2}", "so $x = 0.5$", 1),
        ("(x+1)^2", "\\boxed{x^2+2x+1}", 1),
        ("\\{1, 2\\}", "The set is $\\{2, 1\\}$.", 1),
        ("\\frac{1}{3}", "\\boxed{0.3}", 0),
        (SOLUTION, "The answer is \\boxed{72}", 1),
        ("5", "I do not know", 0),
    ],
)
def test_answers_in_latex(answer, completion, want):
    pytest.importorskip("math_verify")
    assert score(math_answer, completion, {"answer": answer}) == want


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    forms._validator.cache_clear()
    for function, row, name in (
        (math_answer, {"answer": "1"}, "math-verify"), (forms.json_schema, {"schema": "{}"}, "jsonschema"),
    ):  # fmt: skip
        with refuses(ImportError, name, "alignax[verify]"):
            score(function, "1", row)


def test_patterns():
    assert score(forms.pattern, " yes\n", expression="yes|no") == 1
    assert score(forms.pattern, "yes, sir", expression="yes|no") == 0
    assert score(forms.pattern, "yes, sir", expression="yes|no", whole=False) == 1
    assert score(forms.pattern, "a\nb", expression="a.b") == 1
    with refuses(ValueError, "expression = '('", "regular expression"):
        score(forms.pattern, "a", expression="(")


@pytest.mark.parametrize(
    "completion, want",
    [
        ("<think>2 + 2</think>\n<answer>4</answer>", 1),
        ("<think></think><answer></answer>", 1),
        ("<answer>4</answer><think>2</think>", 0),
        ("<think>2</think> so <answer>4</answer>", 0),
        ("<think>2<think>3</think></think><answer>4</answer>", 0),
        ("<think>2</think><answer>4</answer><answer>5</answer>", 0),
        ("<think>2</think><answer>4", 0),
    ],
)
def test_tags(completion, want):
    assert score(forms.tags, completion) == want


def test_json_of_a_schema():
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    for completion, want in (
        ('{"name": "tea"}', 1), ('{"name": 3}', 0), ("{}", 0), ("tea", 0), ("", 0),
        ('Here it is:\n```json\n{"name": "tea"}\n```\nEnjoy.', 1), ('Here it is: {"name": "tea"}', 0),
    ):  # fmt: skip
        assert score(forms.json_schema, completion, schema=schema) == want
    assert score(forms.json_schema, "3", {"schema": '{"type": "integer"}'}) == 1
    with refuses(ValueError, "schema = ", "expected a JSON schema"):
        score(forms.json_schema, "3", schema={"type": "whole"})
    with refuses(ValueError, "field = 'schema'", "column"):
        score(forms.json_schema, "3", {"prompt": ""})


REPLY = "Of course.\n```python\ndef square(x):\n    return x * x\n```\nIt multiplies."


@needs_sandbox
def test_code_by_its_tests():
    tests = ["assert square(3) == 9", "assert square(-2) == 4", "assert square(2) == 5"]
    assert score(code.unit_tests, REPLY, {"tests": tests}) == {"total": 2 / 3, "passed": 2.0}
    assert score(code.unit_tests, REPLY, {"tests": tests}, share=False)["total"] == 0
    assert score(code.unit_tests, REPLY, {"tests": tests[0]})["total"] == 1
    assert score(code.unit_tests, "def square(x: return", {"tests": tests})["total"] == 0
    program = {"tests": [{"input": "3\n", "output": "9\n"}, {"input": "5", "output": "25"}]}
    assert score(code.unit_tests, "x = int(input())\nprint(x * x, ' ')", program)["total"] == 1
    with refuses(ValueError, "field = 'tests'", "list"):
        score(code.unit_tests, REPLY, {"prompt": ""})


def test_style():
    words = lambda n: " ".join(map(str, range(n)))  # noqa: E731
    assert [score(style.length, words(n), least=2, most=4, fall=2) for n in (0, 1, 2, 4, 5, 8)] == [
        -1,
        -0.5,
        0,
        0,
        -0.5,
        -2,
    ]
    assert score(style.repetition, "a b c a b c") == 3 / 4 - 1 and score(style.repetition, words(9)) == 0
    assert score(style.repetition, "") == score(style.repetition, "a b") == 0 and score(style.ended, "") == 1
    for function, settings, word in (
        (style.length, dict(least=5, most=4), "least = 5"), (style.length, dict(fall=0), "fall = 0"),
        (style.repetition, dict(n=0), "n = 0"),
    ):  # fmt: skip
        with refuses(ValueError, word, "expected"):
            score(function, "a", **settings)
    assert answers.behind_mark("none") is None
