"""Reward model: pairs, rankings, ratings or judged steps -> head on a trunk. `--config=configs/world/reward.py`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import bind, record_of, resolve
from alignax.data.arrays import fingerprint
from alignax.data.counts import DataError
from alignax.data.encode import pair_rows
from alignax.data.judged import attributes_of, ranking_rows, rating_rows, step_rows
from alignax.data.loader import eval_batches
from alignax.evals import reward_model
from alignax.stages import common, inputs, parents
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Ranked, Rated, Scored, Stepwise

# What a loss may take, what makes it from a batch, and what makes the batches from text.
RECORDS = {
    Scored: (forward.scored, pair_rows),
    Ranked: (forward.ranked, ranking_rows),
    Rated: (forward.rated, rating_rows),
    Stepwise: (forward.stepwise, step_rows),
}
# metrics of the losses beside the progress bar
SHOWN = {Scored: ("accuracy", "margin"), Ranked: ("accuracy", "margin"), Rated: ("absolute_error",),
         Stepwise: ("accuracy",)}  # fmt: skip


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("reward")
    c.loss = "bradley_terry"  # function of alignax.losses, or module:function, of one of RECORDS
    c.optimizer_args = ConfigDict({"learning_rate": 1e-5})
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a reward model on judged replies, from a policy's trunk and a new head. Resumes what it finds there.

    The record that the loss takes decides which rows are read: see `alignax.data.encode.pair_rows` and
    `alignax.data.judged`. A loss on ratings gets a head with one score per attribute; their names go into the manifest,
    in the order of the head.
    """
    roles = {"policy": "init_from"}
    stage = common.open_stage("reward", config, workdir, root, roles)
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- objective
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    record = record_of(loss, tuple(RECORDS), key="loss")
    loss = partial(loss, **bind(loss, cfg.loss_args, key="loss_args"))
    view, encode = RECORDS[record]

    # ---- data
    tokenizer = parents.get_tokenizer(stage)
    attributes = ()
    if record is Rated:  # those that the training rows rate: held-out ones may lack some
        attributes = attributes_of(inputs.load_rows(cfg.source, cfg.data, "train", form="ratings", root=root)[0])
        encode = partial(encode, attributes=attributes)
    train, held, held_text, counts = inputs.preference_data(stage, tokenizer, root, encode)
    if attributes and (unrated := [a for a, n in zip(attributes, train["given"].any(0)) if not n]):
        raise DataError(
            f"no row that was kept rates {', '.join(unrated)}: nothing would train that score; leave it out"
        )

    # ---- model: the parent's trunk and a fresh head, of one score or one per attribute
    mesh = parents.get_mesh(cfg)
    model, trunk = parents.new_or_loaded(stage, "", {}, tokenizer, mesh, adapted=True)
    head = model.init_scalar(jax.random.fold_in(jax.random.key(cfg.seed), 1), len(attributes) or None)
    start, still = parents.learner(cfg, trunk | {"scalar": head})

    # ---- update
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    def objective(params, still, batch):
        return {"loss": (1.0, loss(view(model, still | params, batch)))}

    def metrics(state, still, batch):
        term = loss(view(model, still | state.learner.params, batch))
        return term.metrics | {"loss": (term.value, term.weight)}

    # ---- train
    reads = "steps" if record is Stepwise else "ends"
    arrange = common.arrangement(cfg, held, mesh, reads=reads)
    held_out = common.evaluator(metrics, held, cfg.batch_size, mesh, arrange)
    evaluate = lambda state: held_out(state, still)  # noqa: E731
    state = parents.place(lambda p: new_state(p, optimizer), start, mesh=mesh)
    step = sharding.jit_step(make_step(objective, optimizer, microbatches=cfg.microbatches), state)
    step_fn = lambda state, batch: step(state, batch, still)  # noqa: E731
    show = ("loss", *SHOWN[record])
    state = common.train(stage, state, step_fn, train, mesh, evaluate, model=model, show=show, reads=reads)

    # ---- how good it is on held-out data; mean and spread of the scores, for those who read them
    alike = arrange if cfg.packing != "bucketed" else None  # batches whose verdicts have one shape, to be joined
    seen = jax.jit(lambda params, batch: view(model, params, batch))
    whole = still | state.learner.params
    parts = [seen(whole, sharding.put_batch(b, mesh)) for b in eval_batches(held, cfg.batch_size, arrange=alike)]
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(held["row"])], *parts)
    scores, report = judged(found, [held_text[row] for row in held["row"]], loss, attributes)
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(train), "counts": counts}
        | ({"attributes": list(attributes)} if attributes else {}),
        calibration={"mean": float(scores.mean()), "sd": float(scores.std())},
        metrics=report,
    )
    return workdir


def judged(found: Any, rows: list[dict], loss: Any, attributes: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Of a record of all the held-out data: the scores that a later stage reads of whole replies, and the report.

    Of several attributes the score is their sum, as where `reward_weights` say nothing; of judged steps the verdict on
    the last one.
    """
    if isinstance(found, Scored):
        scores = np.concatenate([found.chosen, found.rejected])
        return scores, reward_model.report(np.subtract(found.chosen, found.rejected), rows)
    if isinstance(found, Ranked):
        return found.score[found.mask], reward_model.ranking_report(found, rows)
    if isinstance(found, Rated):
        metrics = loss(jax.tree.map(jnp.asarray, found)).metrics
        return found.score.sum(1), reward_model.rating_report(found, metrics, attributes)
    last_B = found.mask.shape[1] - 1 - np.argmax(found.mask[:, ::-1], axis=1)
    return np.take_along_axis(found.logit, last_B[:, None], axis=1)[:, 0], reward_model.step_report(found)
