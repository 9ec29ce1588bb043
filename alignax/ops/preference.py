"""What the losses on preferences share: log-probabilities of whole replies, log-ratios, implicit rewards, metrics.

Sums run over the tokens of a reply; a reply without tokens has 0 everywhere, and its row does not count.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar, needs
from alignax.ops.masked import masked_mean, masked_sum
from alignax.ops.stable import expm1_linear
from alignax.types import Metric, Pair, Side, Unpaired


def summed_logp(side: Side) -> Float[Array, " B"]:
    """log pi(y|x), nats."""
    return masked_sum(side.logp, side.mask, axis=1)


def mean_logp(side: Side) -> Float[Array, " B"]:
    """log pi(y|x) / |y|, nats per token."""
    return masked_mean(side.logp, side.mask, axis=1)


def lengths(side: Side) -> Float[Array, " B"]:
    """|y|, tokens."""
    return jnp.sum(side.mask, axis=1, dtype=jnp.float32)


def log_ratio(side: Side) -> Float[Array, " B"]:
    """log pi(y|x) - log ref(y|x), the reference a constant. Raises ValueError if ref_logp is missing."""
    (ref_logp_BT,) = needs(side, "ref_logp")
    return summed_logp(side) - jax.lax.stop_gradient(masked_sum(ref_logp_BT, side.mask, axis=1))


def log_ratios(pair: Pair) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """log_ratio of the chosen and of the rejected side."""
    return log_ratio(pair.chosen), log_ratio(pair.rejected)


def per_token(pair: Pair, chosen_B: Float[Array, " B"], rejected_B: Float[Array, " B"]) -> tuple[Array, Array]:
    """Sums over each side's tokens, divided by its length."""
    return chosen_B / jnp.maximum(lengths(pair.chosen), 1.0), rejected_B / jnp.maximum(lengths(pair.rejected), 1.0)


def power_reward(log_u: Float[Array, " B"], alpha: Scalar) -> Float[Array, " B"]:
    """(1 - u^-alpha) / alpha, and its limit log u at alpha = 0. Linear in log u once u^-alpha is beyond e^20."""
    at_zero = jnp.equal(alpha, 0)
    return jnp.where(at_zero, log_u, -expm1_linear(-alpha * log_u) / jnp.where(at_zero, 1.0, alpha))


def log_odds(logp: Float[Array, " B"]) -> Float[Array, " B"]:
    """log(p / (1 - p)). p is taken as 1 - 1e-6 at most in the denominator: there the odds have no end."""
    return logp - jnp.log(-jnp.expm1(jnp.minimum(logp, -1e-6)))


def sort_rows(x_B: Float[Array, " B"], counts_B: Bool[Array, " B"]) -> Float[Array, " B"]:
    """The n rows that count in ascending order, then zeros."""
    sorted_B = jnp.sort(jnp.where(counts_B, x_B, jnp.inf))
    return jnp.where(jnp.arange(x_B.shape[0]) < jnp.sum(counts_B), sorted_B, 0.0)


def row_counts(side: Side) -> Bool[Array, " B"]:
    """The reply has tokens."""
    return jnp.any(side.mask, axis=1)


def pair_counts(pair: Pair) -> Bool[Array, " B"]:
    """Both replies have tokens."""
    return row_counts(pair.chosen) & row_counts(pair.rejected)


def pair_weight(pair: Pair) -> Float[Array, " B"]:
    """1 for each pair that counts: a mean over pairs."""
    return pair_counts(pair).astype(jnp.float32)


def pair_metrics(pair: Pair, chosen_B: Float[Array, " B"], rejected_B: Float[Array, " B"]) -> dict[str, Metric]:
    """Metrics of every paired loss, from the rewards of its two sides.

    rewards/chosen, rewards/rejected; rewards/margins, their difference; rewards/accuracies, how often it is positive (a
    tie is no success); logps/chosen and logps/rejected, sums over the reply, not means per token.
    """
    margin_B, weight_B = chosen_B - rejected_B, pair_weight(pair)
    return {
        "rewards/chosen": (chosen_B, weight_B),
        "rewards/rejected": (rejected_B, weight_B),
        "rewards/accuracies": ((margin_B > 0).astype(jnp.float32), weight_B),
        "rewards/margins": (margin_B, weight_B),
        "logps/chosen": (summed_logp(pair.chosen), weight_B),
        "logps/rejected": (summed_logp(pair.rejected), weight_B),
    }


def unpaired_metrics(unpaired: Unpaired, reward_B: Float[Array, " B"]) -> dict[str, Metric]:
    """Metrics of every unpaired loss: rewards/* and logps/* as in `pair_metrics`, each over the rows of its own label.

    There is no rewards/margins: the difference of two means is no mean of rows, so it is left to the reader.
    """
    counts_B, logp_B = row_counts(unpaired.side), summed_logp(unpaired.side)
    up_B = (counts_B & unpaired.desirable).astype(jnp.float32)
    down_B = (counts_B & ~unpaired.desirable).astype(jnp.float32)
    return {
        "rewards/chosen": (reward_B, up_B),
        "rewards/rejected": (reward_B, down_B),
        "logps/chosen": (logp_B, up_B),
        "logps/rejected": (logp_B, down_B),
    }
