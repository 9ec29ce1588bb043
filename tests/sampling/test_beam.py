"""Beam search against greedy decoding, against all replies there are, and against a search in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import forward
from alignax.sampling.beam import beam
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample

V, END, C = 5, 4, 4
TABLES = np.random.default_rng(1).normal(0, 1.5, (3, V, V)).astype(np.float32)
FIXED = dict(eos_ids=jnp.array([END]), pad_id=0)


def log_p(table):
    table = np.asarray(table, np.float64)
    return table - np.log(np.exp(table).sum(-1, keepdims=True))


def replies_of(found, n=1):
    """[(tokens of the reply, score)] of each prompt."""
    rows = [
        (tuple(np.asarray(tokens)[np.asarray(mask)]), float(score))
        for tokens, mask, score in zip(found.rollout.tokens, found.rollout.mask, found.score)
    ]
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def exhaustive(table, start, penalty):
    """Every reply of up to C tokens with its score, the best first."""
    logp, out = log_p(table), []
    for length in range(1, C + 1):
        for reply in itertools.product(range(V), repeat=length):
            if END in reply[:-1] or (reply[-1] != END and length < C):
                continue
            total = sum(logp[a, b] for a, b in zip((start, *reply), reply))
            out.append((reply, total / length**penalty))
    return sorted(out, key=lambda one: -one[1])


def searched(table, start, W, penalty, early):
    """transformers' rules, with lists."""
    logp, writing, done = log_p(table), [((), 0.0)], []
    for t in range(1, C + 1):
        found = [((*y, v), s + logp[(start, *y)[-1], v]) for y, s in writing for v in range(V)]
        found = sorted(found, key=lambda one: -one[1])[: 2 * W]
        over = lambda y, t=t: y[-1] == END or t == C  # noqa: E731
        done += [(y, s / t**penalty) for y, s in found[:W] if over(y)]
        done = sorted(done, key=lambda one: -one[1])[:W]
        writing = [(y, s) for y, s in found if not over(y)][:W]
        length = C if early == "never" and penalty > 0 else t
        full = len(done) == W
        if not writing or (full and (early is True or writing[0][1] / length**penalty <= done[-1][1])):
            break
    return done


@functools.cache
def program(model, W, n, early):
    return jax.jit(
        lambda table, tokens, penalty: beam(
            model, table, tokens, jnp.ones_like(tokens, bool), beams=W, n=n, capacity=C, length_penalty=penalty,
            early_stopping=early, **FIXED,
        )
    )  # fmt: skip


def same(got, want):
    assert [reply for reply, _ in got] == [reply for reply, _ in want]
    np.testing.assert_allclose([score for _, score in got], [score for _, score in want], atol=1e-5)


def test_one_beam_is_greedy():
    (model, params), batch = tiny(layers=1), prompt_batch()
    ends = jnp.array([EOS, 2, 3, 7])
    fixed = dict(capacity=7, eos_ids=ends, pad_id=PAD)
    prompts = batch["tokens"], batch["valid"]
    found = jax.jit(lambda: beam(model, params, *prompts, beams=1, **fixed))()
    keys, options = row_keys(jax.random.key(0), batch["row"]), Options(temperature=0.0)
    greedy = jax.jit(lambda: sample(model, params, *prompts, keys, options=options, **fixed))()
    for name in ("tokens", "valid", "mask", "finished", "reason"):
        np.testing.assert_array_equal(getattr(found.rollout, name), getattr(greedy, name), err_msg=name)
    assert 0 < greedy.finished.sum() < 8
    np.testing.assert_allclose(found.rollout.old_logp, greedy.old_logp, atol=1e-5)
    np.testing.assert_allclose(found.score, greedy.old_logp.sum(1) / greedy.mask.sum(1), atol=1e-5)


@pytest.fixture(scope="module")
def model(markov):
    return markov(V)


def test_enough_beams_find_everything(model):
    W, n = 4**C, 12
    starts = jnp.array([[0], [1], [3]])
    for penalty in (0.0, 1.0):
        found = program(model, W, n, False)(TABLES[0], starts, penalty)
        for start, got in zip(starts[:, 0], replies_of(found, n)):
            want = exhaustive(TABLES[0], int(start), penalty)
            assert len({reply for reply, _ in got}) == n
            same(got, [(reply, dict(want)[reply]) for reply, _ in got])
            # replies of the same pairs of tokens in another order are level
            np.testing.assert_allclose([score for _, score in got], [score for _, score in want[:n]], atol=1e-5)


def test_more_replies_than_there_are_are_not_found(model):
    tokens = jnp.array([[0], [2]])
    found = beam(model, jnp.asarray(TABLES[0]), tokens, tokens >= 0, beams=6, n=6, capacity=1, **FIXED)
    for start, got in zip((0, 2), replies_of(found, 6)):
        order = np.argsort(-TABLES[0][start])
        same(got[:5], [((v,), log_p(TABLES[0])[start, v]) for v in order])
        assert got[5] == ((), -np.inf)
    np.testing.assert_array_equal(found.rollout.finished, found.rollout.tokens[:, 1] == END)


@pytest.mark.parametrize("early", [False, True, "never"])
def test_it_is_the_search_in_numpy_prompt_by_prompt(model, early):
    starts, W = jnp.array([[0], [1], [2], [3]]), 3
    run, stopped = program(model, W, W, early), 0
    for table in TABLES:
        for penalty in (0.0, 1.0, 2.0, -0.5):
            found = replies_of(run(table, starts, penalty), W)
            for start, got in zip(starts[:, 0], found):
                same(got, searched(table, int(start), W, penalty, early))
                stopped += got[0] != exhaustive(table, int(start), penalty)[0]
    assert stopped > 0  # it is no exhaustive search
    assert run._cache_size() == 1


def test_what_it_says_of_tokens_is_what_the_model_says():
    (model, params), batch = tiny(layers=1), prompt_batch()
    prompts = batch["tokens"], batch["valid"]
    fixed = dict(beams=4, n=2, capacity=6, eos_ids=jnp.array([EOS, 2]), pad_id=PAD, length_penalty=0.7)
    found = jax.jit(lambda: beam(model, params, *prompts, **fixed))()
    rollout, mask = found.rollout, np.asarray(found.rollout.mask)
    forced = jax.jit(lambda r: forward.token_statistics(model, params, r.tokens, r.valid, start=5).logp)(rollout)
    np.testing.assert_allclose(rollout.old_logp[mask], forced[mask], atol=1e-5)
    np.testing.assert_allclose(found.score, rollout.old_logp.sum(1) / mask.sum(1) ** 0.7, rtol=1e-5)
    assert (found.score[::2] >= found.score[1::2]).all()
    assert (rollout.tokens[::2] != rollout.tokens[1::2]).any(1).all()


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(beams=0), "beams = 0:", "greedy"),
        (dict(n=4), "n = 4:", "more beams"),
        (dict(capacity=0), "capacity = 0:", "1 token"),
        (dict(early_stopping="soon"), "early_stopping = 'soon':", "'never'"),
    ],
)
def test_what_cannot_be_searched_is_refused(model, values, key, word):
    tokens = jnp.zeros((2, 3), jnp.int32)
    with refuses(ValueError, key, word):
        beam(model, TABLES[0], tokens, tokens == 0, **dict(beams=3, capacity=C) | FIXED | values)
