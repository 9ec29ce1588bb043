"""Fitting a stage: batches laid out, a held-out evaluation, checkpoints and log opened, and the loop run to its end."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import host, sharding
from alignax.checkpoint import Steps
from alignax.data import packing
from alignax.data.loader import Arrange, Loader, eval_batches
from alignax.log import Log
from alignax.models.flops import batch_flops, ideal_seconds
from alignax.ops.masked import metric_ratios, metric_sums
from alignax.stages import alarms
from alignax.stages.folder import Stage, say
from alignax.stages.plans import REWARD, Learning
from alignax.stages.supervised import Supervised
from alignax.train.alarms import Alarms
from alignax.train.loop import fit, resume
from alignax.types import Model


def shared_config(stage: str) -> ConfigDict:
    """The keys that every stage has, with their defaults and units."""
    c = ConfigDict()
    c.stage = stage
    c.seed = 0
    c.init_from = ""  # folder of the finished stage to start from, "@name" for a step of the pipeline
    # mesh axes: rows are split over replica, data and fsdp; parameters over fsdp, and the width of layers over tensor.
    # -1 is the devices that the others leave; replica is for copies that lie far apart, one for each slice
    c.mesh = ConfigDict({"replica": 1, "data": -1, "fsdp": 1, "tensor": 1})
    # dtype of activations (parameters stay float32); what layers keep for the backward pass: none (means all), dots,
    # attention, offload, full; the kernel of attention: auto, xla, cudnn, splash (alignax.models.config says more)
    c.compute = ConfigDict({"dtype": "float32", "remat": "none", "attention": "auto"})
    return c


def training_config(stage: str) -> ConfigDict:
    """The keys of a stage that trains on a data set."""
    c = shared_config(stage)
    c.template = "chat"  # "chat": the tokenizer's chat template; "plain": prompt, completion, end of sequence
    c.source = "jsonl"  # function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_length = 1024  # tokens of prompt and completion; longer rows are dropped and counted
    c.loss = stage  # function of alignax.losses, module:function, or the function itself
    c.loss_args = ConfigDict()
    c.optimizer = "adamw"  # function of alignax.train.optimizer, or module:function
    c.optimizer_args = ConfigDict()
    # an adapter on a frozen decoder, of alignax.lora.init: dict(rank=16); empty: all parameters are trained
    c.lora_args = ConfigDict()
    # how texts stand in the rows of a batch (alignax.data.packing): "off", padded to the longest; "bucketed", cut to a
    # few lengths; "packed", several in a row; "shared", the same, and what the texts of one pair or ranking have in
    # common once, in rows as long as all of them: for XLA's attention, which has T x T logits (compute.attention)
    c.packing = "off"
    c.batch_size = 32  # rows of the global batch
    c.microbatches = 1  # per step: same result, less memory
    c.total_steps = 1000  # updates
    c.eval_every_steps = 100  # 0: never
    c.save_every_steps = 100
    c.keep_checkpoints = 2
    c.tensorboard = False
    c.alarms = alarms.get_config(stage)  # metrics that are watched, by name (docs/online.md); {} is none
    return c


def make_loader(plan: Learning, arrays: Any, batch_size: int, arrange: Arrange | None = None) -> Loader:
    """This process's share of every batch, the parts of a mixture by their weights."""
    weights = plan.source.weights or None
    return Loader(arrays, batch_size, plan.seed, weights=weights, arrange=arrange, **host.share())


def arrangement(
    plan: Supervised, arrays: dict, mesh: Mesh, *, reads: str, microbatches: int = 1, draws: Iterable | None = None
) -> Arrange:
    """How the plan lays out batches of these arrays: see `alignax.data.packing.arrangement`."""
    options = {
        "batch_size": plan.batch_size,
        "shards": sharding.row_shards(mesh),
        "parts": microbatches,
        "draws": draws,
    }
    return packing.arrangement(arrays, plan.packing, reads=reads, **options)


