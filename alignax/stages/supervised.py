"""Stages that learn from the rows of their data: their plan, its update as a pure function, and a trial on shapes."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignax.bound import Args, Bound, Terms, fill, plan_record, static
from alignax.config import Reader
from alignax.data.packing import MODES
from alignax.ops.checks import Scalar
from alignax.stages.plans import Learning, check_lora, divides, optimizer, shared, source, terms, tried
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Loss

SIZES = {"B": 4, "T": 3, "V": 5, "K": 2, "A": 2}  # of the shapes of a trial


@plan_record
class Supervised(Learning):
    """Of a stage that learns from the rows of its data."""

    optimizer: Bound  # () -> Optimizer
    terms: Terms  # the config's loss, called "loss" where it is alone, and its further terms
    record: type = static()  # what they take
    max_length: int = static()
    microbatches: int = static()
    packing: str = static(default="")  # "": the stage lays out one text in a row, whatever is asked
    lora_args: Args = static(default=Args())


def planned(cls: Any, r: Reader, records: tuple[type, ...], **fields: Any) -> Any:
    """A plan of `Supervised` keys; its step has been tried on shapes. Raises ConfigError."""
    found, record = terms(r, records, microbatches=r.microbatches)
    if "lora_args" in r:
        check_lora(r)
    if "packing" in r:
        fields["packing"] = r.one_of("packing", MODES)
    batches = {"batch_size": r.batch_size} | fields.pop("batches", {})
    fields |= shared(r, batches=batches, sides=fields.pop("sides", 1))
    fields |= {"source": source(r), "optimizer": optimizer(r, "optimizer", r.total_steps)}
    fields |= {"terms": found, "record": record}
    divides(r, "batch_size", r.batch_size, r.microbatches, "microbatches")
    plan = fill(cls, r, **fields)
    r.finish()
    trial(plan)
    return plan


def evaluated(terms: Terms, record: Any) -> dict[str, tuple[Scalar, Loss]]:
    """{name: (coefficient, Loss)} of the terms, on one record."""
    return {name: (coefficient, term(record)) for name, (coefficient, term) in terms.items()}


def metrics_of(terms: Terms, record: Any) -> dict:
    """Every metric of the terms, and each term's own value, as (values, weights)."""
    out = {}
    for name, (_, found) in evaluated(terms, record).items():
        out |= found.metrics | {name: (found.value, found.weight)}
    return out


def update(plan: Supervised, view: Callable[[Any, Any, Any], Any], *, follow: Callable | None = None) -> Callable:
    """A pure `step(state, batch, frozen) -> (state, metrics)` of the plan.

    `view(params, frozen, batch)` is the record that its terms take.
    """
    objective = lambda params, frozen, batch: evaluated(plan.terms, view(params, frozen, batch))  # noqa: E731
    return make_step(objective, plan.optimizer(), microbatches=plan.microbatches, follow=follow)


def trial(plan: Supervised, without: tuple[str, ...] = ()) -> Any:
    """The shapes that the plan's step makes of a record's, or the exception that it raised.

    Everything of the step is real but for the model, which is not there yet: the record is the batch. Raises
    ConfigError for a setting that is refused. Other errors may come of the shapes, which are guesses: a loss of a
    user's own may want larger ones.
    """
    record = shapes_of(plan.record, without, B=SIZES["B"] * plan.microbatches)
    state = jax.eval_shape(lambda: new_state({"weight": jnp.zeros(())}, plan.optimizer()))
    return tried(update(plan, lambda params, frozen, batch: batch), state, record, {})


def shapes_of(record: Any, without: tuple[str, ...] = (), **sizes: int) -> Any:
    """A record of shapes from its annotations, the optional fields too but for those named in `without`.

    `sizes` are of axes, where those of `SIZES` will not do.
    """
    hints = typing.get_type_hints(record)
    fields = [field.name for field in dataclasses.fields(record)]
    return record(**{name: None if name in without else _leaf(hints[name], without, sizes) for name in fields})


def _leaf(hint: Any, without: tuple[str, ...], sizes: dict[str, int]) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return shapes_of(hint, without, **sizes)
    known = (jnp.float32, jnp.bool_, jnp.int32)
    dtype = next(dtype for dtype in known if jnp.dtype(dtype).name in hint.dtypes)
    return jax.ShapeDtypeStruct(tuple((SIZES | sizes)[axis] for axis in hint.dim_str.split()), dtype)
