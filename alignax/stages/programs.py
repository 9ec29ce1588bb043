"""An online iteration as compiled programs: one with the rewards on the device, others around a reward that reads text.

Every program has the frozen arrays as arguments, each once (`roles.shared`), and donates the state.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from alignax import forward, host, sharding
from alignax.log import console
from alignax.ops.checks import needs
from alignax.rewards.text import TextReward, Workers, score_texts
from alignax.sampling.sampler import Sampler
from alignax.stages.roles import shared
from alignax.train import online
from alignax.train.algorithm import Actors, Algorithm, Score
from alignax.train.state import OnlineState
from alignax.types import Model, Rollout

HostScore = Callable[[Rollout, dict], dict[str, np.ndarray]]  # of own rows, with the prompts that they answer
Step = Callable[[OnlineState, dict], tuple[OnlineState, dict]]
Produce = Callable[[OnlineState, dict], tuple[Rollout, dict]]  # (state, prompts) -> (rollout, metrics)


def on_device(algorithm: Algorithm, models: dict[str, Model]) -> Score:
    """The rewards of models, {name: its model}, whose parameters are frozen["reward"]."""

    def score(frozen: dict, rollout: Rollout) -> dict[str, jax.Array]:
        of = lambda name, model: partial(forward.score, model, frozen["reward"][name])  # noqa: E731
        return {name: online.by_length(algorithm, rollout, of(name, model)) for name, model in models.items()}

    return score


def one_program(algorithm: Algorithm, actors: Actors, score: Score, frozen: dict, state: OnlineState) -> Step:
    """A whole iteration as one program."""
    arrays, tree = shared(frozen)
    whole = lambda state, arrays, prompts: online.iteration(  # noqa: E731
        algorithm, actors, score, state, tree(arrays), prompts
    )
    program = sharding.jit_step(whole, state)
    return lambda state, prompts: program(state, arrays, prompts)


def two_programs(
    algorithm: Algorithm, actors: Actors, score: Score, on_host: HostScore | None, frozen: dict, state: OnlineState,
    mesh: Mesh | None = None, outside: Produce | None = None,
) -> Step:  # fmt: skip
    """An iteration around what happens on the host: `produce`, then `learn`.

    That is rewards over text, if there are some, and rollouts from `outside`, if they are not sampled here.

    What the advantages read of the models needs no score: it is computed while the host reads. Not where some groups
    are left out by their scores: theirs need not be computed at all.
    """
    arrays, tree = shared(frozen)
    of_text = on_host or (lambda rollout, prompts: {})

    def sampled(state, arrays, prompts):
        key, frozen = jax.random.wrap_key_data(state.key), tree(arrays)
        rollout = online.produce(algorithm, actors, frozen, state.policy.params, prompts, key, state.step)
        return rollout, score(frozen, rollout)

    def judged(arrays, rollout):
        return score(tree(arrays), rollout)

    def annotated(state, arrays, rollout):
        critic = state.critic.params if state.critic else None
        return online.annotate(algorithm, actors, tree(arrays), state.policy.params, critic, rollout)

    def learnt(state, arrays, rollout, rewards):
        return online.learn(algorithm, actors, tree(arrays), state, online.scored(algorithm, rollout, rewards))

    # each process reads its own rows
    rows: dict[str, Any] = {"out_shardings": sharding.batch_sharding(mesh)} if mesh else {}
    inside, judge = jax.jit(sampled, **rows), jax.jit(judged, **rows)
    annotate, learn = jax.jit(annotated), sharding.jit_step(learnt, state)

    def produced(state: OnlineState, prompts: dict) -> tuple[Rollout, dict, dict]:
        if outside is None:
            return *inside(state, arrays, prompts), {}
        rollout, metrics = outside(state, prompts)
        paid, rollout = rollout.rewards or {}, rollout.replace(rewards=None)  # by an environment
        return rollout, judge(arrays, rollout) | paid, metrics

    def read(rollout: Rollout, prompts: dict) -> dict[str, jax.Array]:
        (finished,) = needs(rollout, "finished")
        found = host.together(lambda: of_text(rollout, prompts))
        return {name: host.rows_like(x, finished) for name, x in found.items()}

    def step(state: OnlineState, prompts: dict) -> tuple[OnlineState, dict]:
        rollout, rewards, of_sampler = produced(state, prompts)
        noted = rollout if algorithm.keep else annotate(state, arrays, rollout)  # goes on while the host reads
        state, metrics = learn(state, arrays, noted, rewards | read(rollout, prompts))
        return state, of_sampler | metrics

    return step


def text_scorer(
    rewards: Mapping[str, TextReward], rows: list[dict], sampler: Sampler, group: int, workers: Workers
) -> HostScore:
    """Rewards over text of this process's rows; a reply finds its row of the data by the id that came with its prompt.

    One that a reward cannot score (None or nan), or does not in time, has the score nan. Of a reply of several turns
    it gets the last.
    """

    def score(rollout: Rollout, prompts: dict) -> dict[str, np.ndarray]:
        needed = (rollout.tokens, rollout.mask, rollout.valid, rollout.finished, prompts["row"])
        tokens, mask, valid, finished, ids = map(host.own_rows, needed)  # no more leaves the device
        completions, ids = sampler.texts_of(tokens, last_turn(mask, valid)), np.repeat(ids, group)
        of = [rows[row] for row in ids]
        out = {}
        for name, reward in rewards.items():
            out[name], late = score_texts(reward, of, completions, finished, workers)
            if late:
                slow = f"did not score {len(late)} of {len(ids)} replies in {workers.timeout_s:g} s"
                first = f"the first of them to row {ids[late[0]]} of the data: they teach nothing"
                console.print(f"[yellow]the reward {name!r} {slow}, {first}[/]")
        return out

    return score


def last_turn(mask: Bool[np.ndarray, "B T"], valid: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """What the policy said behind all that others did: a whole reply, or the last turn of one that has several."""
    place = np.arange(mask.shape[1])[None]
    others = np.where(valid & ~mask, place, -1).max(1)
    return mask & (place > others[:, None])
