"""Rewards for the steps of a reply: of a process reward model, or over text, `(row, steps, *, finished) -> [number]`.

A step ends at a token whose text ends with the marker of the config, "\\n" for example, and the last one at the last
token of the reply, as in the data of a process reward model (`data.judged.step_rows`): a marker right before the end of
sequence ends no step of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.bound import takes
from alignax.rewards.text import STOP, Scores, Trouble, guarded, number, several
from alignax.rewards.workers import LATE, Workers

# what is made of a process reward model's logit of "this step is right"
OF_LOGITS: dict[str, Callable[[Array], Array]] = {
    "probability": jax.nn.sigmoid,
    "log_probability": jax.nn.log_sigmoid,  # summed over steps: that of all being right (Lightman et al. 2023)
    "logit": lambda x: x,
}


@runtime_checkable
class StepReward(Protocol):
    """A reward over the text of each step."""

    def __call__(self, row: dict, steps: Sequence[str], *, finished: bool) -> Sequence[float | None]:
        """One number for each step."""
        ...


def is_stepwise(reward: Callable) -> bool:
    """Whether a reward over text is one of steps."""
    return takes(reward, "steps")


def marks(tokenizer: Any, size: int, marker: str) -> Bool[np.ndarray, " V"]:
    """Which of `size` ids end a step: those whose text ends with the marker.

    Raises ValueError if there is none.
    """
    ids = range(min(size, len(tokenizer)))
    texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = np.zeros(size, bool)
    found[: len(texts)] = [text.endswith(marker) for text in texts]
    if not marker or not found.any():
        raise ValueError(f"step_ends = {marker!r}: expected a text with which a token of the policy's tokenizer ends")
    return found


def step_ends(
    tokens_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"], marks_V: Bool[Array, " V"], ends: Sequence[int]
) -> Bool[Array, "B T"]:
    """The last token of each step. `ends`: the ids that end a reply, of which the last token may be one."""
    left_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1]
    last_BT = mask_BT & (left_BT == 1)
    over_BT = last_BT & jnp.isin(tokens_BT, jnp.asarray(ends, tokens_BT.dtype))
    before_end_BT = jnp.pad(over_BT[:, 1:], ((0, 0), (0, 1)))
    return mask_BT & (last_BT | (marks_V[tokens_BT] & ~before_end_BT))


def step_texts(
    texts_of: Callable[[np.ndarray, np.ndarray], list[str]], tokens: np.ndarray, mask: np.ndarray, ends: np.ndarray
) -> list[list[str]]:
    """The steps of each reply as texts, whose concatenation it is; `ends` are their last tokens, of `step_ends`."""
    rows, places = np.nonzero(ends)
    before = mask[rows] & (np.arange(mask.shape[1])[None] <= places[:, None])
    found: list[list[str]] = [[] for _ in mask]
    for row, text in zip(rows, texts_of(tokens[rows], before), strict=True):
        found[row].append(text[len("".join(found[row])) :])
    return found


def score_steps(
    reward: Callable, rows: Sequence[dict], steps: Sequence[list[str]], finished: Bool[np.ndarray, " B"],
    ends: Bool[np.ndarray, "B T"], workers: Workers, *, trouble: Trouble = STOP,
) -> tuple[Float[np.ndarray, "B T"], Scores]:  # fmt: skip
    """(a number at the last token of each step, 0 elsewhere; their sums, and what was late or failed).

    A reply of which a step has none has no score: nan. Raises as `score_texts` does, and for another number of values
    than of steps.
    """
    calls = [([row], [own], [bool(done)]) for row, own, done in zip(rows, steps, finished, strict=True)]
    found = workers.map(guarded(reward, trouble, of_steps), calls)
    late = [i for i, value in enumerate(found) if value is LATE]
    failed = {i: value for i, value in enumerate(found) if isinstance(value, Exception)}
    values_BT = np.zeros(ends.shape, np.float32)
    for i, value in enumerate(found):
        values_BT[i, ends[i]] = np.nan if i in failed or value is LATE else value
    return values_BT, Scores(values_BT.sum(1), late, failed)


def of_steps(reward: Callable, value: Any, rows: Sequence[dict], steps: Sequence[list[str]], finished: Any) -> list:
    """The values of the steps of one reply. Raises ValueError for another number of them, and for no numbers."""
    del rows, finished
    (own,) = steps
    value = several(reward, value, len(own), "steps")
    return [number(one, step) for one, step in zip(value, own, strict=True)]
