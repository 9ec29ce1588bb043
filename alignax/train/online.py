"""Online alignment as two functions: `produce` gives a Rollout with its scores, `learn` makes the next state of it.

Both are pure, arrays in and arrays out, over an `Algorithm`: functions with their settings bound, whose numbers are
leaves. With the rewards on the device an iteration is one program; a reward in Python over text cuts it in two, between
`produce` and `learn`. Whatever gives a scored Rollout is a producer: `learn` knows none of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax import forward
from alignax.bound import takes
from alignax.ops.checks import needs
from alignax.ops.masked import masked_mean
from alignax.ops.mismatch import mismatch
from alignax.sampling.opponents import Author
from alignax.sampling.options import Options
from alignax.train import watch
from alignax.train.algorithm import Actors, Algorithm, Score
from alignax.train.constraints import ascended, first_multipliers
from alignax.train.moving import averages, entropy_bonus, present
from alignax.train.objectives import update
from alignax.train.optimizer import updates_done
from alignax.train.reading import by_length, first_of_each, whole
from alignax.train.rewarded import beside_reference, metrics_of_samples, scored, shaped
from alignax.train.scores import keep_informative, only_scored
from alignax.train.state import OnlineState, new_online_state, noise_of, reply_keys, step_key
from alignax.train.waiting import next_batch, went_on
from alignax.types import Params, Rollout


def start(
    algorithm: Algorithm, policy: Params, critic: Params | None, seed: int | Array, reference: Params | None = None
) -> OnlineState:
    """Iteration 0. A sweep maps it over algorithms or seeds: a state with one axis more is many runs.

    `reference` is where one that moves begins; any other is no state.
    """
    value = algorithm.value_optimizer
    optimizers = algorithm.policy_optimizer(), value() if value and critic is not None else None
    more: dict[str, Any] = {"averaged": algorithm.ema is not None}
    if algorithm.follow:
        if reference is None:
            raise ValueError("start: the reference of this algorithm moves (follow): give the one that it begins at")
        more["reference"] = reference
    if algorithm.entropy_controller:
        more["entropy_coef"] = algorithm.policy["entropy"][0]
    remembered = algorithm.memory, first_multipliers(algorithm)
    return new_online_state(policy, critic, *optimizers, algorithm.kl_coef, seed, *remembered, **more)


# ---- produce


def produce(
    algorithm: Algorithm, actors: Actors, frozen: dict, params: Params, prompts: dict, key: Array, step: Array
) -> Rollout:
    """The replies to a batch of prompts by all that give some, the policy of `params` first; without scores.

    `old_logp` is the sampler's own: at its temperature, under the filters of the algorithm, which hold for every author
    and its own distribution. A reply's noise depends on the `key`, the step, its prompt's row and its number.
    """
    group, own = algorithm.group, whole(params, frozen, "policy")
    noise = noise_of(key, step)
    drawn, first = [], 0
    for draw in algorithm.draws:
        author = Author(actors.policy, own, algorithm.temperature)
        if draw.author:
            author = draw.author(actors.policy, own, frozen["reference"], algorithm.temperature)
        keys = reply_keys(noise, prompts["row"], group, first, draw.replies)
        options = Options(temperature=author.temperature, **algorithm.sampling_filters)
        more = {"model": author.model, "group": draw.replies}
        drawn.append(actors.sampler.reply(author.params, prompts["tokens"], prompts["valid"], keys, options, **more))
        first += draw.replies
    rollout = side_by_side(drawn, [draw.replies for draw in algorithm.draws])
    return rollout.replace(version=jnp.full(rollout.tokens.shape[0], step, jnp.int32))


def sampled(algorithm: Algorithm, actors: Actors, frozen: dict, state: OnlineState, prompts: dict) -> Rollout:
    """The replies of the state's policy to the prompts of batch step + k, where k batches wait.

    The noise is the batch's own, so that the first is the same whatever waits. Where replies are carried over, those
    to all prompts that are begun: `next_batch` takes the ones to learn from.
    """
    if algorithm.carried:
        return went_on(algorithm, actors, frozen, state, prompts)
    key, batch = jax.random.wrap_key_data(state.key), state.step + len(state.pending)
    rollout = produce(algorithm, actors, present(frozen, state), state.policy.params, prompts, key, batch)
    return rollout.replace(version=jnp.full(rollout.tokens.shape[0], state.step, jnp.int32))


def side_by_side(drawn: list[Rollout], replies: list[int]) -> Rollout:
    """The rollouts of several draws as one, the replies to a prompt together: rows [P * M]. `source` numbers the draws.

    `old_logp` of a row is under its own author.
    """
    P = drawn[0].tokens.shape[0] // replies[0]
    sources = [jnp.full(len(one.tokens), i, jnp.int32) for i, one in enumerate(drawn)]
    marked = [one.replace(source=source) for one, source in zip(drawn, sources, strict=True)]
    if len(marked) == 1:
        return marked[0]

    def join(*parts: Array) -> Array:
        by_prompt = [x.reshape(P, n, *x.shape[1:]) for x, n in zip(parts, replies, strict=True)]
        return jnp.concatenate(by_prompt, axis=1).reshape(-1, *parts[0].shape[1:])

    return jax.tree.map(join, *marked)


def iteration(
    algorithm: Algorithm, actors: Actors, score: Score, state: OnlineState, frozen: dict, batch: dict
) -> tuple[OnlineState, dict]:
    """One whole iteration with the rewards on the device. Jit it as one program. `batch`: see `parted`."""
    prompts, data = parted(batch)
    rollout = sampled(algorithm, actors, frozen, state, prompts)
    rollout, prompts, pending = next_batch(algorithm, state, rollout, prompts)
    state, rollout = state.replace(pending=pending), beside_reference(frozen, rollout, prompts, algorithm.group)
    rollout = scored(algorithm, rollout, score(frozen, rollout), state.multipliers)
    return learn(algorithm, actors, frozen, state, rollout, data)


def parted(batch: dict) -> tuple[dict, Any]:
    """(prompts, rows of data beside them, None if there are none) of a batch."""
    return {name: x for name, x in batch.items() if name != "data"}, batch.get("data")


# ---- learn


def learn(
    algorithm: Algorithm, actors: Actors, frozen: dict, state: OnlineState, rollout: Rollout, data: Any = None
) -> tuple[OnlineState, dict]:
    """Everything after the scores: shaping, advantages, updates, the next KL coefficient.

    `data`: rows of the algorithm's loss on data.

    A score that is not finite is missing, and its row teaches nothing, whatever the advantage estimator makes of it.
    """
    # metrics and moments are of all that was sampled, so they come before anything is left out
    (score_B, finished_B), own = needs(rollout, "score", "finished"), rollout.own.sum()
    frozen = present(frozen, state)
    multipliers, of_constraints = ascended(algorithm, rollout, state.multipliers)
    of_samples = metrics_of_samples(rollout) | watch.of_replies(rollout, algorithm.group) | of_constraints
    relative_B = shaped(algorithm, state, rollout)
    shaped_B, moments = algorithm.scoring(relative_B, finished_B, rollout.mask.sum(1), state.moments)
    if algorithm.keep:
        rows_B = keep_informative(score_B, group=algorithm.group, keep=algorithm.keep)
        rollout, shaped_B = jax.tree.map(lambda x: x[rows_B], (rollout, shaped_B))
    critic = critic_of(algorithm, state)
    rollout = annotate(algorithm, actors, frozen, state.policy.params, critic, rollout)
    of_samples |= watch.of_kl(rollout)
    algorithm, entropy_coef, of_entropy = entropy_bonus(algorithm, state, rollout)
    rollout, kl, metrics = advantages(algorithm, rollout, shaped_B, state.kl_coef)
    rollout = first_of_each(only_scored(rollout, shaped_B), algorithm.group, algorithm.learnt)
    policy, critic, more = update(
        algorithm, actors, frozen, state, rollout, jax.random.fold_in(step_key(state), 1), data
    )
    coef, memory = next_coefficient(algorithm, state, kl)
    used = algorithm.updates()
    done = updates_done(state.policy.opt_state, state.step * used.epochs * used.minibatches)
    metrics |= of_samples | more | of_entropy
    metrics |= {"sampling/staleness": staleness(state, rollout)}
    if algorithm.carried:
        begun_B = (needs(rollout, "version")[0] < state.step).astype(jnp.float32)
        metrics |= {"sampling/carried": masked_mean(begun_B, rollout.own)}
    metrics |= {
        "objective/kl_coef": state.kl_coef,
        "lr": jnp.float32(algorithm.policy_optimizer().learning_rate(done)),  # of the first update of this iteration
        "episode": ((state.step + 1) * own).astype(jnp.float32),
    }
    learners = {"policy": policy, "critic": critic, "entropy_coef": entropy_coef, "multipliers": multipliers}
    learners |= averages(algorithm, state, policy.params)
    return state.replace(**learners, kl_coef=coef, kl_memory=memory, moments=moments, step=state.step + 1), metrics


def critic_of(algorithm: Algorithm, state: OnlineState) -> Params | None:
    """The parameters that give values: a critic's own, or the policy's, whose trunk has a head for them."""
    if algorithm.value_coef is not None:
        return state.policy.params
    return state.critic.params if state.critic else None


def staleness(state: OnlineState, rollout: Rollout) -> Float[Array, ""]:
    """By how many steps the weights that sampled the policy's replies are older than those that learn, in the mean."""
    if rollout.version is None:
        return jnp.float32(0)
    return masked_mean((state.step - rollout.version).astype(jnp.float32), rollout.own)


