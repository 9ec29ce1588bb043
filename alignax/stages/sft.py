"""Supervised fine-tuning: demonstrations -> policy. `alignax run --config=configs/world/sft.py`."""

from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.bound import Bound, of_config, plan_record, static
from alignax.data.arrays import fingerprint
from alignax.data.encode import demo_rows
from alignax.data.templates import TRAIN_ON
from alignax.stages import fitting, folder, inputs, parents, plans, shapes, supervised
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.train.state import new_state
from alignax.types import Demo, Model

STAGE = Declaration("sft", plans.POLICY, {"policy": Parent("init_from")}, fresh=("model", "tokenizer"))
RECORDS = (Demo,)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.training_config("sft")
    c.model = ""  # preset of alignax.models.presets, or module:function; "" takes the parent's architecture
    c.model_args = ConfigDict()  # fields of the preset to change
    # tokens that count: "completion" (the last turn), "assistant" (each of its turns in a dialogue), "all"
    c.train_on = "completion"
    c.tokenizer = ""  # folder, hub name or module:function; "" takes the parent's
    c.optimizer_args = ConfigDict({"learning_rate": 2e-5})
    return c


@plan_record
class Plan(supervised.Supervised):
    """What a run does."""

    model: Bound | None  # (vocab_size) -> ModelConfig
    train_on: str = static()
    tokenizer: str = static()

    def readings(self) -> list[Readings]:
        """What makes its arrays."""
        options = {"template": self.template, "max_length": self.max_length, "train_on": self.train_on}
        return [Readings(partial(demo_rows, **options), ("train", "heldout"))]


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    if r.one_of("train_on", TRAIN_ON) == "assistant" and r.template != "chat":
        raise r.error(
            "train_on",
            f"with template = {r.template!r}: only a chat template has turns; set template to 'chat', or train_on to "
            "'completion' or 'all'",
        )
    model = of_config(r, "model", "alignax.models.presets", given=("vocab_size",))
    return supervised.planned(Plan, r, RECORDS, model=model)


def view(model: Model, params: Any, frozen: Any, batch: dict) -> Demo:
    """What the losses see of a batch; `frozen` is the decoder under an adapter."""
    return forward.demo(model, frozen | params, batch)


def programs_of(p: Plan, world: shapes.World) -> list[shapes.Program]:
    """What a run compiles."""
    model = shapes.model_of(world)
    params, frozen = shapes.learner(p, shapes.params_of(model, world.mesh), world.mesh)
    batch = shapes.batch_of(p, world.mesh, "tokens")
    return [shapes.step(p, partial(view, model), model, params, frozen, world.mesh, batch=batch)]


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Trains a policy on demonstrations; returns the folder of the finished stage. Resumes what it finds there."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- data
    tokenizer = parents.get_tokenizer(stage, p.tokenizer)
    ((encode, _),) = p.readings()
    train, held, _, counts = inputs.preferences(stage, encode, tokenizer, "demonstrations")

    # ---- model
    mesh = parents.get_mesh(p.mesh)
    model, params = parents.new_or_loaded(stage, tokenizer, mesh, preset=p.model, adapted=True)
    params, frozen = parents.learner(p, params)
    record = partial(view, model)

    # ---- train
    arrange = fitting.arrangement(p, held, mesh, reads="tokens")
    metrics = lambda state, frozen, batch: supervised.metrics_of(p.terms, record(state.learner.params, frozen, batch))  # noqa: E731
    held_out = fitting.evaluator(metrics, held, p.batch_size, mesh, arrange)
    evaluate = fitting.once_per_step(lambda state: held_out(state, frozen))
    state = parents.place(lambda params: new_state(params, p.optimizer()), params, mesh=mesh)
    step = sharding.jit_step(supervised.update(p, record), state)
    step_fn = lambda state, batch: step(state, batch, frozen)  # noqa: E731
    show = ("loss", "mean_token_accuracy")
    state = fitting.train(stage, state, step_fn, train, mesh, evaluate, model=model, show=show)

    # ---- checkpoint
    return folder.finish(
        stage,
        params=state.learner.params,
        step=p.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": fingerprint(train), "counts": counts},
        metrics=evaluate(state),
    )
