"""Sums, means and the one reduction of a `Loss`, over the lanes that count.

Masks are boolean. A lane that does not count may hold nan or inf: it reaches neither the value nor the gradient,
because each function replaces it *before* any arithmetic (masking the result alone leaves 0 * nan in the gradient).

How a step takes the gradient of a whole batch that it cuts into microbatches:

    total = denominator(loss_of(params, batch))          # weights only: under jit the forward pass is pruned away
    for piece in pieces:                                 # a scan
        loss = loss_of(params, piece)
        value += reduce(loss, total)                     # and its gradient; the sums over pieces are the whole batch's
        sums = jax.tree.map(jnp.add, sums, metric_sums(loss.metrics))
    metrics = metric_ratios(sums)

Terms with different weights (policy, value, KL) each get their own denominator, and add up.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar
from alignax.types import Loss, Metric

Axis = int | tuple[int, ...] | None


def masked_sum(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None) -> Float[Array, "..."]:
    """Sum of x over the lanes where mask holds, in float32."""
    return jnp.sum(x.astype(jnp.float32), axis=axis, where=mask)


def masked_mean(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None) -> Float[Array, "..."]:
    """Mean of x over the lanes where mask holds, in float32; 0 where nothing counts."""
    return ratio(masked_sum(x, mask, axis), jnp.sum(mask, axis=axis, dtype=jnp.float32))


def masked_var(
    x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None, *, ddof: int = 0
) -> Float[Array, "..."]:
    """Variance over the lanes where mask holds: sum((x - mean)^2) / max(n - ddof, 1), in float32; 0 where n is 0."""
    safe = jnp.where(mask, x.astype(jnp.float32), 0.0)
    count = jnp.sum(mask, axis=axis, keepdims=True, dtype=jnp.float32)
    mean = ratio(jnp.sum(safe, axis=axis, keepdims=True), count)
    square = jnp.sum(jnp.square(safe - mean), axis=axis, where=mask)
    return square / jnp.maximum(count.reshape(square.shape) - ddof, 1.0)


def whiten(
    x_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"], *, shift_mean: bool = True, eps: Scalar = 1e-8
) -> Float[Array, "B T"]:
    """(x - mean) / sqrt(var + eps) over all lanes that count, zeros elsewhere; `shift_mean=False` adds the mean back.

    PPO whitens advantages with the shift and, optionally, rewards without it (Ziegler et al. 2019; Huang et al. 2024,
    details 24 and 25). The variance is the unbiased one, as in TRL. Take it over the whole batch, not a microbatch.
    Lanes that are all equal are exactly at their mean: the rounding of a mean is not what sqrt(eps) shall divide.
    """
    safe_BT = jnp.where(mask_BT, x_BT.astype(jnp.float32), 0.0)
    mean = masked_mean(safe_BT, mask_BT)
    least, most = (f(safe_BT, where=mask_BT, initial=end) for f, end in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))
    away_BT = jnp.where(least < most, safe_BT - mean, 0.0)
    white_BT = away_BT * jax.lax.rsqrt(masked_var(safe_BT, mask_BT, ddof=1) + eps)
    return jnp.where(mask_BT, white_BT if shift_mean else white_BT + mean, 0.0)


def ratio(numerator: Float[Array, "*shape"], denominator: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """numerator / denominator, and 0 (value and gradient) where the denominator is 0."""
    counts = denominator != 0
    return jnp.where(counts, numerator / jnp.where(counts, denominator, 1.0), 0.0)


def weighted_sums(values: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Metric:
    """(sum of values * weights, sum of weights), both scalars; a value of weight 0 may be nan."""
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    safe = jnp.where(weights != 0, values.astype(jnp.float32), 0.0)
    return jnp.sum(safe * weights), jnp.sum(weights)


def denominator(loss: Loss) -> Float[Array, ""]:
    """sum(weight): what `reduce` divides by. Of the whole batch, it is what every microbatch divides by."""
    return weighted_sums(loss.value, loss.weight)[1]


def reduce(loss: Loss, denominator: Float[Array, ""] | None = None) -> Float[Array, ""]:
    """sum(value * weight) / sum(weight), 0 if every weight is 0; or over a `denominator` taken from the whole batch.

    Since weights do not depend on the parameters, microbatches reduced over the whole batch's denominator add up, in
    value and in gradient, to the loss of the whole batch.
    """
    numerator, total_weight = weighted_sums(loss.value, loss.weight)
    return ratio(numerator, total_weight if denominator is None else denominator)


def metric_sums(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Each metric as two scalars, which add over microbatches."""
    return {name: weighted_sums(values, weights) for name, (values, weights) in metrics.items()}


def metric_ratios(sums: dict[str, Metric]) -> dict[str, Float[Array, ""]]:
    """The weighted mean of each metric from its two sums; 0 where nothing counted."""
    return {name: ratio(*pair) for name, pair in sums.items()}


def reduce_metrics(metrics: dict[str, Metric]) -> dict[str, Float[Array, ""]]:
    """sum(values * weights) / sum(weights) of each metric; 0 where nothing counted."""
    return metric_ratios(metric_sums(metrics))
