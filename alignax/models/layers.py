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

# (q, k, v, sinks [N] or None) -> (heads [B T N H], anything): the caller of a layer decides what is seen, and cached
Attend = Callable[[Array, Array, Array, Array | None], tuple[Array, Any]]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
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
    kind = {
        "rms": nn.RMSNorm,
        "rms_plus_one": OffsetNorm,
        "layer": nn.LayerNorm,
        "layer_nonparametric": partial(nn.LayerNorm, use_scale=False, use_bias=False),
    }[config.norm]
    return kind(epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype))


def gated(config: ModelConfig, gate: Array, up: Array) -> Array:
    """activation(gate) * up, both bounded and up moved as the config says (gpt-oss, 2508.10925, section 2.2)."""
    if config.glu_limit:
        gate, up = jnp.minimum(gate, config.glu_limit), jnp.clip(up, -config.glu_limit, config.glu_limit)
    return ACTIVATIONS[config.activation](gate) * (up + config.up_offset if config.up_offset else up)


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


class Sinks(nn.Module):
    """A logit for each head, to which it may give attention that it gives to no token (gpt-oss, 2508.10925)."""

    heads: int

    @nn.compact
    def __call__(self) -> Float[Array, " N"]:
        return self.param("logit", nn.initializers.zeros, (self.heads,))


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
        bias = {}
        if c.mlp_bias:
            sizes = {"router": (), "gate": (c.ffn,), "up": (c.ffn,), "down": (c.dim,)}
            zeros = nn.initializers.zeros
            bias = {name: self.param(f"{name}_bias", zeros, (c.experts, *size)) for name, size in sizes.items()}
        logit_NE = jnp.dot(x_ND, router_DE.astype(dtype), preferred_element_type=jnp.float32)
        p_NE = jax.nn.softmax(logit_NE + bias["router"][None] if bias else logit_NE, axis=-1)
        weight_Nk, chosen_Nk = jax.lax.top_k(p_NE, c.experts_per_token)
        if c.renormalise_experts:
            weight_Nk = weight_Nk / jnp.sum(weight_Nk, axis=-1, keepdims=True)
        order_M = jnp.argsort(chosen_Nk.ravel())  # M = N * k uses of experts, by expert
        token_M, sizes_E = order_M // c.experts_per_token, jnp.bincount(chosen_Nk.ravel(), length=c.experts)

        def each(rows: Array, kernel: Array, name: str) -> Array:
            out = jax.lax.ragged_dot(rows, kernel.astype(dtype), sizes_E)
            return out + bias[name].astype(dtype)[chosen_Nk.ravel()[order_M]] if bias else out

        x_MD = x_ND[token_M]
        y_MD = each(gated(c, each(x_MD, gate_EDF, "gate"), each(x_MD, up_EDF, "up")), down_EFD, "down")
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
        if c.sinks:
            self.sinks = Sinks(c.heads)
        if c.experts:
            self.experts = Experts(c)
            return
        if c.gated:
            self.gate = dense(c.ffn, c.mlp_bias)
        self.up, self.down = dense(c.ffn, c.mlp_bias), dense(c.dim, c.mlp_bias, outer)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], turns_BTR: tuple[Array, Array] | None, attend: Attend
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The residual after the layer, and what `attend` returned beside the heads: the caller decides what is cached.

        `sinks` [N] is None where the config has none; `turns_BTR` is what `rotary.turns` gives, None where positions
        are learned.
        """
        # Dense layers see [B*T, D]: their weight gradient is then one plain matrix product, where XLA on CPU would
        # otherwise copy a transposed [B, T, D] (2.5 times slower for the whole backward pass)
        c, (B, T, D) = self.config, x_BTD.shape
        x = x_BTD.reshape(B * T, D)
        before, after = c.norm_at != "after", c.norm_at != "before"
        h = self.attn_norm(x) if before else x
        q, k, v = self._heads(h, B, T, turns_BTR)
        heads, cache = attend(q, k, v, self.sinks() if c.sinks else None)
        h = self.o(heads.reshape(B * T, c.heads * c.head_dim))
        y = x + self._scaled(self.attn_post_norm(h) if after else h)
        x = x if c.parallel_residual else y
        h = self._feed_forward(self.mlp_norm(x) if before else x)
        y = y + self._scaled(self.mlp_post_norm(h) if after else h)
        return y.reshape(B, T, D), cache

    def _scaled(self, h: Array) -> Array:
        """What a part adds to the residual; the factor need not be a number of the activations' dtype."""
        c = self.config
        return h if c.residual_multiplier == 1 else (c.residual_multiplier * h.astype(jnp.float32)).astype(h.dtype)

    def _heads(self, h: Array, B: int, T: int, turns_BTR: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values [B T N or K H], normed and rotated."""
        c = self.config
        q, k, v = self.q(h), self.k(h), self.v(h)
        if c.qkv_clip:
            q, k, v = (jnp.clip(x, -c.qkv_clip, c.qkv_clip) for x in (q, k, v))
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.reshape(B, T, -1, c.head_dim) for x in (q, k, v))
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if turns_BTR is not None:
            q, k = (rotary(x, *turns_BTR, interleaved=c.rope_interleaved) for x in (q, k))
        return q, k, v

    def _feed_forward(self, h: Float[Array, "N D"]) -> Float[Array, "N D"]:
        c = self.config
        if c.experts:
            return self.experts(h)
        return self.down(gated(c, self.gate(h), self.up(h)) if c.gated else ACTIVATIONS[c.activation](self.up(h)))
