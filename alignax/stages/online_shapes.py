"""What an online stage will compile, from shapes alone: sampling, scoring and learning."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alignax import sharding
from alignax.config import ConfigError
from alignax.models.flops import forward_flops, train_flops
from alignax.sampling.memory import slots_for
from alignax.sampling.sampler import Sampler
from alignax.stages import programs, roles, shapes
from alignax.stages.shapes import Program, World
from alignax.train import online, rewarded
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.moving import present
from alignax.types import Model, Params, Rollout

END, PAD = 1, 0  # any ids: no loop's length depends on them


def planned(p: Any, world: World) -> list[Program]:
    """Sampling, scoring and learning, each beside all that lies in memory during it, as separate programs.

    Replies are taken as long as `max_new_tokens` allows. Rewards over text run on the host, and take no time here.
    Raises ConfigError for what plans do not know: ensembles, an environment, an outside engine, devices that sample
    alone; for rollouts that wait.
    """
    check(p)
    mesh, algorithm = world.mesh, p.algorithm
    found = loaded(p, world)
    actors = Actors(Sampler(found.model, algorithm.max_new_tokens, (END,), PAD, slots=p.slots), found.critic_model)
    build = lambda policy, critic, at: online.start(algorithm, policy, critic, p.seed, at)  # noqa: E731
    state = shapes.made(build, found.policy, found.critic, found.reference if algorithm.follow else None, mesh=mesh)
    # a program has one argument for an array, in however many roles it is
    frozen, tree = roles.shared(found.frozen())
    P, L = p.batch_size * p.oversample, p.max_prompt_length
    row = partial(shapes.rows, mesh=mesh)
    prompts = {"tokens": row((P, L), jnp.int32), "valid": row((P, L), jnp.bool_), "row": row((P,), jnp.int32)}
    models = {name: model for name, (model, _) in found.rewards.items()}
    score = programs.on_device(algorithm, models, {}, (END,))

    def sampled(state: Any, frozen: list, prompts: dict) -> Rollout:
        return online.sampled(algorithm, actors, tree(frozen), state, prompts)

    def scored(state: Any, frozen: list, rollout: Rollout) -> Rollout:
        if not algorithm.keep:  # else what is left out by its scores is never annotated
            critic, read = online.critic_of(algorithm, state), present(tree(frozen), state)
            rollout = online.annotate(algorithm, actors, read, state.policy.params, critic, rollout)
        told, apart = score(tree(frozen), rollout), {*algorithm.combined}
        told |= {name: jnp.zeros(len(rollout.tokens)) for name in algorithm.weights if name not in {*told, *apart}}
        return rewarded.scored(algorithm, rollout, told, state.multipliers)

    def learnt(state: Any, frozen: list, rollout: Rollout) -> tuple[Any, dict]:
        return online.learn(algorithm, actors, tree(frozen), state, rollout)

    split = sharding.batch_sharding(mesh)  # what a program does not read lies in memory all the same: keep_unused
    sample, annotate = (jax.jit(f, out_shardings=split, keep_unused=True) for f in (sampled, scored))
    written = in_rows(jax.eval_shape(sample, state, frozen, prompts), world)
    read = in_rows(jax.eval_shape(annotate, state, frozen, written), world)
    resident = {"state": state, "frozen": frozen}
    flops = work(algorithm, found, P, L)
    learn = sharding.jit_step(learnt, state, keep_unused=True)
    group, new = algorithm.group, algorithm.max_new_tokens
    turns = new * -(-P * group // slots_for(found.model, P * group, group, L, new, p.slots))  # tokens of all slots
    return [
        Program("sample", sample, resident | {"batch": prompts}, flops["sample"], turns),
        Program("score", annotate, resident | {"batch": written}, flops["score"]),
        Program("update", learn, resident | {"batch": read}, flops["update"]),
    ]


def check(p: Any) -> None:
    """Raises ConfigError for what plans do not know."""
    unknown = {
        "env": p.env, "engine": p.engine, "sampler_devices": p.sampler_devices, "data_loss": p.data_loss,
        "steps_off_policy": p.steps_off_policy, "partial_rollouts": p.partial_rollouts,
        "reward_shaping": p.algorithm.shaping,
        "rewards (ensembles, rewards of steps)": p.algorithm.per_step or any(
            one.role and one.combine for one in p.rewards.values()
        ),
    }  # fmt: skip
    for key, value in unknown.items():
        if value:
            raise ConfigError(f"config.{key} is set: alignax plan does not know it yet; plan without it")


def in_rows(tree: Any, world: World) -> Any:
    """The shapes of arrays that all begin with the rows of a batch."""
    return jax.tree.map(lambda x: shapes.rows(x.shape, x.dtype, world.mesh), tree)


def loaded(p: Any, world: World) -> roles.Roles:
    """The shapes of `roles.load`: with adapters, roles of one architecture are taken to stand on one decoder."""
    mesh, model = world.mesh, shapes.model_of(world)
    first, bases = shapes.params_of(model, mesh), {}
    reference = shapes.params_of(model, mesh) if "reference" in world.models else first

    def of(role: str) -> tuple[Model, Params]:
        its = shapes.model_of(world, role)
        whole = shapes.params_of(its, mesh, scalar=True)
        if p.lora_args:
            whole |= {
                "decoder": bases.setdefault(its.config, first if its.config == model.config else whole)["decoder"]
            }
        return its, whole

    rewards = {name: of(one.role) for name, one in p.rewards.items() if one.role}
    scalar = shapes.params_of(model, mesh, scalar=True)["scalar"]
    headed = first | ({"scalar": scalar} if p.critic_init == "shared" else {})
    policy, beneath = shapes.learner(p, headed, mesh)
    critic_model, critic, under = None, None, {}
    if p.critic_init in ("reward", "policy"):
        critic_model, whole = (
            next(iter(rewards.values())) if p.critic_init == "reward" else (model, first | {"scalar": scalar})
        )
        critic, under = shapes.learner(p, whole, mesh, 3)
    base = {"policy": beneath, "critic": under} if beneath else None
    return roles.Roles(model, policy, reference, rewards, critic_model, critic, base, None)


def work(algorithm: Algorithm, found: roles.Roles, prompts: int, length: int) -> dict[str, float]:
    """Model FLOPs of each program, all replies as long as they may be."""
    new, replies = algorithm.max_new_tokens, prompts * algorithm.group
    every, total, kept = algorithm.updates(), length + new, (algorithm.keep or prompts) / prompts
    learnt, policy, critic = replies * kept * algorithm.learnt / algorithm.group, found.model, found.critic_model
    of = lambda model, output: forward_flops(model.config, total, output=output) * total  # noqa: E731
    values = of(critic, False) if critic else of(policy, False) if algorithm.value_coef is not None else 0.0
    noted = learnt * of(policy, True) * (2 if algorithm.correction else 1) + replies * kept * values
    score = replies * sum(of(model, False) for model, _ in found.rewards.values())
    update = train_flops(policy.config, total) + (train_flops(critic.config, total, output=False) if critic else 0.0)
    update *= total * learnt * every.epochs
    read = forward_flops(policy.config, length, output=False) * prompts * length
    sample = read + forward_flops(policy.config, total) * replies * new
    # groups that scores leave out are annotated by nobody: the update annotates what is left
    both = {"score": score, "update": update + noted} if algorithm.keep else {"score": score + noted, "update": update}
    return {"sample": sample} | both
