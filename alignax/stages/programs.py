"""An online iteration as compiled programs: one with the rewards on the device, others around a reward that reads text.

Every program has the frozen arrays as arguments, each once (`roles.shared`), and donates the state.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool
from rich.markup import escape

from alignax import forward, host, sharding
from alignax.config import ConfigError
from alignax.log import console
from alignax.ops.checks import needs
from alignax.rewards import ensemble
from alignax.rewards.config import Reward
from alignax.rewards.steps import OF_LOGITS, marks, score_steps, step_ends, step_texts
from alignax.rewards.text import STOP, AnyReward, Scores, Trouble, score_texts
from alignax.rewards.workers import Workers
from alignax.sampling.sampler import Sampler
from alignax.stages.roles import shared
from alignax.train import online, reading, rewarded, waiting
from alignax.train.algorithm import Actors, Algorithm, Score
from alignax.train.moving import present
from alignax.train.state import OnlineState
from alignax.types import Model, Rollout

HostScore = Callable[[Rollout, dict], "Said"]  # of own rows, with the prompts that they answer
Step = Callable[[OnlineState, dict], tuple[OnlineState, dict]]
RewardOf = Callable[[Algorithm], Score]
Produce = Callable[[OnlineState, dict], tuple[Rollout, dict]]  # (state, prompts) -> (rollout, metrics)


class Said(NamedTuple):
    """What rewards over text say of a process's own rows, by their names."""

    scores: dict[str, Any]  # [B], nan where there is none; [B T] of rewards of steps
    failed: dict[str, Any]  # [B]: it was asked and did not score the reply: it raised, gave no number or was late


def on_device(
    algorithm: Algorithm, models: dict[str, Model], per_step: Mapping[str, str] | None = None,
    ends: Sequence[int] = (),
) -> Score:  # fmt: skip
    """The rewards of models, {name: its model}, whose parameters are frozen["reward"]; of ensembles [B K].

    `per_step`, {name: what is made of its logits} (`rewards.steps.OF_LOGITS`): those of process reward models, [B T],
    whose steps end at the ids that frozen["step_ends"] marks; `ends`: the ids that end a reply.
    """
    steps = per_step or {}

    def of(frozen: dict, name: str) -> Callable[..., jax.Array]:
        params = frozen["reward"][name]
        single = forward.verdicts if name in steps else forward.score
        return partial(ensemble.scores if ensemble.is_ensemble(params) else single, models[name], params)

    def score(frozen: dict, rollout: Rollout) -> dict[str, jax.Array]:
        found = {name: reading.by_length(algorithm, rollout, of(frozen, name)) for name in models}
        for name, kind in steps.items():
            ends_BT = step_ends(rollout.tokens, rollout.mask, frozen["step_ends"][name], ends)
            found[name] = jnp.where(ends_BT, OF_LOGITS[kind](found[name]), 0.0)
        return found

    return score


