"""Runs a model over a batch and fills a record with everything a loss may want; jit prunes what it does not use.

The only place that shifts: hidden state t-1 predicts token t and carries the value of the state before token t.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from alignax.ops import output
from alignax.ops.checks import needs, require
from alignax.ops.filtered import filtered_stats
from alignax.ops.filters import Settings
from alignax.ops.logprobs import TokenStats, token_stats
from alignax.replies import Read, read
from alignax.types import (
    PASSES,
    Demo,
    Distill,
    Layout,
    Model,
    Pair,
    Params,
    Ranked,
    Rated,
    Rollout,
    Scored,
    Side,
    Stepwise,
    Unpaired,
)  # fmt: skip

T = TypeVar("T")


def token_statistics(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    filters: Settings | None = None,
    start: int = 1,
    group: int = 1,
    room: int = 0,
) -> TokenStats:
    """Log-probability, entropy and correctness of tokens `start` to T-1, [B T]; positions before `start` hold zeros.

    `filters` (`ops.filters.FILTERS`): of what they leave of each token's distribution, see `ops.filtered`. `start`,
    `group`, `room`: see `replies.read`.
    """
    found = read(model, params, tokens, valid, start=start, group=group, room=room)
    return statistics_of(model, params, found, temperature, filters)


def statistics_of(
    model: Model, params: Params, found: Read, temperature: Float[Array, ""] | float, filters: Settings | None
) -> TokenStats:
    """`token_statistics` of what was read."""
    kernel_DV, of_model = model.unembed(params), output_of(model)
    if filters:
        del of_model["shards"]  # a filter looks at whole rows of the vocabulary, so each device has the whole kernel
        per_row = lambda hidden, targets, **whole: filtered_stats(hidden, targets=targets, **whole, **of_model)  # noqa: E731
        whole = {"kernel": kernel_DV, "filters": dict(filters), "temperature": temperature}
        stats = model.by_device(per_row)(found.before, found.token, **whole)
    else:
        stats = token_stats(found.before, kernel_DV, found.token, temperature=temperature, **of_model)
    return TokenStats(*map(found.placed, stats))


def output_of(model: Model) -> dict[str, Any]:
    """What `token_stats` has to know of a model's output layer."""
    config = model.config
    return {"vocab_size": config.vocab_size, "softcap": config.logit_softcap, "shards": config.vocab_shards}


def statistics(model: Model, params: Params, sides: Sequence[dict], packed: dict | None) -> list[TokenStats]:
    """`token_statistics` of each side [B T], all in one pass, whether there is a row for each text or `packed` ones.

    See `alignax.data.packing`: of a packed side there are statistics where its mask is, and zeros elsewhere.
    """
    if packed is None:
        both = stack(sides)
        return split(token_statistics(model, params, both["tokens"], both["valid"]), len(sides))
    stats = token_stats(
        packed_states(model, params, packed), model.unembed(params), packed["target"], **output_of(model)
    )
    return [jax.tree.map(lambda x, slot=side["slot"]: placed(x, slot), stats) for side in sides]


def scores(model: Model, params: Params, sides: Sequence[dict], packed: dict | None) -> list[Array]:
    """The scalar head at the last token of each side [B], in one pass; at each token of `slot` of packed sides."""
    if packed is None:
        both = stack(sides)
        return split(score(model, params, both["tokens"], both["valid"]), len(sides))
    scalar_GN = model.scalar(params, packed_states(model, params, packed))
    return [placed(scalar_GN, side["slot"]) for side in sides]


def packed_states(model: Model, params: Params, packed: dict) -> Float[Array, "G N D"]:
    """The hidden states that are read of packed rows, each group from its own rows."""
    rows = Layout(packed["document"], packed.get("branch"), packed["position"])
    hidden_RLD = model.apply(params, packed["tokens"], rows)
    hidden_GPD = hidden_RLD.reshape(len(packed["read"]), -1, hidden_RLD.shape[-1])
    return jnp.take_along_axis(hidden_GPD, packed["read"][..., None], axis=1)


def placed(read: Shaped[Array, "G N *A"], slot: Int[Array, "*B"]) -> Shaped[Array, "..."]:
    """What was read of packed rows, where the slots say; 0 where they say -1."""
    found = read.reshape(-1, *read.shape[2:])[jnp.maximum(slot, 0)]
    return jnp.where((slot >= 0).reshape(slot.shape + (1,) * (read.ndim - 2)), found, jnp.zeros((), read.dtype))


def demo(model: Model, params: Params, batch: dict) -> Demo:
    """A demonstration batch under the policy."""
    (stats,) = statistics(model, params, [batch], batch.get("packed"))
    return Demo(logp=stats.logp, mask=batch["mask"], entropy=stats.entropy, correct=stats.correct)


