"""Training states: arrays only, so that a saved one resumes exactly."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, UInt32

from alignax.ops.checks import Scalar
from alignax.sampling.sample import row_keys
from alignax.train.optimizer import Optimizer
from alignax.types import Params, Record, record


@record
class Learner(Record):
    """Parameters and what their optimizer remembers."""

    params: Params
    opt_state: Any


@record
class TrainState(Record):
    """State of a supervised or offline stage. Batches follow from the step, so the step is the data cursor too."""

    learner: Learner
    step: Int[Array, ""]
    reference: Params | None = None  # where it moves (`train.reference`); one that stands still is no state


@record
class Moments(Record):
    """Running count, mean and summed squared deviation of the scores seen so far (Welford's update)."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    square: Float[Array, ""]


@record
class OnlineState(Record):
    """State of an online stage."""

    policy: Learner
    critic: Learner | None  # None: the advantages need no critic
    kl_coef: Float[Array, ""]
    kl_memory: Any = ()  # of a KL controller that has one
    moments: Moments
    multipliers: Any = ()  # {name: ln lambda} of the rewards that are constraints (`train.constraints`)
    key: UInt32[Array, " K"]  # never advanced: the randomness of a step is fold_in(key, step)
    step: Int[Array, ""]
    # (rollout, its prompts) of k batches that wait to be learnt from, the oldest first; or of all replies that go on
    pending: tuple = ()
    entropy_coef: Float[Array, ""] | None = None  # where it follows the entropy
    reference: Params | None = None  # where it moves
    ema: Params | None = None  # the average of what the policy has learnt, where the run wants one


def new_learner(params: Params, optimizer: Optimizer) -> Learner:
    """A learner before its first update."""
    return Learner(params=params, opt_state=optimizer.transform.init(params))


def new_state(params: Params, optimizer: Optimizer, reference: Params | None = None) -> TrainState:
    """Step 0; `reference` is given if it moves."""
    reference = jax.tree.map(jnp.copy, reference)  # often the same arrays as `params`, and a step donates both
    return TrainState(learner=new_learner(params, optimizer), step=jnp.int32(0), reference=reference)


def new_online_state(
    policy: Params, critic: Params | None, policy_optimizer: Optimizer, critic_optimizer: Optimizer | None,
    kl_coef: Scalar, seed: int | Array, kl_memory: Any = (), multipliers: Any = (),
    entropy_coef: Scalar | None = None, reference: Params | None = None, averaged: bool = False,
) -> OnlineState:  # fmt: skip
    """Iteration 0. A sweep maps it over `seed` or `kl_coef`: a state with one axis more is many runs.

    `kl_memory` is what the KL controller remembers at the start: `Algorithm.memory`; `multipliers`: of constraints.
    `entropy_coef` is given if it is controlled, `reference` if it moves; `averaged` keeps an average of the policy.
    """
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # often the same arrays as `policy`, and a step donates all  # noqa: E731
    return OnlineState(
        policy=new_learner(policy, policy_optimizer),
        critic=new_learner(critic, critic_optimizer) if critic_optimizer else None,
        kl_coef=jnp.float32(kl_coef),
        kl_memory=jax.tree.map(jnp.float32, kl_memory),
        multipliers=jax.tree.map(jnp.float32, multipliers),
        moments=Moments(count=jnp.float32(0), mean=jnp.float32(0), square=jnp.float32(0)),  # no buffer twice
        key=jax.random.key_data(jax.random.key(seed)),
        step=jnp.int32(0),
        entropy_coef=None if entropy_coef is None else jnp.float32(entropy_coef),
        reference=copy(reference),
        ema=copy(policy) if averaged else None,
    )


def step_key(state: OnlineState) -> Array:
    """The key of the current iteration."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def noise_of(key: Array, step: Array) -> Array:
    """The key of all that is sampled in an iteration."""
    return jax.random.fold_in(jax.random.fold_in(key, step), 0)


def reply_keys(noise: Array, row: Array, group: int, first: int = 0, replies: int = 0) -> Array:
    """A key for each of the replies of one draw, the `first` of its prompt's `group` on; those to a prompt are
    neighbours."""
    numbers = first + jnp.arange(replies or group)
    return row_keys(noise, jnp.repeat(row, len(numbers)) * group + jnp.tile(numbers, len(row)))
