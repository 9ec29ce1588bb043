"""The pure parts of the online loop: rollout -> score -> advantages -> update, each arrays in and arrays out.

With the reward on the device an iteration is one program; with a reward in Python over text it is two, cut between
`roll` and `learn`. Models, losses and the reward come in as functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import needs
from alignax.ops.kl import estimate
from alignax.ops.masked import masked_mean, masked_sum, masked_var, whiten
from alignax.ops.returns import gae, token_rewards
from alignax.train.optimizer import Optimizer
from alignax.train.state import Learner, Moments, OnlineState, step_key
from alignax.train.step import apply_gradients, gradients
from alignax.types import Params, Rollout


class Parts(NamedTuple):
    """What an iteration is made of; the stage binds models, losses and hyperparameters into these."""

    sample: Callable  # (policy params, prompts, key) -> (Rollout with the sampler's fields, finished [B])
    annotate: Callable  # (reference params, critic params, Rollout) -> Rollout with ref_logp and old_value
    shape: Callable  # (scores, finished, moments) -> (scores, moments): shape_scores with its settings
    advantages: Callable  # (Rollout, scores, KL coefficient) -> (Rollout, KL, metrics): with_advantages, likewise
    policy_objective: Callable  # (policy params, Rollout, KL coefficient) -> {name: (coefficient, Loss)}
    critic_objective: Callable  # (critic params, Rollout) -> {name: (coefficient, Loss)}
    control_kl: Callable  # (KL coefficient, measured KL, memory) -> (KL coefficient, memory)
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer
    updates: "Updates"
    kl_memory: Any = ()  # of control_kl at the start, a tree of numbers; most have none


class Updates(NamedTuple):
    """How often a rollout is used."""

    epochs: int
    minibatches: int
    microbatches: int
    kl_limit: float


def updates(*, epochs: int = 4, minibatches: int = 1, microbatches: int = 1, kl_limit: float = 0.0) -> Updates:
    """`epochs * minibatches` updates per rollout, each cut into `microbatches` (same result, less memory).

    Once policy/approxkl_avg of a minibatch exceeds `kl_limit`, the rest of the rollout is left unused; 0 never stops.
    """
    return Updates(epochs, minibatches, microbatches, kl_limit)


def roll(parts: Parts, state: OnlineState, prompts: dict) -> tuple[Rollout, Bool[Array, " B"]]:
    """Samples one completion per prompt with the live policy; old_logp is the sampler's own."""
    return parts.sample(state.policy.params, prompts, jax.random.fold_in(step_key(state), 0))


def learn(
    parts: Parts, state: OnlineState, reference: Params, rollout: Rollout, finished_B: Bool[Array, " B"],
    score_B: Float[Array, " B"],
) -> tuple[OnlineState, dict]:  # fmt: skip
    """Everything after the score: rewards, advantages, updates, the next KL coefficient."""
    rollout = parts.annotate(reference, state.critic.params, rollout)
    shaped_B, moments = parts.shape(score_B, finished_B, state.moments)
    rollout, kl, metrics = parts.advantages(rollout, shaped_B, state.kl_coef)
    key = jax.random.fold_in(step_key(state), 1)
    policy, critic, update_metrics = update(parts, state, rollout, key)
    done = state.step * parts.updates.epochs * parts.updates.minibatches
    metrics |= update_metrics | {
        "objective/scores": score_B.mean(),
        "objective/scores_sd": score_B.std(),
        "objective/kl_coef": state.kl_coef,
        "val/num_eos_tokens": finished_B.sum().astype(jnp.float32),
        "completions/mean_length": rollout.mask.sum(1).mean(),
        "completions/clipped_ratio": 1.0 - finished_B.mean(),
        "lr": jnp.float32(parts.policy_optimizer.learning_rate(done)),
        "episode": ((state.step + 1) * rollout.tokens.shape[0]).astype(jnp.float32),
    }
    coef, memory = parts.control_kl(state.kl_coef, kl, state.kl_memory)
    learners = {"policy": policy, "critic": critic}
    return state.replace(**learners, kl_coef=coef, kl_memory=memory, moments=moments, step=state.step + 1), metrics


def shape_scores(
    score_B: Float[Array, " B"], finished_B: Bool[Array, " B"], moments: Moments, *, normalize: bool = True,
    clip: float = 5.0, missing_eos_penalty: float = 1.0,
) -> tuple[Float[Array, " B"], Moments]:  # fmt: skip
    """Normalises by the history of scores, this batch included, clips, and charges for a missing end of sequence.

    Historical moments and clipping (in standard deviations where scores are normalised; 0 is off): Zheng et al. 2023,
    PPO-max, 2307.04964. The penalty comes last, so that it is in the unit of the reward that the policy sees and no
    clipping hides it (Huang et al. 2024, 2403.17031, detail 23).
    """
    moments = update_moments(moments, score_B)
    if normalize:
        score_B = (score_B - moments.mean) / jnp.sqrt(moments.square / jnp.maximum(moments.count - 1, 1) + 1e-8)
    if clip > 0:
        score_B = jnp.clip(score_B, -clip, clip)
    return score_B - missing_eos_penalty * ~finished_B, moments


