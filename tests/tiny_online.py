"""The online stage's own parts on a tiny model, with plain gradient descent, so that equalities hold to rounding."""

import functools

import jax
import jax.numpy as jnp
from tiny import EOS, PAD, tiny

from alignax import forward
from alignax.config import Reader, plain
from alignax.stages import online as stage
from alignax.train import online
from alignax.train.state import new_online_state

P, CAPACITY = 5, 4
ENDS = (EOS, 2)
CONFIG = dict(
    max_new_tokens=CAPACITY, temperature=0.9, kl_coef=0.1, batch_size=8, total_steps=10,
    kl_controller="adaptive_kl", kl_controller_args=dict(target=0.5, horizon=100.0),
    update_args=dict(epochs=2, minibatches=2),
    optimizer="sgd", optimizer_args=dict(learning_rate=0.5, clip_norm=1.0),
    value_optimizer="sgd", value_optimizer_args=dict(learning_rate=0.1),
)  # fmt: skip


def build_parts(**changes) -> online.Parts:
    """The parts as the stage binds them, from a config with changes."""
    model = models()[0]
    cfg = Reader(plain(stage.get_config()) | CONFIG | changes)
    return stage.make_parts(cfg, model, model, jnp.array(ENDS), PAD, P)


def models() -> tuple:
    """(model, policy and reference, critic, reward model): three different parameter trees."""
    critic, reward = (tiny(seed=seed, scalar=True, layers=1)[1] for seed in (2, 4))
    return *tiny(layers=1), critic, reward


def build_state(parts, seed=0):
    """A fresh online state; `seed` may be traced."""
    _, policy, critic, _ = models()
    return new_online_state(policy, critic, parts.policy_optimizer, parts.critic_optimizer, 0.1, seed, parts.kl_memory)


def model_reward(params, rollout):
    """A reward model's score."""
    return forward.score(models()[0], params, rollout.tokens, rollout.valid)


@functools.lru_cache
def compiled():
    """(parts, jitted iteration with the reward model on the device, frozen parameters), compiled once per process."""
    parts = build_parts()
    _, reference, _, reward = models()
    return (
        parts,
        jax.jit(functools.partial(online.iteration, parts, model_reward)),
        dict(reference=reference, reward=reward),
    )
