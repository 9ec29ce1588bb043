"""KL(pi || ref): exact, estimated from sampled tokens, and the coefficient that controls it.

The estimators (Schulman 2020, "Approximating KL divergence") take log pi(a) and log ref(a) of actions a sampled from
pi. What each is good for depends on where it is put: in a reward it is a constant, in a loss it is differentiated.

| | expected value | gradient in the reward | gradient in the loss |
|---|---|---|---|
| k1 | KL(pi, ref) | that of KL(pi, ref) | 0 |
| k2 | KL to second order | 0 to first order near ref | that of KL(pi, ref) |
| k3 | KL(pi, ref) | that of KL(pi, ref) - KL(ref, pi): 0 to first order near ref | that of KL(ref, pi) |
| k3+k2 | KL(pi, ref) | as k3 | that of KL(pi, ref) |

All expectations are on-policy, for one token, without weights. Summed over the tokens of a sequence, k1 in the reward
has the gradient of the whole KL; a sum in the loss lacks one part of it: how a token changes the KL of those after it.
The tests find each entry, and that part, by enumeration.

After its first update a rollout is no longer the policy's own: at KL(old || pi) of 0.0013, 0.019 and 0.14 nats, k2 in
the loss is off by 3, 13 and 48% of the gradient's length (a policy that drifts away from the reference, in the tests).
With rho = pi / old as a constant weight, expectations under old are those under pi, and

    grad (rho k2) = rho log(pi / ref) grad log pi, whose expectation is grad KL(pi || ref).

Token by token that is also the gradient of rho k3 with rho differentiated, rho (k3 + 1 - ref / pi) grad log pi: the
unbiased estimate of DeepSeek-V3.2 (2512.02556). So `losses.kl` takes it for every estimator, which then only chooses
the value that is shown. Only the token's own distribution is corrected: what stands before it is old's, as in PPO.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.checks import Scalar, declares, require
from alignax.ops.stable import expm1_linear


def k1(logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(pi / ref): unbiased, of either sign."""
    return logp - ref_logp


