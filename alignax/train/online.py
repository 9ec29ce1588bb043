"""The pure parts of the online loop: rollout -> score -> advantages -> update, each arrays in and arrays out.

With the reward on the device an iteration is one program; with a reward in Python over text it is two, cut between
`roll` and `learn`. Models, losses and the reward come in as functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops.advantages import informative, overlong_penalty, scorable
from alignax.ops.checks import require
from alignax.ops.masked import masked_mean, masked_sum, masked_var
from alignax.train.optimizer import Optimizer, updates_done
from alignax.train.state import Learner, Moments, OnlineState, step_key
from alignax.train.step import apply_gradients, gradients
from alignax.types import Params, Rollout


class Parts(NamedTuple):
    """What an iteration is made of; the stage binds models, losses and hyperparameters into these."""

    sample: Callable  # (policy, reference params, prompts, key) -> (Rollout with the sampler's fields, finished [B])
    annotate: Callable  # (policy, reference, critic params or None, Rollout) -> Rollout with ref_logp, old_value if any
    shape: Callable  # (scores, finished, tokens, moments) -> (scores, moments): shape_scores with its settings
    advantages: Callable  # (Rollout, scores, KL coefficient) -> (Rollout, KL, metrics): of train.advantages, likewise
    policy_objective: Callable  # (policy params, Rollout, KL coefficient) -> {name: (coefficient, Loss)}
    critic_objective: Callable | None  # (critic params, Rollout) -> {name: (coefficient, Loss)}; None: no critic
    control_kl: Callable  # (KL coefficient, measured KL, memory) -> (KL coefficient, memory)
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer | None
    updates: "Updates"
    group: int = 1  # replies per prompt, M; neighbours among the B = P * M rows
    alone: bool = False  # an opponent's replies are left out of the updates, once the advantages are known
    keep: int = 0  # groups to learn from, chosen among those sampled; 0 is all of them
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
    Raises ValueError if kl_limit is negative.
    """
    require(kl_limit >= 0, f"kl_limit = {kl_limit}: expected 0 (never stops) or more nats, such as 0.1")
    return Updates(epochs, minibatches, microbatches, kl_limit)


def on_base(parts: Parts, still: dict[str, Params] | None) -> Parts:
    """`parts` for learners that hold an adapter and a head alone: `still`'s "policy" and "critic" complete their trees.

    None where the learners hold everything. To be called inside the compiled program, whose argument `still` is: a
    decoder that stands still is then no constant of the program, has no gradient, and is no part of the state.

    The sampler, too, applies the adapter beside its kernel. Worked in once per rollout it would take a copy of the
    layers more and save next to no time (benchmarks/roles.py measures both), and round: in bfloat16 a small adapter
    is lost in the kernel's last digits, and the policy that samples is no longer quite the one that learns.
    """
    if still is None:
        return parts
    policy, critic, values = still["policy"], still["critic"], parts.critic_objective

    def annotate(params: Params, reference: Params, value: Params | None, rollout: Rollout) -> Rollout:
        return parts.annotate(policy | params, reference, critic | value if value else None, rollout)

    return parts._replace(
        sample=lambda params, *rest: parts.sample(policy | params, *rest),
        annotate=annotate,
        policy_objective=lambda params, *rest: parts.policy_objective(policy | params, *rest),
        critic_objective=values and (lambda params, rollout: values(critic | params, rollout)),
    )


def roll(parts: Parts, state: OnlineState, reference: Params, prompts: dict) -> tuple[Rollout, Bool[Array, " B"]]:
    """Samples the completions of each prompt with the live policy, and an opponent's; old_logp is the sampler's own."""
    return parts.sample(state.policy.params, reference, prompts, jax.random.fold_in(step_key(state), 0))


