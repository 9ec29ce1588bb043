"""Verifiers of answers: 1 where a reply's answer is the row's, else 0. Rewards over text (`rewards.text`)."""

import logging
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from alignax.ops.checks import require
from alignax.rewards.extras import package

# a sign stands before a number and behind none: 3-5 are two
NUMBER = re.compile(r"(?:(?<![\d)])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?%?")
MARKS = ("####", "\\boxed{", "<answer>", "answer is", "answer:")  # what an answer stands behind, the surest first


def exact_answer(row: dict, completion: str, *, finished: bool, field: str = "answer", number: bool = True) -> float:
    """1 if the answer at the end of a reply is that of the row, as for GSM8K (Cobbe et al. 2021, 2110.14168).

    The answer of either is what stands behind the last "####", in the last \\boxed{}, in the last <answer>, or behind
    the last "answer is" or "answer:", in this order; without one of these the last number of the reply, and the whole
    of `row[field]`. With `number` two answers are equal as numbers: "1,200", "$1200.0" and "1.2e3" are. Otherwise they
    are as words, whatever their case and spaces.

    Args:
      field: of the row, its answer or a worked solution that ends with it.
      number: whether answers are numbers; one that is none, in the row, is compared as words.

    Raises:
      KeyError: a row without the field.
    """
    del finished
    own, got = _field(row, field), behind_mark(completion)
    want = behind_mark(own) or own
    if number and (value := number_of(want)) is not None:
        if got is None:
            found = NUMBER.findall(plain(completion))
            got = found[-1] if found else ""
        return float(number_of(got) == value)
    return float(_words(want) == _words(got or completion))


def math_answer(row: dict, completion: str, *, finished: bool, field: str = "answer", digits: int = 6) -> float:
    """1 if the reply's last answer, in LaTeX or plain, is equal to the row's, as `math-verify` finds both and decides.

    Equal are forms that simplify to one: \\frac{1}{2} and 0.5, (x+1)^2 and x^2+2x+1, sets whatever their order.

    Args:
      field: of the row, its answer or a worked solution that ends with it.
      digits: of floats, after which two are one.

    Raises:
      ImportError: math-verify is not installed.
      KeyError: a row without the field.
      ValueError: the row's own answer cannot be read.
    """
    del finished
    verify = package("math_verify", "math-verify")
    # its own time limits are signals, which only the main thread may set, and it warns where it has none: rewards run
    # in other threads, with a limit of the stage's
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parse = lambda text: verify.parse(text, parsing_timeout=None, raise_on_error=False)  # noqa: E731
    own = _field(row, field)
    answer = behind_mark(own) or own
    want = parse(answer if "$" in answer else f"${answer}$") or parse(answer)
    require(
        bool(want), f"{field} = {row[field]!r}: expected an answer that math-verify reads, such as '\\frac{{1}}{{2}}'"
    )
    return float(verify.verify(want, parse(completion), float_rounding=digits, timeout_seconds=None))


def behind_mark(text: str) -> str | None:
    """The answer that a text marks; None if it marks none."""
    for mark in MARKS:
        if places := list(re.finditer(re.escape(mark), text, re.IGNORECASE)):
            after = text[places[-1].end() :]
            return _closed(after) if mark == "\\boxed{" else re.split(r"</answer>|\n", after)[0].strip().rstrip(".")
    return None


LARGEST = 400  # digits: what is longer is no answer, and as a fraction would fill the memory


def number_of(text: str) -> Fraction | None:
    """The number that a text is, or else the first in it; None if there is none. A percentage is its number."""
    found = NUMBER.search(plain(text))
    if not found:
        return None
    whole = found[0].replace(",", "").replace(" ", "").rstrip("%")
    above, _, below = whole.partition("/")
    try:
        parts = [Decimal(part) for part in (above, below or "1")]
        if any(abs(part.adjusted()) > LARGEST for part in parts):
            return None
        value = Fraction(parts[0]) / Fraction(parts[1])
    except (InvalidOperation, ZeroDivisionError):
        return None
    return value


def plain(text: str) -> str:
    """The text with the minus sign of a keyboard."""
    return text.replace("−", "-")


def _closed(text: str) -> str:
    """Up to the brace that closes what is open before the text."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:i].strip()
    return text.strip()


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _field(row: dict, field: str) -> str:
    if field not in row:
        raise KeyError(f"{field}: expected a column of the data with the answer; this row has {', '.join(sorted(row))}")
    return str(row[field])