def annotate(
    algorithm: Algorithm, actors: Actors, frozen: dict, policy: Params, critic: Params | None, rollout: Rollout
) -> Rollout:
    """The rollout with the reference's log-probabilities, and what else the advantages read, where they are missing.

    Nothing of it needs a score. Of replies that the update does not see nobody asks for log-probabilities: they are 0.

    The reference is at the temperature of the policy and under no filter. With pi' the policy under its filters, S what
    these keep, and pi the whole of it,

        log pi'(y_t) - log ref(y_t) = log pi(y_t) / ref(y_t) - log pi(S),

    so the penalty is KL(pi' || ref), which is finite wherever the reference is. Under a filter of its own the reference
    would give no probability to tokens that it leaves out; on S alone, renormalised, it would not mind how little of
    its mass S has. Where policy and reference are equal the KL is not 0 but -log pi(S) at each token, at most
    -log top_p.
    """
    read = first_of_each(rollout, algorithm.group, algorithm.learnt)

    def logp(params: Params, filters: dict) -> Float[Array, "B T"]:
        of = partial(forward.token_statistics, actors.policy, params, temperature=algorithm.temperature)
        read_logp = by_length(algorithm, read, lambda *given, **rows: of(*given, filters=filters, **rows).logp)
        if algorithm.learnt == algorithm.group:
            return read_logp
        shape = (-1, algorithm.group, rollout.mask.shape[1])
        zeros = jnp.zeros(rollout.mask.shape, jnp.float32).reshape(shape)
        return (
            zeros.at[:, : algorithm.learnt]
            .set(read_logp.reshape(-1, algorithm.learnt, shape[2]))
            .reshape(rollout.mask.shape)
        )

    if rollout.ref_logp is None:
        rollout = rollout.replace(ref_logp=logp(frozen["reference"], {}))
    if algorithm.correction and rollout.sampler_logp is None:
        old_logp = logp(whole(policy, frozen, "policy"), algorithm.sampling_filters)
        rollout = rollout.replace(old_logp=old_logp, sampler_logp=rollout.old_logp)
    model, role = (actors.critic, "critic") if algorithm.value_coef is None else (actors.policy, "policy")
    if critic is None or model is None or rollout.old_value is not None:
        return rollout
    value_of = partial(forward.values, model, whole(critic, frozen, role))
    return rollout.replace(old_value=by_length(algorithm, rollout, value_of))


