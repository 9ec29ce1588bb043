"""Rotary positions, attention and the scalar head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import cache
from alignax.models.attention import attend_cached, attention
from alignax.models.config import ModelConfig
from alignax.models.heads import init_scalar, scalar, weighted
from alignax.models.rotary import query_growth, rotary, turns


def _random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _rotary(x, positions, theta):
    config = ModelConfig(8, head_dim=x.shape[-1], rope_theta=theta)
    return rotary(x, *turns(positions, config))


def test_rotary_is_the_identity_at_position_0_and_keeps_lengths():
    x = _random(0, 1, 3, 2, 8)
    turned = _rotary(x, jnp.array([[0, 5, 900]]), 10_000.0)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert not np.allclose(turned[:, 1], x[:, 1], atol=0.1)


def test_rotary_turns_the_pair_i_and_i_plus_half_by_position_times_its_frequency():
    # H = 4, theta = 100: pairs (0, 2) and (1, 3) at frequencies 1 and 100^(-1/2) = 0.1; position 2: angles 2 and 0.2
    x = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    got = _rotary(x, jnp.array([[2]]), 100.0)[0, 0, 0]
    np.testing.assert_allclose(got, [np.cos(2), np.cos(0.2), np.sin(2), np.sin(0.2)], rtol=1e-5)


def test_interleaved_the_pairs_are_neighbours():
    # H = 4, theta = 100, as above: pairs (0, 1) and (2, 3); what is beyond the angles given stays as it is
    x = jnp.array([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 1, 4)
    angles = turns(jnp.array([[2]]), ModelConfig(8, head_dim=4, rope_theta=100.0))
    got = rotary(x, *angles, interleaved=True)[0, 0, 0]
    np.testing.assert_allclose(got, [np.cos(2), np.sin(2), np.cos(0.2), np.sin(0.2)], rtol=1e-5)
    half = rotary(x, *(angle[..., :1] for angle in angles), interleaved=True)[0, 0, 0]
    np.testing.assert_allclose(half, [np.cos(2), np.sin(2), 1, 0], rtol=1e-5)


def test_queries_grow_with_the_number_of_whole_lengths_before_them():
    # n = 4: positions 0 to 3 lie in the first length, 1 + 0.5 log 1; 4 and 11 have 1 and 2 lengths before them
    got = query_growth(jnp.array([[0, 3, 4, 11]]), ModelConfig(8, query_growth=0.5, rope_original=4))
    np.testing.assert_allclose(got, [[1, 1, 1 + 0.5 * np.log(2), 1 + 0.5 * np.log(3)]], rtol=1e-6)


def test_rotary_products_depend_on_the_distance_only():
    q, k = _random(1, 1, 1, 1, 8), _random(2, 1, 1, 1, 8)
    product = lambda i, j: jnp.vdot(_rotary(q, jnp.array([[i]]), 1e4), _rotary(k, jnp.array([[j]]), 1e4))  # noqa: E731
    np.testing.assert_allclose(product(7, 4), product(23, 20), rtol=1e-4)
    assert abs(product(7, 4) - product(7, 6)) > 1e-3


@pytest.mark.parametrize("kv_heads, sinks", [(4, None), (2, (0.5, -1.0, 2.0, 0.0)), (1, None)])
def test_attention_equals_a_loop_and_one_query_against_a_cache_agrees(kv_heads, sinks):
    B, T, N, H = 2, 5, 4, 6
    q, k, v = _random(1, B, T, N, H), _random(2, B, T, kv_heads, H), _random(3, B, T, kv_heads, H)
    mask = np.tril(np.ones((T, T), bool))[None] & np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], bool)[:, None]
    own = None if sinks is None else jnp.array(sinks)
    got = np.asarray(attention(q, k, v, jnp.asarray(mask), sinks=own))
    for b, t, n in np.ndindex(B, T, N):
        seen = mask[b, t]
        if not seen.any():
            assert np.isfinite(got[b, t, n]).all()  # a padded query: whatever, but finite
            continue
        group = n * kv_heads // N
        weight = np.exp(np.asarray(k)[b, seen, group] @ np.asarray(q)[b, t, n] / np.sqrt(H))
        total = weight.sum() + (0 if sinks is None else np.exp(sinks[n]))
        np.testing.assert_allclose(got[b, t, n], weight / total @ np.asarray(v)[b, seen, group], atol=1e-5)
    blocks, _ = cache.empty(len(k), k.shape[1], *k.shape[2:], k.dtype, 2, k.shape[1])
    keys, values = cache.filled(blocks, k, v)
    one = attend_cached(q[:, -1:], keys, values, jnp.asarray(mask[:, -1:]), sinks=own)[:, 0]
    np.testing.assert_allclose(one, got[:, -1], atol=1e-5)


def test_scalar_head_is_linear_in_float32_and_starts_small():
    head = init_scalar(jax.random.key(0), 4095)
    # N(0, 1/(D+1)): sd 1/64 with D = 4095, to 5% (4.5 standard errors of 1/sqrt(2*4095))
    np.testing.assert_allclose(head["kernel"].std(), 1 / 64, rtol=0.05)
    params = {"scalar": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.float32(0.5)}}
    got = scalar(params, jnp.array([[3.0, 4.0], [1.0, 1.0]], jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [2.5, 1.5])


def test_a_head_of_attributes_has_a_column_each_and_folds_by_weights():
    head = init_scalar(jax.random.key(0), 4095, 3)
    assert {name: leaf.shape for name, leaf in head.items()} == {"kernel": (4095, 3), "bias": (3,)}
    assert init_scalar(jax.random.key(0), 8, 1)["kernel"].shape == (8, 1)
    np.testing.assert_allclose(np.std(head["kernel"], axis=0), 1 / 64, rtol=0.05)
    # scores 3 * 1 + 4 * 2 + 0.5 = 11.5 and 3 * 0 + 4 * -1 + 1 = -3; 2 * 11.5 + 10 * -3 = -7
    params = {"scalar": {"kernel": jnp.array([[1.0, 0.0], [2.0, -1.0]]), "bias": jnp.array([0.5, 1.0])}}
    hidden = jnp.array([[3.0, 4.0]])
    assert scalar(params, hidden).tolist() == [[11.5, -3.0]]
    assert scalar({"scalar": weighted(params["scalar"], jnp.array([2.0, 10.0]))}, hidden).tolist() == [-7.0]
