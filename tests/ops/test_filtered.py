"""Log-probs under a filter: against the formula without chunks, in value and gradient, and what falls out of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_logprobs import inputs, value_and_grads

from alignax.ops.filtered import filtered_stats
from alignax.ops.logprobs import token_stats

FILTERS = [dict(top_k=5), dict(top_p=0.7), dict(min_p=0.2), dict(top_k=9, top_p=0.9, min_p=0.05)]


def kept(logits_BV, top_k=0, top_p=1.0, min_p=0.0):
    """What the filters leave of each row, by sorting it, in NumPy."""
    rows = np.asarray(logits_BV, np.float64).reshape(-1, logits_BV.shape[-1])
    out = np.zeros(rows.shape, bool)
    for row, left in zip(rows, out):
        order = np.argsort(-row)[: top_k or None]
        mass = np.exp(row[order] - row[order[0]])
        before = np.cumsum(mass) - mass
        order = order[before < top_p * mass.sum()] if top_p < 1 else order
        left[order[np.exp(row[order] - row[order[0]]) >= min_p]] = True
    return out.reshape(logits_BV.shape)


def reference(hidden, kernel, targets, temperature, vocab_size, filters, softcap=0.0):
    """The textbook form: all the logits at once, what is kept a constant."""
    logits = jnp.matmul(hidden, kernel[:, :vocab_size], preferred_element_type=jnp.float32)
    logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits) / temperature
    take = lambda x: jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]  # noqa: E731
    shape = jax.ShapeDtypeStruct(logits.shape, bool)
    left = jax.pure_callback(lambda x: kept(x, **filters), shape, jax.lax.stop_gradient(logits))
    left = left | jax.nn.one_hot(targets, vocab_size, dtype=bool)
    logp = jax.nn.log_softmax(jnp.where(left, logits, -1e9), axis=-1)
    p = jnp.where(left, jnp.exp(logp), 0.0)
    correct = jnp.argmax(logits, axis=-1) == targets
    return take(logp), -jnp.sum(p * jnp.where(left, logp, 0.0), axis=-1), correct, jnp.log(jnp.sum(p**2, axis=-1))


CASES = zip(FILTERS, [(3, 5), (11,), (2, 3), (3, 5)], [37, 30, 37, 36], [8, 1, 99, 16], [0.0, 2.0, 0.0, 0.0])


@pytest.mark.parametrize("filters, lead, vocab_size, chunk, softcap", CASES)
def test_in_chunks_it_is_the_formula(filters, lead, vocab_size, chunk, softcap):
    hidden, kernel, targets = inputs(lead=lead, V=37, vocab_size=vocab_size)
    at = 0.5 * hidden, kernel, jnp.float32(0.7)
    options = dict(vocab_size=vocab_size, softcap=softcap)
    ours = lambda h, k, t: filtered_stats(h, k, targets, filters=filters, temperature=t, chunk=chunk, **options)  # noqa: E731
    got, got_grads = value_and_grads(ours, *at)
    want, want_grads = value_and_grads(lambda h, k, t: reference(h, k, targets, t, filters=filters, **options), *at)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(got_grads, want_grads, rtol=1e-5, atol=1e-5)
    assert not np.any(got_grads[1][:, vocab_size:])


def test_filters_that_leave_everything_give_what_there_is_without():
    hidden, kernel, targets = inputs(V=40, vocab_size=36)
    at = hidden, kernel, jnp.float32(0.7)
    nothing = dict(top_k=0, top_p=1.0, min_p=0.0)
    got = value_and_grads(
        lambda h, k, t: filtered_stats(h, k, targets, filters=nothing, temperature=t, vocab_size=36, chunk=8), *at
    )
    want = value_and_grads(lambda h, k, t: token_stats(h, k, targets, temperature=t, vocab_size=36), *at)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=2e-6)


def test_a_target_outside_is_kept_in():
    # p = 1/2, 1/3, 1/6; of the two largest, and the third where it is the target: 3/5, 2/5, and 1/6 of all three
    kernel = jnp.log(jnp.array([[3.0, 2.0, 1.0]]))
    stats = lambda kernel: filtered_stats(  # noqa: E731
        jnp.ones((3, 1)), kernel, jnp.arange(3), filters=dict(top_k=2), vocab_size=3
    )
    got, slopes = jax.jit(lambda kernel: (stats(kernel), jax.jacobian(lambda kernel: stats(kernel).logp)(kernel)))(
        kernel
    )
    np.testing.assert_allclose(np.exp(got.logp), [3 / 5, 2 / 5, 1 / 6], rtol=1e-6)
    np.testing.assert_array_equal(got.correct, [True, False, False])
    # 1[j = target] - p_j among the tokens that are left, 0 elsewhere
    want = [[2 / 5, -2 / 5, 0], [-3 / 5, 3 / 5, 0], [-1 / 2, -1 / 3, 5 / 6]]
    np.testing.assert_allclose(slopes[:, 0], want, rtol=1e-5, atol=1e-6)


def test_settings_may_be_traced():
    hidden, kernel, targets = inputs()
    f = jax.jit(lambda filters: filtered_stats(hidden, kernel, targets, filters=filters, vocab_size=37).logp)
    for k in (3, 8):
        np.testing.assert_array_equal(f(dict(top_k=k)), f(dict(top_k=k, min_p=0.0)))
    assert f._cache_size() == 2  # one for each set of filters
    assert (f(dict(top_k=3)) != f(dict(top_k=8))).any()


def test_the_kernels_gradient_is_summed_in_float32():
    """Of 4000 positions in 109 chunks: sums of bfloat16 would be 2 off."""
    hidden, kernel, targets = inputs(lead=(1, 4000), dtype=jnp.bfloat16)

    def slope(chunk):
        f = lambda k: filtered_stats(hidden, k, targets, filters=dict(top_k=5), vocab_size=37, chunk=chunk).logp.sum()  # noqa: E731
        return jax.jit(jax.grad(f))(kernel).astype(jnp.float32)

    np.testing.assert_allclose(slope(1), slope(99), atol=1.0)


def test_no_more_logits_than_chunks_are_in_memory():
    T, V, D = 512, 4096, 16
    shape = lambda *s, dtype="float32": jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    f = lambda h, k, t: filtered_stats(h, k, t, filters=dict(top_k=5, top_p=0.9), vocab_size=V, chunk=64).logp.sum()  # noqa: E731
    program = jax.jit(jax.grad(f, (0, 1))).lower(shape(1, T, D), shape(D, V), shape(1, T, dtype="int32")).compile()
    assert program.memory_analysis().temp_size_in_bytes < T * V * 4 / 4  # all the logits are 8 MB
