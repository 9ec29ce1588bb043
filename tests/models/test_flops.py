"""FLOPs and parameters from a config: against the tree, and against what XLA counts in the program."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from tiny import tiny

from alignax import forward
from alignax.models import decoder, flops
from alignax.models.config import ModelConfig

SHAPE = dict(vocab_size=1000, dim=256, heads=4, kv_heads=2, head_dim=64, ffn=768)
B, T = 2, 256


@pytest.mark.parametrize("change", [{}, dict(tie_embeddings=False), dict(layers=3, kv_heads=4, ffn=48)])
def test_parameters_are_those_of_the_tree(change):
    model, params = tiny(**change)
    assert flops.param_count(model.config) == decoder.param_count(params)


def test_by_hand():
    config = ModelConfig(10, dim=8, layers=3, heads=4, kv_heads=2, head_dim=2, ffn=5, vocab_multiple=16)
    # a layer: q and o 2 * 8 * 8, k and v 2 * 8 * 4, feed-forward 3 * 8 * 5: 312 weights; output 8 * 16; keys 4 * 8 * 7
    assert flops.layer_weights(config) == 312
    assert flops.forward_flops(config, 7) == 2 * (3 * 312 + 128) + 3 * 4 * 8 * 7
    near = dataclasses.replace(config, pattern=("sliding", "full"), window=4)  # two layers of three see 4 keys
    assert flops.forward_flops(near, 7, output=False) == 2 * 3 * 312 + 4 * 8 * (4 + 7 + 4)
    assert flops.param_count(config) == 3 * (312 + 2 * 8) + 8 + 16 * 8  # two norms a layer, the last one, the table
    assert flops.train_flops(config, 7) == 3 * flops.forward_flops(config, 7)
    with pytest.raises(ValueError, match="length = 0"):
        flops.forward_flops(config, 0)
    sparse = dataclasses.replace(config, experts=6, experts_per_token=2)  # q, o, k, v; two experts; the router
    assert flops.layer_weights(sparse) == 192 + 2 * 120 + 8 * 6
    assert flops.layer_weights(dataclasses.replace(config, gated=False)) == 192 + 2 * 8 * 5


@pytest.fixture(scope="module")
def counted():
    """layers -> FLOPs that XLA counts in the compiled forward pass down to the logits, its layers unrolled."""

    def count(layers):
        model = decoder.decoder(ModelConfig(layers=layers, **SHAPE))
        shapes = (
            jax.eval_shape(model.init, jax.random.key(0)),
            *(jax.ShapeDtypeStruct((B, T), t) for t in ("int32", bool)),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
            return jax.jit(partial(forward.logits, model)).lower(*shapes).compile().cost_analysis()["flops"]

    return {layers: count(layers) for layers in (1, 2)}


def test_xla_counts_the_same(counted):
    """Up to norms, rotary angles, softmax and activations, which XLA counts as well."""
    one, two = (B * T * flops.forward_flops(ModelConfig(layers=n, **SHAPE), T) for n in (1, 2))
    assert 1.0 < (counted[2] - counted[1]) / (two - one) < 1.04
    # the last position predicts nothing and reaches no output layer, nor does the padding of the vocabulary
    rest = one - 2 * SHAPE["dim"] * (B * T * 1024 - B * (T - 1) * 1000)
    assert 1.0 < counted[1] / rest < 1.04


def test_utilisation_where_the_peak_is_known_and_nowhere_else():
    assert flops.ideal_seconds(197e12, "TPU v5 lite", devices=2) == 0.5
    assert flops.ideal_seconds(1.0, "cpu") is None and flops.ideal_seconds(1.0, "TPU v99") is None


def test_a_batch_counts_what_is_learnt_from():
    config, tokens = tiny()[0].config, np.zeros((5, 6), np.int32)
    one = 5 * 6 * flops.train_flops(config, 6)
    side = {"tokens": tokens, "mask": tokens > 0}
    assert flops.batch_flops(config, side | {"row": np.arange(5)}, output=True) == one
    assert flops.batch_flops(config, {"chosen": side, "rejected": side, "row": np.arange(5)}, output=True) == 2 * one
    assert flops.batch_flops(config, {"side": side, "mismatched": side, "desirable": tokens[:, 0]}, output=True) == one
    several = {"replies": {"tokens": np.zeros((5, 3, 6), np.int32)}}
    assert flops.batch_flops(config, several, output=False) == 5 * 3 * 6 * flops.train_flops(config, 6, output=False)


def test_of_packed_rows_only_what_is_read_meets_the_output_layer():
    config, tokens = tiny()[0].config, np.zeros((5, 6), np.int32)
    packed = {"packed": {"tokens": tokens, "read": np.zeros((1, 30), np.int32)}, "row": np.arange(9)}
    whole = flops.batch_flops(config, {"tokens": tokens}, output=True)
    np.testing.assert_allclose(flops.batch_flops(config, packed, output=True), whole)
    packed["packed"]["read"] = np.zeros((1, 10), np.int32)
    saved = 3 * 2 * config.dim * config.padded_vocab * 20
    np.testing.assert_allclose(flops.batch_flops(config, packed, output=True), whole - saved)
