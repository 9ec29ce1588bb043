"""The models of online RL: policy, reference, reward and critic, as adapters and heads on one decoder if they can be.

With `lora_args` the learners, policy and critic, hold an adapter each, and the critic a head. What they and the others
stand on is loaded once for all roles whose base has the same content, and goes into a program once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from alignax.stages import common, parents, probe
from alignax.types import Model, Params


class Roles(NamedTuple):
    """Models and parameters of an online stage."""

    model: Model  # of policy and reference
    policy: Params  # what learns of it, at the start
    reference: Params
    reward: tuple[Model, Params] | None  # None: the reward is a function of text
    critic_model: Model | None
    critic: Params | None  # what learns of it
    still: dict[str, Params] | None  # what stands still beneath policy and critic (`train.online.on_base`), if anything
    bases: dict[str, Params] | None  # loaded by content hash (`parents.load_model`); None: every role has its own

    def frozen(self) -> dict[str, Any]:
        """What an iteration reads and does not train."""
        frozen = {"reference": self.reference, "reward": self.reward[1] if self.reward else None}
        return frozen | ({"still": self.still} if self.still else {})


def load(stage: common.Stage, tokenizer: Any, mesh: Any) -> Roles:
    """The roles of a config, on the mesh.

    Raises CheckpointError for a parent that does not fit and for an adapter whose base has another content now,
    ConfigError if `lora_args` ask for an adapter of another shape than that of a parent that goes on learning.
    """
    cfg = stage.cfg
    bases = {} if cfg.lora_args else None
    model, reference = parents.new_or_loaded(stage, "", {}, tokenizer, mesh, bases=bases)
    options = {"tokenizer": tokenizer, "template": cfg.template, "mesh": mesh, "key": "reward_weights", "bases": bases}
    weights = cfg.reward_weights
    reward = probe.load_reward(stage, "reward", weights, **options) if "reward" in stage.parents else None
    policy, beneath = parents.learner(cfg, reference)
    critic_model, critic = start_of_critic(cfg, model, reference, reward)
    beneath_critic = {}
    if critic is not None:
        of = "the model that the critic starts from (critic_init)"
        critic, beneath_critic = parents.learner(cfg, critic, of=of, fold=3)
    still = {"policy": beneath, "critic": beneath_critic} if beneath else None
    if still:
        standing = {"policy": beneath, "reference": reference, "critic": beneath_critic, "reward": reward and reward[1]}
        common.console.print(f"{stage.workdir.name}: {told(standing, {'policy': policy, 'critic': critic})}")
    return Roles(model, policy, reference, reward, critic_model, critic, still, bases)


def start_of_critic(cfg: Any, model: Model, policy: Params, reward: tuple | None) -> tuple:
    """(model, parameters) of the critic at the start (from the reward model: Stiennon et al. 2020), Nones if none."""
    if cfg.critic_init == "none":
        return None, None
    if cfg.critic_init == "reward" and reward is not None:
        return reward
    return model, policy | {"scalar": model.init_scalar(jax.random.fold_in(jax.random.key(cfg.seed), 1))}


def told(standing: dict[str, Params], learning: dict[str, Params]) -> str:
    """'one base for policy, reference, critic, reward: 117.5 MB; learning: policy 2.9 MB, critic 2.9 MB'.

    Roles without a model, falsy, are left out.
    """
    groups: dict[int, list[str]] = {}
    for role, tree in standing.items():
        if tree:
            groups.setdefault(id(tree["decoder"]["embed"]), []).append(role)
    sizes = {role: f"{megabytes(tree):.1f} MB" for role, tree in learning.items() if tree}
    bases = [f"one base for {', '.join(g)}: {megabytes(standing[g[0]]['decoder']):.1f} MB" for g in groups.values()]
    return "; ".join([*bases, "learning: " + ", ".join(f"{role} {size}" for role, size in sizes.items())])


def megabytes(tree: Any) -> float:
    """Size of the distinct arrays of a tree, each counted once however often it occurs."""
    return sum(x.nbytes for x in shared(tree)[0]) / 1e6


def shared(tree: Any) -> tuple[list[jax.Array], Callable[[list], Any]]:
    """The distinct arrays of a tree, and the function that makes the tree of them.

    A program that takes these has one argument for an array, in however many roles it is; given the tree, it would have
    one for each, and could not know that they are the same.
    """
    leaves, shape = jax.tree.flatten(tree)
    arrays = list({id(leaf): leaf for leaf in leaves}.values())
    place = {id(leaf): i for i, leaf in enumerate(arrays)}
    where = [place[id(leaf)] for leaf in leaves]
    return arrays, lambda arrays: jax.tree.unflatten(shape, [arrays[i] for i in where])