def learn(
    parts: Parts, state: OnlineState, reference: Params, rollout: Rollout, finished_B: Bool[Array, " B"],
    score_B: Float[Array, " B"],
) -> tuple[OnlineState, dict]:  # fmt: skip
    """Everything after the score: rewards, advantages, updates, the next KL coefficient.

    A score that is not finite is missing, and its row teaches nothing, whatever the advantage estimator makes of it.
    """
    # metrics and moments are of all that was sampled, so they come before anything is left out
    sampled, replies = metrics_of_samples(rollout, finished_B, score_B), rollout.own.sum()
    shaped_B, moments = parts.shape(score_B, finished_B, rollout.mask.sum(1), state.moments)
    if parts.keep:
        rows_B = keep_informative(score_B, group=parts.group, keep=parts.keep)
        rollout, shaped_B = jax.tree.map(lambda x: x[rows_B], (rollout, shaped_B))
    rollout = parts.annotate(state.policy.params, reference, state.critic.params if state.critic else None, rollout)
    rollout, kl, metrics = parts.advantages(rollout, shaped_B, state.kl_coef)
    rollout = only_scored(rollout, shaped_B)
    if parts.alone:
        rollout, parts = jax.tree.map(lambda x: x[:: parts.group], rollout), parts._replace(group=1)
    key = jax.random.fold_in(step_key(state), 1)
    policy, critic, update_metrics = update(parts, state, rollout, key)
    done = updates_done(state.policy.opt_state, state.step * parts.updates.epochs * parts.updates.minibatches)
    metrics |= sampled | update_metrics
    metrics |= {
        "objective/kl_coef": state.kl_coef,
        "lr": jnp.float32(parts.policy_optimizer.learning_rate(done)),  # of the first update of this iteration
        "episode": ((state.step + 1) * replies).astype(jnp.float32),
    }
    coef, memory = next_coefficient(parts, state, kl)
    learners = {"policy": policy, "critic": critic}
    return state.replace(**learners, kl_coef=coef, kl_memory=memory, moments=moments, step=state.step + 1), metrics


def only_scored(rollout: Rollout, score_B: Float[Array, " B"]) -> Rollout:
    """The rollout without the rows whose score is missing, nor those whose advantages or returns are not finite.

    The estimators of `train.advantages` mask theirs; one from outside may not know that a score can be missing.
    """
    targets = {name: x for name in ("advantage", "returns") if (x := getattr(rollout, name)) is not None}
    known_B = scorable(score_B)
    for x_BT in targets.values():
        known_B &= jnp.all(jnp.isfinite(x_BT) | ~rollout.mask, axis=1)
    mask_BT = rollout.mask & known_B[:, None]
    return rollout.replace(mask=mask_BT, **{name: jnp.where(mask_BT, x_BT, 0.0) for name, x_BT in targets.items()})


def metrics_of_samples(rollout: Rollout, finished_B: Bool[Array, " B"], score_B: Float[Array, " B"]) -> dict:
    """Metrics of the policy's own replies: scores over those that have one, 0 where none has, and the share without."""
    own_B, scored_B = rollout.own, rollout.own & scorable(score_B)
    ended_B, tokens_B = (x.astype(jnp.float32) for x in (finished_B, rollout.mask.sum(1)))
    return {
        "objective/scores": masked_mean(score_B, scored_B),
        "objective/scores_sd": jnp.sqrt(masked_var(score_B, scored_B)),
        "objective/missing_scores": 1.0 - masked_mean(scored_B.astype(jnp.float32), own_B),
        "val/num_eos_tokens": masked_sum(ended_B, own_B),
        "completions/mean_length": masked_mean(tokens_B, own_B),
        "completions/clipped_ratio": 1.0 - masked_mean(ended_B, own_B),
    }


def next_coefficient(parts: Parts, state: OnlineState, kl: Float[Array, ""]) -> tuple[Float[Array, ""], Any]:
    """The controller's coefficient and memory; both as they are where the KL or what it makes of it is not finite."""
    before, after = (state.kl_coef, state.kl_memory), parts.control_kl(state.kl_coef, kl, state.kl_memory)
    known = jnp.isfinite(kl) & jnp.isfinite(after[0])
    return jax.tree.map(lambda new, old: jnp.where(known, new, old), after, before)


