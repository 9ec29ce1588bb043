"""Episodes on the host: what environments say goes in, and whatever they do, an episode ends."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from alignax.data.encode import prompt_rows
from alignax.envs.observed import NOTE, Observer
from alignax.envs.play import Player, begun
from alignax.rewards.workers import Workers
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import Sampler
from alignax.sampling.turns import programs
from alignax.worlds.sums import build_tokenizer, prompts

CAPACITY, ROWS = 48, 6


class Scripted:
    """Says `said` for a number of turns, then is done; it pays 1 for each turn, and `last` at the end."""

    def __init__(self, said="7", turns=2, last=0.5, act=None):
        self.said, self.turns, self.last, self.act = said, turns, last, act
        self.heard, self.counts = [], {}

    def reset(self, row):
        return None

    def step(self, text):
        self.heard.append(text)
        if self.act:
            self.act(self)
        done = len(self.heard) >= self.turns
        return None if done else self.said, 1.0, done

    def finish(self):
        return self.last


@pytest.fixture(scope="module")
def world():
    tokenizer = build_tokenizer()
    model, params = tiny(vocab_size=len(tokenizer))
    batch, _ = prompt_rows(prompts(split="train", count=ROWS)[0], tokenizer, template="chat", max_prompt_length=16)
    # what ends a turn: the end, and a third of the other tokens, so that turns are short
    ends = (tokenizer.eos_token_id, *range(20, 56))
    own = Sampler(model, CAPACITY, ends, tokenizer.pad_token_id, tokenizer)
    return own, programs(own, 1), params, batch


def play(world, envs, *, max_turns=4, most=12, timeout_s=60.0, rows=None):
    own, run, params, batch = world
    rows = np.arange(len(envs)) if rows is None else np.asarray(rows)
    player = Player(own, run, Observer(own.tokenizer, "chat", most), max_turns=max_turns, workers=Workers(8, timeout_s))
    tokens, valid = (jnp.asarray(batch[name][rows]) for name in ("tokens", "valid"))
    keys = row_keys(jax.random.key(1), jnp.asarray(rows))
    return player.play(params, tokens, valid, keys, Options(temperature=1.0), envs)


def test_what_is_said_goes_in_and_what_is_paid_adds_up(world):
    envs = [Scripted(said="42", turns=1 + i % 3) for i in range(ROWS)]
    played = play(world, envs)
    turns = [1 + i % 3 for i in range(ROWS)]
    done = np.asarray(played.rollout.finished)
    assert done.sum() >= 4 and list(played.metrics["env/turns"][done]) == [t for t, d in zip(turns, done) if d]
    np.testing.assert_array_equal(played.metrics["env/truncated"], ~done)
    tokens, valid, mask = (np.asarray(getattr(played.rollout, name)) for name in ("tokens", "valid", "mask"))
    own = world[0]
    seen = Observer(own.tokenizer, "chat", 12).ids("42")
    for i, env in enumerate(envs):
        assert played.reward[i] == len(env.heard) + 0.5
        L = tokens.shape[1] - CAPACITY
        assert list(tokens[i, L:][valid[i, L:] & ~mask[i, L:]]) == seen * (len(env.heard) - 1)
        texts = own.texts_of(tokens[i : i + 1], mask[i : i + 1])
        assert texts == ["".join(env.heard)]


def test_an_episode_is_the_same_alone(world):
    together = play(world, [Scripted(turns=3) for _ in range(ROWS)]).rollout
    for row in (0, 3):
        alone = play(world, [Scripted(turns=3)], rows=[row]).rollout
        for name in ("tokens", "valid", "mask"):
            np.testing.assert_array_equal(
                np.asarray(getattr(alone, name))[0], np.asarray(getattr(together, name))[row], err_msg=name
            )


def test_one_that_never_ends_is_ended(world):
    envs = [Scripted(turns=10**9) for _ in range(ROWS)]
    played = play(world, envs, max_turns=3)
    assert max(played.metrics["env/turns"]) == 3 and (played.metrics["env/truncated"] == 1).all()
    assert not np.asarray(played.rollout.finished).any()
    played = play(world, [Scripted(turns=10**9) for _ in range(ROWS)], max_turns=10**6)  # the room ends it
    assert (np.asarray(played.rollout.valid)[:, -CAPACITY:].sum(1) <= CAPACITY).all()
    assert (played.metrics["env/truncated"] == 1).all() and played.metrics["env/turns"].max() > 3


def test_ten_megabytes_are_cut(world):
    played = play(world, [Scripted(said="9" * 10_000_000, turns=2) for _ in range(ROWS)], most=12)
    text = world[0].tokenizer.decode(np.asarray(played.rollout.tokens)[0])
    assert NOTE in text and text.count("9") <= 12


def test_one_that_hangs_is_left_behind(world):
    hang = lambda env: time.sleep(3 if len(env.heard) == 1 else 0)  # noqa: E731
    envs = [Scripted(turns=2, act=hang if i == 2 else None) for i in range(4)]
    begun_at = time.monotonic()
    played = play(world, envs, most=40, timeout_s=0.5)
    assert time.monotonic() - begun_at < 60
    assert list(played.metrics["tools/failures"]) == [0, 0, 1, 0] and played.metrics["env/truncated"][2] == 1
    assert "no answer within 0.5" in world[0].tokenizer.decode(np.asarray(played.rollout.tokens)[2])
    assert np.isnan(played.reward[2]) and not np.isnan(played.reward[[0, 1, 3]]).any()
    assert len(envs[2].heard) == 1  # it is not asked again, while a thread is in it


def test_a_reward_that_is_no_number_is_missing(world):
    played = play(world, [Scripted(last=float("nan"), turns=1), Scripted(turns=1)])
    assert np.isnan(played.reward[0]) and played.reward[1] == 1.5


def test_an_error_of_the_environment_comes_out(world):
    def broken(env):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        play(world, [Scripted(act=broken)])


def test_a_step_that_gives_something_else_is_refused(world):
    class Wrong(Scripted):
        def step(self, text):
            return "only text"

    with pytest.raises(TypeError, match="observation, reward, done"):
        play(world, [Wrong()])
    with pytest.raises(TypeError, match="not done"):
        play(world, [Scripted(said=None)])


def test_episodes_of_a_row_begin_alike():
    class Random(Scripted):
        made = 0

        def reset(self, row):
            Random.made += 1
            return str(Random.made)

    workers = Workers(2, 0.0)
    with pytest.raises(ValueError, match="different texts"):
        begun(Random, [{"prompt": "x"}], 2, workers)
    envs, texts = begun(Scripted, [{"prompt": "x"}, {"prompt": "y"}], 3, workers)
    assert len(envs) == 6 and len(set(map(id, envs))) == 6 and texts == [None, None]


def test_one_that_does_not_begin_is_an_error():
    class Slow(Scripted):
        def reset(self, row):
            time.sleep(3)

    with pytest.raises(TimeoutError, match="env_timeout_s"):
        begun(Slow, [{"prompt": "x"}], 1, Workers(1, 0.2))


class Together(Scripted):
    """Is asked for all episodes of a batch at once."""

    calls, lose, sleep_s = [], 0, 0.0

    @staticmethod
    def steps(envs, texts):
        Together.calls.append(len(envs))
        time.sleep(Together.sleep_s)
        return [env.step(text) for env, text in zip(envs, texts, strict=True)][Together.lose :]


def test_episodes_that_are_stepped_together_are_those_stepped_one_by_one(world, monkeypatch):
    monkeypatch.setattr(Together, "calls", [])
    one, all_ = (play(world, [kind(turns=1 + i % 3) for i in range(ROWS)]) for kind in (Scripted, Together))
    for ours, theirs in zip(jax.tree.leaves(all_), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert Together.calls[0] == ROWS and len(Together.calls) == max(one.metrics["env/turns"])
    monkeypatch.setattr(Together, "lose", 1)
    with pytest.raises(TypeError, match="one for each"):
        play(world, [Together() for _ in range(ROWS)])


def test_all_that_are_stepped_together_hang_together(world, monkeypatch):
    monkeypatch.setattr(Together, "sleep_s", 3.0)
    played = play(world, [Together(turns=2) for _ in range(2)], timeout_s=0.3)
    assert np.isnan(played.reward).all() and (played.metrics["env/truncated"] == 1).all()
