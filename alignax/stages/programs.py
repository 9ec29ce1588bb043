"""An online iteration as compiled programs: one with the rewards on the device, others around a reward that reads text.

Every program has the frozen arrays as arguments, each once (`roles.shared`), and donates the state.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

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
    sample: Produce, mesh: Mesh | None = None,
) -> Step:  # fmt: skip
    """An iteration around what happens on the host: `sample`, then `learn`; rewards over text, if there are some.

    What the advantages read of the models needs no score: it is computed while the host reads. Not where some groups
    are left out by their scores: theirs need not be computed at all. What waits to be learnt from is no argument of
    `learn`, which would wait for the newest of it.
    """
    arrays, tree = shared(frozen)
    of_text = on_host or (lambda rollout, prompts: {})

    def judged(arrays, rollout):
        return score(tree(arrays), rollout)

    def annotated(state, arrays, rollout):
        critic = online.critic_of(algorithm, state)
        return online.annotate(algorithm, actors, tree(arrays), state.policy.params, critic, rollout)

    def learnt(state, arrays, rollout, rewards, data):
        return online.learn(algorithm, actors, tree(arrays), state, online.scored(algorithm, rollout, rewards), data)

    annotate, judge = jax.jit(annotated), jax.jit(judged, **in_rows(mesh))
    learn = sharding.jit_step(learnt, state.replace(pending=()))

    def read(rollout: Rollout, prompts: dict) -> dict[str, jax.Array]:
        (finished,) = needs(rollout, "finished")
        found = host.together(lambda: of_text(rollout, prompts))
        return {name: host.rows_like(x, finished) for name, x in found.items()}

    def step(state: OnlineState, batch: dict) -> tuple[OnlineState, dict]:
        prompts, data = online.parted(batch)
        new, of_sampler = sample(state, prompts)
        (rollout, prompts), *pending = *state.pending, (new, prompts)
        state = state.replace(pending=())
        rewards = judge(arrays, rollout)
        noted = rollout if algorithm.keep else annotate(state, arrays, rollout)  # goes on while the host reads
        state, metrics = learn(state, arrays, noted, rewards | read(rollout, prompts), data)
        return state.replace(pending=tuple(pending)), of_sampler | metrics

    return step


def in_rows(mesh: Mesh | None) -> dict[str, Any]:
    """Options of a program each of whose results has the rows of a batch: each process reads its own."""
    return {"out_shardings": sharding.batch_sharding(mesh)} if mesh else {}


def sampling(algorithm: Algorithm, actors: Actors, frozen: dict, mesh: Mesh | None = None) -> Produce:
    """Rollouts that are sampled here, as a program of their own."""
    arrays, tree = shared(frozen)
    draw = lambda state, arrays, prompts: online.sampled(algorithm, actors, tree(arrays), state, prompts)  # noqa: E731
    program = jax.jit(draw, **in_rows(mesh))
    return lambda state, prompts: (program(state, arrays, prompts), {})


def with_drift(step: Step, calibrations: Mapping[str, Mapping[str, float]]) -> Step:
    """The step with rewards/NAME/drift of reward models: (mean score - m) / sd, in the units of the replies that each
    was measured on when it was made, whose scores had the mean m and the deviation sd. Far from 0 it judges what it has
    not seen."""

    def drifting(state: OnlineState, prompts: dict) -> tuple[OnlineState, dict]:
        state, metrics = step(state, prompts)
        for name, known in calibrations.items():
            mean = metrics.get(f"rewards/{name}/mean", metrics["objective/scores"])
            metrics[f"rewards/{name}/drift"] = (mean - known["mean"]) / max(known["sd"], 1e-8)
        return state, metrics

    return drifting if calibrations else step


def text_scorer(
    rewards: Mapping[str, TextReward], rows: list[dict], sampler: Sampler, group: int, workers: Workers
) -> HostScore:
    """Rewards over text of this process's rows; a reply finds its row of the data by the id that came with its prompt.

    One that a reward cannot score (None or nan), or does not in time, has the score nan.
    """

    def score(rollout: Rollout, prompts: dict) -> dict[str, np.ndarray]:
        needed = (rollout.tokens, rollout.mask, rollout.finished, prompts["row"])  # no more leaves the device
        tokens, mask, finished, ids = map(host.own_rows, needed)
        completions, ids = sampler.texts_of(tokens, mask), np.repeat(ids, group)
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
