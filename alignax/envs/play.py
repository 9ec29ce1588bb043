"""Episodes: a thin loop on the host around the programs of `sampling.turns`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from alignax.data.boundary import Ids
from alignax.envs.observed import Observer
from alignax.envs.protocol import Env, Make, Stepped
from alignax.rewards.workers import LATE, Workers
from alignax.sampling import turns
from alignax.sampling.options import Options
from alignax.sampling.sampler import Sampler
from alignax.sampling.slots import LENGTH
from alignax.types import Rollout

NOBODY: Stepped = (None, 0.0, False)  # what comes of a turn that no environment hears


class Played(NamedTuple):
    """Replies of several turns."""

    rollout: Rollout  # `finished`: the environment was done, after a turn that came to its end
    reward: np.ndarray  # [R], of the environment, summed over the episode; nan: what it gave is no number
    metrics: dict[str, np.ndarray]  # {name: [R]}


def checked(found: Any, name: str) -> Stepped:
    """What a step gave. Raises TypeError for what is none."""
    if not isinstance(found, tuple) or len(found) != 3:
        raise TypeError(f"{name} gave {str(found)[:80]!r}: expected (observation, reward, done)")
    return found


class Episode:
    """One reply's environment, and what has come of it so far."""

    def __init__(self, env: Env):
        self.env, self.reward, self.turns = env, 0.0, 0
        self.over = self.done = self.gone = False  # `gone`: in a thread that did not come back
        self.counts: dict[str, float] = {}

    def step(self, text: str) -> Stepped:
        """The environment's own step. Raises TypeError for one that gives something else."""
        return checked(self.env.step(text), f"{type(self.env).__name__}.step")

    def close(self) -> float:
        """The reward of the end."""
        finish = getattr(self.env, "finish", None)
        return float(finish()) if finish else 0.0


