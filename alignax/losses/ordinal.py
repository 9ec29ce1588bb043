"""The reward model's loss on graded ratings."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.types import Loss, Rated


def ordinal(rated: Rated, *, grades: int = 5, spacing: Scalar = 1.0) -> Loss:
    """L = -log P(grade), mean over all ratings that were given, with P(grade <= k) = sigmoid(c_k - s) and cutpoints

        c_k = spacing (k - (grades - 2) / 2),    k = 0 .. grades - 2.

    The cumulative logit model (McCullagh 1980) with fixed cutpoints, evenly spaced around 0, so that the head needs no
    parameters beyond its score s and two attributes share a scale. `spacing` is the width of a grade in units of s;
    the defaults are choices of ours (five grades as in HelpSteer). Ratings are read as grades 0 .. grades - 1: rounded,
    and cut at both ends. value, weight: [B A]; ratings are constants. P(lower < grade) is a difference of sigmoids; as

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^{a - b})

    it has no cancellation. Metrics: accuracy and absolute_error of the median grade; mean_reward, the mean of s.

    Raises ValueError if grades < 2 or spacing is not positive.
    Use when ratings are grades whose steps need not be equal in worth: "good" to "very good" as "bad" to "fair".
    """
    require(grades >= 2, f"ordinal: grades = {grades}: expected at least 2, the number of different ratings")
    require(spacing > 0, f"ordinal: spacing = {spacing}: expected a positive width of a grade, such as 1.0")
    score_BA = jnp.where(rated.mask, rated.score.astype(jnp.float32), 0.0)
    target_BA = jnp.where(rated.mask, jax.lax.stop_gradient(rated.target.astype(jnp.float32)), 0.0)
    grade_BA, middle = jnp.clip(jnp.round(target_BA), 0, grades - 1), 0.5 * (grades - 2)
    below_BA = jax.nn.log_sigmoid(spacing * (grade_BA - middle) - score_BA)  # log P(at most this grade)
    above_BA = jax.nn.log_sigmoid(score_BA - spacing * (grade_BA - 1 - middle))  # log P(at least this grade)
    first_BA, last_BA = grade_BA == 0, grade_BA == grades - 1
    inside_BA = below_BA + above_BA + jnp.log(-jnp.expm1(-spacing))
    value_BA = -jnp.where(first_BA, below_BA, jnp.where(last_BA, above_BA, inside_BA))
    median_BA = jnp.clip(jnp.ceil(score_BA / spacing + middle), 0, grades - 1)  # the number of cutpoints below s
    weight_BA = rated.mask.astype(jnp.float32)
    metrics = {
        "accuracy": ((median_BA == grade_BA).astype(jnp.float32), weight_BA),
        "absolute_error": (jnp.abs(median_BA - grade_BA), weight_BA),
        "mean_reward": (score_BA, weight_BA),
    }
    return Loss(value=value_BA, weight=weight_BA, metrics=metrics)
