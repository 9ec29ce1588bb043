"""The records that rooms pass to each other, field by field with shapes.

Axis letters: `B` sequences, `T` positions, `S` cache positions, `V` vocabulary, `D` model, `N` query heads, `K` kv
heads, `H` head, `F` feed-forward, `L` layers; in `Ranked`, `K` replies to one prompt; in `Rated`, `A` attributes; of
packed batches, `U` bundles of `K` texts, `R` rows of `L` tokens, `G` groups of rows, `N` states that are read of each.

Every per-token array is aligned to the token that it is *about*: `logp[b, t]` is log p(token t | tokens before t), and
`value[b, t]`, `advantage[b, t]`, `mask[b, t]` speak of that same token. So nothing is ever shifted outside
`forward.py`, and position 0, which has no context, is always masked out.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

Params = Any  # a parameter tree
Metric = tuple[Array, Array]  # (values, weights): reduced as sum(values * weights) / sum(weights)


# Sides of a batch that go through the model in one pass; a demonstration is its own side.
PASSES = (("chosen", "rejected"), ("side",), ("mismatched",), ("replies",), ("reply",))

T = TypeVar("T")


class Record:
    """What every record has."""

    def __post_init__(self):
        same_axes(self)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Makes a class a frozen, keyword-only dataclass that is a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


def same_axes(made: Record) -> None:
    """Raises ValueError if two arrays of a record differ in an axis that their annotations give one name.

    Sides of a pair share `B` only. JAX rebuilds records around other leaves too, and they pass: no arrays, arrays with
    more axes (a stack of batches, a sweep over some of the fields), and records that were reduced as a whole.
    """
    arrays = [(name, getattr(made, name), axes) for name, axes in _named_axes(type(made))]
    arrays = [(name, x, axes) for name, x, axes in arrays if hasattr(x, "ndim") and hasattr(x, "shape")]
    exact = [(name, x, axes) for name, x, axes in arrays if x.ndim == len(axes)]
    for name, x, axes in arrays:
        if x.ndim < len(axes) and exact and len({x.ndim for _, x, _ in arrays}) > 1:
            raise ValueError(f"{type(made).__name__}.{name} has the shape {x.shape}: expected [{' '.join(axes)}]")
    sizes: dict[str, tuple[str, int]] = {}
    for name, x, axes in exact:
        for axis, size in zip(axes, x.shape, strict=True):
            _, known = first = sizes.setdefault(axis, (name, size))
            if known != size:
                raise ValueError(
                    f"{type(made).__name__}: the axis {axis} of {name} {x.shape} is {size}, that of {first[0]} is "
                    f"{known}: expected one size"
                )


def same_rows(made: Record, *paths: str) -> None:
    """Raises ValueError if these arrays of a record, where they are there, differ in their number of rows."""
    reach = lambda path: functools.reduce(lambda x, name: getattr(x, name, None), path.split("."), made)  # noqa: E731
    found: dict[str, Any] = {path: reach(path) for path in paths}
    found = {path: x for path, x in found.items() if getattr(x, "shape", ())}
    rows = {path: x.shape[0] for path, x in found.items()}
    reduced = any(x.ndim < 2 for path, x in found.items() if path.endswith("mask"))
    if len(set(rows.values())) > 1 and not reduced:
        sizes = ", ".join(f"{path} has {size}" for path, size in rows.items())
        raise ValueError(f"{type(made).__name__}: the axis B differs: {sizes}; expected one number of rows")


@functools.cache
def _named_axes(kind: type) -> list[tuple[str, tuple[str, ...]]]:
    """[(field, its axes)] of the arrays of a record; fields of any shape are left out."""
    out = []
    for name, hint in typing.get_type_hints(kind).items():
        text = next((one.dim_str for one in (hint, *typing.get_args(hint)) if hasattr(one, "dim_str")), None)
        if text is not None and not set("*._#?") & set(text):
            out.append((name, tuple(text.split())))
    return out


@record
class Demo(Record):
    """Demonstrations under the current policy: what a supervised loss may want."""

    logp: Float[Array, "B T"]  # log-probability of each token
    mask: Bool[Array, "B T"]  # tokens to learn: the completion and its end of sequence
    entropy: Float[Array, "B T"]  # entropy of the predicted distribution, nats
    correct: Bool[Array, "B T"]  # the token is the most probable one


@record
class Side(Record):
    """One side of a preference pair."""

    logp: Float[Array, "B T"]  # current policy
    mask: Bool[Array, "B T"]  # tokens of the response, its end of sequence included
    ref_logp: Float[Array, "B T"] | None = None  # frozen reference policy; a reference-free loss does without
    collision: Float[Array, "B T"] | None = None  # log sum_v pi(v)^2 of the current policy: what WPO aligns with


@record
class Pair(Record):
    """Paired preferences: what the DPO family may want. The two sides may have different lengths."""

    chosen: Side
    rejected: Side
    reference_is_chosen: Bool[Array, " B"] | None = None  # the reference policy sampled the chosen side: XPO asks

    def __post_init__(self):
        same_rows(self, "chosen.mask", "rejected.mask", "reference_is_chosen")


@record
class Unpaired(Record):
    """Single replies, each with a thumb up or down: what KTO and its kin may want."""

    side: Side  # the replies; its mask says which rows count
    desirable: Bool[Array, " B"]  # thumb up
    mismatched: Side | None = None  # the replies of *other* rows after this row's prompt: KTO's estimate of KL

    def __post_init__(self):
        same_rows(self, "side.mask", "desirable", "mismatched.mask")


@record
class Scored(Record):
    """Paired preferences with one scalar per side: what a reward-model loss may want."""

    chosen: Float[Array, " B"]  # score at the last real token of the chosen side
    rejected: Float[Array, " B"]  # score at the last real token of the rejected side
    mask: Bool[Array, " B"]  # rows that count
    margin: Float[Array, " B"] | None = None  # how much better the annotator found the chosen side
    tie: Bool[Array, " B"] | None = None  # the annotator could not decide; which side is "chosen" then means nothing


@record
class Ranked(Record):
    """K replies to each prompt, best first, with a scalar each: what a ranking loss may want."""

    score: Float[Array, "B K"]  # in the annotator's order: column 0 is the best
    mask: Bool[Array, "B K"]  # replies that count; rankings may have different lengths


@record
class Rated(Record):
    """Replies with absolute ratings, one or several attributes each (HelpSteer: helpfulness, correctness, ...)."""

    score: Float[Array, "B A"]  # predictions, one per attribute
    target: Float[Array, "B A"]  # ratings; an ordinal loss reads them as grades 0, 1, 2, ...
    mask: Bool[Array, "B A"]  # ratings that were given


@record
class Stepwise(Record):
    """Replies with a verdict on each step: what a process reward model may want."""

    logit: Float[Array, "B T"]  # of "this step is right", at the last token of each step
    target: Float[Array, "B T"]  # probability that the step is right: 0 or 1 by hand, a rate by Monte Carlo
    mask: Bool[Array, "B T"]  # last tokens of the steps


@record
class Distill(Record):
    """A student's and a teacher's predictions of the same tokens."""

    logits: Float[Array, "B T V"]  # student; [:, t] predicts token t
    teacher_logits: Float[Array, "B T V"]
    mask: Bool[Array, "B T"]  # tokens to learn


@record
class Rollout(Record):
    """Sampled sequences and all that is known of them; what an online loss may want.

    The sampler fills the first four fields and says who sampled a row, with which weights, and whether it ended;
    scoring, `forward.py` and the advantage step fill the others.
    """

    tokens: Int[Array, "B T"]  # prompt (padded on the left) then completion (padded on the right)
    valid: Bool[Array, "B T"]  # real tokens: prompt and completion, end of sequence included
    mask: Bool[Array, "B T"]  # sampled tokens: the actions, end of sequence included
    old_logp: Float[Array, "B T"]  # under the sampling policy, at the sampling temperature and filters
    logp: Float[Array, "B T"] | None = None  # under the current policy, at the same temperature and filters
    ref_logp: Float[Array, "B T"] | None = None  # under the reference, at the same temperature
    entropy: Float[Array, "B T"] | None = None  # of the current policy, nats
    value: Float[Array, "B T"] | None = None  # current critic, of the state before the token
    old_value: Float[Array, "B T"] | None = None  # critic when the rollout was scored
    advantage: Float[Array, "B T"] | None = None
    returns: Float[Array, "B T"] | None = None  # regression target of the critic
    finished: Bool[Array, " B"] | None = None  # the reply came to its end, of sequence or by a stop text
    reason: Int[Array, " B"] | None = None  # why it is over: `sampling.slots` UNFINISHED, LENGTH ...
    source: Int[Array, " B"] | None = (
        None  # who sampled the row: 0 the policy, else the number of the draw; None: all 0
    )
    version: Int[Array, " B"] | None = None  # the step whose weights sampled the row, its first token
    score: Float[Array, " B"] | None = None  # the sum of its rewards; not finite: it has none
    rewards: dict[str, Float[Array, " B"]] | None = None  # the parts of the score, before their weights
    # of the reference's M replies to the prompt of each row, before their weights: what shapes its score
    reference_rewards: dict[str, Float[Array, "B M"]] | None = None
    step_rewards: Float[Array, "B T"] | None = None  # what of the score is of steps, weighted, at their last tokens
    sampler_logp: Float[Array, "B T"] | None = None  # under the sampler, where old_logp was recomputed by the learner
    raw_logp: Float[Array, "B T"] | None = None  # under the sampling policy, untempered and unfiltered

    @property
    def own(self) -> Bool[Array, " B"]:
        """The rows that the policy itself sampled."""
        return jnp.ones(self.mask.shape[0], bool) if self.source is None else self.source == 0


@record
class Loss(Record):
    """Unreduced values of one objective. The step reduces once: sum(value * weight) / sum(weight) over the whole batch.

    `weight` may not depend on the parameters. `metrics` maps `group/name` to (values, weights), reduced the same way.
    """

    value: Float[Array, "*shape"]
    weight: Float[Array, "*shape"]
    metrics: dict[str, Metric]

    def __post_init__(self):
        # a weight of one column would broadcast in silence, and its rows count several times
        metrics = self.metrics if isinstance(self.metrics, dict) else {}
        for name, one in [("value", (self.value, self.weight)), *metrics.items()]:
            shapes = [x.shape for x in one if hasattr(x, "shape")] if isinstance(one, tuple) else []
            if len(shapes) == 2 and len(shapes[0]) == len(shapes[1]) and shapes[0] != shapes[1]:
                raise ValueError(f"Loss: {name} has the shape {shapes[0]}, its weight {shapes[1]}: expected the same")


class Layout(NamedTuple):
    """Which tokens of a row see which, where a row holds more than one text.

    A query sees a key at or before it that is of the same document and either of its shared beginning or of the query's
    own branch. The tokens of a document follow one another. A plain row is one document without branches:
    `models.attention.layout`.
    """

    document: Int[Array, "B T"]  # 0: padding; else the number of the text
    branch: Int[Array, "B T"] | None  # 0: the beginning that the branches share; else its number; None: no branches
    position: Int[Array, "B T"]  # of the token in its text, beginning and branch counted as one


Cache = Any  # what a model keeps of the tokens that it has read
Forward = Callable[[Params, Array, Array | Layout], Array]  # (params, tokens [B T], valid [B T] or Layout) -> hidden
# a function whose positional arrays, or trees of them, all begin with the rows of a batch, a kernel for one; what it
# takes by name is whole
PerRow = Callable[..., Any]
ByDevice = Callable[[PerRow], PerRow]  # makes of one such a function that devices run on their own rows


class Model(NamedTuple):
    """A language model as pure functions of a parameter tree; see `models/decoder.py` for the one that builds it."""

    config: Any  # ModelConfig: frozen, hashable
    init: Callable[[Array], Params]  # of a key
    apply: Forward  # hidden [B T D] after the final norm
    hidden_states: Forward  # hidden [L+1 B T D]: the embedding, then the residual after each layer; no final norm
    init_cache: Callable[..., Cache]  # (rows, tokens[, tokens of another cache that it may be joined with])
    prefill: Callable[[Params, Array, Array, Cache], tuple[Array, Cache]]  # tokens, valid -> hidden [B T D]
    unstack: Callable[[Params], Params]  # with a list of layers: what decode takes
    extend: Callable[[Params, Array, Array, Cache], tuple[Array, Cache]]  # unstacked; tokens, valid -> hidden [B C D]
    unembed: Callable[[Params], Array]  # kernel [D V]
    init_scalar: Callable[..., Params]  # (key, attributes=None) -> a scalar head, to stand at params["scalar"]
    scalar: Callable[[Params, Array], Array]  # hidden [... D] -> [...], reward or value; [... A] if for A attributes
    # (cache of prompts, prompt of each row, rows) -> rows with their prompts; None: `extend` knows no shared ones
    join: Callable[[Cache, Array, Cache], Cache] | None = None
    by_device: ByDevice = lambda f: f  # for what every device does on its own rows: kernels
    cast: Callable[[Params], Params] = lambda params: params  # as layers use them: kernels in the activations' dtype
    by_rows: ByDevice = lambda f: f  # for what the devices of each row do together: sampling
