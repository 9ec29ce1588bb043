"""Replies of several turns: what is observed is read at each row's own place, and nobody's choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import forward, sharding
from alignax.models.decoder import decoder
from alignax.ops.returns import gae
from alignax.sampling import turns
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import Sampler
from alignax.sampling.turns import pieces, programs

CAPACITY, GROUP = 60, 2
ENDS = (EOS, *range(2, 10))  # 9 of 50 tokens end a turn: lengths differ
OPTIONS = Options(temperature=1.2)
TURNS = 3


def sampler_of(model, capacity=CAPACITY):
    return Sampler(model, capacity, ENDS, PAD)


def keys_of(rows, group=GROUP):
    return row_keys(jax.random.key(5), jnp.repeat(rows, group) * group + jnp.tile(jnp.arange(group), len(rows)))


def says(row, turn):
    """What row `row` sees after a turn: 1 to 18 tokens, more than one width, and of some rows nothing."""
    rng = np.random.default_rng([int(row), turn])
    length = 0 if row % 3 == 2 else rng.choice([1, 4, 9, 18])
    return [int(x) for x in rng.integers(10, 50, length)]


def episodes(model, params, prompts, group=GROUP, turns_=TURNS, made=None, observe=says):
    """(rollout, turns that each reply had) of replies that see `observe` of their row."""
    own = sampler_of(model)
    run = made or programs(own, group)
    asked = turns.asked_for(prompts["tokens"], prompts["valid"], keys_of(prompts["row"], group))
    given, R = (params, asked, OPTIONS), group * len(prompts["row"])
    state = run.advance(*given, run.begin(*given))
    row, had = np.repeat(np.asarray(prompts["row"]), group), np.ones(R, int)
    live = np.ones(R, bool)
    for turn in range(turns_ - 1):
        ended, reason = np.asarray(state.slots.t), np.asarray(state.said.reason)
        seen = [observe(row[i], turn) if live[i] and reason[i] and ended[i] + 19 < CAPACITY else [] for i in range(R)]
        live &= np.array([bool(x) for x in seen])
        first = 0
        for width in pieces(max(map(len, seen)), run.widths):
            ids, valid = np.full((R, width), PAD, np.int32), np.zeros((R, width), bool)
            for i, one in enumerate(seen):
                part = one[first : first + width]
                ids[i, : len(part)], valid[i, : len(part)] = part, True
            state, first = run.observe(*given, state, jnp.asarray(ids), jnp.asarray(valid)), first + width
        state = run.advance(*given, run.resume(state, jnp.asarray(live)))
        had += live
    return turns.written(asked, state), had


@pytest.fixture(scope="module")
def plain():
    model, params = tiny()
    return episodes(model, params, prompt_batch(B=6))


def test_what_is_observed_is_there_and_masked_out(plain):
    rollout, had = plain
    assert had.max() == TURNS and had.min() < TURNS
    tokens, mask, valid = (np.asarray(x) for x in (rollout.tokens, rollout.mask, rollout.valid))
    L = tokens.shape[1] - CAPACITY
    for i, (row, turns_) in enumerate(zip(np.repeat(np.arange(6), GROUP), had, strict=True)):
        seen = tokens[i, L:][valid[i, L:] & ~mask[i, L:]]
        assert list(seen) == [x for turn in range(turns_ - 1) for x in says(row, turn)]
        assert (np.asarray(rollout.old_logp)[i][~mask[i]] == 0).all()
        count = valid[i, L:].sum()
        assert valid[i, L : L + count].all() and mask[i, L:].sum() == count - len(seen)


@pytest.mark.parametrize("changes", [{}, dict(pattern=("sliding", "full"), window=6)], ids=["full", "window"])
def test_old_logp_is_that_of_the_whole_sequence(changes):
    """At float32's rounding, whoever said what stands before a token."""
    model, params = tiny(**changes)
    rollout, had = episodes(model, params, prompt_batch(B=6))
    assert had.max() == TURNS
    want = forward.token_statistics(model, params, rollout.tokens, rollout.valid, temperature=1.2).logp
    mask = np.asarray(rollout.mask)
    np.testing.assert_allclose(np.asarray(rollout.old_logp)[mask], np.asarray(want)[mask], atol=2e-5)


