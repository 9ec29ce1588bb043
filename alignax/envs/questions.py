"""Twenty questions: the policy asks, another answers, until the policy names what is meant."""

import re
from collections.abc import Callable
from typing import Any

from alignax.config import resolve
from alignax.envs.protocol import Stepped
from alignax.ops.checks import require

Answerer = Callable[[dict, str], str]  # (row, question) -> what is said to it: a rule, or a policy


class Questions:
    """One game. The row has what is meant, under `field`, and what the answerer needs.

    A turn that names it, as "is it a cat?" does, ends the game with a reward of 1 - cost * (turns - 1); the last
    question without it ends it with 0.

    Args:
      answerer: (row, question) -> text, or its name: `facts` is a rule over the row; a second policy is a function that
        samples it.
      field: of the row, what is meant.
      count: questions.
      cost: of each question before the last.
    """

    def __init__(
        self, *, answerer: str | Callable = "alignax.envs.questions:facts", field: str = "answer", count: int = 20,
        cost: float = 0.0,
    ):  # fmt: skip
        require(count >= 1, f"count = {count}: expected 1 question or more")
        require(
            0 <= cost * (count - 1) <= 1, f"cost = {cost}: expected 0 to 1 / (count - 1), or a game pays less than 0"
        )
        self.answerer: Answerer = resolve(answerer, "", key="env_args.answerer")
        self.field, self.count, self.cost = field, count, cost
        self.row: dict[str, Any] = {}
        self.asked = 0

    def reset(self, row: dict) -> str | None:
        if self.field not in row:
            raise KeyError(f"{self.field}: expected a column with what is meant; this row has {', '.join(sorted(row))}")
        self.row, self.asked = row, 0
        return None

    def step(self, text: str) -> Stepped:
        self.asked += 1
        if names(text, str(self.row[self.field])):
            return None, 1.0 - self.cost * (self.asked - 1), True
        if self.asked >= self.count:
            return None, 0.0, True
        return self.answerer(self.row, text), 0.0, False


def names(text: str, meant: str) -> bool:
    """Whether a question names what is meant, as whole words."""
    return re.search(rf"(?<!\w){re.escape(meant.lower())}(?!\w)", text.lower()) is not None


def facts(row: dict, question: str) -> str:
    """ "yes" to a question with a word of `row["facts"]`, else "no"."""
    true = {word.lower() for word in row.get("facts", ())}
    return "yes" if true & set(re.findall(r"\w+", question.lower())) else "no"
