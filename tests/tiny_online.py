"""The online stage's algorithm on a tiny model, with plain gradient descent, so that equalities hold to rounding."""

import functools

import jax
from tiny import EOS, PAD, tiny

from alignax.config import Reader, plain
from alignax.rewards.config import Reward
from alignax.sampling.sampler import Sampler
from alignax.stages import algorithm as bound
from alignax.stages import online as stage
from alignax.stages import programs
from alignax.train import online
from alignax.train.algorithm import Actors, Algorithm

P, CAPACITY = 5, 4
ENDS = (EOS, 2)
CONFIG = dict(
    max_new_tokens=CAPACITY, temperature=0.9, kl_coef=0.1, batch_size=8, total_steps=10,
    kl_controller="adaptive_kl", kl_controller_args=dict(target=0.5, horizon=100.0),
    update_args=dict(epochs=2, minibatches=2),
    optimizer="sgd", optimizer_args=dict(learning_rate=0.5, clip_norm=1.0),
)  # fmt: skip
CRITIC = dict(value_optimizer="sgd", value_optimizer_args=dict(learning_rate=0.1))
ALONE = dict(critic_init="none", kl_controller="fixed_kl", kl_controller_args={})  # no critic, a coefficient that stays


def build_algorithm(**changes) -> Algorithm:
    """The algorithm as the stage binds it, from a config with changes; its one reward is a model's."""
    defaults = plain(stage.get_config())
    config = defaults | CONFIG | ({} if changes.get("critic_init") in ("none", "shared") else CRITIC) | changes
    return bound.algorithm_of(Reader(config), {"reward": Reward(role="reward")}, defaults)


def models() -> tuple:
    """(model, policy and reference, critic, reward model): three different parameter trees."""
    critic, reward = (tiny(seed=seed, scalar=True, layers=1)[1] for seed in (2, 4))
    return *tiny(layers=1), critic, reward


def build_actors() -> Actors:
    """The tiny model as policy and critic."""
    model = models()[0]
    return Actors(Sampler(model, CAPACITY, ENDS, PAD), model)


def build_frozen() -> dict:
    """What an iteration reads."""
    _, reference, _, reward = models()
    return {"reference": reference, "reward": {"reward": reward}}


def build_state(algorithm, seed=0):
    """A fresh online state; `seed` may be traced."""
    _, policy, critic, _ = models()
    return online.start(algorithm, policy, critic, seed)


def build_iteration(algorithm):
    """(state, frozen, prompts) -> (state, metrics), with the reward model on the device."""
    score = programs.on_device(algorithm, {"reward": models()[0]})
    return functools.partial(online.iteration, algorithm, build_actors(), score)


@functools.lru_cache
def compiled():
    """(algorithm, its jitted iteration, frozen parameters), compiled once per process."""
    algorithm = build_algorithm()
    return algorithm, jax.jit(build_iteration(algorithm)), build_frozen()
