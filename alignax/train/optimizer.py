"""Optimizers from a config: a function of its hyperparameters, with rules over parameter paths."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int
from optax.contrib import MuonDimensionNumbers

from alignax.ops.checks import Scalar, between, require
from alignax.sharding import path_name

# What Muon leaves to Adam besides vectors: rows of an embedding and outputs of a head are not a map between features.
NO_MUON = r"norm|bias|scale|embed|head|scalar|sinks"
# Norm scales, biases, embeddings and the logits of sinks are not pulled to zero by weight decay.
NO_DECAY = r"norm|bias|scale|embed|sinks"


class Optimizer(NamedTuple):
    """A gradient transformation, and the schedule behind it for the log."""

    transform: optax.GradientTransformation
    learning_rate: Callable  # (step) -> learning rate of that update


def adamw(
    *,
    total_steps: int,
    learning_rate: Scalar = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    clip_norm: Scalar = 1.0,
    warmup_percent: float = 3.0,
    schedule: str = "cosine",
    end_percent: Scalar = 10.0,
    frozen: str = "",
    epsilon_hat: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) after clipping the global gradient norm.

    Args:
      total_steps: length of the schedule, in updates; the stage gives it.
      learning_rate: peak. Reached after `warmup_percent` of total_steps, then decayed by `schedule`: "cosine", "linear"
        or "constant", to `end_percent` of the peak.
      clip_norm: largest global gradient norm; 0 turns clipping off.
      frozen: regular expression over parameter paths that are not trained ("" for none).
      epsilon_hat: TensorFlow's form of `eps`, see `scale_by_adam_tf`, for results from before 2023; False is PyTorch's.

    Raises ValueError for an unknown schedule, and for a number that is negative or nan.
    """
    nonnegative(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm)
    rate = warmup_then(schedule, learning_rate, total_steps, warmup_percent, end_percent)
    steps = [clip_by_global_norm(clip_norm)]
    decay = lambda params: by_path(params, lambda name: not re.search(NO_DECAY, name))  # noqa: E731
    if epsilon_hat:
        steps += [scale_by_adam_tf(b1, b2, eps), optax.add_decayed_weights(weight_decay, decay)]
        steps.append(optax.scale_by_learning_rate(rate))
    else:
        steps.append(optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay))
    return Optimizer(freeze(optax.chain(*steps), frozen), rate)


def muon(
    *,
    total_steps: int,
    learning_rate: Scalar = 0.01,
    adam_learning_rate: Scalar = 3e-3,
    momentum: Scalar = 0.95,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    clip_norm: Scalar = 1.0,
    warmup_percent: float = 3.0,
    schedule: str = "linear",
    end_percent: Scalar = 5.0,
    frozen: str = "",
) -> Optimizer:
    """Muon (Jordan et al. 2024): momentum, orthogonalised, for the matrices of the layers; Adam for all else.

    A step moves every singular direction of a matrix alike, so rare features are learnt sooner than under Adam. This
    is optax's implementation, with Nesterov momentum in both parts. Layers stacked in one array are orthogonalised
    each on its own. `b1`, `b2` and `adam_learning_rate` belong to Adam; the other arguments are those of `adamw`, for
    both parts. The logged learning rate is Muon's.

    Raises ValueError for an unknown schedule, and for a number that is negative or nan.
    """
    nonnegative(learning_rate=learning_rate, adam_learning_rate=adam_learning_rate, momentum=momentum, b1=b1, b2=b2)
    nonnegative(eps=eps, weight_decay=weight_decay, clip_norm=clip_norm)
    rates = [
        warmup_then(schedule, peak, total_steps, warmup_percent, end_percent)
        for peak in (learning_rate, adam_learning_rate)
    ]
    transform = optax.contrib.muon(
        rates[0],
        beta=momentum,
        eps=eps,
        weight_decay=weight_decay,  # of the matrices; nothing that Adam moves here is decayed
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=rates[1],
        muon_weight_dimension_numbers=matrices,
    )
    return Optimizer(freeze(optax.chain(clip_by_global_norm(clip_norm), transform), frozen), rates[0])


