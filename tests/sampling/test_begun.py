"""Replies that are left where they are and go on later say what they would have said at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import sharding
from alignax.models import decoder as decoders
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.sampling.slots import LENGTH, STOP, UNFINISHED
from alignax.sampling.stops import Stops

CAPACITY, P, GROUP = 12, 12, 2
ENDS = jnp.array([EOS, *range(2, 10)])  # 9 of 50 tokens end a reply: lengths differ


KEYS = row_keys(jax.random.key(5), jnp.arange(GROUP * P))


def draw(model, params, prompts, keys=KEYS, **more):
    """begun -> what `sample` gives behind it."""
    fixed = dict(capacity=CAPACITY, eos_ids=ENDS, pad_id=PAD, group=GROUP) | dict(options=Options(temperature=1.2))
    given = prompts["tokens"], prompts["valid"], keys
    run = jax.jit(lambda params, begun: sample(model, params, *given, **fixed | more, begun=begun))
    return lambda begun=None: run(params, begun)


def same(got, want):
    for name in ("tokens", "valid", "mask", "reason", "finished"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=1e-5)


@pytest.fixture(scope="module")
def whole():
    model, params = tiny()
    return draw(model, params, prompt_batch(B=P))()


def open_rows(rollout):
    return np.asarray(rollout.reason) == UNFINISHED


@pytest.mark.parametrize("slots", [0, 6, pytest.param(2, marks=pytest.mark.slow)])
def test_what_goes_on_says_what_it_says_at_once(whole, slots):
    """Call after call wants three more prompts, and the answered ones stay so."""
    model, params = tiny()
    got, calls = None, 0
    for enough in (3, 6, 9, 12):
        got, calls = draw(model, params, prompt_batch(B=P), enough=enough, slots=slots)(got), calls + 1
        assert (~open_rows(got)).reshape(P, GROUP).all(1).sum() >= enough
        if not open_rows(got).any():
            break
    assert calls > 1
    same(got, whole)


def test_each_beginning_is_one_of_the_whole(whole):
    model, params = tiny()
    first = draw(model, params, prompt_batch(B=P), enough=1)()
    parts = [first, draw(model, params, prompt_batch(B=P), enough=6)(first)]
    for part in parts:
        there = np.asarray(part.mask)
        assert (there <= np.asarray(whole.mask)).all() and there.sum() < np.asarray(whole.mask).sum()
        np.testing.assert_array_equal(np.asarray(part.tokens)[there], np.asarray(whole.tokens)[there])
        assert open_rows(part).any() and not np.asarray(part.finished)[open_rows(part)].any()
    assert (np.asarray(parts[0].mask) <= np.asarray(parts[1].mask)).all()


def cut(rollout):
    """The same where a limit was no end."""
    return rollout.replace(reason=jnp.where(rollout.reason == LENGTH, UNFINISHED, rollout.reason))


@pytest.mark.parametrize("group", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_replies_longer_than_what_is_read_at_once_go_on(group, monkeypatch):
    """Pieces of 64 tokens, of which a ring has room for one beside its window."""
    model, params = tiny(pattern=("sliding", "full"), window=20)
    prompts, given = prompt_batch(B=4), {"group": group, "capacity": 140, "eos_ids": jnp.array([99])}
    keys = row_keys(jax.random.key(5), jnp.arange(4 * group))
    want = draw(model, params, prompts, keys, **given)()
    limit = jnp.array([70, 3, 64, 139, 1, 65, 128, 20])[: 4 * group]
    half = draw(model, params, prompts, keys, **given, options=Options(temperature=1.2, max_new_tokens=limit))()
    np.testing.assert_array_equal(half.mask.sum(1), limit)
    same(draw(model, params, prompts, keys, **given)(cut(half)), want)


def test_penalties_and_stop_texts_remember_what_was_said():
    """A stop text of two tokens, one on each side of the cut, and words that are dear once they are said."""
    first, second = np.arange(50) % 2 == 0, np.arange(50) % 3 == 0
    table = np.stack([np.where(first, 1, 0), np.where(second, 2, np.where(first, 1, 0)), np.full(50, 2)])
    options = Options(
        temperature=1.2, frequency_penalty=1.5, repetition_penalty=1.3, stops=Stops(table=jnp.asarray(table))
    )
    model, params = tiny()
    prompts = prompt_batch(B=P)
    want = draw(model, params, prompts, options=options)()
    half = draw(model, params, prompts, options=options.replace(max_new_tokens=1))()
    begun = cut(half)
    begun = begun.replace(tokens=jnp.where(begun.valid, begun.tokens, 7))  # other padding than that of today
    got = draw(model, params, prompts, options=options)(begun)
    same(got, want)
    spelled_over_the_cut = (np.asarray(got.reason) == STOP) & (np.asarray(got.mask).sum(1) == 2)
    assert spelled_over_the_cut.any()


def test_four_devices_go_on_as_one_does(whole):
    _, params = tiny()
    mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
    model = decoders.decoder(tiny()[0].config, by_rows=sharding.by_rows(mesh))
    prompts = jax.device_put(prompt_batch(B=P), sharding.batch_sharding(mesh))
    first = jax.device_get(draw(model, params, prompts, enough=4)())
    answered = (~open_rows(first)).reshape(4, -1, GROUP).all(2).sum(1)
    assert (answered >= 1).all() and (answered < 3).any()  # each device has its share of 4
    same(draw(model, params, prompts)(first), whole)


def test_what_is_as_long_as_a_smaller_limit_is_over(whole):
    model, params = tiny()
    first = draw(model, params, prompt_batch(B=P), enough=6)()
    got = draw(model, params, prompt_batch(B=P), options=Options(temperature=1.2, max_new_tokens=2))(first)
    assert open_rows(first).any() and not open_rows(got).any()
    long = open_rows(first) & (np.asarray(first.mask).sum(1) >= 2)
    assert long.any() and (np.asarray(got.reason)[long] == LENGTH).all()
    np.testing.assert_array_equal(np.asarray(got.mask)[long], np.asarray(first.mask)[long])


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(enough=13), ("enough = 13", "up to 12")),
        (dict(enough=-1), ("enough = -1", "0 (all)")),
        (dict(capacity=9), ("begun", "(24, 17)")),
        (dict(report=("raw_logp",)), ("begun has no raw_logp", "report it always")),
    ],
)
def test_what_cannot_go_on_is_refused(whole, more, message):
    model, params = tiny()
    with refuses(ValueError, *message):
        draw(model, params, prompt_batch(B=P), **more)(whole)
