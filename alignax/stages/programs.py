"""An online iteration as compiled programs: one with the reward on the device, two around a reward that reads text.

Every program has the frozen arrays as arguments, each once (`roles.shared`), and donates the state.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import sharding
from alignax.data.boundary import lead
from alignax.data.templates import stop_ids
from alignax.evals.policy import texts, total_reward
from alignax.stages.roles import shared
from alignax.train import online


def one_program(parts: online.Parts, score: Any, frozen: dict, state: Any) -> Any:
    """A whole iteration as one program: `score(frozen["reward"], rollout) -> [B]` on the device."""
    arrays, tree = shared(frozen)
    whole = lambda state, arrays, prompts: online.iteration(parts, score, state, tree(arrays), prompts)  # noqa: E731
    program = sharding.jit_step(whole, state)
    return lambda state, prompts: program(state, arrays, prompts)


def two_programs(parts: online.Parts, score: Any, frozen: dict, state: Any) -> Any:
    """An iteration around a reward on the host: `score(rollout, finished, prompts) -> [B]` between two programs."""
    arrays, tree = shared({name: part for name, part in frozen.items() if name != "reward"})

    def half(of, state, arrays, *rest):
        frozen = tree(arrays)
        return of(online.on_base(parts, frozen.get("still")), state, frozen["reference"], *rest)

    roll = jax.jit(partial(half, online.roll))
    learn = sharding.jit_step(partial(half, online.learn), state)

    def step(state, prompts):
        rollout, finished_B = roll(state, arrays, prompts)
        scores = online.one_for_each(score(rollout, finished_B, prompts), finished_B)
        return learn(state, arrays, rollout, finished_B, scores)

    return step


def text_scorer(reward: Any, rows: list[dict], tokenizer: Any, template: str, group: int = 1) -> Any:
    """A reward over text as a function of arrays; a reply finds its row by the id that travels with its prompt.

    One that the reward cannot score (None or nan) has the score nan.
    """
    ends, before = sorted(stop_ids(tokenizer, template)), lead(tokenizer, template)

    def score(rollout, finished_B, prompts):
        completions = texts(tokenizer, rollout, ends, before)
        ids, done = jax.device_get((prompts["row"], finished_B))
        replies = zip(np.repeat(ids, group), completions, done, strict=True)
        totals = [total_reward(reward, rows[row], text, bool(end), missing=True)["total"] for row, text, end in replies]
        return jnp.asarray(totals, jnp.float32)

    return score
