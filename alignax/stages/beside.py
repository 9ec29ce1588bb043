"""A loss of the policy on rows of data beside its rollouts: PPO-ptx, or any loss of the stages `sft` and `offline`.

The policy's gradient is that of the online loss and `coefficient` times that of this one, in every update: equation 2
of Ouyang et al. 2022 (InstructGPT, 2203.02155), whose gamma is the coefficient and whose data are pretraining texts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from alignax import host
from alignax.bound import fill, of_config, plan_record, static
from alignax.config import Reader, record_of
from alignax.data.encode import demo_rows, pair_rows
from alignax.data.loader import Loader
from alignax.data.templates import TRAIN_ON
from alignax.data.thumbs import unpaired_rows
from alignax.ops.checks import between, fact
from alignax.stages import inputs, plans, supervised
from alignax.stages.folder import Stage, say
from alignax.train.algorithm import DataLoss
from alignax.train.updates import Updates
from alignax.types import Demo, Pair, Unpaired

ENCODERS = {Demo: demo_rows, Pair: pair_rows, Unpaired: unpaired_rows}  # by what a loss takes


def get_config() -> ConfigDict:
    """Every key of the group `data_loss`, with its default and unit."""
    c = ConfigDict()
    c.loss = ""  # function of alignax.losses, or module:function: "sft", "dpo", ...; "" for none
    c.loss_args = ConfigDict()
    c.coefficient = 1.0  # of that loss beside the policy's
    c.source = ""  # its rows: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.train_on = "completion"  # tokens that count in demonstrations, as in the stage sft; "all" for pretraining texts
    c.max_length = 1024  # tokens of prompt and completion; longer rows are dropped and counted
    c.batch_size = 64  # rows for each rollout, shared out over its minibatches
    return c


@plan_record
class Plan:
    """What is learnt beside the rollouts."""

    loss: DataLoss
    source: plans.Source
    template: str = static()
    train_on: str = static()
    max_length: int = static()
    batch_size: int = static()
    iterations: int = static()

    def draws(self, form: str) -> int:
        """Rows that a run reads."""
        del form
        return self.iterations * self.batch_size

    def encode(self) -> partial:
        """What makes arrays of its rows."""
        options: dict[str, Any] = {"template": self.template, "max_length": self.max_length}
        options |= {"train_on": self.train_on} if self.loss.record is Demo else {}
        return partial(ENCODERS[self.loss.record], **options)


def plan(r: Reader, template: str, iterations: int, every: Updates) -> Plan | None:
    """The group of a config; None where it names no loss. Raises ConfigError for what does not fit."""
    term, source = of_config(r, "loss", "alignax.losses"), plans.source(r, required=bool(r.loss))
    r.require(
        term or not source, "loss", "expected a function of alignax.losses, such as 'sft': data_loss.source is set"
    )
    if term is None or source is None:
        r.items()  # the others are what a loss would have
        return None
    record = record_of(term.function, tuple(ENCODERS), key=r.key("loss"))
    r.require(between(0.0)(r.coefficient), "coefficient", "expected 0 or more, such as 1.0")
    r.require(r.max_length >= 1, "max_length", "expected 1 token or more")
    r.one_of("train_on", TRAIN_ON)
    plans.divides(r, "batch_size", r.batch_size, every.minibatches, "minibatches")
    share = r.batch_size // every.minibatches
    plans.divides(r, "batch_size", share, every.microbatches, "microbatches (rows of a minibatch)")
    if fact(term.function, "whole_batch"):
        r.require(every.microbatches == 1, "loss", "it compares the rows of a batch: set update_args.microbatches to 1")
    plans.tried(term, supervised.shapes_of(record))
    loss = DataLoss(term=term, coefficient=r.coefficient, record=record)
    return fill(Plan, r, loss=loss, source=source, template=template, iterations=iterations)


def batches(plan: Plan | None) -> dict[str, int]:
    """The sizes that have to divide over the devices, by their keys."""
    return {"data_loss.batch_size": plan.batch_size} if plan else {}


def loader(stage: Stage, plan: Plan | None, tokenizer: Any) -> Callable[[int], dict]:
    """(step) -> {"data": this process's rows of its batch}; {} where there is no such loss."""
    if plan is None:
        return lambda step: {}
    arrays, counts, _ = inputs.encoded(plan, plan.encode(), tokenizer, "train", stage.root)
    say(f"data beside the rollouts: {counts}")
    weights = plan.source.weights or None
    order = Loader(arrays, plan.batch_size, stage.plan.seed, weights=weights, **host.share())
    drop = ("row", "part")
    of_rows = lambda batch: {name: x for name, x in batch.items() if name not in drop}  # noqa: E731
    return lambda step: {"data": of_rows(order.batch(step))}