def distill(model: Model, params: Params, teacher_model: Model, teacher_params: Params, batch: dict) -> Distill:
    """Completions {tokens, valid, mask} [B T] under student and teacher: logits [B T V] of each, [:, t] about token t.

    The two may differ in architecture. The teacher gets no gradient. Raises ValueError if their vocabularies differ.
    """
    student, teacher = model.config.vocab_size, teacher_model.config.vocab_size
    require(
        student == teacher,
        f"distill: a student with {student} tokens, a teacher with {teacher}: expected one vocabulary",
    )
    return Distill(
        logits=logits(model, params, batch["tokens"], batch["valid"]),
        teacher_logits=jax.lax.stop_gradient(logits(teacher_model, teacher_params, batch["tokens"], batch["valid"])),
        mask=jnp.asarray(batch["mask"]).at[:, 0].set(False),
    )


def logits(model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
    """Logits of the whole vocabulary that predict each token, float32; 0 at position 0, which has no context."""
    hidden_BTD = model.apply(params, tokens, valid)[:, :-1]
    kernel_DV = model.unembed(params)[:, : model.config.vocab_size]  # without the padding of the vocabulary
    logits_BTV = output.logits(hidden_BTD, kernel_DV, softcap=model.config.logit_softcap)
    return jnp.pad(logits_BTV, ((0, 0), (1, 0), (0, 0)))


def pair(model: Model, params: Params, reference: Params, batch: dict) -> Pair:
    """A preference batch under the policy and under the reference; both sides go through the model in one pass."""
    packed = batch.get("packed")
    chosen, rejected = judged(model, params, reference, [batch["chosen"], batch["rejected"]], packed)
    return Pair(chosen=chosen, rejected=rejected)


def unpaired(model: Model, params: Params, reference: Params, batch: dict) -> Unpaired:
    """Single replies with their thumbs, and the replies of other rows after the same prompts.

    The latter are a constant and go through the model by themselves, so that a loss that does not look at them pays
    for neither pass.
    """
    return Unpaired(
        side=side(model, params, reference, batch["side"]),
        desirable=batch["desirable"],
        mismatched=side(model, jax.lax.stop_gradient(params), reference, batch["mismatched"]),
    )


def side(model: Model, params: Params, reference: Params, batch: dict) -> Side:
    """Replies under the policy and under the reference."""
    return judged(model, params, reference, [batch], batch.get("packed"))[0]


def judged(model: Model, params: Params, reference: Params, sides: Sequence[dict], packed: dict | None) -> list[Side]:
    """Sides under the policy and under the reference; where they bring `ref_logp`, no reference is run."""
    policy = statistics(model, params, sides, packed)
    if "ref_logp" in sides[0]:
        ref_logp = [one["ref_logp"] for one in sides]
    else:
        ref_logp = [stats.logp for stats in statistics(model, reference, sides, packed)]
    return [
        Side(logp=stats.logp, ref_logp=ref, mask=one["mask"], collision=stats.collision)
        for stats, ref, one in zip(policy, ref_logp, sides, strict=True)
    ]


def reference_logp(model: Model, reference: Params, batch: dict) -> dict[str, Float[Array, "B T"]]:
    """{side: its `ref_logp`} of a preference batch: what `judged` would compute, for a batch to bring.

    The sides of a pair share a pass as in `pair`: products of one shape give the same bits, where compilers allow.
    """
    out = {}
    for names in (names for names in PASSES if names[0] in batch):
        holder = batch if len(names) > 1 else batch[names[0]]
        stats = statistics(model, reference, [batch[name] for name in names], holder.get("packed"))
        out |= {name: one.logp for name, one in zip(names, stats, strict=True)}
    return out


def scored(model: Model, params: Params, batch: dict) -> Scored:
    """A preference batch with the reward model's score of each side, and what the annotator said of the pair."""
    chosen, rejected = scores(model, params, [batch["chosen"], batch["rejected"]], batch.get("packed"))
    judgement = {name: batch.get(name) for name in ("margin", "tie")}
    return Scored(chosen=chosen, rejected=rejected, mask=batch["chosen"]["mask"].any(1), **judgement)


def ranked(model: Model, params: Params, batch: dict) -> Ranked:
    """A batch of rankings with the score of each reply; all replies go through the model as one batch.

    A reply whose mask is empty fills up a shorter ranking: it is no reply.
    """
    replies, mask_BKT = batch["replies"], batch["replies"]["mask"]
    B, K, T = mask_BKT.shape
    flat = {name: x.reshape(B * K, *x.shape[2:]) for name, x in replies.items() if name != "packed"}
    (score_R,) = scores(model, params, [flat], replies.get("packed"))
    return Ranked(score=score_R.reshape(B, K), mask=mask_BKT.any(2))


def rated(model: Model, params: Params, batch: dict) -> Rated:
    """A batch of rated replies with the score of each attribute; the head is one of A attributes."""
    (score_BA,) = scores(model, params, [batch["reply"]], batch["reply"].get("packed"))
    return Rated(score=score_BA, target=batch["target"], mask=batch["given"])


def stepwise(model: Model, params: Params, batch: dict) -> Stepwise:
    """A batch of judged steps with the scalar head at every token; if packed, at the ends of steps only.

    No shift: a verdict on a step needs the step's last token, so it is read from the hidden state at that token, as a
    score is, and not from the one before, as log-probabilities and values are.
    """
    reply = batch["reply"]
    if "packed" in reply:
        (logit_BT,) = scores(model, params, [reply], reply["packed"])
    else:
        logit_BT = model.scalar(params, model.apply(params, reply["tokens"], reply["valid"]))
    return Stepwise(logit=logit_BT, target=batch["target"], mask=batch["step_end"])


def score(
    model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], *, start: int = 1,
    group: int = 1, room: int = 0,
) -> Float[Array, "B *A"]:  # noqa: F821  # fmt: skip
    """Scalar head at the last real token of each row, wherever the padding is; [B A] of a head of A attributes.

    With `start`, `group`, `room` (see `replies.read`) it is the last one of the reply, or of the prompt before an empty
    one.
    """
    return model.scalar(params, read(model, params, tokens, valid, start=start, group=group, room=room).last)


