"""Several epochs of minibatches over one rollout: updates of a policy, and of a critic if there is one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean
from alignax.train.optimizer import Optimizer
from alignax.train.scores import group_rows
from alignax.train.state import Learner
from alignax.train.step import Fitted, Objective, apply_gradients, gradients
from alignax.types import Rollout


class Updates(NamedTuple):
    """How often a rollout is used."""

    epochs: int
    minibatches: int
    microbatches: int
    kl_limit: Scalar


def updates(*, epochs: int = 4, minibatches: int = 1, microbatches: int = 1, kl_limit: Scalar = 0.0) -> Updates:
    """`epochs * minibatches` updates per rollout, each cut into `microbatches` (same result, less memory).

    Once policy/approxkl_avg of a minibatch exceeds `kl_limit`, the rest of the rollout is left unused; 0 never stops.
    Raises ValueError if kl_limit is negative.
    """
    require(kl_limit >= 0, f"kl_limit = {kl_limit}: expected 0 (never stops) or more nats, such as 0.1")
    return Updates(epochs, minibatches, microbatches, kl_limit)


class Once(NamedTuple):
    """What one update of policy and critic, if there is one, is made of."""

    policy: Objective | Fitted
    critic: Objective | Fitted
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer | None
    data: Objective | None = None  # of the policy, on rows of data beside the rollout


Learners = tuple[Learner, Learner | None]


def epochs_over(
    once: Once, updates: Updates, learners: Learners, rollout: Rollout, key: Array, *, group: int = 1, data: Any = None
) -> tuple[Learner, Learner | None, dict]:
    """Several epochs of minibatches over one rollout, shuffled by prompt. Metrics are means over the minibatches seen.

    The replies to one prompt, `group` neighbours, stay together: a loss on pairs finds both in its minibatch. A
    minibatch whose rows are all masked, since none was scored for example, is no update: its gradient is 0, and
    momentum and weight decay would move the parameters without any data. Metrics named *_first are of the first that is
    one. Where none is left, all are 0. Of the rows of `data`, if there are some, each minibatch has its share, the same
    in every epoch. Raises ValueError if the prompts do not divide into the minibatches.
    """
    P, u = rollout.tokens.shape[0] // group, updates
    if P % u.minibatches:
        raise ValueError(f"{P} prompts do not divide into {u.minibatches} minibatches")
    shuffle = lambda k: jax.random.permutation(k, P).reshape(u.minibatches, -1)  # noqa: E731
    prompts = jax.vmap(shuffle)(jax.random.split(key, u.epochs)).reshape(u.epochs * u.minibatches, -1)
    rows = group_rows(prompts.ravel(), group).reshape(len(prompts), -1)

    shares = jax.tree.map(lambda x: x.reshape(u.minibatches, -1, *x.shape[1:]), data)

    def body(carry, given):
        (learners, stopped), (index, i) = carry, given
        batch = jax.tree.map(lambda x: x[index], rollout)
        beside = jax.tree.map(lambda x: x[i % u.minibatches], shares)
        after, metrics = update_once(once, learners, batch, beside, microbatches=u.microbatches, group=group)
        teaches = batch.mask.any()
        seen = teaches & ~stopped
        # the update that finds the limit passed, or a KL of nan, is dropped, and all that follow on this rollout
        stopped = stopped | passed(metrics, u.kl_limit)
        applied = teaches & ~stopped
        after = jax.tree.map(lambda new, old: jnp.where(applied, new, old), after, learners)
        return (after, stopped), (metrics, seen, applied)

    ((policy, critic), _), (history, seen, applied) = jax.lax.scan(
        body, (learners, jnp.bool_(False)), (rows, jnp.arange(len(rows)))
    )
    means = {name: masked_mean(values, seen) for name, values in history.items()}
    names = [name for name in ("val/ratio", "policy/approxkl_avg") if name in history]
    first = {f"{name}_first": history[name][jnp.argmax(seen)] for name in names}
    return policy, critic, means | first | {"policy/updates": applied.sum().astype(jnp.float32)}


def passed(metrics: dict, kl_limit: Scalar) -> Bool[Array, ""]:
    """Whether the KL to the sampler has passed the limit, if there is one. Raises ValueError if nothing measures it."""
    measured = metrics.get("policy/approxkl_avg")
    if measured is None:
        require(kl_limit <= 0, f"kl_limit = {kl_limit}: the policy's losses measure no KL to the sampler; set it to 0")
        return jnp.bool_(False)
    return (jnp.asarray(kl_limit) > 0) & ~(measured <= kl_limit)


def update_once(
    once: Once, learners: Learners, batch: Rollout, data: Any = None, *, microbatches: int, group: int
) -> tuple[Learners, dict]:
    """One update of policy and critic, if there is one, on one minibatch, and rows of data if there are some; see
    `gradients`."""
    policy, critic = learners
    cut = {"microbatches": microbatches, "group": group}
    grads, metrics = gradients(once.policy, policy.params, batch, **cut)
    metrics = {"loss/policy_total" if name == "loss" else name: value for name, value in metrics.items()}
    if once.data is not None:
        of_data, found = gradients(once.data, policy.params, data, microbatches=microbatches)
        grads = jax.tree.map(jnp.add, grads, of_data)
        metrics |= {f"data/{name}": value for name, value in found.items()}
    policy = apply_gradients(policy, grads, once.policy_optimizer)
    if critic is None or once.critic_optimizer is None:
        return (policy, None), metrics
    grads, more = gradients(once.critic, critic.params, batch, **cut)
    metrics |= {f"critic/{name}" if name in ("loss", "grad_norm") else name: value for name, value in more.items()}
    return (policy, apply_gradients(critic, grads, once.critic_optimizer)), metrics