def matrices(params: Any) -> Any:
    """Which parameters Muon takes, as optax wants to be told: the last two axes of a layer's matrix, None elsewhere."""

    def axes(path, x):
        if x.ndim < 2 or re.search(NO_MUON, path_name(path)):
            return None
        return MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def sgd(*, total_steps: int, learning_rate: Scalar = 0.1, clip_norm: Scalar = 0.0, frozen: str = "") -> Optimizer:
    """Plain gradient descent at a constant rate: equalities that Adam's first step would blur hold under it."""
    del total_steps
    nonnegative(learning_rate=learning_rate, clip_norm=clip_norm)
    transform = optax.chain(clip_by_global_norm(clip_norm), optax.sgd(learning_rate))
    return Optimizer(freeze(transform, frozen), optax.constant_schedule(learning_rate))


def clip_by_global_norm(max_norm: Scalar) -> optax.GradientTransformation:
    """optax's, to the last bit, but off where `max_norm` is 0: the gradients are then as they came.

    A transformation that is there or not, as its norm is positive or not, would be an `if` on a number that may be
    traced, and the optimizer's state a tree of another shape.
    """

    def update(updates, state, params=None):
        del params
        norm = optax.global_norm(updates)
        keep = (max_norm == 0) | (norm < max_norm)
        clip = lambda g: jnp.where(keep, g, g / norm.astype(g.dtype) * jnp.asarray(max_norm, g.dtype))  # noqa: E731
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam_tf(b1: Scalar, b2: Scalar, eps: Scalar) -> optax.GradientTransformation:
    """Adam's step with epsilon outside the bias correction, as in TensorFlow 1:

        m / (sqrt(v) + eps) * sqrt(1 - b2^t) / (1 - b1^t).

    Kingma & Ba 2015 (1412.6980), the reordering at the end of section 2, whose eps is called epsilon hat. PyTorch and
    optax divide by sqrt(v / (1 - b2^t)) + eps, which is this with eps * sqrt(1 - b2^t): where gradients are as small
    as eps, the first steps here are the smaller ones, by a factor of up to sqrt(1 - b2).
    """

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def updates_done(opt_state: Any, otherwise: Int[Array, ""]) -> Int[Array, ""]:
    """How many updates an optimizer has made, from its state; `otherwise` where that counts none (a constant rate)."""
    counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(opt_state, "count")]
    return jnp.max(jnp.stack(counts)) if counts else otherwise


def warmup_then(
    schedule: str, peak: Scalar, total_steps: int, warmup_percent: float, end_percent: Scalar
) -> optax.Schedule:
    """Linear warm-up from a first step above zero, then the named decay."""
    nonnegative(warmup_percent=warmup_percent, end_percent=end_percent)
    require(warmup_percent <= 100, f"warmup_percent = {warmup_percent}: expected at most 100, the whole run")
    warmup = round(total_steps * warmup_percent / 100)
    rest, end = max(total_steps - warmup, 1), peak * end_percent / 100
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=end_percent / 100),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    if schedule not in decays:
        raise ValueError(f"schedule = {schedule!r}: expected one of {', '.join(map(repr, decays))}")
    if not warmup:
        return decays[schedule]()
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decays[schedule]()], [warmup])


def nonnegative(**settings: Scalar) -> None:
    """Raises ValueError for a setting of an optimizer that is negative, infinite or nan."""
    for name, value in settings.items():
        require(between(0.0)(value), f"{name} = {value}: expected a finite number of 0 or more")


def by_path(params: Any, choose: Callable[[str], Any]) -> Any:
    """A tree of `choose(path)`, of the shape of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: choose(path_name(path)), params)


def freeze(transform: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
    """The transformation, with no update (and no state) for parameters whose path the pattern finds."""
    if not pattern:
        return transform
    label = lambda params: by_path(params, lambda name: "frozen" if re.search(pattern, name) else "trained")  # noqa: E731
    return optax.multi_transform({"trained": transform, "frozen": optax.set_to_zero()}, label)
