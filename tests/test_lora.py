"""Adapters: nothing at first, the merged kernel afterwards, and a gradient for themselves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import VOCAB, one_more, tiny

from alignax import lora

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 7)).astype(np.int32))
VALID = jnp.ones((2, 7), bool).at[1, :2].set(False)


def _adapted(**settings):
    """(model, base, a random adapter)."""
    model, base = tiny()
    fresh = lora.init(jax.random.key(1), base, rank=3, **settings)
    keys = iter(jax.random.split(jax.random.key(2), 100))
    noise = lambda path, x: x if path[-1].key == "scale" else x + 0.1 * jax.random.normal(next(keys), x.shape)  # noqa: E731
    return model, base, jax.tree_util.tree_map_with_path(noise, fresh)


def _hidden(model, params):
    return np.asarray(jax.jit(model.apply)(params, TOKENS, VALID))


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_changes_nothing(dora):
    model, base = tiny()
    fresh = lora.init(jax.random.key(1), base, rank=3, dora=dora)
    # DoRA's m / ||W|| is 1 up to rounding, 1.2e-7, in each of 14 kernels; the hidden states reach 3.4
    atol = 14 * 1.2e-7 * 3.4 if dora else 0.0
    np.testing.assert_allclose(_hidden(model, base | {"lora": fresh}), _hidden(model, base), rtol=0, atol=atol)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"rslora": True, "alpha": 5.0, "targets": "^(q|down)$"}])
def test_adapted_is_merged_in_one_pass_and_token_by_token(settings):
    model, base, adapter = _adapted(**settings)
    params = base | {"lora": adapter}
    whole = lora.merge(params)
    assert jax.tree.structure(whole) == jax.tree.structure(base)
    want = _hidden(model, whole)
    np.testing.assert_allclose(_hidden(model, params), want, atol=2e-5)
    assert np.abs(want - _hidden(model, base)).max() > 1e-2

    @jax.jit
    def decode(params):
        _, cache = model.prefill(params, TOKENS[:, :4], VALID[:, :4], model.init_cache(2, 7))
        layers = model.unstack(params)
        step = lambda cache, token_B: one_more(model, layers, token_B, cache)  # noqa: E731
        return jax.lax.scan(step, cache, TOKENS[:, 4:].T)[1]

    np.testing.assert_allclose(np.asarray(decode(params)).swapaxes(0, 1), want[:, 4:], atol=2e-5)


def test_scale_is_alpha_over_rank_or_over_its_root():
    base = tiny()[1]
    scale = lambda **settings: lora.init(jax.random.key(0), base, rank=4, **settings)["layers"]["q"]["scale"]  # noqa: E731
    np.testing.assert_array_equal(scale(), [2.0, 2.0])
    np.testing.assert_array_equal(scale(alpha=2.0), [0.5, 0.5])
    np.testing.assert_array_equal(scale(alpha=2.0, rslora=True), [1.0, 1.0])


def test_gradient_is_that_of_the_merged_kernel_through_a_and_b_and_none_of_the_scale():
    model, base, adapter = _adapted()
    probe = jax.random.normal(jax.random.key(5), (2, 7, model.config.dim))
    loss = lambda params: jnp.sum(model.apply(params, TOKENS, VALID) * probe)  # noqa: E731
    got = jax.jit(jax.grad(lambda a: loss(base | {"lora": a})))(adapter)["layers"]
    dW = jax.jit(jax.grad(loss))(lora.merge(base | {"lora": adapter}))["decoder"]["layers"]
    for name, one in adapter["layers"].items():
        s = one["scale"][:, None, None]
        d_kernel = dW[name]["kernel"]
        np.testing.assert_allclose(got[name]["a"], s * d_kernel @ one["b"].swapaxes(1, 2), atol=2e-4, err_msg=name)
        np.testing.assert_allclose(got[name]["b"], s * one["a"].swapaxes(1, 2) @ d_kernel, atol=2e-4, err_msg=name)
        assert not np.any(got[name]["scale"])


@pytest.mark.parametrize(
    "settings, key, word",
    [({"rank": 0}, "rank = 0:", "1"), ({"rank": 2, "targets": "^z$"}, "targets = '^z$'", "down, gate, k, o, q, up, v")],
)
def test_an_adapter_of_nothing_is_refused(settings, key, word):
    with refuses(ValueError, key, word):
        lora.init(jax.random.key(0), tiny()[1], **settings)


def test_a_fresh_adapter_has_the_types_of_one_that_was_trained():
    # a weak type would be gone after the first update, and the second would compile again
    fresh = lora.init(jax.random.key(0), tiny()[1], rank=2, dora=True)
    assert not [x for x in jax.tree.leaves(fresh) if x.weak_type or x.dtype != jnp.float32]