def k2(logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(log(pi / ref))^2 / 2: biased value, but in a loss its expected gradient is exactly that of KL(pi || ref)."""
    return 0.5 * jnp.square(logp - ref_logp)


def k3(logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """ref/pi - 1 - log(ref/pi): unbiased and never negative. Linear beyond log(ref/pi) = 20, to stay finite."""
    log_ratio = ref_logp - logp
    return expm1_linear(log_ratio) - log_ratio


def k3_k2(logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value of k3 with the gradient of k2 (straight through): an unbiased reading and the right gradient at once.

    Its gradient is not that of its value, so finite differences do not find it. Known as "k3+" in verl.
    """
    return straight_through(k3(logp, ref_logp), k2(logp, ref_logp))


def straight_through(value: Float[Array, "*shape"], slope: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The first with the gradient of the second."""
    return jax.lax.stop_gradient(value) + (slope - jax.lax.stop_gradient(slope))


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3+k2": k3_k2}

# GRPO is defined with k3 in its loss (Shao et al. 2024), so that pair is allowed: a penalty by KL(ref || pi).
REFUSED = {
    ("k1", "loss"): "its expected gradient is 0, because the mean of grad log pi under pi is 0; use 'k2'",
    ("k2", "reward"): "its policy gradient is not that of any KL and vanishes near the reference; use 'k1'",
    (
        "k3",
        "reward",
    ): "its policy gradient is that of KL(pi || ref) - KL(ref || pi), which vanishes near the reference; use 'k1'",
    ("k3+k2", "reward"): "a reward is a constant, so nothing is left of it but k3, which vanishes near it; use 'k1'",
}


def estimate(name: str, logp: Float[Array, "*shape"], ref_logp: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The estimator of that name. Raises ValueError for an unknown one."""
    _known(name)
    return ESTIMATORS[name](logp, ref_logp)


def check_placement(estimator: str, placement: str) -> None:
    """Raises ValueError, with the reason, if the estimator does not penalise KL in its place: 'reward' or 'loss'."""
    _known(estimator)
    require(placement in ("reward", "loss"), f"placement = {placement!r}: expected 'reward' or 'loss'")
    reason = REFUSED.get((estimator, placement))
    require(reason is None, f"KL estimator {estimator!r} in the {placement}: {reason}")


def _known(name: str) -> None:
    require(name in ESTIMATORS, f"KL estimator {name!r}: expected one of {', '.join(ESTIMATORS)}")


def full_kl(logp_p: Float[Array, "*shape V"], logp_q: Float[Array, "*shape V"]) -> Float[Array, "*shape"]:
    """sum_v p_v (log p_v - log q_v), exact, nats. Outcomes with p = 0 add nothing; inf where p > 0 and q = 0."""
    logp_p, logp_q = logp_p.astype(jnp.float32), logp_q.astype(jnp.float32)
    p = jnp.exp(logp_p)
    return jnp.sum(p * jnp.where(p > 0, logp_p - logp_q, 0.0), axis=-1)


@declares(multiplies=True)
def adaptive_kl(coef: Scalar, kl: Scalar, *, target: Scalar, horizon: Scalar, batch_size: int) -> Float[Array, ""]:
    """The next KL coefficient: coef * (1 + clip(kl / target - 1, -0.2, 0.2) * batch_size / horizon).

    The proportional controller of Ziegler et al. 2019, with the fixed point kl = target. `kl` is the mean over
    sequences of the summed KL that the reward is charged for, in nats, and `target` has that unit; `horizon` and
    `batch_size` count episodes.

    The rule is for batches that are small beside the horizon: from 5 horizons on its factor would be 0 or less. A batch
    of more than one horizon counts as n = ceil(batch_size / horizon) equal ones, each with this error, and one of more
    than 10 horizons as 10, so with h = min(batch_size / horizon, 10) the factor is

        (1 + clip(kl / target - 1, -0.2, 0.2) * h / n)^n with n = max(ceil(h), 1), from 0.8^n to 1.2^n.

    A KL that is not finite changes nothing. Raises ValueError if target, horizon or batch_size is not positive.
    """
    require(target > 0, f"adaptive_kl: target = {target}: expected a positive number of nats; fixed_kl has no target")
    require(horizon > 0, f"adaptive_kl: horizon = {horizon}: expected a positive number of episodes, such as 10000")
    require(batch_size > 0, f"adaptive_kl: batch_size = {batch_size}: expected the episodes of an iteration, 1 or more")
    episodes = jnp.minimum(batch_size, 10.0 * horizon)  # 0.8^10 is a tenth: more is no control
    parts = jnp.maximum(jnp.ceil(episodes / horizon), 1.0)
    factor = 1.0 + _relative_error(kl, target, 0.2) * episodes / (parts * horizon)
    return jnp.asarray(coef, jnp.float32) * factor**parts


def _relative_error(kl: Scalar, target: Scalar, clip: Scalar) -> Float[Array, ""]:
    """kl / target - 1, cut to [-clip, clip]; 0 where the KL is not finite."""
    kl = jnp.asarray(kl, jnp.float32)
    return jnp.where(jnp.isfinite(kl), jnp.clip(kl / target - 1.0, -clip, clip), 0.0)


def fixed_kl(coef: Scalar, kl: Scalar) -> Float[Array, ""]:
    """The coefficient as it is, whatever the KL."""
    del kl
    return jnp.asarray(coef, jnp.float32)


class PidMemory(NamedTuple):
    """What `pid_kl` remembers: the errors of the last two iterations, and how many there have been."""

    error: Scalar = 0.0
    before: Scalar = 0.0
    seen: Scalar = 0.0


START = PidMemory()


@declares(multiplies=True)
def pid_kl(
    coef: Scalar, kl: Scalar, memory: PidMemory = START, *, target: Scalar, kp: Scalar = 0.5, ki: Scalar = 0.05,
    kd: Scalar = 0.0, clip: Scalar = 0.2,
) -> tuple[Float[Array, ""], PidMemory]:  # fmt: skip
    """The next KL coefficient and memory. With e_t = clip(kl_t / target - 1, -clip, clip),

        log coef += kp (e_t - e_{t-1}) + ki e_t + kd (e_t - 2 e_{t-1} + e_{t-2}).

    A PID controller in its incremental form, on the logarithm: the coefficient is its own integral, stays positive and
    starts where the config puts it. Differences over iterations that have not been are 0. With kp = kd = 0 and
    ki = batch_size / horizon it is `adaptive_kl` to first order in ki; kp answers a change of KL at once, which damps
    the swings of a policy that follows the coefficient late. (Stooke et al. 2020, 2007.03964, put PID on the
    multiplier of a constraint itself, not on its logarithm.) ki and clip are the settings of Ziegler et al. 2019 (a
    batch of 512, a horizon of 10000), kp and kd choices of ours. Units as in `adaptive_kl`.

    A controller with memory names it `memory` and gives its start as the default, a tree of floats; the stage keeps it
    in the training state. Raises ValueError if target or clip is not positive, or a gain is negative.
    """
    require(target > 0, f"pid_kl: target = {target}: expected a positive number of nats; fixed_kl has no target")
    require(clip > 0, f"pid_kl: clip = {clip}: expected a positive largest relative error, such as 0.2")
    for name, gain in (("kp", kp), ("ki", ki), ("kd", kd)):
        require(gain >= 0, f"pid_kl: {name} = {gain}: expected 0 (off) or more; less drives KL away from its target")
    error = _relative_error(kl, target, clip)
    change = jnp.where(memory.seen >= 1, error - memory.error, 0.0)
    bend = jnp.where(memory.seen >= 2, error - 2.0 * memory.error + memory.before, 0.0)
    new = jnp.asarray(coef, jnp.float32) * jnp.exp(kp * change + ki * error + kd * bend)
    return new, PidMemory(error, jnp.asarray(memory.error, jnp.float32), jnp.asarray(memory.seen, jnp.float32) + 1.0)