def step_marks(rewards: Mapping[str, Reward], model: Model, tokenizer: Any) -> dict[str, np.ndarray]:
    """{name: the ids that end a step} of the rewards of steps. Raises ConfigError for a marker that no token has."""
    found = {}
    for name, one in rewards.items():
        if one.step_ends:
            try:
                found[name] = marks(tokenizer, model.config.padded_vocab, one.step_ends)
            except ValueError as error:
                raise ConfigError(f"config.rewards.{name}.{error}") from None
    return found


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
    of_text = on_host or (lambda rollout, prompts: Said({}, {}))

    def judged(arrays, rollout, prompts):
        frozen = tree(arrays)
        rollout = rewarded.beside_reference(frozen, rollout, prompts, algorithm.group)
        return rollout, score(frozen, rollout)

    def annotated(state, arrays, rollout):
        critic, frozen = online.critic_of(algorithm, state), present(tree(arrays), state)
        return online.annotate(algorithm, actors, frozen, state.policy.params, critic, rollout)

    def learnt(state, arrays, rollout, rewards, said, data):
        scored = rewarded.scored(algorithm, rollout, rewards | said.scores, state.multipliers)
        state, metrics = online.learn(algorithm, actors, tree(arrays), state, scored, data)
        failed = {f"rewards/{name}/failed": jnp.sum(x, dtype=jnp.float32) for name, x in said.failed.items()}
        return state, metrics | failed

    next_batch = partial(waiting.next_batch, algorithm)
    if algorithm.carried:
        next_batch = jax.jit(next_batch, **in_rows(mesh))
    annotate, judge = jax.jit(annotated), jax.jit(judged, **in_rows(mesh))
    learn = sharding.jit_step(learnt, state.replace(pending=()))

    def read(rollout: Rollout, prompts: dict) -> Said:
        (finished,), tokens = needs(rollout, "finished"), rollout.tokens
        said = host.together(lambda: of_text(rollout, prompts))
        return jax.tree.map(lambda x: host.rows_like(x, finished if x.ndim == 1 else tokens), said)

    def step(state: OnlineState, batch: dict) -> tuple[OnlineState, dict]:
        prompts, data = online.parted(batch)
        new, of_sampler = sample(state, prompts)
        rollout, prompts, pending = next_batch(state, new, prompts)
        state = state.replace(pending=())
        paid, rollout = rollout.rewards or {}, rollout.replace(rewards=None)  # by an environment
        marked, rewards = judge(arrays, rollout, prompts)
        noted = marked if algorithm.keep else annotate(state, arrays, marked)  # goes on while the host reads
        state, metrics = learn(state, arrays, noted, rewards | paid, read(rollout, prompts), data)
        return state.replace(pending=pending), of_sampler | metrics

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
    rewards: Mapping[str, AnyReward], rows: list[dict], sampler: Sampler, group: int, workers: Workers,
    trouble: Trouble = STOP, markers: Mapping[str, np.ndarray] | None = None,
) -> HostScore:  # fmt: skip
    """Rewards over text of this process's rows; a reply finds its row of the data by the id that came with its prompt.

    One that a reward cannot score (None or nan), or does not in time, has the score nan, and so has one where it fails
    and `trouble` allows for it. Of a reply of several turns it gets the last. `markers`, {name: the ids that end a
    step}: of rewards of steps.
    """

    def score(rollout: Rollout, prompts: dict) -> Said:
        needed = (rollout.tokens, rollout.mask, rollout.valid, rollout.finished, prompts["row"])
        tokens, mask, valid, finished, ids = map(host.own_rows, needed)  # no more leaves the device
        completions, ids = sampler.texts_of(tokens, last_turn(mask, valid)), np.repeat(ids, group)
        of, said = [rows[row] for row in ids], Said({}, {})
        for name, reward in rewards.items():
            with named(name):
                if markers and name in markers:
                    tokens_BT, mask_BT, marks_V = map(jnp.asarray, (tokens, mask, markers[name]))
                    ends = np.asarray(step_ends(tokens_BT, mask_BT, marks_V, sampler.ends))
                    steps = step_texts(sampler.texts_of, tokens, mask, ends)
                    values, found = score_steps(reward, of, steps, finished, ends, workers, trouble=trouble)
                else:
                    found = score_texts(reward, of, completions, finished, workers, group=group, trouble=trouble)
                    values = found.values
                report(name, found, ids, workers.timeout_s)
                said.scores[name], said.failed[name] = values, np.zeros(len(ids), bool)
                said.failed[name][[*found.late, *found.failed]] = True
        return said

    return score


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Within it, an exception of a reward's call says which reward it is, and what would do without the call."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(the reward {name!r}; reward_retries calls again, reward_failure = 'missing' does without)")
        raise


def report(name: str, found: Scores, ids: np.ndarray, timeout_s: float) -> None:
    """Says on the console which replies a reward has not scored, late or failed: the first of each by its row."""
    first = lambda some: f"the first of them to row {ids[min(some)]} of the data"  # noqa: E731
    if found.late:
        slow = f"did not score {len(found.late)} of {len(ids)} replies in {timeout_s:g} s"
        console.print(f"[yellow]the reward {name!r} {slow}, {first(found.late)}: they teach nothing[/]")
    if found.failed:
        error = found.failed[min(found.failed)]
        why = escape(f"{first(found.failed)}: {type(error).__name__}: {error}")
        console.print(f"[yellow]the reward {name!r} failed on {len(found.failed)} of {len(ids)} replies, {why}[/]")


def last_turn(mask: Bool[np.ndarray, "B T"], valid: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """What the policy said behind all that others did: a whole reply, or the last turn of one that has several."""
    place = np.arange(mask.shape[1])[None]
    others = np.where(valid & ~mask, place, -1).max(1)
    return mask & (place > others[:, None])
