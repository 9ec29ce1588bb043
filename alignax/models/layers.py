"""Linen modules of one decoder layer: norms, attention with its positions, feed-forward, experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.models.config import ModelConfig
from alignax.models.rotary import rotary

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
}


class OffsetNorm(nn.Module):
    """Root-mean-square norm whose weights are stored less one (Gemma, 2403.08295)."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale_D = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * jnp.broadcast_to(1.0 + scale_D, x.shape)).astype(self.dtype)


def norm(config: ModelConfig) -> Any:
    """The norm of a config; statistics are taken in float32 whatever the activations are."""
    kind = {"rms": nn.RMSNorm, "layer": nn.LayerNorm, "rms_plus_one": OffsetNorm}[config.norm]
    return kind(epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype))


class Dense(nn.Module):
    """x W + bias, and what an adapter of this layer adds (`alignax.lora`), where the "lora" collection has one.

    The adapter's products go past the kernel: x A, then B, so that no gradient of a kernel [D F] is made for one that
    stands still. DoRA's norm of the adapted kernel counts as a constant (Liu et al. 2024, 2402.09353, section 4.3).
    """

    features: int
    bias: bool
    dtype: Any
    init: Callable

    @nn.compact
    def __call__(self, x_ND: Float[Array, "N D"]) -> Float[Array, "N F"]:
        kernel_DF = self.param("kernel", self.init, (x_ND.shape[-1], self.features))
        y_NF = jnp.dot(x_ND, kernel_DF.astype(self.dtype))
        if self.has_variable("lora", "a"):
            a_DR, b_RF = (self.get_variable("lora", name) for name in ("a", "b"))
            scale = jax.lax.stop_gradient(self.get_variable("lora", "scale"))
            added_NF = jnp.dot(jnp.dot(x_ND, a_DR.astype(self.dtype)), b_RF.astype(self.dtype))
            y_NF = y_NF + scale.astype(self.dtype) * added_NF
            if self.has_variable("lora", "m"):
                total_DF = jax.lax.stop_gradient(kernel_DF + scale * (a_DR @ b_RF))
                length_F = self.get_variable("lora", "m") / jnp.linalg.norm(total_DF, axis=0)
                y_NF = y_NF * length_F[None, :].astype(self.dtype)
        if self.bias:
            y_NF = y_NF + self.param("bias", nn.initializers.zeros, (self.features,))[None, :].astype(self.dtype)
        return y_NF


class Experts(nn.Module):
    """A choice of gated feed-forward layers for each token (Mixtral, Jiang et al. 2024, 2401.04088, equation 2).

    softmax(x router) in float32, its k largest (renormalised if the config says so) weight the outputs of the chosen
    experts. Tokens are sorted by expert, so that each expert's are one block of one product; none is dropped.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_ND: Float[Array, "N D"]) -> Float[Array, "N D"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        inner = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        outer = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "normal", batch_axis=0)
        router_DE = self.param("router", nn.initializers.normal(c.dim**-0.5), (c.dim, c.experts))
        gate_EDF, up_EDF = (self.param(name, inner, (c.experts, c.dim, c.ffn)) for name in ("gate", "up"))
        down_EFD = self.param("down", outer, (c.experts, c.ffn, c.dim))
        p_NE = jax.nn.softmax(jnp.dot(x_ND, router_DE.astype(dtype), preferred_element_type=jnp.float32), axis=-1)
        weight_Nk, chosen_Nk = jax.lax.top_k(p_NE, c.experts_per_token)
        if c.renormalise_experts:
            weight_Nk = weight_Nk / jnp.sum(weight_Nk, axis=-1, keepdims=True)
        order_M = jnp.argsort(chosen_Nk.ravel())  # M = N * k uses of experts, by expert
        token_M, sizes_E = order_M // c.experts_per_token, jnp.bincount(chosen_Nk.ravel(), length=c.experts)
        each = lambda rows, kernel: jax.lax.ragged_dot(rows, kernel.astype(dtype), sizes_E)  # noqa: E731
        x_MD = x_ND[token_M]
        y_MD = each(ACTIVATIONS[c.activation](each(x_MD, gate_EDF)) * each(x_MD, up_EDF), down_EFD)
        y_MD = y_MD * weight_Nk.ravel()[order_M][:, None].astype(dtype)
        return jnp.zeros_like(x_ND).at[token_M].add(y_MD)


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual (Llama, 2302.13971, and what other families change)."""

    config: ModelConfig

    def setup(self):
        c = self.config
        inner = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        # the layer writes twice to the residual: scaled so that its variance does not grow with depth
        outer = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "normal")

        def dense(features: int, bias: bool, init=inner):
            return Dense(features, bias, jnp.dtype(c.dtype), init)

        if c.norm_at != "after":
            self.attn_norm, self.mlp_norm = norm(c), norm(c)
        if c.norm_at != "before":
            self.attn_post_norm, self.mlp_post_norm = norm(c), norm(c)
        self.q, self.k, self.v = (dense(n * c.head_dim, c.qkv_bias) for n in (c.heads, c.kv_heads, c.kv_heads))
        self.o = dense(c.dim, c.out_bias, outer)
        if c.qk_norm != "none":
            self.q_norm, self.k_norm = norm(c), norm(c)
        if c.experts:
            self.experts = Experts(c)
            return
        if c.gated:
            self.gate = dense(c.ffn, c.mlp_bias)
        self.up, self.down = dense(c.ffn, c.mlp_bias), dense(c.dim, c.mlp_bias, outer)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], turns_BTR: tuple[Array, Array] | None, attend: Callable
    ) -> tuple[Float[Array, "B T D"], Any]:
        """`attend(q, k, v) -> (heads [B T N H], anything)`: the caller decides what is seen and what is cached.

        `turns_BTR` is what `rotary.turns` gives; None where positions are learned.
        """
        # Dense layers see [B*T, D]: their weight gradient is then one plain matrix product, where XLA on CPU would
        # otherwise copy a transposed [B, T, D] (2.5 times slower for the whole backward pass)
        c, (B, T, D) = self.config, x_BTD.shape
        x = x_BTD.reshape(B * T, D)
        before, after = c.norm_at != "after", c.norm_at != "before"
        h = self.attn_norm(x) if before else x
        q, k, v = self._heads(h, B, T, turns_BTR)
        heads, cache = attend(q, k, v)
        h = self.o(heads.reshape(B * T, c.heads * c.head_dim))
        x = x + (self.attn_post_norm(h) if after else h)
        h = self._feed_forward(self.mlp_norm(x) if before else x)
        x = x + (self.mlp_post_norm(h) if after else h)
        return x.reshape(B, T, D), cache

    def _heads(self, h: Array, B: int, T: int, turns_BTR: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values [B T N or K H], normed and rotated."""
        c = self.config
        q, k, v = self.q(h), self.k(h), self.v(h)
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.reshape(B, T, -1, c.head_dim) for x in (q, k, v))
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if turns_BTR is not None:
            q, k = rotary(q, *turns_BTR), rotary(k, *turns_BTR)
        return q, k, v

    def _feed_forward(self, h: Float[Array, "N D"]) -> Float[Array, "N D"]:
        c = self.config
        if c.experts:
            return self.experts(h)
        active = ACTIVATIONS[c.activation]
        return self.down(active(self.gate(h)) * self.up(h) if c.gated else active(self.up(h)))