def one_for_each(scores: Any, finished_B: Bool[Array, " B"]) -> Array:
    """What a reward gave, as an array. Raises ValueError unless it is one score for each reply."""
    scores = jnp.asarray(scores, jnp.float32)
    if scores.shape != finished_B.shape:  # a column would broadcast in silence
        raise ValueError(
            f"the reward gave the shape {scores.shape} for {len(finished_B)} replies: expected one for each"
        )
    return scores


def shape_scores(
    score_B: Float[Array, " B"], finished_B: Bool[Array, " B"], tokens_B: Int[Array, " B"], moments: Moments, *,
    max_tokens: int, normalize: bool = True, clip: float = 5.0, missing_eos_penalty: float = 1.0,
    overlong_buffer: int = 0,
) -> tuple[Float[Array, " B"], Moments]:  # fmt: skip
    """Normalises by the history of scores, this batch included, clips, and charges for length and a missing end.

    Historical moments and clipping (in standard deviations where scores are normalised; 0 is off): Zheng et al. 2023,
    PPO-max, 2307.04964. The penalties come last, so that they are in the unit of the reward that the policy sees and no
    clipping hides them: `missing_eos_penalty` for a reply without an end of sequence (Huang et al. 2024, 2403.17031,
    detail 23), and DAPO's for the last `overlong_buffer` of `max_tokens` tokens (`ops.advantages.overlong_penalty`; 0
    is off). Raises ValueError if clip or the penalty is negative.
    """
    require(clip >= 0, f"clip = {clip}: expected 0 (off) or more, such as 5.0")
    require(missing_eos_penalty >= 0, f"missing_eos_penalty = {missing_eos_penalty}: expected 0 (none) or more")
    score_B = jnp.where(jnp.isfinite(score_B), score_B, jnp.nan)  # missing: no clip may turn it into a score
    moments = update_moments(moments, score_B)
    if normalize:
        score_B = (score_B - moments.mean) / jnp.sqrt(moments.square / jnp.maximum(moments.count - 1, 1) + 1e-8)
    if clip > 0:
        score_B = jnp.clip(score_B, -clip, clip)
    score_B = score_B - missing_eos_penalty * ~finished_B
    if overlong_buffer:
        score_B = score_B + overlong_penalty(tokens_B, max_tokens=max_tokens, buffer_tokens=overlong_buffer)
    return score_B, moments


def update_moments(moments: Moments, x_B: Float[Array, " B"]) -> Moments:
    """Adds a batch to running moments (Chan et al. 1979, the parallel form of Welford's update); missing scores, which
    are not finite, take no part."""
    known_B = jnp.isfinite(x_B)
    new = jnp.sum(known_B, dtype=jnp.float32)
    mean_of_new = masked_mean(x_B, known_B)
    count = moments.count + new
    gap = jnp.where(new > 0, mean_of_new - moments.mean, 0.0)
    mean = moments.mean + gap * new / jnp.maximum(count, 1)
    spread = jnp.sum(jnp.square(x_B - mean_of_new), where=known_B)
    square = moments.square + spread + gap**2 * moments.count * new / jnp.maximum(count, 1)
    return Moments(count=count, mean=mean, square=square)


def keep_informative(score_B: Float[Array, " B"], *, group: int, keep: int) -> Int[Array, " b"]:
    """The rows of `keep` groups: those whose scores differ first, in their order, then the others if they must.

    DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476) in a program of fixed size: more groups are sampled than
    are learnt from. What is kept but has equal scores has the advantage 0; mask it with `only_informative`.
    """
    useful_P = informative(score_B, group=group).reshape(-1, group).any(axis=1)
    order_P = jnp.argsort(~useful_P, stable=True)[:keep]
    return group_rows(order_P, group)


def group_rows(prompts_P: Int[Array, " P"], group: int) -> Int[Array, " B"]:
    """The rows of the replies to these prompts."""
    return (prompts_P[:, None] * group + jnp.arange(group)[None, :]).ravel()