def evaluator(
    metrics_fn: Callable, arrays: Any, batch_size: int, mesh: Mesh, arrange: Arrange | None = None
) -> Callable[..., dict[str, float]]:
    """A function of `metrics_fn`'s leading arguments that reduces its metrics over a whole held-out set.

    `metrics_fn(*args, batch)` returns {name: (values, weights)}; sums over batches, not means of batch means.
    """
    sums_of = jax.jit(lambda *args: metric_sums(metrics_fn(*args)))

    def run(*args: Any) -> dict[str, float]:
        batches = eval_batches(arrays, batch_size, arrange=arrange, **host.share())
        sums = [sums_of(*args, sharding.put_batch(batch, mesh)) for batch in batches]
        totals = metric_ratios(jax.tree.map(lambda *leaves: sum(leaves), *sums))
        return {f"eval/{name}": float(value) for name, value in jax.device_get(totals).items()}

    return run


def once_per_step(evaluate: Callable[[Any], dict]) -> Callable[[Any], dict]:
    """`evaluate`, which is not run again on the state that it has just measured: the last step's, for the manifest."""
    last: dict[int, dict] = {}

    def run(state: Any) -> dict:
        step = int(state.step)
        if step not in last:
            found = evaluate(state)
            last.clear()
            last[step] = found
        return last[step]

    return run


def train(
    stage: Stage, state: Any, step_fn: Callable, arrays: dict, mesh: Mesh, evaluate: Callable, *, model: Model,
    show: tuple[str, ...], reads: str = "tokens",
) -> Any:  # fmt: skip
    """Runs a supervised stage from its last checkpoint to its last step; `reads`: see `data.packing`."""
    plan: Supervised = stage.plan
    order = make_loader(plan, arrays, plan.batch_size)  # a mixture's own: its batches are not like random rows
    draws = map(order.indices, range(packing.DRAWS))
    arrange = arrangement(plan, arrays, mesh, reads=reads, microbatches=plan.microbatches, draws=draws)
    loader = make_loader(plan, arrays, plan.batch_size, arrange)
    some = [loader.batch(step) for step in range(4)]
    real, places = np.sum([packing.filling(batch) for batch in some], axis=0)
    say(f"packing {plan.packing!r}: {real / places:.0%} of the tokens that the model reads are real")
    of_batches = [batch_flops(model.config, batch, output=stage.declared.makes != REWARD) for batch in some]
    flops = float(np.mean(of_batches)) * host.count()
    ideal = ideal_seconds(flops, mesh.devices.flat[0].device_kind, mesh.size)
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    return loop(stage, state, step_fn, loader.batch, put, evaluate, show=show, ideal=ideal)


def loop(
    stage: Stage, state: Any, step_fn: Callable, make_batch: Callable, put: Callable, evaluate: Callable | None, *,
    show: tuple[str, ...], ideal: float | None = None,
) -> Any:  # fmt: skip
    """Opens checkpoints and log, resumes, and fits."""
    plan: Learning = stage.plan
    with host.saving(), Steps(stage.workdir / "steps", keep=plan.keep_checkpoints) as steps:
        state = resume(steps, state)
        start, first = int(state.step), host.is_first()
        options = {"title": stage.workdir.name, "resume_step": start, "tensorboard": plan.tensorboard, "write": first}
        if start:
            say(f"{stage.workdir}: going on from step {start} of {plan.total_steps}")
        with Log(stage.workdir, plan.total_steps, show=show, **options) as log:
            watched = Alarms(plan.alarms, stage.workdir, plan.total_steps, resume_step=start, write=first)
            return fit(
                state, step_fn, make_batch, total_steps=plan.total_steps, steps=steps, log=log, put=put,
                evaluate=evaluate, save_every_steps=plan.save_every_steps, eval_every_steps=plan.eval_every_steps,
                ideal_seconds=ideal, alarms=watched, stops=host.asked_to_stop,
            )  # fmt: skip
