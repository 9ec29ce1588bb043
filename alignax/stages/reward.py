"""Reward model: preference pairs -> scalar head on a trunk. `alignax run --config=configs/world/reward.py`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import bind, resolve
from alignax.data.encode import fingerprint
from alignax.data.loader import eval_batches
from alignax.evals.reward_model import report
from alignax.stages import common
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Scored

RECORDS = (Scored,)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("reward")
    c.loss = "bradley_terry"
    c.optimizer_args = ConfigDict({"learning_rate": 1e-5})
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a reward model on preference pairs, from a policy's trunk and a new head. Resumes what it finds there."""
    roles = {"policy": "init_from", "data": "data.path"}
    stage = common.open_stage("reward", config, workdir, root, roles)
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- data
    tokenizer = common.get_tokenizer(stage)
    train, held, held_text, counts = common.preference_data(stage, tokenizer, root)

    # ---- model: the parent's trunk and a fresh scalar head
    mesh = common.get_mesh(cfg)
    model, trunk = common.new_or_loaded(stage, "", {}, tokenizer, mesh)
    head = model.init_scalar(jax.random.fold_in(jax.random.key(cfg.seed), 1))

    # ---- objective and optimizer
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    loss_args = bind(loss, cfg.loss_args, key="loss_args")
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    def objective(params, frozen, batch):
        return {"loss": (1.0, loss(forward.scored(model, params, batch), **loss_args))}

    def metrics(state, batch):
        term = loss(forward.scored(model, state.learner.params, batch), **loss_args)
        return term.metrics | {"loss": (term.value, term.weight)}

    # ---- train
    evaluate = common.evaluator(metrics, held, cfg.batch_size, mesh)
    state = common.place(lambda p, h: new_state(p | {"scalar": h}, optimizer), trunk, head, mesh=mesh)
    step = sharding.jit_step(make_step(objective, optimizer, microbatches=cfg.microbatches), state)
    step_fn = lambda state, batch: step(state, batch, ())  # noqa: E731
    state = common.train(stage, state, step_fn, train, mesh, evaluate, show=("loss", "accuracy", "margin"))

    # ---- held-out accuracy and calibration; mean and spread of the scores, for those who read them
    scored = jax.jit(lambda params, batch: forward.scored(model, params, batch))
    pairs = [scored(state.learner.params, sharding.put_batch(b, mesh)) for b in eval_batches(held, cfg.batch_size)]
    chosen, rejected = (
        np.concatenate([getattr(pair, side) for pair in pairs])[: len(held["row"])] for side in ("chosen", "rejected")
    )
    scores = np.concatenate([chosen, rejected])
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(train), "counts": counts},
        calibration={"mean": float(scores.mean()), "sd": float(scores.std())},
        metrics=report(chosen - rejected, [held_text[row] for row in held["row"]]),
    )
    return workdir
