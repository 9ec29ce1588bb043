"""Twenty questions: the policy asks, another answers, until the policy names what is meant."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from alignax.config import resolve
from alignax.envs.protocol import Partner, Stepped
from alignax.ops.checks import require

Answerer = Callable[[dict, str], str]  # (row, question) -> what is said to it


class Questions:
    """One game. The row has what is meant, under `field`, and what the answerer needs.

    A turn that is a guess of it and nothing else, "is it a cat?" or "cat", ends the game with a reward of
    1 - cost * (turns - 1); the last question without it ends it with 0: a turn that lists many things names none.
    `counts` has "questions/won".

    Args:
      answerer: (row, question) -> text, or its name: `facts` is a rule over the row. For a second policy see
        `TwoPolicies`.
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
        self.counts = {"questions/won": 0.0}

    def reset(self, row: dict) -> str | None:
        if self.field not in row:
            raise KeyError(f"{self.field}: expected a column with what is meant; this row has {', '.join(sorted(row))}")
        self.row, self.asked = row, 0
        self.counts["questions/won"] = 0.0
        return None

    def step(self, text: str) -> Stepped:
        return self.ended(text) or (self.answerer(self.row, text), 0.0, False)

    def ended(self, text: str) -> Stepped | None:
        """What comes of a question that ends the game; None where it is to be answered."""
        self.asked += 1
        if guesses(text, str(self.row[self.field])):
            self.counts["questions/won"] = 1.0
            return None, 1.0 - self.cost * (self.asked - 1), True
        return (None, 0.0, True) if self.asked >= self.count else None


class TwoPolicies(Questions):
    """The game with a second policy that answers: the `env_partner` of the config. It is asked for all games at once.

    Args:
      partner: given by the stage.
      ask: what the partner is asked, a format of the row's columns and `question`.
      field, count, cost: see `Questions`.
    """

    def __init__(
        self, *, partner: Partner, ask: str = "{answer}: {question}", field: str = "answer", count: int = 20,
        cost: float = 0.0,
    ):  # fmt: skip
        super().__init__(field=field, count=count, cost=cost)
        require("{question}" in ask, f"ask = {ask!r}: expected a format with {{question}}")
        self.partner, self.ask = partner, ask

    def step(self, text: str) -> Stepped:
        return self.steps([self], [text])[0]

    def reset(self, row: dict) -> str | None:
        try:
            self.ask.format(**row | {"question": ""})
        except KeyError as error:
            raise KeyError(f"env_args.ask names {error}: this row has {', '.join(sorted(row))}") from None
        return super().reset(row)

    @staticmethod
    def steps(games: Sequence["TwoPolicies"], texts: Sequence[str]) -> list[Stepped]:
        """A turn of several games."""
        found = [game.ended(text) for game, text in zip(games, texts, strict=True)]
        due = [i for i, end in enumerate(found) if end is None]
        asked = [games[i].ask.format(**games[i].row | {"question": texts[i]}) for i in due]
        said = dict(zip(due, games[0].partner(asked) if asked else [], strict=True))
        return [end or (said[i], 0.0, False) for i, end in enumerate(found)]


def guesses(text: str, meant: str) -> bool:
    """Whether a turn is a guess of what is meant, and nothing besides."""
    lead = r"(?:(?:is|could|might|must) it(?: be)?|it is|it's|i guess|my guess is)?"
    return bool(re.fullmatch(rf"\W*{lead}\W*(?:an?|the)?\W*{re.escape(meant.lower())}\W*", text.lower()))


def facts(row: dict, question: str) -> str:
    """ "yes" to a question with a word of `row["facts"]`, else "no"."""
    true = {word.lower() for word in row.get("facts", ())}
    return "yes" if true & set(re.findall(r"\w+", question.lower())) else "no"