def test_neighbours_leave_no_trace(plain):
    """A row alone has the tokens that it has among others, at the same places."""
    model, params = tiny()
    rollout, _ = plain
    batch = prompt_batch(B=6)
    for row in (1, 4):
        alone, _ = episodes(model, params, jax.tree.map(lambda x, row=row: x[row : row + 1], batch))
        for name in ("tokens", "mask", "valid"):
            want = np.asarray(getattr(rollout, name))[row * GROUP : (row + 1) * GROUP]
            np.testing.assert_array_equal(np.asarray(getattr(alone, name)), want, err_msg=name)


@pytest.mark.parametrize("group", [1, 4])  # a group of 4 shares its prompt in the cache
def test_one_turn_is_what_sample_gives(group):
    model, params = tiny()
    prompts, own = prompt_batch(B=6), sampler_of(model)
    got, _ = episodes(model, params, prompts, group=group, turns_=1)
    given = (prompts["tokens"], prompts["valid"], keys_of(prompts["row"], group), OPTIONS)
    want = own.reply(params, *given, group=group)
    for name in ("tokens", "mask", "valid", "reason", "finished"):
        np.testing.assert_array_equal(np.asarray(getattr(got, name)), np.asarray(getattr(want, name)), err_msg=name)
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=1e-5)


def test_a_shared_prompt_gives_what_a_repeated_one_gives():
    model, params = tiny()
    got, _ = episodes(model, params, prompt_batch(B=4), group=4)
    own = programs(sampler_of(model._replace(join=None)), 4)
    want, _ = episodes(model, params, prompt_batch(B=4), group=4, made=own)
    np.testing.assert_array_equal(np.asarray(got.tokens), np.asarray(want.tokens))
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=1e-5)


def test_eight_devices_give_what_one_gives(plain):
    mesh = sharding.make_mesh({"data": 8})
    model, params = tiny()
    prompts = prompt_batch(B=8)
    want, _ = episodes(model, params, prompts)
    spread = decoder(model.config, by_rows=sharding.by_rows(mesh))
    got, _ = episodes(spread, params, prompts)
    np.testing.assert_array_equal(np.asarray(got.tokens), np.asarray(want.tokens))


def test_programs_are_few():
    """Observations of any length are read by one program for each width."""
    model, params = tiny(seed=3)
    run = programs(sampler_of(model, 320), 1)
    prompts = prompt_batch(B=2)
    asked = turns.asked_for(prompts["tokens"], prompts["valid"], keys_of(prompts["row"], 1))
    given = (params, asked, OPTIONS)
    state = run.begin(*given)
    for length in range(1, 60, 7):
        for width in pieces(length, run.widths):
            ids = jnp.full((2, width), 11)
            state = run.observe(*given, state, ids, jnp.arange(width)[None] < jnp.array([[length], [1]]))
        state = run.advance(*given, run.resume(state, jnp.array([True, False])))
    assert run.observe._cache_size() == 2 and run.advance._cache_size() == 1 and run.begin._cache_size() == 1


def test_the_widths_hold_what_they_read():
    widths = (16, 64, 256)
    for length in range(1, 700, 13):
        found = pieces(length, widths)
        assert sum(found) >= length > sum(found[:-1]) and set(found) <= set(widths)
    assert pieces(0, widths) == [] and pieces(300, widths) == [256, 64] and pieces(512, widths) == [256, 256]


def test_advantages_skip_what_is_observed(plain):
    """GAE over the actions alone is GAE of the reply from which the observations are cut out."""
    rollout, had = plain
    mask = np.asarray(rollout.mask)
    rng = np.random.default_rng(0)
    reward, value = (jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 99.0), jnp.float32) for _ in range(2))
    got, returns = gae(reward, value, rollout.mask, gamma=0.9, lam=0.8)
    for i in np.flatnonzero(had == TURNS)[:3]:
        keep = mask[i]
        row = [jnp.asarray(np.asarray(x)[i][keep])[None] for x in (reward, value)]
        want, want_returns = gae(*row, jnp.ones((1, int(keep.sum())), bool), gamma=0.9, lam=0.8)
        np.testing.assert_allclose(np.asarray(got)[i][keep], np.asarray(want)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(returns)[i][keep], np.asarray(want_returns)[0], rtol=1e-5, atol=1e-5)
