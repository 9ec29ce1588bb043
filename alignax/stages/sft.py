"""Supervised fine-tuning: demonstrations -> policy. `alignax run --config=configs/world/sft.py`."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import bind, resolve
from alignax.data.arrays import fingerprint
from alignax.data.encode import demo_rows
from alignax.stages import common, inputs, parents
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Demo

RECORDS = (Demo,)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("sft")
    c.model = ""  # preset of alignax.models.presets, or module:function; "" takes the parent's architecture
    c.model_args = ConfigDict()  # fields of the preset to change
    # tokens that count: "completion" (the last turn), "assistant" (each of its turns in a dialogue), "all"
    c.train_on = "completion"
    c.tokenizer = ""  # folder, hub name or module:function; "" takes the parent's
    c.optimizer_args = ConfigDict({"learning_rate": 2e-5})
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a policy on demonstrations; returns the folder of the finished stage. Resumes what it finds there."""
    stage = common.open_stage("sft", config, workdir, root, {"policy": "init_from"})
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- data
    tokenizer = parents.get_tokenizer(stage, cfg.tokenizer)
    options = {"template": cfg.template, "max_length": cfg.max_length, "train_on": cfg.train_on}
    train, counts, _ = inputs.encoded(stage, demo_rows, tokenizer, "train", root, **options)
    held, held_counts, _ = inputs.encoded(stage, demo_rows, tokenizer, "heldout", root, **options)
    common.console.print(f"demonstrations: {counts}; held out: {held_counts}")

    # ---- model
    mesh = parents.get_mesh(cfg)
    model, params = parents.new_or_loaded(stage, cfg.model, cfg.model_args, tokenizer, mesh, adapted=True)
    params, still = parents.learner(cfg, params)

    # ---- objective and optimizer
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    loss_args = bind(loss, cfg.loss_args, key="loss_args")
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    def objective(params, still, batch):
        return {"loss": (1.0, loss(forward.demo(model, still | params, batch), **loss_args))}

    def metrics(state, still, batch):
        term = loss(forward.demo(model, still | state.learner.params, batch), **loss_args)
        return term.metrics | {"loss": (term.value, term.weight)}

    # ---- train
    arrange = common.arrangement(cfg, held, mesh, reads="tokens")
    held_out = common.evaluator(metrics, held, cfg.batch_size, mesh, arrange)
    evaluate = common.once_per_step(lambda state: held_out(state, still))
    state = parents.place(lambda p: new_state(p, optimizer), params, mesh=mesh)
    step = sharding.jit_step(make_step(objective, optimizer, microbatches=cfg.microbatches), state)
    step_fn = lambda state, batch: step(state, batch, still)  # noqa: E731
    state = common.train(
        stage, state, step_fn, train, mesh, evaluate, model=model, show=("loss", "mean_token_accuracy")
    )

    # ---- checkpoint
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(train), "counts": {"train": counts, "heldout": held_counts}},
        metrics=evaluate(state),
    )
    return workdir
