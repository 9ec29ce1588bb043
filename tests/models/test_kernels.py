"""Attention kernels: each equals the plain form where it can run here, and says what it cannot do."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from jax._src.cudnn import fused_attention_stablehlo
from jax.interpreters.partial_eval import dce_jaxpr
from tiny import SHAPE, VOCAB, close, tiny

from alignax import sharding
from alignax.models.attention import attention, layout, positions_of, visible
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.kernels import flush, kernel_of, splash
from alignax.stages.parents import on_mesh
from alignax.types import Layout

CPU = jax.devices()[0]
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
AMPERE = SimpleNamespace(platform="gpu", device_kind="NVIDIA A100-SXM4-80GB", compute_capability="8.0")
VOLTA = SimpleNamespace(platform="gpu", device_kind="NVIDIA V100", compute_capability="7.0")
AMD = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942")
MIXED = {
    "pattern": ("sliding", "full"), "window": 3, "attention_softcap": 5.0, "query_scale_dim": 13.0, "sinks": True,
}  # fmt: skip


def _layout(*rows, T: int, branch: bool = False) -> Layout:
    """Rows from the lengths of their documents, padded on the right."""
    document, position = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), np.int32)
    for b, lengths in enumerate(rows):
        document[b, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
        position[b, : sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    return Layout(jnp.asarray(document), jnp.zeros_like(document) if branch else None, jnp.asarray(position))


# 520 tokens take two blocks of 512, the second one nearly empty; 150 one block of 256
@pytest.mark.parametrize(
    "T, documents, window, softcap, sinks",
    [
        (520, None, 0, 0.0, ()),
        (520, ((100, 250, 170), (513, 3)), 40, 5.0, ()),
        (150, ((70, 80), (149,)), 0, 5.0, (3.0, -1.0, 0.0, 1.0)),
    ],
)
def test_splash_equals_the_plain_form_in_value_and_gradient(T, documents, window, softcap, sinks):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, n, 8)), jnp.float32) for n in (4, 2, 2))
    own = jnp.array(sinks) if sinks else None
    rows = _layout(*documents, T=T) if documents else _layout((T,), (T,), T=T)
    weight = jnp.asarray(rng.normal(size=(2, T, 4, 8)), jnp.float32) * (rows.document > 0)[..., None, None]
    scores = {"scale": 0.3, "softcap": softcap}
    text = rows.document if documents else None

    def run(attend):
        def score(*heads):
            out = attend(*heads) * jnp.sign(jnp.abs(weight))
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(score, (0, 1, 2, 3), has_aux=True))(q, k, v, own)

    by_row = lambda sinks: None if sinks is None else jnp.stack([sinks, sinks])  # noqa: E731
    want = run(lambda q, k, v, own: attention(q, k, v, visible(rows, window), sinks=own, **scores))
    got = run(lambda q, k, v, own: splash(q, k, v, text, by_row(own), window=window, interpret=True, **scores))
    close(got, want, atol=2e-5)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(want)) > 0.5


def test_flush_rows_begin_with_their_tokens_and_come_back_in_place():
    valid = jnp.asarray([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    tokens = jnp.arange(15, dtype=jnp.int32).reshape(3, 5)
    moved, first, back = flush(tokens, valid)
    np.testing.assert_array_equal(moved, [[1, 3, 4, 0, 2], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
    np.testing.assert_array_equal(first, [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(back(moved), tokens)
    np.testing.assert_array_equal(
        jnp.where(valid, back(positions_of(first)), 0), jnp.where(valid, positions_of(valid), 0)
    )


# padding on the left, on both sides, on the right, and within
PADDED = jnp.asarray(
    [[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1, 1]], bool
)
ROWS = {"plain": PADDED, "packed": _layout((5, 3), (2, 2, 2), (8,), (1, 6), T=8)}


@functools.lru_cache
def _loss(attention, rows, mesh=None, **changes):
    """(loss by parameters, parameters): a weighted sum of the hidden states of the real tokens."""
    config = ModelConfig(**SHAPE | changes | {"attention": attention})
    model = decoder(config) if mesh is None else on_mesh(config, mesh)
    rng, given = np.random.default_rng(1), ROWS[rows]
    tokens = jnp.asarray(rng.integers(2, VOCAB, (4, 8)), jnp.int32)
    weight = jnp.asarray(rng.normal(size=(4, 8, 16)), jnp.float32) * (layout(given).document > 0)[..., None]
    return lambda params: jnp.sum(model.apply(params, tokens, given) * weight), tiny(**changes)[1]


def _learns(*args, **changes):
    loss, params = _loss(*args, **changes)
    return jax.jit(jax.value_and_grad(loss))(params)


def _used(program) -> str:
    """The text of a jaxpr, without what nothing reads."""
    return str(dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[0])


@pytest.mark.parametrize("rows", ROWS)
def test_a_model_with_splash_is_the_model_with_xla(rows):
    (want, wanted), (got, grads) = (_learns(kernel, rows, remat="attention", **MIXED) for kernel in ("xla", "splash"))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    close(grads, wanted, atol=1e-4)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 0.1


def test_devices_with_splash_each_take_their_own_rows():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    loss, params = _loss("splash", "plain", mesh, sinks=True)
    run = jax.jit(jax.value_and_grad(loss))
    got, grads = run(jax.device_put(params, sharding.shardings(params, mesh)))
    want, wanted = _learns("xla", "plain", sinks=True)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    close(grads, wanted, atol=1e-4)
    # a device calls the kernel with 1 of the 4 rows; 3 rows do not divide, and each device takes all
    assert "f32[1,4,128,8]" in str(jax.make_jaxpr(loss)(params))
    odd = jax.make_jaxpr(sharding.by_device(mesh)(jnp.sin))(jnp.zeros((3, 2)))
    assert "f32[3,2]" in str(odd.eqns[0].params["jaxpr"])


@pytest.mark.parametrize("remat, runs", [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)])
def test_a_kept_kernel_is_not_run_again_in_the_backward_pass(remat, runs, monkeypatch):
    loss, params = _loss("splash", "plain", remat=remat)
    assert _used(jax.make_jaxpr(jax.grad(loss))(params)).count("name=splash_mha_fwd") == runs
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # there is none here
    model = decoder(ModelConfig(**SHAPE, dtype="bfloat16", attention="cudnn", remat=remat), device=HOPPER)
    tokens, valid = jnp.zeros((2, 8), jnp.int32), jnp.ones((2, 8), bool)
    loss = lambda params: jnp.sum(model.apply(params, tokens, valid).astype(jnp.float32))  # noqa: E731
    used = _used(jax.make_jaxpr(jax.grad(loss))(params))
    assert used.count("dot_product_attention_fwd_wrapper[") == runs


def test_prefill_with_splash_fills_the_cache_that_xla_fills():
    _, params = tiny()
    tokens, filled = jnp.arange(32, dtype=jnp.int32).reshape(4, 8), {}
    for kernel in ("xla", "splash"):
        model = decoder(ModelConfig(**SHAPE, attention=kernel))
        filled[kernel] = jax.jit(lambda p, m=model: m.prefill(p, tokens, PADDED, m.init_cache(4, 10)))(params)
    (hidden, cache), (want, wanted) = filled["splash"], filled["xla"]
    np.testing.assert_allclose(hidden[PADDED], want[PADDED], atol=1e-5)
    for name, place in (("k", 4), ("v", 3)):  # one block of one tile, [B 1 K H S] and [B 1 K S H]
        for (got,), (expected,) in zip(cache[name], wanted[name], strict=True):
            slots = [np.moveaxis(np.asarray(x)[:, 0], place - 1, 1)[:, :8][PADDED] for x in (got, expected)]
            np.testing.assert_allclose(*slots, atol=1e-5)
    np.testing.assert_array_equal(cache["at"]["full"], wanted["at"]["full"])


def test_a_layout_without_branches_is_one_whose_tokens_all_belong_to_the_beginning():
    np.testing.assert_array_equal(visible(PACKED), visible(BRANCHED))
    assert visible(PACKED).sum() == 2 * 3  # two texts of two tokens: 3 pairs each


BF16 = ModelConfig(**SHAPE, dtype="bfloat16")
CAPPED = ModelConfig(**SHAPE, dtype="bfloat16", attention_softcap=50.0)
SUNK = ModelConfig(**SHAPE, dtype="bfloat16", sinks=True)
PACKED, BRANCHED = _layout((2, 2), T=4), _layout((2, 2), T=4, branch=True)


@pytest.mark.parametrize(
    "device, config, rows, kernel",
    [
        (CPU, BF16, None, "xla"),
        (TPU, CAPPED, PACKED, "splash"),
        (TPU, BF16, BRANCHED, "xla"),
        (HOPPER, BF16, PADDED, "cudnn"),
        (HOPPER, BF16, PACKED, "xla"),
        (HOPPER, CAPPED, None, "xla"),
        (HOPPER, SUNK, None, "xla"),
        (TPU, SUNK, PACKED, "splash"),
        (HOPPER, ModelConfig(**SHAPE), None, "xla"),  # float32
        (HOPPER, dataclasses.replace(BF16, head_dim=256), None, "cudnn"),
        (AMPERE, dataclasses.replace(BF16, head_dim=256), None, "xla"),
        (VOLTA, BF16, None, "xla"),
        (AMD, BF16, None, "xla"),
    ],
)
def test_auto_takes_the_kernel_of_the_device_where_it_can(device, config, rows, kernel):
    assert kernel_of(config, device, rows) == kernel
    assert kernel_of(dataclasses.replace(config, attention="xla"), device, rows) == "xla"


@pytest.mark.parametrize(
    "kernel, device, changes, rows, key, word",
    [
        ("cudnn", CPU, {}, None, "NVIDIA GPU of compute capability 8.0, this is cpu", "'auto'"),
        ("cudnn", VOLTA, {}, None, "NVIDIA GPU of compute capability 8.0, this is NVIDIA V100", "'auto'"),
        ("cudnn", HOPPER, {"dtype": "float32"}, None, "float32", "'bfloat16'"),
        ("cudnn", HOPPER, {"attention_softcap": 50.0}, None, "attention_softcap = 50.0", "'xla'"),
        ("cudnn", HOPPER, {"sinks": True}, None, "sinks", "'xla'"),
        ("cudnn", HOPPER, {"head_dim": 12}, None, "multiple of 8", "head_dim = 12"),
        ("cudnn", AMPERE, {"head_dim": 136}, None, "128", "head_dim = 136"),
        ("cudnn", HOPPER, {}, PACKED, "(packing, branches)", "'xla'"),
        ("splash", TPU, {}, BRANCHED, "(branches)", "'xla'"),
    ],
)
def test_a_named_kernel_that_cannot_says_why(kernel, device, changes, rows, key, word):
    config = dataclasses.replace(BF16, attention=kernel, **changes)
    with refuses(ValueError, f"attention = '{kernel}': it", key, word):
        if rows is None:  # known before there is any row
            decoder(config, device=device)
        else:
            tokens = jnp.zeros(rows.document.shape, jnp.int32)
            jax.eval_shape(decoder(config, device=device).apply, tiny()[1], tokens, rows)


def _lowered(device, platform: str, T: int, rows=None, **changes) -> str:
    """The program of a gradient, made for a platform that is not here and not compiled."""
    model = decoder(ModelConfig(**SHAPE, **changes), device=device)
    tokens, given = jnp.zeros((2, T), jnp.int32), jnp.ones((2, T), bool) if rows is None else rows
    loss = lambda params: jnp.sum(model.apply(params, tokens, given).astype(jnp.float32))  # noqa: E731
    return jax.jit(jax.grad(loss)).trace(tiny(**changes)[1]).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("rows", [None, _layout((100, 50), (3, 140), T=160)])
def test_on_a_tpu_the_program_holds_kernels_and_no_square(rows):
    kernels, plain = (_lowered(device, "tpu", 160, rows, **MIXED) for device in (TPU, CPU))
    assert kernels.count("tpu_custom_call") == 6  # forward, and backward by queries and by keys, for each window
    assert "160x160x" not in kernels and "256x256x" not in kernels  # rows are padded to 256
    assert "160x160x" in plain and "tpu_custom_call" not in plain


def test_on_a_gpu_the_program_holds_cudnn_and_no_square(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # there is none here
    text = _lowered(HOPPER, "cuda", 160, dtype="bfloat16", pattern=("sliding", "full"), window=3)
    forward = re.findall(r"custom_call @__cudnn\$fmhaSoftmax\(.*", text.replace("\\22", '"'))
    assert len(forward) == 2 and text.count("@__cudnn$fmhaSoftmaxBackward(") == 2
    assert {re.search(r'"sliding_window_length": (\d+)', call)[1] for call in forward} == {"0", "3"}
    assert all('"mask_type": "CAUSAL"' in call for call in forward) and "160x160x" not in text
