"""Environments of the package `verifiers`, written as its users write them."""

import verifiers as vf
from datasets import Dataset

DATA = [{"question": f"{a}*{b}", "answer": str(a * b)} for a, b in ((3, 4), (5, 6), (7, 8), (2, 9))]


def right(completion, answer, **kwargs) -> float:
    """Whether the last message has the answer."""
    return float((completion[-1].content or "").strip() == answer)


def calculate(expression: str) -> str:
    """The value of an expression.

    Args:
        expression: digits and a star
    """
    a, b = expression.split("*")
    return str(int(a) * int(b))


def tools(limit: int = 5):
    """A ToolEnv."""
    return vf.ToolEnv(
        tools=[calculate], max_turns=limit, dataset=Dataset.from_list(DATA), rubric=vf.Rubric(funcs=[right])
    )


class Guess(vf.MultiTurnEnv):
    """A dialogue: higher or lower, until the number is said."""

    async def setup_state(self, state):
        state["tries"] = 0
        return state

    async def env_response(self, messages, state, **kwargs):
        state["tries"] += 1
        said, wanted = messages[-1].content, int(state["answer"])
        if said == str(wanted):
            state["found"] = True
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if int(said) < wanted else "lower"}]


def found(state) -> float:
    """1 over the number of tries."""
    return 1.0 / state["tries"] if state.get("found") else 0.0


def guess():
    """A MultiTurnEnv."""
    return Guess(max_turns=6, dataset=Dataset.from_list(DATA), rubric=vf.Rubric(funcs=[found]), system_prompt="Guess.")
