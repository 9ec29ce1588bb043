"""The supervised term that keeps chosen replies likely."""

import jax.numpy as jnp

from alignax.types import Loss, Pair


def chosen_nll(pair: Pair) -> Loss:
    """L = -mean_t log pi(y_w,t | x, y_w,<t), nats per token, over all chosen tokens of the batch.

    A term to add to a preference loss, as in DPO + NLL (Pang et al. 2024, 2404.19733) and RPO (Liu et al. 2024,
    2405.16436), each with a coefficient of its own; TRL's loss type "sft". The rejected side and the reference are not
    read. value, weight: [B T]: a token mean, so a long reply weighs more than a short one. Metric: nll_loss.

    Use when a preference loss lowers the likelihood of chosen replies, as a second term beside it.
    """
    mask_BT = pair.chosen.mask
    nll_BT = jnp.where(mask_BT, -pair.chosen.logp.astype(jnp.float32), 0.0)
    weight_BT = mask_BT.astype(jnp.float32)
    return Loss(value=nll_BT, weight=weight_BT, metrics={"nll_loss": (nll_BT, weight_BT)})
