"""Attention kernels: each equals the plain form where it can run here, and says what it cannot do."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from tiny import SHAPE, VOCAB, close, tiny

from alignax import sharding
from alignax.models.attention import attention, layout, positions_of, visible
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.kernels import flush, kernel_of, splash
from alignax.types import Layout

CPU = jax.devices()[0]
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
AMPERE = SimpleNamespace(platform="gpu", device_kind="NVIDIA A100-SXM4-80GB", compute_capability="8.0")
VOLTA = SimpleNamespace(platform="gpu", device_kind="NVIDIA V100", compute_capability="7.0")
AMD = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942")
MIXED = {"pattern": ("sliding", "full"), "window": 3, "attention_softcap": 5.0, "query_scale_dim": 13.0}


def _layout(*rows, T: int, branch: bool = False) -> Layout:
    """Rows from the lengths of their documents, padded on the right."""
    document, position = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), np.int32)
    for b, lengths in enumerate(rows):
        document[b, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
        position[b, : sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    return Layout(jnp.asarray(document), jnp.zeros_like(document) if branch else None, jnp.asarray(position))


# 520 tokens take two blocks of 512, the second one nearly empty; 150 one block of 256
@pytest.mark.parametrize(
    "T, documents, window, softcap",
    [(520, None, 0, 0.0), (520, ((100, 250, 170), (513, 3)), 0, 5.0), (150, ((70, 80), (149,)), 9, 5.0)],
)
def test_splash_equals_the_plain_form_in_value_and_gradient(T, documents, window, softcap):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, n, 8)), jnp.float32) for n in (4, 2, 2))
    rows = _layout(*documents, T=T) if documents else _layout((T,), (T,), T=T)
    weight = jnp.asarray(rng.normal(size=(2, T, 4, 8)), jnp.float32) * (rows.document > 0)[..., None, None]
    scores = {"scale": 0.3, "softcap": softcap}
    text = rows.document if documents else None

    def run(attend):
        return jax.jit(jax.value_and_grad(lambda *heads: jnp.sum(attend(*heads) * weight), (0, 1, 2)))(q, k, v)

    want = run(lambda q, k, v: attention(q, k, v, visible(rows, window), **scores))
    got = run(lambda q, k, v: splash(q, k, v, text, window=window, interpret=True, **scores))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    close(dict(enumerate(got[1])), dict(enumerate(want[1])), atol=2e-5)
    assert min(np.abs(leaf).max() for leaf in want[1]) > 0.5


def test_flush_rows_begin_with_their_tokens_and_come_back_in_place():
    valid = jnp.asarray([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    tokens = jnp.arange(15, dtype=jnp.int32).reshape(3, 5)
    moved, first, back = flush(tokens, valid)
    np.testing.assert_array_equal(moved, [[1, 3, 4, 0, 2], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
    np.testing.assert_array_equal(first, [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(back(moved), tokens)
    np.testing.assert_array_equal(jnp.where(valid, back(positions_of(first)), 0), jnp.where(valid, positions_of(valid), 0))


# padding on the left, on both sides, on the right, and within
PADDED = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1, 1]], bool)
ROWS = {"plain": PADDED, "packed": _layout((5, 3), (2, 2, 2), (8,), (1, 6), T=8)}


@functools.lru_cache
def _learns(attention, rows, mesh=False, **changes):
    """Value and gradient of a loss on the hidden states of real tokens, by parameters."""
    how = {}
    if mesh:
        mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
        how = {"constrain": sharding.rows(mesh), "by_device": sharding.by_device(mesh)}
    _, params = tiny(**changes)
    model = decoder(ModelConfig(**SHAPE | changes | {"attention": attention}), **how)
    tokens = jnp.asarray(np.random.default_rng(1).integers(2, VOCAB, (4, 8)), jnp.int32)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(4, 8, 16)), jnp.float32)
    given = ROWS[rows]
    real = (layout(given).document > 0)[..., None]
    if mesh:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    loss = lambda p, rows: jnp.sum(jnp.where(real, model.apply(p, tokens, rows) * weight, 0))  # noqa: E731
    run = jax.jit(jax.value_and_grad(loss))
    return run(params, given), str(jax.make_jaxpr(jax.grad(loss))(params, given)), run


@pytest.mark.parametrize("rows", ROWS)
def test_a_model_with_splash_is_the_model_with_xla(rows):
    how = {"remat": "attention", **MIXED}
    (want, _, _), (got, program, _) = _learns("xla", rows, **how), _learns("splash", rows, **how)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    close(got[1], want[1], atol=1e-4)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(want[1])) > 0.1
    # a kernel for each window, run once: what it gives is kept for the backward pass
    assert program.count("name=splash_mha_fwd") == 2