class Player:
    """Plays batches of episodes under one policy's sampler.

    Args:
      programs: `turns.programs` of this sampler.
      observer: how observations are read.
      max_turns: turns of the policy in an episode; after the last nothing is observed.
      workers: threads for environments, with the seconds that those of a batch have for one turn.
    """

    def __init__(self, own: Sampler, programs: turns.Programs, observer: Observer, *, max_turns: int, workers: Workers):
        self.own, self.programs, self.observer = own, programs, observer
        self.max_turns, self.workers = max_turns, workers

    def play(
        self, params: Any, tokens: Array, valid: Array, keys: Array, options: Options, envs: Sequence[Env]
    ) -> Played:
        """Episodes of environments that have been reset, one for each key; those of a prompt are neighbours."""
        asked = turns.asked_for(tokens, valid, keys)
        given, episodes = (params, asked, options), [Episode(env) for env in envs]
        state = self.programs.begin(*given)
        begun = np.zeros(len(episodes), np.int32)  # where each row's turn begins in its reply
        while not all(one.over for one in episodes):
            state = self.programs.advance(*given, state)
            said, ended = np.asarray(state.said.tokens), np.asarray(state.slots.t)
            cut = np.asarray(state.said.reason) == LENGTH
            live = [i for i, one in enumerate(episodes) if not one.over]
            texts = self.texts(said, begun, ended, live)
            seen = self.answered([episodes[i] for i in live], texts, cut[live], self.own.capacity - ended[live])
            ids = {i: found for i, found in zip(live, seen, strict=True) if found}
            state = self.observed(given, state, ids, len(episodes))
            begun = np.asarray(state.slots.t)
        reward = self.closed(episodes)
        return self.result(asked, state, episodes, reward)

    def texts(self, said: np.ndarray, begun: np.ndarray, ended: np.ndarray, live: list[int]) -> list[str]:
        """What the live rows said in this turn."""
        place = np.arange(said.shape[1])[None]
        mask = (place >= begun[live, None]) & (place < ended[live, None])
        return self.own.texts_of(said[live], mask)

    def answered(self, episodes: list[Episode], texts: list[str], cut: np.ndarray, room: np.ndarray) -> list[Ids]:
        """The ids that each row sees next; none where the episode is over."""
        asked = [i for i, one in enumerate(episodes) if not one.gone]  # the others' are still in a thread
        found = self.stepped([episodes[i] for i in asked], [texts[i] for i in asked])
        steps = dict.fromkeys(range(len(episodes)), NOBODY) | dict(zip(asked, found, strict=True))
        return [self.next(one, steps[i], bool(cut[i]), int(room[i])) for i, one in enumerate(episodes)]

    def stepped(self, episodes: list[Episode], texts: list[str]) -> list[Any]:
        """What comes of a turn of each, `LATE` where nothing came in time: of one call for all, where there is one."""
        together = getattr(type(episodes[0].env), "steps", None) if episodes else None
        if not callable(together):
            return self.workers.map(Episode.step, list(zip(episodes, texts, strict=True)))
        (found,) = self.workers.map(together, [([one.env for one in episodes], texts)])
        if found is LATE:
            return [LATE] * len(episodes)
        name = f"{type(episodes[0].env).__name__}.steps"
        if not isinstance(found, list) or len(found) != len(episodes):
            raise TypeError(
                f"{name} gave {str(found)[:80]!r}: expected a list of {len(episodes)}, one for each episode"
            )
        return [checked(step, name) for step in found]

    def next(self, one: Episode, step: Any, cut: bool, room: int) -> Ids:
        """What comes of one step: the ids that the row sees, and what is known of its episode."""
        late = step is LATE
        observation, reward, done = self.late(one) if late else step
        one.turns += 1
        one.reward += float(reward)
        # one whose environment did not come back has this turn to end with
        one.over = done or cut or one.gone or one.turns >= self.max_turns
        one.done, one.gone = bool(done) and not cut, one.gone or late
        if one.over:
            return []
        ids = self.observer.ids(observation)
        one.over = len(ids) >= room  # a token at least has to follow
        return [] if one.over else ids

    def late(self, one: Episode) -> Stepped:
        """What is said where an environment does not answer in time."""
        one.counts["tools/failures"] = one.counts.get("tools/failures", 0.0) + 1
        said = f"Error: no answer within {self.workers.timeout_s:g} seconds"
        called = [{"role": "tool", "name": "unknown", "content": said}]
        return called if getattr(one.env, "tools", ()) else said, 0.0, False

    def observed(self, given: tuple, state: turns.Play, ids: dict[int, Ids], rows: int) -> turns.Play:
        """The state once all rows have read what they see; those that see nothing are over."""
        first = 0
        for width in turns.pieces(max(map(len, ids.values()), default=0), self.programs.widths):
            tokens, valid = np.full((rows, width), self.own.pad, np.int32), np.zeros((rows, width), bool)
            for i, found in ids.items():
                part = found[first : first + width]
                tokens[i, : len(part)], valid[i, : len(part)] = part, True
            state = self.programs.observe(*given, state, jnp.asarray(tokens), jnp.asarray(valid))
            first += width
        live = np.zeros(rows, bool)
        live[list(ids)] = True
        return self.programs.resume(state, jnp.asarray(live))

    def closed(self, episodes: list[Episode]) -> np.ndarray:
        """The reward of each episode, with that of its end."""
        ends = [one for one in episodes if not one.gone]
        for one, reward in zip(ends, self.workers.map(Episode.close, [(one,) for one in ends]), strict=True):
            one.reward += math.nan if reward is LATE else reward
        # one whose environment did not come back has no reward: what it would have paid nobody knows
        total = np.array([math.nan if one.gone else one.reward for one in episodes], np.float32)
        return np.where(np.isfinite(total), total, np.nan)

    def result(self, asked: turns.Asked, state: turns.Play, episodes: list[Episode], reward: np.ndarray) -> Played:
        """What all of it was."""
        done = np.array([one.done for one in episodes])
        found = {"env/turns": [one.turns for one in episodes], "env/truncated": ~done}
        counts = [counted(one) for one in episodes]
        names = {"tools/calls", "tools/failures"} | {name for one in counts for name in one}
        found |= {name: [one.get(name, 0.0) for one in counts] for name in names}
        rollout = turns.written(asked, state).replace(finished=jnp.asarray(done))
        return Played(rollout, reward, {name: np.asarray(x, np.float32) for name, x in found.items()})


def counted(one: Episode) -> dict[str, float]:
    """What an environment counted, and what was counted of it."""
    own = dict(getattr(one.env, "counts", {}))
    return own | {name: own.get(name, 0.0) + value for name, value in one.counts.items()}


def begun(make: Make, rows: Sequence[dict], group: int, workers: Workers) -> tuple[list[Env], list[str | None]]:
    """An environment for each of `group` replies to each row, and the text that it adds to the row's prompt.

    Raises ValueError where the replies to one row do not begin with the same text, TimeoutError for one that does not
    begin in time.
    """
    envs = [make() for _ in range(len(rows) * group)]
    said = workers.map(lambda env, row: env.reset(row), [(env, rows[i // group]) for i, env in enumerate(envs)])
    for i, text in enumerate(said):
        name, first = f"{type(envs[i]).__name__}.reset", said[i // group * group]
        if text is LATE:
            raise TimeoutError(f"{name} took longer than {workers.timeout_s:g} seconds (env_timeout_s)")
        if text != first:
            raise ValueError(
                f"{name} gave different texts for one row, {first!r} and {text!r}: expected one, as the replies to a "
                "prompt are compared; draw what differs from the row itself"
            )
    return envs, said[::group]
