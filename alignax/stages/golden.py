"""A golden set: a few pairs whose order is known, which reward models and policies are asked for as they learn.

Its rows are text, so each run encodes them by its own tokenizer and template.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from alignax import forward
from alignax.bound import fill, plan_record, static
from alignax.config import Reader
from alignax.data.counts import DataError
from alignax.data.encode import pair_rows
from alignax.ops.checks import needs
from alignax.ops.masked import masked_sum
from alignax.stages import fitting, inputs, plans
from alignax.stages.folder import Stage, say
from alignax.types import Model, Params, Side

Margin = Callable[..., Float[Array, " B"]]  # (*what it is of, batch) -> by how much the chosen reply is preferred
Measure = Callable[..., dict[str, float]]  # (*what it is of) -> metrics


def get_config() -> ConfigDict:
    """Every key of a golden set, with its default and unit. Without a source there is none."""
    c = ConfigDict()
    c.source = ""  # pairs, or what pairs are made of (rankings, ratings): function of alignax.data.sources, or
    # module:function; "" for none
    c.data = ConfigDict()  # its arguments
    c.max_length = 1024  # tokens of prompt and reply; longer pairs are dropped and counted
    c.batch_size = 32  # pairs that are read at once
    return c


@plan_record
class Plan:
    """The pairs, and how they are read."""

    source: plans.Source
    template: str = static()
    max_length: int = static()
    batch_size: int = static()


def plan(r: Reader, template: str) -> Plan | None:
    """The golden set of a config; None where it has no source. Raises ConfigError for what does not fit."""
    source = plans.source(r, drawn=False, required=False)
    r.require(r.max_length >= 1, "max_length", "expected a whole number of 1 or more")
    if source is None:
        r.items()  # the others are what a set would have
        return None
    return fill(Plan, r, source=source, template=template)


def batches(plan: Plan | None) -> dict[str, int]:
    """The sizes that have to divide over the devices, by their keys."""
    return {"golden.batch_size": plan.batch_size} if plan else {}


class Golden(NamedTuple):
    """The pairs of a plan as arrays, and what they are measured by."""

    plan: Plan
    pairs: dict[str, Any]
    mesh: Mesh

    def measure(self, margin: Margin, name: str = "") -> Measure:
        """`eval/golden/<name>accuracy`, the share of pairs that `margin` orders as they are, a tie being half of one;
        and `eval/golden/<name>margin`, its mean."""

        def metrics(*args: Any) -> dict[str, tuple[Array, Array]]:
            margin_B, weight_B = margin(*args), args[-1]["chosen"]["mask"].any(1).astype(jnp.float32)
            right_B = 0.5 + 0.5 * jnp.sign(margin_B)
            return {f"golden/{name}accuracy": (right_B, weight_B), f"golden/{name}margin": (margin_B, weight_B)}

        return fitting.evaluator(metrics, self.pairs, self.plan.batch_size, self.mesh)


def build(stage: Stage, plan: Plan | None, tokenizer: Any, mesh: Mesh) -> Golden | None:
    """The golden set of a plan, or None where it has none. Raises DataError for rows that are no pairs of text."""
    if plan is None:
        return None
    encode = partial(pair_rows, template=plan.template, max_length=plan.max_length)
    try:
        check_text(inputs.load_rows(plan.source, "train", root=stage.root)[0])
        pairs, counts, _ = inputs.encoded(plan, encode, tokenizer, "train", stage.root)
    except DataError as error:
        raise DataError(f"config.golden: {error}") from error
    say(f"golden set: {counts}")
    return Golden(plan, pairs, mesh)


def check_text(rows: list[dict]) -> None:
    """Raises DataError for rows that are token ids: of which tokenizer they are, nobody could say."""
    for row in rows:
        ids = [name for name, value in row.items() if isinstance(value, list) and value and type(value[0]) is int]
        if ids:
            raise DataError(
                f"{', '.join(ids)} hold token ids, which are those of some tokenizer: give the texts, "
                '{"prompt", "chosen", "rejected"}, which every run encodes by its own'
            )


def of_reward(model: Model, params: Params, batch: dict) -> Float[Array, " B"]:
    """score(chosen) - score(rejected); of a head of several attributes their sum."""
    found = forward.scores(model, params, [batch["chosen"], batch["rejected"]], None)
    chosen_B, rejected_B = (x if x.ndim == 1 else x.sum(1) for x in found)
    return chosen_B - rejected_B


def of_policy(model: Model, params: Params, reference: Params, batch: dict) -> Float[Array, " B"]:
    """log pi/ref(chosen) - log pi/ref(rejected), nats: what DPO calls its implicit reward, at beta = 1."""
    pair = forward.pair(model, params, reference, batch)
    chosen_B, rejected_B = (masked_sum(_ratio(side), side.mask, axis=1) for side in (pair.chosen, pair.rejected))
    return chosen_B - rejected_B


def _ratio(side: Side) -> Float[Array, "B T"]:
    (ref_logp_BT,) = needs(side, "ref_logp")
    return side.logp - ref_logp_BT


def watch(
    known: Golden | None, model: Model, reference: Params, proxy: tuple[Model, Params] | None
) -> Callable[[Params], dict[str, float]]:
    """(policy) -> what an online run says of its golden set: its policy's order, and its one reward model's.

    The reward model stands still, so that it is asked once: its line in the log is what the policy's is read against.
    """
    if known is None:
        return lambda params: {}
    order = known.measure(partial(of_policy, model), "policy_")
    judge = known.measure(partial(of_reward, proxy[0]), "reward_")(proxy[1]) if proxy else {}
    return lambda params: order(params, reference) | judge
