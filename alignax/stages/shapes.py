"""What a stage will compile, from shapes alone: for devices that need not be there and parents without weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from alignax import sharding
from alignax.config import ConfigError
from alignax.models.config import ModelConfig
from alignax.models.flops import batch_flops
from alignax.stages import fitting, parents
from alignax.stages.supervised import Supervised, update
from alignax.train.state import new_state
from alignax.types import Demo, Model, Pair, Params, Scored


class World(NamedTuple):
    """Where a stage is thought to run, and on what."""

    mesh: Mesh
    models: Mapping[str, ModelConfig]  # the architecture of each parent by its role; "policy" is there without one too
    missing: Mapping[str, str] = {}  # of other roles what the config says: "config.reward_from = 'runs/x'"


class Program(NamedTuple):
    """One function that a stage compiles."""

    name: str
    function: Any  # jitted
    arguments: dict[str, Any]  # by name, in order: trees of shapes with their shardings
    flops: float  # of the models, all devices together: what utilisation counts
    trips: int = 1  # of a loop whose length nobody knows before: the most that it may be


def model_of(world: World, role: str = "policy") -> Model:
    """The model of a parent on the mesh. Raises ConfigError where nobody said its architecture."""
    if role not in world.models:
        said = world.missing.get(role, f"the parent {role!r}")
        raise ConfigError(f"{said}: no finished run is there; expected one, or --model=FOLDER, that of its config.json")
    return parents.on_mesh(world.models[role], world.mesh)


def params_of(model: Model, mesh: Mesh, **head: Any) -> Params:
    """The shapes of a model's parameters; `scalar`, `attributes`: of `parents.init_params`."""
    build = partial(parents.init_params, model, **{"scalar": False} | head)
    return made(build, jax.random.key(0), mesh=mesh)


def made(build: Callable, *args: Any, mesh: Mesh) -> Any:
    """The shapes of what `parents.place` builds."""
    return parents.sharded_shapes(jax.eval_shape(build, *args), mesh)


def learner(plan: Any, params: Params, mesh: Mesh, fold: int = 2) -> tuple[Params, Params]:
    """(what learns, what stands still): the shapes of `parents.learner`."""
    if not plan.lora_args:
        return params, {}
    adapter = made(parents.fresh_adapter(plan, fold), params, mesh=mesh)
    return {"lora": adapter} | {k: v for k, v in params.items() if k != "decoder"}, {"decoder": params["decoder"]}


def rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape of an array that begins with the rows of a batch."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh))


def batch_of(plan: Supervised, mesh: Mesh, reads: str) -> Any:
    """The shapes of a batch whose texts are all as long as `max_length` allows, laid out as the plan says.

    Raises ConfigError for a record that is neither a demonstration nor a pair.
    """
    shape = plan.batch_size, plan.max_length
    place = np.broadcast_to(np.arange(shape[1])[None], shape)
    half = plan.max_length // 2

    def side(token: int) -> dict[str, np.ndarray]:
        tokens = np.where(place < half, 1, token).astype(np.int32)
        return {"tokens": tokens, "valid": np.ones(shape, bool), "mask": place >= half}

    if plan.record is Demo:
        arrays = side(1)
    elif plan.record in (Pair, Scored):
        arrays = {"chosen": side(2), "rejected": side(3)}
    else:
        raise ConfigError(
            f"the loss takes a {plan.record.__name__}: only batches of demonstrations and of pairs are planned"
        )
    arrays |= {"row": np.arange(plan.batch_size, dtype=np.int32)}
    arrange = fitting.arrangement(plan, arrays, mesh, reads=reads, microbatches=plan.microbatches)
    return jax.tree.map(lambda x: rows(x.shape, x.dtype, mesh), arrange(arrays))


def step(
    plan: Supervised, view: Callable, model: Model, params: Params, frozen: Any, mesh: Mesh, *, batch: Any,
    output: bool = True, follow: Callable | None = None, reference: Params | None = None,
) -> Program:  # fmt: skip
    """The update of a stage that learns from rows; `output`: whether its model has an output layer."""
    state = made(lambda x, at: new_state(x, plan.optimizer(), at), params, reference, mesh=mesh)
    function = sharding.jit_step(update(plan, view, follow=follow), state, keep_unused=True)
    flops = batch_flops(model.config, batch, output=output)
    return Program("step", function, {"state": state, "batch": batch, "frozen": frozen}, flops)
