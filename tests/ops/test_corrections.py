"""Corrections for a sampler that is not the learner: by hand, against loops, exact by enumeration, refusals."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.ops.corrections import geometric_rejection, masked_weights, truncated_weights
from alignax.ops.mismatch import mismatch

NAN = float("nan")
EVERY = [
    partial(truncated_weights, cap=1.5),
    partial(truncated_weights, level="sequence", cap=1.5),
    partial(masked_weights, cap=1.5),
    partial(masked_weights, level="sequence", cap=1.5),
    partial(geometric_rejection, cap=1.1),
    partial(geometric_rejection, cap=1.1, token_cap=1.2),
]


def label(function):
    return "-".join([function.func.__name__, *map(str, function.keywords.values())])


def batch(seed=0, B=12, T=7):
    """(old_logp, sampler_logp, mask) with holes, an empty row and nan off the mask."""
    rng = np.random.default_rng(seed)
    old, mask = rng.normal(-2, 1, (B, T)).astype(np.float32), rng.random((B, T)) < 0.7
    sampler = (old + rng.normal(0, 0.3, (B, T))).astype(np.float32)
    mask[3] = False
    return *(jnp.asarray(np.where(mask, x, NAN)) for x in (old, sampler)), jnp.asarray(mask)


def oracle(old, sampler, mask, name, *, cap, level="token", token_cap=None):
    """One token at a time, in float64."""
    out = np.zeros(old.shape)
    for b, t in zip(*np.nonzero(mask)):
        log_r = (old[b].astype(np.float64) - sampler[b])[mask[b]]
        own = float(old[b, t]) - float(sampler[b, t])
        r = np.exp(own if level == "token" else log_r.sum())
        if name == "truncated_weights":
            out[b, t] = min(r, cap)
        elif name == "masked_weights":
            out[b, t] = r if 1 / cap <= r <= cap else 0.0
        elif 1 / cap <= np.exp(log_r.mean()) <= cap:
            out[b, t] = 1.0 if token_cap is None else min(r, token_cap)
    return out


@pytest.mark.parametrize("correct", EVERY, ids=label)
def test_corrections_against_loops(correct):
    old, sampler, mask = batch()
    got = correct(old, sampler, mask)
    host = np.asarray(old), np.asarray(sampler), np.asarray(mask)
    want = oracle(*host, correct.func.__name__, **correct.keywords)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not np.asarray(got)[~np.asarray(mask)].any()
    if correct.func is not truncated_weights:
        assert 0 < (got > 0).sum() < mask.sum()  # some stay and some go


@pytest.mark.parametrize("correct", EVERY, ids=label)
def test_corrections_stay_finite_and_are_data(correct):
    old, sampler = jnp.full((2, 3), 1e3), jnp.full((2, 3), -1e3)
    mask = jnp.array([[True, True, False], [False] * 3])
    f = lambda a, b: jnp.sum(correct(a, b, mask))  # noqa: E731
    value, grads = jax.value_and_grad(f, (0, 1))(old, sampler)
    assert value == (3 if correct.func is truncated_weights else 0) and not any(g.any() for g in grads)
    assert f(sampler, old) == 0
    assert f(old, old) == 2  # the same policy: every weight is 1


def test_truncated_weights_by_hand():
    # Ratios 3, 1/2 and (masked) nan; row 2: 1.5 and 1.2. cap 2; products 1.5 and 1.8.
    old = jnp.log(jnp.float32([[3, 0.5, NAN], [1.5, 1.2, 1]]))
    mask = jnp.array([[True, True, False], [True, True, False]])
    none = jnp.zeros((2, 3))
    np.testing.assert_allclose(truncated_weights(old, none, mask), [[2, 0.5, 0], [1.5, 1.2, 0]], rtol=1e-6)
    sequence = truncated_weights(old, none, mask, level="sequence", cap=1.6)
    np.testing.assert_allclose(sequence, [[1.5, 1.5, 0], [1.6, 1.6, 0]], rtol=1e-6)
    plain = truncated_weights(old, none, mask, cap=float("inf"))
    np.testing.assert_allclose(plain, [[3, 0.5, 0], [1.5, 1.2, 0]], rtol=1e-6)
    # geometric means sqrt(1.5) = 1.22 and sqrt(1.8) = 1.34
    np.testing.assert_array_equal(geometric_rejection(old, none, mask, cap=1.3), [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(masked_weights(old, none, mask, cap=1.25), [[0, 0, 0], [0, 1.2, 0]], rtol=1e-6)


REPLIES = list(itertools.product(range(3), repeat=2))  # every reply of two tokens


def chain(seed):
    """log p(reply) of each, by token: p(a) p(b | a)."""
    logits = np.random.default_rng(seed).normal(0, 0.4, (4, 3))
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return jnp.float32([[logp[3, a], logp[a, b]] for a, b in REPLIES])


def test_weights_of_whole_replies_are_unbiased_and_the_others_are_not():
    """E_sampler[w f] against E_learner[f], over all replies; what is masked is missing from it exactly."""
    old, sampler, mask = chain(0), chain(1), jnp.ones((9, 2), bool)
    f = np.random.default_rng(2).normal(size=9)
    p, q = np.exp(np.sum(old, axis=1)), np.exp(np.sum(sampler, axis=1))
    expected = lambda weight: float(np.sum(q * np.asarray(weight)[:, 0] * f))  # noqa: E731
    exact = truncated_weights(old, sampler, mask, level="sequence", cap=float("inf"))
    np.testing.assert_allclose(expected(exact), np.sum(p * f), rtol=1e-5)
    for biased in (
        truncated_weights(old, sampler, mask, cap=float("inf")),
        truncated_weights(old, sampler, mask, level="sequence", cap=1.0),
        geometric_rejection(old, sampler, mask, cap=1.05),
    ):
        assert abs(expected(biased) - np.sum(p * f)) > 0.01
    near = (p / q <= 1.3) & (p / q >= 1 / 1.3)
    assert 0 < near.sum() < 9
    masked = masked_weights(old, sampler, mask, level="sequence", cap=1.3)
    np.testing.assert_allclose(expected(masked), np.sum((p * f)[near]), rtol=1e-5)


def test_mismatch_by_hand():
    learner = jnp.float32([[-1.0, -2.0, NAN], [-1.0, NAN, NAN]])
    sampler = jnp.float32([[-1.5, -1.0, NAN], [-1.0, NAN, NAN]])  # differences 0.5, -1, 0
    got = mismatch(learner, sampler, ~jnp.isnan(learner))
    want = {
        "sampling_logp_difference/mean": 0.5, "sampling_logp_difference/max": 1.0,
        "importance_sampling_ratio/min": np.exp(-1), "importance_sampling_ratio/max": np.exp(0.5),
        "importance_sampling_ratio/mean": (np.exp(0.5) + np.exp(-1) + 1) / 3,
    }  # fmt: skip
    assert got.keys() == {f"sampling/{name}" for name in want}
    for name, value in want.items():
        np.testing.assert_allclose(got[f"sampling/{name}"], value, rtol=1e-6)
    nothing = mismatch(learner, sampler, jnp.zeros((2, 3), bool))
    assert all(value == 0 for value in nothing.values())


@pytest.mark.parametrize(
    "correct, words",
    [
        (partial(truncated_weights, level="row"), ("truncated_weights: level = 'row'", "'token' or 'sequence'")),
        (partial(truncated_weights, cap=0.0), ("truncated_weights: cap = 0.0", "positive")),
        (partial(masked_weights, cap=0.5), ("masked_weights: cap = 0.5", "1 or more")),
        (partial(masked_weights, level="row"), ("masked_weights: level = 'row'", "'sequence'")),
        (partial(geometric_rejection, cap=0.99), ("geometric_rejection: cap = 0.99", "1.01")),
        (partial(geometric_rejection, token_cap=0.0), ("geometric_rejection: token_cap = 0.0", "positive")),
    ],
)
def test_corrections_refuse(correct, words):
    with refuses(ValueError, *words):
        correct(*batch())
