"""From scores to advantages. Everything is indexed by the token it is about, and only action tokens take part.

An action token is one that the policy sampled (`mask_BT`). Prompt, padding, and tokens that a tool or an environment
wrote between actions are not: they have no reward, are skipped by the recursion, and cost no discount.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar, require


def token_rewards(
    score_B: Float[Array, " B"], kl_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"], coef: Scalar,
    steps_BT: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:  # fmt: skip
    """-coef * kl at every action token, plus the score at the last one (Ziegler et al. 2019); zeros elsewhere.

    What of the score is of steps (`steps_BT`, whose sum is in it) is at their tokens, and the rest at the last one.

    kl_BT: an estimate of KL per token, nats, fit for a reward (see `ops.kl.check_placement`). A row without action
    tokens is all zeros: its score has no token to go to.
    """
    actions_left_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1]
    last_BT = mask_BT & (actions_left_BT == 1)
    penalty_BT = jnp.where(mask_BT, -coef * kl_BT.astype(jnp.float32), 0.0)
    if steps_BT is not None:
        steps_BT = jnp.where(mask_BT, steps_BT.astype(jnp.float32), 0.0)
        penalty_BT, score_B = penalty_BT + steps_BT, score_B - steps_BT.sum(1)
    return penalty_BT + jnp.where(last_BT, score_B.astype(jnp.float32)[:, None], 0.0)


def gae(
    rewards_BT: Float[Array, "B T"],
    values_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    gamma: Scalar = 1.0,
    lam: Scalar = 0.95,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2016) -> (advantages, returns), zeros outside the mask.

        delta_t = r_t + gamma V_t' - V_t
        A_t     = delta_t + gamma lam A_t'
        returns = A + V

    where t' is the next *action* token, and V_t' = A_t' = 0 after the last one: an episode ends there, so nothing is
    bootstrapped. V_t is the value of the state before token t. Rewards outside the mask are ignored. Raises ValueError
    if gamma or lam is not in [0, 1].
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        require((value >= 0) & (value <= 1), f"gae: {name} = {value}: expected a number in [0, 1], such as 1.0")
    rewards_BT = jnp.where(mask_BT, rewards_BT.astype(jnp.float32), 0.0)
    values_BT = jnp.where(mask_BT, values_BT.astype(jnp.float32), 0.0)

    def step(after, now):
        next_value_B, next_advantage_B = after
        reward_B, value_B, mask_B = now
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        before = jnp.where(mask_B, value_B, next_value_B), jnp.where(mask_B, advantage_B, next_advantage_B)
        return before, jnp.where(mask_B, advantage_B, 0.0)

    end = jnp.zeros(rewards_BT.shape[0]), jnp.zeros(rewards_BT.shape[0])
    _, advantages_TB = jax.lax.scan(step, end, (rewards_BT.T, values_BT.T, mask_BT.T), reverse=True)
    return advantages_TB.T, advantages_TB.T + values_BT
