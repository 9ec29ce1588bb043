"""Offline preference optimisation: pairs, or replies with a thumb -> policy. `--config=configs/world/dpo.py`."""

from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import record_of, resolve
from alignax.data.arrays import fingerprint
from alignax.data.encode import pair_rows
from alignax.data.thumbs import unpaired_rows
from alignax.stages import common, inputs, parents, probe
from alignax.stages.reference import with_logp
from alignax.train import reference as moving
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Pair, Unpaired

# What a loss may take, what makes it from a batch, and what makes the batches from text.
RECORDS = {Pair: (forward.pair, pair_rows), Unpaired: (forward.unpaired, unpaired_rows)}


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("offline")
    c.loss = "dpo"  # function of alignax.losses, or module:function, of a Pair or of an Unpaired
    # losses added to it: name = dict(coefficient=..., and its arguments)
    c.terms = ConfigDict()
    # "online": run beside the policy at every step; "cached": its log-probabilities of all rows are computed once and
    # kept in the folder, and its parameters are freed
    c.reference = "online"
    c.reference_args = ConfigDict()  # of alignax.train.reference.follow (TR-DPO); empty: the reference stands still
    c.optimizer_args = ConfigDict({"learning_rate": 1e-6})
    c.probe = probe.get_config()
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a policy on preferences, with its own start as the reference. Resumes what it finds there."""
    roles = {"policy": "init_from", "proxy": "probe.reward_from"}
    stage = common.open_stage("offline", config, workdir, root, roles)
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- objective
    record = record_of(resolve(cfg.loss, "alignax.losses", key="loss"), tuple(RECORDS), key="loss")
    view, encode = RECORDS[record]
    terms = common.get_terms(cfg)

    # ---- data
    tokenizer = parents.get_tokenizer(stage)
    train, held, _, counts = inputs.preference_data(stage, tokenizer, root, encode)

    # ---- model: the parent policy is start and reference
    mesh = parents.get_mesh(cfg)
    model, reference = parents.new_or_loaded(stage, "", {}, tokenizer, mesh, adapted=True)
    start, still = parents.learner(cfg, reference)
    identity = fingerprint(train)
    arrange = lambda arrays: common.arrangement(cfg, arrays, mesh, reads="tokens")  # noqa: E731
    cached = cfg.reference == "cached"
    if cached:
        data = {"train": train, "heldout": held}
        train, held = with_logp(stage, data, arrange, model, reference, tokenizer, mesh).values()

    # ---- update
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    follow = partial(moving.follow, **cfg.reference_args) if cfg.reference_args else None

    def objective(params, frozen, batch):
        seen = view(model, frozen["still"] | params, frozen["reference"], batch)
        return {name: (coefficient, term(seen)) for name, (coefficient, term) in terms.items()}

    def metrics(state, frozen, batch):
        params = frozen["still"] | state.learner.params
        return common.evaluate_terms(terms, view(model, params, frozen["reference"], batch))

    # ---- train
    pairs = common.evaluator(metrics, held, cfg.batch_size, mesh, arrange(held))
    watch = probe.build(stage, cfg.probe, model, tokenizer, cfg.template, mesh, root)

    @common.once_per_step
    def evaluate(state):
        # the KL to the start: the distance to a reference that comes along says little
        probed = probe.summary(watch.measure(still | state.learner.params, reference)) if watch else {}
        return pairs(state, frozen | {"reference": state.reference} if follow else frozen) | probed

    state = parents.place(lambda p: new_state(p, optimizer, p if follow else None), start, mesh=mesh)
    del start
    if cached:
        reference = None  # nothing reads it any more: every batch brings what it said
    frozen = {"still": still, "reference": reference}
    step = sharding.jit_step(make_step(objective, optimizer, microbatches=cfg.microbatches, follow=follow), state)
    step_fn = lambda state, batch: step(state, batch, frozen)  # noqa: E731
    show = ("loss", "rewards/margins", "rewards/accuracies")
    state = common.train(stage, state, step_fn, train, mesh, evaluate, model=model, show=show)

    # ---- checkpoint
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": identity, "counts": counts},
        metrics=evaluate(state),
    )
    return workdir
