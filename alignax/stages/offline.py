"""Offline preference optimisation, the DPO family: pairs -> policy. `alignax run --config=configs/world/dpo.py`."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import bind, resolve
from alignax.data.encode import fingerprint
from alignax.stages import common, probe
from alignax.train.state import new_state
from alignax.train.step import make_step


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("offline")
    c.loss = "dpo"
    c.optimizer_args = ConfigDict({"learning_rate": 1e-6})
    c.probe = probe.get_config()
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a policy on preference pairs against its own start as the reference. Resumes what it finds there."""
    roles = {"policy": "init_from", "data": "data.path", "proxy": "probe.reward_from"}
    stage = common.open_stage("offline", config, workdir, root, roles)
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- data
    tokenizer = common.get_tokenizer(stage)
    train, held, _, counts = common.pair_data(stage, tokenizer, root)

    # ---- model: the parent policy is start and reference
    mesh = common.get_mesh(cfg)
    model, reference = common.new_or_loaded(stage, "", {}, tokenizer, mesh)

    # ---- objective and optimizer
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    loss_args = bind(loss, cfg.loss_args, key="loss_args")
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    def objective(params, reference, batch):
        return {"loss": (1.0, loss(forward.pair(model, params, reference, batch), **loss_args))}

    def metrics(state, reference, batch):
        term = loss(forward.pair(model, state.learner.params, reference, batch), **loss_args)
        return term.metrics | {"loss": (term.value, term.weight)}

    # ---- train
    pairs = common.evaluator(metrics, held, cfg.batch_size, mesh)
    watch = probe.build(stage, cfg.probe, model, tokenizer, cfg.template, mesh, root)

    def evaluate(state):
        probed = probe.summary(watch.measure(state.learner.params, reference)) if watch else {}
        return pairs(state, reference) | probed

    state = common.place(lambda p: new_state(p, optimizer), reference, mesh=mesh)
    step = sharding.jit_step(make_step(objective, optimizer, microbatches=cfg.microbatches), state)
    step_fn = lambda state, batch: step(state, batch, reference)  # noqa: E731
    show = ("loss", "rewards/margins", "rewards/accuracies")
    state = common.train(stage, state, step_fn, train, mesh, evaluate, show=show)

    # ---- checkpoint
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(train), "counts": counts},
        metrics=evaluate(state),
    )
    return workdir