def update(parts: Parts, state: OnlineState, rollout: Rollout, key: Array) -> tuple[Learner, Learner | None, dict]:
    """Several epochs of minibatches over one rollout, shuffled by prompt. Metrics are means over the minibatches seen.

    The replies to one prompt stay together: a loss on pairs finds both in its minibatch. A minibatch whose rows are all
    masked, since none was scored for example, is no update: its gradient is 0, and momentum and weight decay would move
    the parameters without any data. Metrics named *_first are of the first that is one. Where none is left, all are 0.
    """
    P, u = rollout.tokens.shape[0] // parts.group, parts.updates
    if P % u.minibatches:
        raise ValueError(f"{P} prompts do not divide into {u.minibatches} minibatches")
    shuffle = lambda k: jax.random.permutation(k, P).reshape(u.minibatches, -1)  # noqa: E731
    prompts = jax.vmap(shuffle)(jax.random.split(key, u.epochs)).reshape(u.epochs * u.minibatches, -1)
    rows = group_rows(prompts.ravel(), parts.group).reshape(len(prompts), -1)

    def body(carry, index):
        learners, stopped = carry
        batch = jax.tree.map(lambda x: x[index], rollout)
        after, metrics = update_once(parts, learners, batch, state.kl_coef)
        teaches = batch.mask.any()
        seen = teaches & ~stopped
        if u.kl_limit > 0:
            # the update that finds the limit passed, or a KL of nan, is dropped, and all that follow on this rollout
            stopped = stopped | ~(metrics["policy/approxkl_avg"] <= u.kl_limit)
        applied = teaches & ~stopped
        after = jax.tree.map(lambda new, old: jnp.where(applied, new, old), after, learners)
        return (after, stopped), (metrics, seen, applied)

    carry = ((state.policy, state.critic), jnp.bool_(False))
    ((policy, critic), _), (history, seen, applied) = jax.lax.scan(body, carry, rows)
    means = {name: masked_mean(values, seen) for name, values in history.items()}
    names = [name for name in ("val/ratio", "policy/approxkl_avg") if name in history]
    first = {f"{name}_first": history[name][jnp.argmax(seen)] for name in names}
    return policy, critic, means | first | {"policy/updates": applied.sum().astype(jnp.float32)}


def update_once(
    parts: Parts, learners: tuple[Learner, Learner | None], batch: Rollout, kl_coef: Float[Array, ""]
) -> tuple[tuple[Learner, Learner | None], dict]:
    """One update of policy and critic, if there is one, on one minibatch."""
    policy, critic = learners
    bound = lambda params, part: parts.policy_objective(params, part, kl_coef)  # noqa: E731
    count = parts.updates.microbatches
    policy_grads, metrics = gradients(bound, policy.params, batch, microbatches=count)
    metrics = {"loss/policy_total" if name == "loss" else name: value for name, value in metrics.items()}
    policy = apply_gradients(policy, policy_grads, parts.policy_optimizer)
    if critic is None or parts.critic_objective is None or parts.critic_optimizer is None:
        return (policy, None), metrics
    critic_grads, critic_metrics = gradients(parts.critic_objective, critic.params, batch, microbatches=count)
    metrics |= {f"critic/{name}" if name in ("loss", "grad_norm") else name: v for name, v in critic_metrics.items()}
    critic = apply_gradients(critic, critic_grads, parts.critic_optimizer)
    return (policy, critic), metrics


def iteration(
    parts: Parts, reward: Callable[[Params, Rollout], Array], state: OnlineState, frozen: dict, prompts: dict
) -> tuple[OnlineState, dict]:
    """One whole iteration with the reward on the device: `reward(frozen["reward"], rollout) -> [B]`. Jit it as one.

    `frozen` holds what is read and does not learn: "reference", "reward", and "still" of `on_base`, if it is there.
    """
    parts = on_base(parts, frozen.get("still"))
    rollout, finished_B = roll(parts, state, frozen["reference"], prompts)
    score_B = one_for_each(reward(frozen["reward"], rollout), finished_B)
    return learn(parts, state, frozen["reference"], rollout, finished_B, score_B)
