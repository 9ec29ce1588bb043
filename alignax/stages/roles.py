"""The models of online RL: policy, reference, reward and critic, as adapters and heads on one decoder if they can be.

With `lora_args` the learners, policy and critic, hold an adapter each, and the critic a head. What they and the others
stand on is loaded once for all roles whose base has the same content, and goes into a program once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from alignax.manifest import read_manifest
from alignax.rewards.config import Reward
from alignax.rewards.ensemble import is_ensemble, joined
from alignax.stages import ensembles, parents
from alignax.stages.folder import Stage, say
from alignax.types import Model, Params


class Roles(NamedTuple):
    """Models and parameters of an online stage."""

    model: Model  # of policy and reference
    policy: Params  # what learns of it, at the start
    reference: Params
    rewards: dict[str, tuple[Model, Params]]  # the reward models, by the names of the rewards
    critic_model: Model | None
    critic: Params | None  # what learns of it
    base: dict[str, Params] | None  # what stands still beneath policy and critic (`train.online.whole`), if anything
    bases: dict[str, Params] | None  # loaded by content hash (`parents.load_model`); None: every role has its own

    def frozen(self) -> dict[str, Any]:
        """What an iteration reads and does not train."""
        rewards = {name: params for name, (_, params) in self.rewards.items()}
        frozen = {"reference": self.reference, "reward": rewards}
        return frozen | ({"base": self.base} if self.base else {})


def load(stage: Stage, tokenizer: Any, mesh: Any) -> Roles:
    """The roles of a plan, on the mesh.

    Raises CheckpointError for a parent that does not fit and for an adapter whose base has another content now,
    ConfigError if `lora_args` ask for an adapter of another shape than that of a parent that goes on learning.
    """
    plan = stage.plan
    bases = {} if plan.lora_args else None
    model, first = parents.new_or_loaded(stage, tokenizer, mesh, bases=bases)
    reference = parents.reference_of(stage, first, model, tokenizer, mesh, bases)
    rewards = reward_models(stage, plan.rewards, tokenizer, mesh, bases)
    headed = first
    if plan.critic_init == "shared":
        headed = first | {"scalar": model.init_scalar(jax.random.fold_in(jax.random.key(plan.seed), 1))}
    policy, beneath = parents.learner(plan, headed)
    critic_model, critic = start_of_critic(plan, model, first, rewards)
    beneath_critic = {}
    if critic is not None:
        of = "the model that the critic starts from (critic_init)"
        critic, beneath_critic = parents.learner(plan, critic, of=of, fold=3)
    base = {"policy": beneath, "critic": beneath_critic} if beneath else None
    if base:
        standing = {"policy": beneath, "reference": reference, "critic": beneath_critic}
        each = lambda params: joined(**params) if is_ensemble(params) else params  # noqa: E731
        standing |= {name: each(params) for name, (_, params) in rewards.items()}
        say(f"{stage.workdir.name}: {described(standing, {'policy': policy, 'critic': critic})}")
    return Roles(model, policy, reference, rewards, critic_model, critic, base, bases)


def reward_models(
    stage: Stage, rewards: Mapping[str, Reward], tokenizer: Any, mesh: Any, bases: dict[str, Params] | None = None
) -> dict[str, tuple[Model, Params]]:
    """The reward models among the rewards of a plan, by their names; `bases`: see `parents.load_model`."""
    return {
        name: ensembles.load(stage, one, tokenizer, mesh, bases)
        if one.combine
        else parents.load_reward(stage, one.role, one.attributes, tokenizer, mesh, key=one.key, bases=bases)
        for name, one in rewards.items()
        if one.role
    }


def start_of_critic(plan: Any, model: Model, policy: Params, rewards: dict[str, tuple]) -> tuple:
    """(model, parameters) of the critic at the start (from the reward model: Stiennon et al. 2020).

    Nones if there is none, or no more than a head on the policy's trunk.
    """
    if plan.critic_init in ("none", "shared"):
        return None, None
    if plan.critic_init == "reward":
        (judge,) = (found for name, found in rewards.items() if not plan.rewards[name].combine)
        return judge
    return model, policy | {"scalar": model.init_scalar(jax.random.fold_in(jax.random.key(plan.seed), 1))}


def calibrations(stage: Stage) -> dict[str, dict]:
    """{name: mean and deviation of its scores on held-out replies} of the reward models whose single score is used."""
    rewards = stage.plan.rewards
    single = lambda one: one.role and not one.attributes and not one.combine  # noqa: E731
    models = {name: one.role for name, one in rewards.items() if single(one)}
    if len(rewards) == 1 and any(one.constraint or one.weight != 1 for one in rewards.values()):
        return {}  # its own mean is not in the log: that of the score is another
    known = {name: read_manifest(stage.parents[role]).get("calibration") for name, role in models.items()}
    return {name: one for name, one in known.items() if one}


def described(standing: dict[str, Params], learning: dict[str, Params]) -> str:
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


def shared(tree: Any) -> tuple[list[Any], Callable[[list], Any]]:
    """The distinct arrays of a tree, or shapes, and the function that makes the tree of them.

    A program that takes these has one argument for an array, in however many roles it is; given the tree, it would have
    one for each, and could not know that they are the same.
    """
    leaves, shape = jax.tree.flatten(tree)
    arrays = list({id(leaf): leaf for leaf in leaves}.values())
    place = {id(leaf): i for i, leaf in enumerate(arrays)}
    where = [place[id(leaf)] for leaf in leaves]
    return arrays, lambda arrays: jax.tree.unflatten(shape, [arrays[i] for i in where])
