"""Rotary positions (Su et al. 2021, 2104.09864) and the ways of stretching them for longer texts."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from alignax.models.config import ModelConfig


def frequencies(config: ModelConfig, kind: str = "full") -> Float[np.ndarray, " R"]:
    """Radians per position of each pair of numbers in a head, for one kind of layer; zeros where nothing is rotated.

    theta^(-2i/H) for pair i, stretched by `rope_type`, with f = rope_factor and n = rope_original:

    - "linear": all divided by f (Chen et al. 2023, 2306.15595);
    - "llama3": divided by f where a pair turns less than rope_low times in n positions, kept where it turns more than
      rope_high times, and between them in proportion to the turns (Llama 3.1's scheme);
    - "yarn": likewise, in proportion to the pair's number instead (Peng et al. 2023, 2309.00071, section 3.2), the two
      bounds rounded to whole pairs if rope_truncate;
    - "longrope": pair i divided by rope_factors[i], as measured by a search (Ding et al. 2024, 2402.13753);
    - "dynamic": not stretched, within the context that such a model was made for.
    """
    c = config
    if kind == "nope":
        return np.zeros(c.rotated // 2, np.float32)
    # float32 and a quotient, as transformers has it: the last bit of a frequency counts after thousands of positions
    theta = np.float32(c.rope_theta if _stretched(c, kind) else c.rope_theta_sliding)
    plain_R = 1 / theta ** (np.arange(0, c.rotated, 2, dtype=np.float32) / c.rotated)
    if c.rope_type in ("default", "dynamic") or not _stretched(c, kind):
        return plain_R
    if c.rope_type == "linear":
        return (plain_R / c.rope_factor).astype(np.float32)
    if c.rope_type == "longrope":
        return (plain_R / np.asarray(c.rope_factors, np.float32)).astype(np.float32)
    if c.rope_type == "llama3":
        turns_R = c.rope_original * plain_R / (2 * np.pi)  # of each pair over the original context
        keep_R = np.clip((turns_R - c.rope_low) / (c.rope_high - c.rope_low), 0.0, 1.0)
    else:
        keep_R = 1.0 - _ramp(c)
    return (keep_R * plain_R + (1 - keep_R) * plain_R / c.rope_factor).astype(np.float32)


def _stretched(config: ModelConfig, kind: str) -> bool:
    """Whether a kind of layer is rotated as `rope_type` says: sliding ones may have a base of their own (Gemma 3)."""
    return kind != "nope" and not (kind == "sliding" and config.rope_theta_sliding)


def _ramp(c: ModelConfig) -> Float[np.ndarray, " R"]:
    """YaRN's ramp over the pairs: 0 up to the last that turns rope_high times, 1 from the first that turns rope_low."""
    wavelength = c.rope_original / (2 * np.pi * np.array([c.rope_high, c.rope_low]))
    first, last = c.rotated * np.log(wavelength) / (2 * np.log(c.rope_theta))
    if c.rope_truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, c.rotated - 1)
    return np.clip((np.arange(c.rotated // 2) - first) / (last - first or 1e-3), 0.0, 1.0)


def turns(
    positions: Int[Array, "B T"], config: ModelConfig, kind: str = "full"
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Cosine and sine of each pair's angle, position times frequency, in float32; times rope_magnitude where stretched.

    The magnitude makes the logits of attention sharper by its square ("yarn": 2309.00071, equation 21).
    """
    angle_BTR = positions[..., None].astype(jnp.float32) * frequencies(config, kind)[None, None, :]
    size = config.rope_magnitude if _stretched(config, kind) else 1.0
    return size * jnp.cos(angle_BTR), size * jnp.sin(angle_BTR)


def query_growth(positions: Int[Array, "B T"], config: ModelConfig) -> Float[Array, "B T"]:
    """1 + beta log(1 + floor(position / n)) with n = rope_original: queries of later tokens are larger (Llama 4)."""
    return 1.0 + config.query_growth * jnp.log1p(jnp.floor(positions.astype(jnp.float32) / config.rope_original))


def rotary(
    x: Float[Array, "B T N H"], cos_BTR: Float[Array, "B T R"], sin_BTR: Float[Array, "B T R"],
    *, interleaved: bool = False,
) -> Float[Array, "B T N H"]:  # fmt: skip
    """Turns the pair (x_i, x_{i+R}), for the first 2R numbers of each head: Llama's convention of halves.

    Interleaved, the pair is (x_{2i}, x_{2i+1}), as the paper has it.
    """
    R, (cos, sin) = cos_BTR.shape[-1], (cos_BTR[:, :, None, :], sin_BTR[:, :, None, :])
    first, second = (slice(0, 2 * R, 2), slice(1, 2 * R, 2)) if interleaved else (slice(R), slice(R, 2 * R))
    left, right = x[..., first].astype(jnp.float32), x[..., second].astype(jnp.float32)
    pair = left * cos - right * sin, right * cos + left * sin
    whole = jnp.stack(pair, axis=-1).reshape(*x.shape[:-1], 2 * R) if interleaved else jnp.concatenate(pair, axis=-1)
    turned = whole.astype(x.dtype)
    return turned if x.shape[-1] == 2 * R else jnp.concatenate([turned, x[..., 2 * R :]], axis=-1)