def advantages(
    algorithm: Algorithm, rollout: Rollout, score_B: Float[Array, " B"], kl_coef: Float[Array, ""]
) -> tuple[Rollout, Float[Array, ""], dict]:
    """The advantages, weighted where the sampler is not quite the learner; a token of weight 0 is no action."""
    weights = {"weights": algorithm.weights} if takes(algorithm.advantage.function, "weights") else {}
    rollout, kl, metrics = algorithm.advantage(rollout, score_B, kl_coef, **weights)
    if not algorithm.correction:
        return rollout, kl, metrics
    (sampler_BT,), mask_BT = needs(rollout, "sampler_logp"), rollout.mask
    weight_BT = algorithm.correction(rollout.old_logp, sampler_BT, mask_BT)
    kept_BT = mask_BT & (weight_BT > 0)  # what has no weight is in no denominator
    own_BT = mask_BT & rollout.own[:, None]
    metrics |= mismatch(rollout.old_logp, sampler_BT, own_BT)
    metrics["sampling/importance_ratio"] = masked_mean(weight_BT, own_BT)
    metrics["sampling/kept"] = masked_mean(kept_BT.astype(jnp.float32), own_BT)
    return rollout.replace(advantage=rollout.advantage * weight_BT, mask=kept_BT), kl, metrics


def next_coefficient(algorithm: Algorithm, state: OnlineState, kl: Float[Array, ""]) -> tuple[Float[Array, ""], Any]:
    """The controller's coefficient and memory; both as they are where the KL or what it makes of it is not finite."""
    before = state.kl_coef, state.kl_memory
    if jax.tree.leaves(state.kl_memory):
        after = algorithm.controller(state.kl_coef, kl, state.kl_memory)
    else:
        after = algorithm.controller(state.kl_coef, kl), state.kl_memory
    known = jnp.isfinite(kl) & jnp.isfinite(after[0])
    return jax.tree.map(lambda new, old: jnp.where(known, new, old), after, before)
