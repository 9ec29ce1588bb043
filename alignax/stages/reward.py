"""Reward model: pairs, rankings, ratings or judged steps -> head on a trunk. `--config=configs/world/reward.py`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alignax import forward, host, sharding
from alignax.bound import plan_record, static
from alignax.data.arrays import fingerprint
from alignax.data.counts import DataError
from alignax.data.encode import pair_rows
from alignax.data.judged import attributes_of, ranking_rows, rating_rows, step_rows
from alignax.data.loader import eval_batches
from alignax.evals import reward_model
from alignax.models.heads import weighted
from alignax.stages import fitting, folder, golden, inputs, parents, plans, shapes, supervised
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.train.state import new_state
from alignax.types import Model, Ranked, Rated, Scored, Stepwise

STAGE = Declaration("reward", plans.REWARD, {"policy": Parent("init_from")})
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
    c = fitting.training_config("reward")
    c.loss = "bradley_terry"  # function of alignax.losses, module:function, or the function, of one of RECORDS
    c.optimizer_args = ConfigDict({"learning_rate": 1e-5})
    # heads on one trunk, each from its own initialisation, all of one run: members of an ensemble (docs/online.md)
    c.heads = 1
    c.head_seed = -1  # of the initialisation of what scores; -1: `seed`. Models that are averaged have one in common
    c.bootstrap = 1.0  # share of the rows that each head learns from, its own; 1: all of them
    c.golden = golden.get_config()  # pairs that it is asked for at each evaluation
    return c


@plan_record
class Plan(supervised.Supervised):
    """What a run does."""

    heads: int = static()
    head_seed: int = static()
    bootstrap: float = static()
    golden: golden.Plan | None

    def readings(self) -> list[Readings]:
        """What makes its arrays."""
        options = {"template": self.template, "max_length": self.max_length}
        return [Readings(partial(RECORDS[self.record][1], **options), ("train", "heldout"))]


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    known = golden.plan(r.golden, r.template)
    r.require(r.heads >= 1, "heads", "expected a number of heads, 1 or more")
    r.require(r.head_seed >= -1, "head_seed", "expected a seed, 0 or more, or -1 for the config's own")
    r.require(0 < r.bootstrap <= 1, "bootstrap", "expected a share of the rows above 0, at most 1 (all)")
    r.require(r.bootstrap == 1 or r.heads > 1, "bootstrap", "of one head it leaves rows out for good; set heads")
    made = supervised.planned(Plan, r, tuple(RECORDS), sides=2, golden=known, batches=golden.batches(known))
    r.require(made.heads == 1 or made.record is not Rated, "heads", f"{r.loss!r} has a score for each attribute; set 1")
    return made


def view(plan: Plan, model: Model, params: Any, frozen: Any, batch: dict) -> Any:
    """What the losses see of a batch; `frozen` is the decoder under an adapter."""
    return RECORDS[plan.record][0](model, frozen | params, batch)


def view_of_heads(plan: Plan, model: Model, params: Any, frozen: Any, batch: dict) -> Any:
    """`view` with one row for each head of each row, in the order of the rows: a mean over it is one over heads.

    The trunk is read once. With `bootstrap` a head's rows are drawn by their ids, once for the whole run.
    """
    tree, key = frozen | params, jax.random.key(plan.seed)
    heads = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tree["scalar"])

    def one(head: Any, number: Any) -> Any:
        found = RECORDS[plan.record][0](model, tree | {"scalar": head}, batch)
        if plan.bootstrap == 1:
            return found
        row_key = lambda row: jax.random.fold_in(jax.random.fold_in(key, number), row)  # noqa: E731
        drawn_B = jax.vmap(lambda row: jax.random.bernoulli(row_key(row), plan.bootstrap))(batch["row"])
        mask = found.mask & drawn_B.reshape(-1, *[1] * (found.mask.ndim - 1))
        return found.replace(mask=mask)

    by_head = jax.vmap(one)(heads, jnp.arange(plan.heads))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), by_head)


def programs_of(p: Plan, world: shapes.World) -> list[shapes.Program]:
    """What a run compiles."""
    model, mesh = shapes.model_of(world), world.mesh
    whole = shapes.params_of(model, mesh, scalar=True, attributes=p.heads if p.heads > 1 else None)
    params, frozen = shapes.learner(p, whole, mesh)
    record = partial(view_of_heads if p.heads > 1 else view, p, model)
    batch = shapes.batch_of(p, mesh, reads_of(p))
    return [shapes.step(p, record, model, params, frozen, mesh, batch=batch, output=False)]


def reads_of(p: Plan) -> str:
    """What of a text is read: `data.packing`."""
    return "steps" if p.record is Stepwise else "ends"


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Trains a reward model on judged replies, from a policy's trunk and a new head. Resumes what it finds there.

    The record that the loss takes decides which rows are read: see `alignax.data.encode.pair_rows` and
    `alignax.data.judged`. A loss on ratings gets a head with one score per attribute; their names go into the manifest,
    in the order of the head.
    """
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- data
    tokenizer = parents.get_tokenizer(stage)
    ((encode, _),) = p.readings()
    encode = with_attributes(encode, p, root)
    attributes = encode.keywords.get("attributes", ())
    train, held, held_text, counts = inputs.preferences(stage, encode, tokenizer)
    if attributes and (unrated := [a for a, n in zip(attributes, train["given"].any(0)) if not n]):
        raise DataError(
            f"no row that was kept rates {', '.join(unrated)}: nothing would train that score; leave it out"
        )

    # ---- model: the parent's trunk and a fresh head, of one score, or one per attribute, or several
    mesh = parents.get_mesh(p.mesh)
    model, trunk = parents.new_or_loaded(stage, tokenizer, mesh, adapted=True)
    names = list(attributes) or ([f"head_{i}" for i in range(p.heads)] if p.heads > 1 else [])
    head_key = jax.random.key(p.seed if p.head_seed < 0 else p.head_seed)
    head = model.init_scalar(jax.random.fold_in(head_key, 1), len(names) or None)
    start, frozen = parents.learner(p, trunk | {"scalar": head})
    record = partial(view_of_heads if p.heads > 1 else view, p, model)

    # ---- train
    reads = reads_of(p)
    arrange = fitting.arrangement(p, held, mesh, reads=reads)
    metrics = lambda state, frozen, batch: supervised.metrics_of(p.terms, record(state.learner.params, frozen, batch))  # noqa: E731
    held_out = fitting.evaluator(metrics, held, p.batch_size, mesh, arrange)
    known = golden.build(stage, p.golden, tokenizer, mesh)
    ordered = known.measure(partial(golden.of_reward, model)) if known else lambda params: {}
    evaluate = lambda state: held_out(state, frozen) | ordered(frozen | state.learner.params)  # noqa: E731
    state = parents.place(lambda params: new_state(params, p.optimizer()), start, mesh=mesh)
    step = sharding.jit_step(supervised.update(p, record), state)
    step_fn = lambda state, batch: step(state, batch, frozen)  # noqa: E731
    show = ("loss", *SHOWN[p.record])
    state = fitting.train(stage, state, step_fn, train, mesh, evaluate, model=model, show=show, reads=reads)

    # ---- how good it is on held-out data; mean and spread of the scores, for those who read them
    alike = arrange if p.packing != "bucketed" else None  # batches whose verdicts have one shape, to be joined
    judge, params = jax.jit(partial(view, p, model)), state.learner.params
    judges = params | ({"scalar": weighted(params["scalar"], jnp.full(p.heads, 1 / p.heads))} if p.heads > 1 else {})
    batches = eval_batches(held, p.batch_size, arrange=alike, **host.share())
    parts = [host.everywhere(judge(judges, frozen, sharding.put_batch(batch, mesh))) for batch in batches]
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(held["row"])], *parts)
    (_, loss), *_ = p.terms.values()
    scores, report = judged(found, [held_text[row] for row in held["row"]], loss, attributes)
    return folder.finish(
        stage,
        params=params,
        step=p.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": fingerprint(train), "counts": counts}
        | ({"attributes": names} if names else {})
        | ({"heads": p.heads} if p.heads > 1 else {}),
        calibration={"mean": float(scores.mean()), "sd": float(scores.std())},
        metrics=report | {name.removeprefix("eval/"): value for name, value in ordered(frozen | params).items()},
    )


def with_attributes(encode: partial, plan: Plan, root: Path | None) -> partial:
    """An encoder of ratings with the attributes that the training rows rate: held-out ones may lack some."""
    if encode.func is not rating_rows:
        return encode
    rows, _ = inputs.load_rows(plan.source, "train", form="ratings", root=root)
    return partial(encode, attributes=attributes_of(rows))


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
