"""Offline preference optimisation: pairs, or replies with a thumb -> policy. `--config=configs/world/dpo.py`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.bound import Bound, plan_record, static
from alignax.config import ConfigError, Reader
from alignax.data.arrays import fingerprint
from alignax.data.encode import pair_rows
from alignax.data.thumbs import unpaired_rows
from alignax.ops.checks import fact
from alignax.stages import fitting, folder, inputs, moving, parents, plans, probe, shapes, supervised
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.stages.reference import with_logp
from alignax.train.state import new_state
from alignax.types import Model, Pair, Unpaired

STAGE = Declaration(
    "offline", plans.POLICY, {"policy": Parent("init_from"), "reference": Parent("reference_from")} | probe.READS
)
# What a loss may take, what makes it from a batch, and what makes the batches from text.
RECORDS = {Pair: (forward.pair, pair_rows), Unpaired: (forward.unpaired, unpaired_rows)}


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.training_config("offline")
    c.loss = "dpo"  # function of alignax.losses, or module:function, of a Pair or of an Unpaired
    # losses added to it: name = dict(coefficient=..., and its arguments)
    c.terms = ConfigDict()
    c.reference_from = ""  # folder of the reference policy; "": the policy's own start
    # "online": run beside the policy at every step; "cached": its log-probabilities of all rows are computed once and
    # kept in the folder, and its parameters are freed
    c.reference = "online"
    c.reference_args = ConfigDict()  # of alignax.train.reference.follow (TR-DPO); empty: the reference stands still
    c.optimizer_args = ConfigDict({"learning_rate": 1e-6})
    c.probe = probe.get_config()
    return c


@plan_record
class Plan(supervised.Supervised):
    """What a run does."""

    follow: Bound | None  # (reference, params, step) -> reference; None: it stands still
    reference: str = static()
    probe: probe.Plan | None

    def readings(self) -> list[Readings]:
        """What makes its arrays."""
        options = {"template": self.template, "max_length": self.max_length}
        return [Readings(partial(RECORDS[self.record][1], **options), ("train", "heldout"))]


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    follow = moving.follow_of(r)
    check_reference(r)
    watch = probe.plan(r.probe, r.template)
    fields = {"follow": follow, "probe": watch, "batches": probe.batches(watch), "sides": 2}
    made = supervised.planned(Plan, r, tuple(RECORDS), **fields)
    for key, term in plans.keyed(made.terms).items():
        if fact(term.function, "online_only"):
            raise ConfigError(
                f"config.{r.key(key)} = {term.name!r}: it needs pairs of a sample of the policy and one of the "
                "reference; the online stage makes them with opponent = 'reference'"
            )
    if (follow or r.reference == "cached") and isinstance(supervised.trial(made, without=("ref_logp",)), tuple):
        what = "reference_args is set" if follow else "reference = 'cached'"
        names = " and ".join(repr(term.name) for _, term in made.terms.values())
        raise ConfigError(f"config.{prefix}{what}, but {names} read no reference")
    return made


def check_reference(r: Reader) -> None:
    """What is cached stands still, and nobody else asks for it."""
    if r.one_of("reference", ("online", "cached")) == "cached" and r.reference_args:
        raise r.error(
            "reference",
            "the reference of reference_args moves, and says something else of a row after each move; use 'online'",
        )
    if r.reference == "cached" and r.probe.source:
        raise r.error(
            "reference",
            "the probe measures the KL to the reference, whose parameters are freed; use 'online', or no probe "
            "(probe.source = '')",
        )


def view(plan: Plan, model: Model, params: Any, frozen: dict, batch: dict) -> Pair | Unpaired:
    """What the losses see of a batch; `frozen` has the reference, and the decoder under an adapter."""
    return RECORDS[plan.record][0](model, frozen["base"] | params, frozen["reference"], batch)


def programs_of(p: Plan, world: shapes.World) -> list[shapes.Program]:
    """What a run compiles."""
    model, mesh = shapes.model_of(world), world.mesh
    first = shapes.params_of(model, mesh)
    params, base = shapes.learner(p, first, mesh)
    batch, reference = shapes.batch_of(p, mesh, "tokens"), None if p.reference == "cached" else first
    if p.reference == "cached":
        for side in ("chosen", "rejected"):
            batch[side] |= {"ref_logp": shapes.rows(batch[side]["mask"].shape, jnp.float32, mesh)}
    moving = {"follow": p.follow, "reference": first if p.follow else None}
    frozen, record = {"base": base, "reference": reference}, partial(view, p, model)
    return [shapes.step(p, record, model, params, frozen, mesh, batch=batch, **moving)]


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Trains a policy on preferences, with its own start as the reference or another one. Resumes what it finds."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- data
    tokenizer = parents.get_tokenizer(stage)
    ((encode, _),) = p.readings()
    train, held, _, counts = inputs.preferences(stage, encode, tokenizer)

    # ---- model: the parent policy is the start, and the reference if no other is named
    mesh = parents.get_mesh(p.mesh)
    model, first = parents.new_or_loaded(stage, tokenizer, mesh, adapted=True)
    reference = parents.reference_of(stage, first, model, tokenizer, mesh)
    start, base = parents.learner(p, first)
    del first
    identity = fingerprint(train)
    arrange = lambda arrays: fitting.arrangement(p, arrays, mesh, reads="tokens")  # noqa: E731
    if p.reference == "cached":
        data = {"train": train, "heldout": held}
        train, held = with_logp(stage, data, arrange, model, reference, tokenizer, mesh).values()

    # ---- train
    record = partial(view, p, model)
    metrics = lambda state, frozen, batch: supervised.metrics_of(p.terms, record(state.learner.params, frozen, batch))  # noqa: E731
    held_out = fitting.evaluator(metrics, held, p.batch_size, mesh, arrange(held))
    watch = probe.build(stage, p.probe, model, tokenizer, mesh)

    @fitting.once_per_step
    def evaluate(state):
        # the KL to where the reference began: the distance to one that comes along says little
        probed = watch.summary(base | state.learner.params, reference) if watch else {}
        return held_out(state, frozen | {"reference": state.reference} if p.follow else frozen) | probed

    moving = reference if p.follow else None  # it goes on from where it is, which may not be the policy's start
    state = parents.place(lambda x, at: new_state(x, p.optimizer(), at), start, moving, mesh=mesh)
    del start
    if p.reference == "cached":
        reference = None  # nothing reads it any more: every batch brings what it said
    frozen = {"base": base, "reference": reference}
    step = sharding.jit_step(supervised.update(p, record, follow=p.follow), state)
    step_fn = lambda state, batch: step(state, batch, frozen)  # noqa: E731
    show = ("loss", "rewards/margins", "rewards/accuracies")
    state = fitting.train(stage, state, step_fn, train, mesh, evaluate, model=model, show=show)

    # ---- checkpoint
    return folder.finish(
        stage,
        params=state.learner.params,
        step=p.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": identity, "counts": counts},
        metrics=evaluate(state),
    )
