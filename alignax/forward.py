"""Runs a model over a batch and fills a record with everything a loss may want; jit prunes what it does not use.

The only place that shifts: hidden state t-1 predicts token t and carries the value of the state before token t.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops import output
from alignax.ops.checks import needs, require
from alignax.ops.logprobs import TokenStats, token_stats
from alignax.types import Demo, Distill, Model, Pair, Params, Ranked, Rated, Rollout, Scored, Side, Stepwise, Unpaired


def token_statistics(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    start: int = 1,
) -> TokenStats:
    """Log-probability, entropy and correctness of tokens `start` to T-1, [B T]; positions before `start` hold zeros.

    `start` (static, at least 1) spares the output layer the positions that no loss looks at, a prompt for example.
    """
    hidden_BTD = model.apply(params, tokens, valid)
    stats = token_stats(
        hidden_BTD[:, start - 1 : -1],
        model.unembed(params),
        tokens[:, start:],
        temperature=temperature,
        vocab_size=model.config.vocab_size,
        softcap=model.config.logit_softcap,
        shards=model.config.vocab_shards,
    )
    return TokenStats(*(jnp.pad(x, ((0, 0), (start, 0))) for x in stats))


def demo(model: Model, params: Params, batch: dict) -> Demo:
    """A demonstration batch under the policy."""
    stats = token_statistics(model, params, batch["tokens"], batch["valid"])
    return Demo(logp=stats.logp, mask=batch["mask"], entropy=stats.entropy, correct=stats.correct)


def distill(model: Model, params: Params, teacher_model: Model, teacher_params: Params, batch: dict) -> Distill:
    """Completions {tokens, valid, mask} [B T] under student and teacher: logits [B T V] of each, [:, t] about token t.

    The two may differ in architecture. The teacher gets no gradient. Raises ValueError if their vocabularies differ.
    """
    own, theirs = model.config.vocab_size, teacher_model.config.vocab_size
    require(own == theirs, f"distill: a student with {own} tokens, a teacher with {theirs}: expected one vocabulary")
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
    """A preference batch under the policy and under the reference; both sides go through the model as one batch."""
    both = side(model, params, reference, stack(batch["chosen"], batch["rejected"]))
    B = batch["row"].shape[0]
    return Pair(chosen=jax.tree.map(lambda x: x[:B], both), rejected=jax.tree.map(lambda x: x[B:], both))


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
    """Replies under the policy and under the reference; where the batch brings `ref_logp`, no reference is run."""
    stats = token_statistics(model, params, batch["tokens"], batch["valid"])
    ref_logp = batch.get("ref_logp")
    if ref_logp is None:
        ref_logp = token_statistics(model, reference, batch["tokens"], batch["valid"]).logp
    return Side(logp=stats.logp, ref_logp=ref_logp, mask=batch["mask"], collision=stats.collision)


def reference_logp(model: Model, reference: Params, batch: dict) -> dict[str, Float[Array, "B T"]]:
    """{side: its `ref_logp`} of a preference batch: what `side` would compute, for a batch to bring.

    The sides of a pair are stacked as in `pair`: products of the same shapes give the same bits, where compilers allow.
    """
    if "chosen" in batch:
        both = reference_logp(model, reference, {"both": stack(batch["chosen"], batch["rejected"])})["both"]
        return {"chosen": both[: len(both) // 2], "rejected": both[len(both) // 2 :]}
    sides = {name: one for name, one in batch.items() if isinstance(one, dict)}
    return {name: token_statistics(model, reference, x["tokens"], x["valid"]).logp for name, x in sides.items()}


def scored(model: Model, params: Params, batch: dict) -> Scored:
    """A preference batch with the reward model's score of each side, and what the annotator said of the pair."""
    both = stack(batch["chosen"], batch["rejected"])
    score_2B = score(model, params, both["tokens"], both["valid"])
    B = batch["row"].shape[0]
    said = {name: batch.get(name) for name in ("margin", "tie")}
    return Scored(chosen=score_2B[:B], rejected=score_2B[B:], mask=batch["chosen"]["mask"].any(1), **said)


def ranked(model: Model, params: Params, batch: dict) -> Ranked:
    """A batch of rankings with the score of each reply; all replies go through the model as one batch.

    A reply whose mask is empty fills up a shorter ranking: it is no reply.
    """
    tokens_BKT, valid_BKT, mask_BKT = (batch["replies"][name] for name in ("tokens", "valid", "mask"))
    B, K, T = tokens_BKT.shape
    score_R = score(model, params, tokens_BKT.reshape(B * K, T), valid_BKT.reshape(B * K, T))
    return Ranked(score=score_R.reshape(B, K), mask=mask_BKT.any(2))


def rated(model: Model, params: Params, batch: dict) -> Rated:
    """A batch of rated replies with the score of each attribute; the head is one of A attributes."""
    score_BA = score(model, params, batch["reply"]["tokens"], batch["reply"]["valid"])
    return Rated(score=score_BA, target=batch["target"], mask=batch["given"])


def stepwise(model: Model, params: Params, batch: dict) -> Stepwise:
    """A batch of judged steps with the scalar head at every token.

    No shift: a verdict on a step needs the step's last token, so it is read from the hidden state at that token, as a
    score is, and not from the one before, as log-probabilities and values are.
    """
    logit_BT = model.scalar(params, model.apply(params, batch["reply"]["tokens"], batch["reply"]["valid"]))
    return Stepwise(logit=logit_BT, target=batch["target"], mask=batch["step_end"])


def score(model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B *A"]:
    """Scalar head at the last real token of each row, wherever the padding is; [B A] of a head of A attributes."""
    hidden_BTD = model.apply(params, tokens, valid)
    last_B = tokens.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    return model.scalar(params, jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0])


def values(model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Critic's value of the state before each token: the scalar head one position earlier; 0 at position 0."""
    value_BT = model.scalar(params, model.apply(params, tokens, valid)[:, :-1])
    return jnp.pad(value_BT, ((0, 0), (1, 0)))


def policy_view(
    model: Model, params: Params, rollout: Rollout, *, temperature: Float[Array, ""] | float, start: int
) -> Rollout:
    """The rollout with `logp` and `entropy` of the current policy, at the temperature it was sampled with."""
    stats = token_statistics(model, params, rollout.tokens, rollout.valid, temperature=temperature, start=start)
    return rollout.replace(logp=stats.logp, entropy=stats.entropy)


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
    by_reference_P = None if view.opponent is None else view.opponent[best_P]
    return Pair(chosen=picked(best_P), rejected=picked(worst_P), reference_is_chosen=by_reference_P)


def stack(first: dict, second: dict) -> dict:
    """The rows of one batch, then those of the other."""
    return {name: jnp.concatenate([first[name], second[name]]) for name in first}
