"""Tier T0: a world small enough to sum over every response, so that every expectation is exact.

A response is one option in each of three slots. The reward looks at the first two, their interaction included; the
third is reward-neutral, and the reference draws it independently, so an ideal method leaves its distribution alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray


class Enumerable(NamedTuple):
    """Axis `R` runs over all responses."""

    slots_R3: Int[Array, "R 3"]  # the option in each slot
    reward_R: Float[Array, " R"]  # mean 0 and standard deviation `sd` under the reference
    ref_logp_R: Float[Array, " R"]


def enumerable(options: int = 8, seed: int = 0, *, sd: float = 1.3) -> Enumerable:
    """A world of `options` ** 3 responses, drawn by `seed`. Raises ValueError unless 2 <= options <= 16."""
    if not 2 <= options <= 16:
        raise ValueError(
            f"enumerable options {options}: expected 2 to 16, so that the responses can all be summed over"
        )
    rng = np.random.default_rng(seed)
    slots_R3 = np.stack(np.meshgrid(*[np.arange(options)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    first, second, third = slots_R3.T
    logits = rng.normal(size=(3, options))
    coupling = rng.normal(size=(options, options))
    ref_logits_R = logits[0][first] + logits[1][second] + 0.5 * coupling[first, second] + logits[2][third]
    ref_R = np.exp(ref_logits_R) / np.exp(ref_logits_R).sum()
    main = rng.normal(size=(2, options))
    interaction = rng.normal(size=(options, options))
    reward_R = main[0][first] + main[1][second] + interaction[first, second]
    centred_R = reward_R - ref_R @ reward_R
    reward_R = sd * centred_R / np.sqrt(ref_R @ centred_R**2)
    as_f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return Enumerable(jnp.asarray(slots_R3, jnp.int32), as_f32(reward_R), as_f32(np.log(ref_R)))


def optimal_policy(world: Enumerable, beta: float) -> Float[Array, " R"]:
    """log pi*(y), pi* ~ pi_ref exp(r / beta): the maximiser of E[r] - beta KL(pi || pi_ref) (Rafailov et al. 2023)."""
    return jax.nn.log_softmax(world.ref_logp_R + world.reward_R / beta)


def expectation(logp_R: Float[Array, " R"], value_R: Float[Array, " R"]) -> Float[Array, ""]:
    """E[value] under the policy, exact."""
    return jnp.sum(jnp.exp(logp_R) * value_R)


def exact_kl(logp_R: Float[Array, " R"], ref_logp_R: Float[Array, " R"]) -> Float[Array, ""]:
    """KL(pi || pi_ref) in nats, exact. A policy may put no mass on a response (logp -inf)."""
    gap_R = jnp.where(jnp.isneginf(logp_R), 0.0, logp_R - ref_logp_R)
    return expectation(logp_R, gap_R)


def regularised_reward(logp_R: Float[Array, " R"], world: Enumerable, beta: float) -> Float[Array, ""]:
    """E[r] - beta KL(pi || pi_ref): at most beta log E_ref[exp(r / beta)], reached by `optimal_policy`."""
    return expectation(logp_R, world.reward_R) - beta * exact_kl(logp_R, world.ref_logp_R)


def slot_logp(logp_R: Float[Array, " R"], world: Enumerable, slot: int, options: int) -> Float[Array, " O"]:
    """Log-probability of each option of one slot; slot 2 is the reward-neutral one."""
    return jnp.log(jnp.zeros(options).at[world.slots_R3[:, slot]].add(jnp.exp(logp_R)))


def preference_matrix(reward_R: Float[Array, " R"], temperature: float = 1.0) -> Float[Array, "R R"]:
    """P[i, j] = sigma((r_i - r_j) / T): the Bradley-Terry probability that i is preferred to j."""
    return jax.nn.sigmoid((reward_R[:, None] - reward_R[None, :]) / temperature)


def population_dpo_loss(
    logp_R: Float[Array, " R"], world: Enumerable, beta: float, *, temperature: float = 1.0
) -> Float[Array, ""]:
    """The DPO loss over all pairs, labels summed out; both sides drawn from the reference.

    -sum_ij 2 ref_i ref_j P_ij log sigma(beta (h_i - h_j)), h = log pi - log pi_ref: i is the chosen side of two draws,
    which came in either order. At temperature 1 its minimiser is `optimal_policy(world, beta)`, since there
    beta (h_i - h_j) = r_i - r_j.
    """
    ratio_R = logp_R - world.ref_logp_R
    logit_RR = beta * (ratio_R[:, None] - ratio_R[None, :])
    ref_R = jnp.exp(world.ref_logp_R)
    weight_RR = 2.0 * ref_R[:, None] * ref_R[None, :] * preference_matrix(world.reward_R, temperature)
    return -jnp.sum(weight_RR * jax.nn.log_sigmoid(logit_RR))


def sample_pairs(
    key: PRNGKeyArray | Array, world: Enumerable, n: int, *, temperature: float = 1.0
) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
    """Indices of `n` (chosen, rejected) responses: two draws from the reference, labelled by Bradley-Terry."""
    key_pair, key_label = jax.random.split(key)
    a_N, b_N = jax.random.categorical(key_pair, world.ref_logp_R, shape=(2, n))
    p_N = jax.nn.sigmoid((world.reward_R[a_N] - world.reward_R[b_N]) / temperature)
    a_wins_N = jax.random.bernoulli(key_label, p_N)
    return jnp.where(a_wins_N, a_N, b_N), jnp.where(a_wins_N, b_N, a_N)
