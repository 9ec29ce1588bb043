"""Linen modules of one decoder layer, and the attention they call."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.models.config import ModelConfig


def rotary(x: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    The pair (x_i, x_{i+H/2}) is turned by the angle position * theta^(-2i/H): the halves convention of Llama weights.
    """
    half = x.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTH = positions_BT[..., None].astype(jnp.float32) * frequency_H[None, None, :]
    cos, sin = jnp.cos(angle_BTH)[:, :, None, :], jnp.sin(angle_BTH)[:, :, None, :]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q k / sqrt(H)) v over the keys that the mask allows; a query without any key gets a finite average."""
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None])


def attend_one(
    q_BNH: Float[Array, "B N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BS: Bool[Array, "B S"],
) -> Float[Array, "B N H"]:
    """One query per row against a cache, where heads come before positions: each head reads one run of memory."""
    B, N, H = q_BNH.shape
    q_BKGH = q_BNH.reshape(B, k_BKSH.shape[1], -1, H)
    logit = jnp.einsum("bkgh,bksh->bkgs", q_BKGH, k_BKSH, preferred_element_type=jnp.float32) / jnp.sqrt(float(H))
    weight = jax.nn.softmax(jnp.where(mask_BS[:, None, None, :], logit, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bkgs,bksh->bkgh", weight.astype(v_BKSH.dtype), v_BKSH).reshape(B, N, H)


class Block(nn.Module):
    """Pre-norm attention and gated feed-forward, each added to the residual (Llama, arXiv:2302.13971)."""

    config: ModelConfig

    def setup(self):
        c = self.config
        inner = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        # the layer writes twice to the residual: scaled so that its variance does not grow with depth
        outer = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "normal")

        def dense(features: int, init=inner):
            return nn.Dense(features, use_bias=False, dtype=jnp.dtype(c.dtype), kernel_init=init)

        self.attn_norm, self.mlp_norm = norm(c), norm(c)
        self.q, self.k, self.v = (dense(n * c.head_dim) for n in (c.heads, c.kv_heads, c.kv_heads))
        self.o = dense(c.dim, outer)
        self.gate, self.up, self.down = dense(c.ffn), dense(c.ffn), dense(c.dim, outer)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], positions_BT: Int[Array, "B T"], attend: Callable
    ) -> tuple[Float[Array, "B T D"], Any]:
        """`attend(q, k, v) -> (heads [B T N H], anything)`: the caller decides what is seen and what is cached."""
        # Dense layers see [B*T, D]: their weight gradient is then one plain matrix product, where XLA on CPU would
        # otherwise copy a transposed [B, T, D] (2.5 times slower for the whole backward pass)
        c, (B, T, D) = self.config, x_BTD.shape
        x = x_BTD.reshape(B * T, D)
        h = self.attn_norm(x)
        q = rotary(self.q(h).reshape(B, T, c.heads, c.head_dim), positions_BT, c.rope_theta)
        k = rotary(self.k(h).reshape(B, T, c.kv_heads, c.head_dim), positions_BT, c.rope_theta)
        v = self.v(h).reshape(B, T, c.kv_heads, c.head_dim)
        heads, cache = attend(q, k, v)
        x = x + self.o(heads.reshape(B * T, c.heads * c.head_dim))
        h = self.mlp_norm(x)
        x = x + self.down(nn.silu(self.gate(h)) * self.up(h))
        return x.reshape(B, T, D), cache


def norm(config: ModelConfig) -> nn.RMSNorm:
    """Root-mean-square norm; Linen takes the mean of squares in float32 whatever the activations are."""
    return nn.RMSNorm(epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype))
