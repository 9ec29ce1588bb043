"""TR-DPO's moving reference: the mixture, its schedule, and that DPO with it starts anew at each hard copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.train.reference import follow, mix


def trees():
    reference = {"a": jnp.arange(4.0), "b": [jnp.ones((2, 3), jnp.bfloat16)]}
    return reference, jax.tree.map(lambda x: -2 * x - 1, reference)


def test_mix_by_hand():
    # a: 0.25 (-2 a - 1) + 0.75 a = 0.25 a - 0.25; b: 0.25 * -3 + 0.75 * 1 = 0
    reference, params = trees()
    mixed = mix(reference, params, 0.25)
    np.testing.assert_allclose(mixed["a"], [-0.25, 0.0, 0.25, 0.5])
    np.testing.assert_array_equal(mixed["b"][0], np.zeros((2, 3)))
    assert mixed["b"][0].dtype == jnp.bfloat16


def test_mix_at_its_ends_is_a_copy_and_no_change():
    reference, params = trees()
    for alpha, want in ((0.0, reference), (1.0, params)):
        for got, one in zip(jax.tree.leaves(mix(reference, params, alpha)), jax.tree.leaves(want)):
            np.testing.assert_array_equal(got, one)


def test_repeated_mixing_is_the_exponential_average():
    # distance to a policy that stands still falls by 1 - alpha at each update
    reference, params = jnp.float32(1.0), jnp.float32(3.0)
    for _ in range(5):
        reference = mix(reference, params, 0.3)
    np.testing.assert_allclose(reference, 3.0 - 2.0 * 0.7**5, rtol=1e-6)


def test_no_gradient_reaches_the_policy_through_the_reference():
    grads = jax.grad(lambda p: jnp.sum(mix(jnp.zeros(3), p, 0.6)))(jnp.ones(3))
    np.testing.assert_array_equal(grads, np.zeros(3))


def test_follow_moves_when_due_and_only_then():
    reference, params = jnp.float32(0.0), jnp.float32(1.0)
    traces = []
    run = jax.jit(lambda step, alpha: (traces.append(1), follow(reference, params, step, alpha=alpha, every=3))[1])
    got = [float(run(jnp.int32(step), 0.6)) for step in range(7)]
    np.testing.assert_allclose(got, [0, 0, 0, 0.6, 0, 0, 0.6], rtol=1e-6)
    assert float(follow(reference, params, 3, alpha=1.0, every=3)) == 1.0
    assert len(traces) == 1


@pytest.mark.parametrize(
    "call, key, word",
    [
        (lambda: mix(jnp.ones(2), jnp.ones(2), 1.5), "mix: alpha = 1.5:", "share"),
        (lambda: mix(jnp.ones(2), jnp.ones(2), -0.1), "mix: alpha = -0.1:", "share"),
        (lambda: mix({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, 0.5), "('a',)", "('b',)"),
        (lambda: follow(jnp.ones(2), jnp.ones(2), 1, every=0), "follow: every = 0:", "updates"),
    ],
)
def test_refuses(call, key, word):
    with refuses(ValueError, key, word):
        call()