def verdicts(
    model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], *, start: int = 1,
    group: int = 1, room: int = 0,
) -> Float[Array, "B T"]:  # fmt: skip
    """Scalar head at each token of the reply, from `start` on; a process reward model's logits of its steps.

    No shift, as in `stepwise`: the state at a token is the one before the next, and that at the last token `score`'s.
    """
    found = read(model, params, tokens, valid, start=start, group=group, room=room)
    before_BT = found.placed(model.scalar(params, found.before))
    last_B = tokens.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    at_BT = jnp.pad(before_BT[:, 1:], ((0, 0), (0, 1)))
    is_last_BT = jnp.arange(tokens.shape[1])[None] == last_B[:, None]
    return jnp.where(is_last_BT, model.scalar(params, found.last)[:, None], at_BT)


def values(
    model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], *, start: int = 1,
    group: int = 1, room: int = 0,
) -> Float[Array, "B T"]:  # fmt: skip
    """Critic's value of the state before each token from `start` on: the scalar head one position earlier; else 0."""
    found = read(model, params, tokens, valid, start=start, group=group, room=room)
    return found.placed(model.scalar(params, found.before))


def policy_view(
    model: Model, params: Params, rollout: Rollout, *, temperature: Float[Array, ""] | float,
    filters: Settings | None = None, start: int = 1, group: int = 1, room: int = 0, valued: bool = False,
) -> Rollout:  # fmt: skip
    """The rollout with `logp` and `entropy` of the current policy, at the temperature and filters of its sampler.

    `valued`: and with the `value` of the scalar head on the same trunk, in the same pass.
    """
    found = read(model, params, rollout.tokens, rollout.valid, start=start, group=group, room=room)
    stats = statistics_of(model, params, found, temperature, filters)
    view = rollout.replace(logp=stats.logp, entropy=stats.entropy)
    return view.replace(value=found.placed(model.scalar(params, found.before))) if valued else view


def best_and_worst(view: Rollout, group: int) -> Pair:
    """The replies of highest and lowest advantage in each group of neighbours, as one pair per prompt.

    Both sides are masked where `view.mask` is: a group without any advantage makes a pair that counts for nothing.
    `reference_is_chosen` says whether the best reply is an opponent's, where there is one.
    """
    advantage_BT, logp_BT, ref_logp_BT = needs(view, "advantage", "logp", "ref_logp")
    advantage_PM = jnp.sum(advantage_BT, axis=1, where=view.mask).reshape(-1, group)
    first_P = jnp.arange(len(advantage_PM)) * group

    def picked(rows_P: Array) -> Side:
        return Side(logp=logp_BT[rows_P], ref_logp=ref_logp_BT[rows_P], mask=view.mask[rows_P])

    best_P = first_P + jnp.argmax(advantage_PM, axis=1)
    worst_P = first_P + jnp.argmin(advantage_PM, axis=1)
    by_reference_P = None if view.source is None else view.source[best_P] > 0
    return Pair(chosen=picked(best_P), rejected=picked(worst_P), reference_is_chosen=by_reference_P)


def stack(sides: Sequence[dict]) -> dict:
    """{tokens, valid} of all rows of the first side, then of the second."""
    return {name: jnp.concatenate([side[name] for side in sides]) for name in ("tokens", "valid")}


def split(rows: T, parts: int) -> list[T]:
    """The tree's leaves cut into equal parts along their first axis: the sides of what was stacked."""
    return [jax.tree.map(lambda x, i=i: jnp.split(x, parts)[i], rows) for i in range(parts)]