def update_moments(moments: Moments, x_B: Float[Array, " B"]) -> Moments:
    """Adds a batch to running moments (Chan et al. 1979, the parallel form of Welford's update)."""
    count = moments.count + x_B.shape[0]
    gap = x_B.mean() - moments.mean
    mean = moments.mean + gap * x_B.shape[0] / count
    square = moments.square + jnp.square(x_B - x_B.mean()).sum() + gap**2 * moments.count * x_B.shape[0] / count
    return Moments(count=count, mean=mean, square=square)


def with_advantages(
    rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""], *, kl_in_reward: bool,
    gamma: float = 1.0, lam: float = 0.95, whiten_rewards: bool = False, whiten_advantages: bool = True,
) -> tuple[Rollout, Float[Array, ""], dict]:  # fmt: skip
    """Token rewards -coef * k1 + score at the last token, GAE, whitening. Also returns the KL that was measured.

    `kl_in_reward` is False where the penalty is a term of the loss. Rewards are whitened without moving their mean.
    """
    mask_BT = rollout.mask
    ref_logp_BT, old_value_BT = needs(rollout, "ref_logp", "old_value")
    kl_BT = jnp.where(mask_BT, estimate("k1", rollout.old_logp, ref_logp_BT), 0.0)
    kl = kl_BT.sum(1).mean()
    charged = kl_coef if kl_in_reward else jnp.zeros_like(kl_coef)
    rewards_BT = token_rewards(score_B, kl_BT, mask_BT, charged)
    metrics = {
        "objective/kl": kl,
        "objective/entropy": masked_sum(-rollout.old_logp, mask_BT, axis=1).mean(),
        "objective/non_score_reward": -charged * kl,
        "objective/rlhf_reward": rewards_BT.sum(1).mean(),
    }
    if whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    advantage_BT, returns_BT = gae(rewards_BT, old_value_BT, mask_BT, gamma=gamma, lam=lam)
    unexplained = masked_var(returns_BT - old_value_BT, mask_BT)
    metrics["critic/vf_explained_var"] = 1.0 - unexplained / jnp.maximum(masked_var(returns_BT, mask_BT), 1e-8)
    metrics["critic/values"] = masked_mean(old_value_BT, mask_BT)
    if whiten_advantages:
        advantage_BT = whiten(advantage_BT, mask_BT)
    return rollout.replace(advantage=advantage_BT, returns=returns_BT), kl, metrics


def update(parts: Parts, state: OnlineState, rollout: Rollout, key: Array) -> tuple[Learner, Learner, dict]:
    """Several epochs of shuffled minibatches over one rollout. Metrics are means over the minibatches seen."""
    B, u = rollout.tokens.shape[0], parts.updates
    if B % u.minibatches:
        raise ValueError(f"{B} rollouts do not divide into {u.minibatches} minibatches")
    shuffle = lambda k: jax.random.permutation(k, B).reshape(u.minibatches, -1)  # noqa: E731
    rows = jax.vmap(shuffle)(jax.random.split(key, u.epochs)).reshape(u.epochs * u.minibatches, -1)

    def body(carry, index):
        learners, stopped = carry
        after, metrics = update_once(parts, learners, jax.tree.map(lambda x: x[index], rollout), state.kl_coef)
        seen = ~stopped
        if u.kl_limit > 0:
            # the update that finds the limit passed is dropped, and all that follow on this rollout
            stopped = stopped | (metrics["policy/approxkl_avg"] > u.kl_limit)
            after = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), after, learners)
        return (after, stopped), (metrics, seen, ~stopped)

    carry = ((state.policy, state.critic), jnp.bool_(False))
    ((policy, critic), _), (history, seen, applied) = jax.lax.scan(body, carry, rows)
    means = {name: jnp.mean(values, where=seen) for name, values in history.items()}
    first = {f"{name}_first": history[name][0] for name in ("val/ratio", "policy/approxkl_avg") if name in history}
    return policy, critic, means | first | {"policy/updates": applied.sum().astype(jnp.float32)}


def update_once(
    parts: Parts, learners: tuple[Learner, Learner], batch: Rollout, kl_coef: Float[Array, ""]
) -> tuple[tuple[Learner, Learner], dict]:
    """One update of policy and critic on one minibatch."""
    policy, critic = learners
    bound = lambda params, part: parts.policy_objective(params, part, kl_coef)  # noqa: E731
    count = parts.updates.microbatches
    policy_grads, metrics = gradients(bound, policy.params, batch, microbatches=count)
    critic_grads, critic_metrics = gradients(parts.critic_objective, critic.params, batch, microbatches=count)
    metrics = {"loss/policy_total" if name == "loss" else name: value for name, value in metrics.items()}
    metrics |= {f"critic/{name}" if name in ("loss", "grad_norm") else name: v for name, v in critic_metrics.items()}
    policy = apply_gradients(policy, policy_grads, parts.policy_optimizer)
    critic = apply_gradients(critic, critic_grads, parts.critic_optimizer)
    return (policy, critic), metrics


def iteration(
    parts: Parts, reward: Callable[[Params, Rollout], Array], state: OnlineState, frozen: dict, prompts: dict
) -> tuple[OnlineState, dict]:
    """One whole iteration with the reward on the device: `reward(frozen["reward"], rollout) -> [B]`. Jit it as one."""
    rollout, finished_B = roll(parts, state, prompts)
    score_B = reward(frozen["reward"], rollout)
    return learn(parts, state, frozen["reference"], rollout, finished_B, score_B)
