"""Beam search: the replies that a policy finds most probable, as far as `beams` of them at once can tell."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops import output
from alignax.ops.checks import Scalar, require
from alignax.sampling.sample import check_prompts, rollout_of
from alignax.sampling.slots import END, LENGTH, Said
from alignax.types import Model, Params, Rollout

EARLY = (False, True, "never")


class Found(NamedTuple):
    """The best replies to each prompt, the best first; rows of one prompt are neighbours."""

    rollout: Rollout  # R = P * n rows; `old_logp` is the model's own. A reply that was not found has an empty mask
    score: Float[Array, " R"]  # log p(reply) / length^length_penalty; -inf: not found


class Paths(NamedTuple):
    """W replies to each of P prompts: those that are being written, or those that are over."""

    tokens: Int[Array, "P W C"]
    logp: Float[Array, "P W C"]  # of each token, nats; 0 behind the reply
    score: Float[Array, "P W"]  # what they are ordered by, in falling order; -inf: there is none
    length: Int[Array, "P W"]
    ended: Bool[Array, "P W"]  # by an end of sequence

    def pick(self, place_PN: Int[Array, "P N"]) -> "Paths":
        """Those at these places, of each prompt."""
        take = lambda x: jnp.take_along_axis(x, place_PN.reshape(*place_PN.shape, *(1,) * (x.ndim - 2)), axis=1)  # noqa: E731
        return Paths(*map(take, self))

    def best(self, W: int) -> tuple["Paths", Int[Array, "P W"]]:
        """The W best of each prompt, and their places."""
        _, place_PW = jax.lax.top_k(self.score, W)
        return self.pick(place_PW), place_PW


def beam(
    model: Model,
    params: Params,
    tokens: Int[Array, "P L"],
    valid: Bool[Array, "P L"],
    *,
    beams: int,
    capacity: int,
    eos_ids: Int[Array, " E"],
    pad_id: Int[Array, ""] | int,
    n: int = 1,
    length_penalty: Scalar = 1.0,
    early_stopping: bool | str = False,
) -> Found:
    """The `n` replies to each prompt of the highest score among those that a search of `beams` comes by.

        score(y) = sum_t log p(y_t) / |y|^length_penalty,    |y|: its tokens, the end of sequence among them

    In every step each of W = `beams` replies is continued by every token, and the best of all continuations are kept:
    those among the best W that are over, by an end or by the capacity, join the finished ones, of which the W of the
    highest score stay; the best W that are not over are continued. This is `generate` of transformers 5 with
    `num_beams`, prompt by prompt: a search that is done waits for the others, and is not changed by them. One beam is
    greedy decoding; so many that nothing is left out are an exhaustive search.

    All shapes are fixed: it can be jitted, and every argument but `beams`, `capacity`, `n` and `early_stopping` traced.

    Args:
      tokens, valid: prompts padded on the left.
      beams: replies that are continued at once, W. The cache has P * W rows, which every step moves.
      capacity: room for new tokens.
      eos_ids: every id that ends a sequence.
      pad_id: fills the rest.
      n: replies to each prompt that are returned, up to `beams`.
      length_penalty: 0 compares log-probabilities, which favours short replies; 1 their means; more favours long ones.
      early_stopping: when a search is over, once there are W finished replies. True: at once. False: when the best one
        that is being written has, at its length, no higher score than the worst finished one; a guess for a positive
        penalty, as a longer reply may still come to a higher one. "never": when it would have none at the capacity, all
        its further tokens certain; where the penalty is 0 or positive nothing better than that is left behind.

    Returns:
      Found, with T = L + capacity.

    Raises:
      ValueError: beams, capacity or n out of range, an unknown `early_stopping`, prompts without one [P, L] shape.
    """
    require(beams >= 1, f"beam: beams = {beams}: expected 1 (greedy) or more")
    require(1 <= n <= beams, f"beam: n = {n}: expected 1 to beams = {beams} replies; search with more beams")
    require(capacity >= 1, f"beam: capacity = {capacity}: expected room for 1 token or more")
    require(early_stopping in EARLY, f"beam: early_stopping = {early_stopping!r}: expected False, True or 'never'")
    check_prompts(tokens, valid)

    def search(tokens, valid, *, params, ends, pad_id, penalty):
        """The finished replies to the prompts that one device has."""
        P, (layers, kernel) = len(tokens), (model.unstack(params), model.unembed(params)[:, : model.config.vocab_size])
        cache = model.init_cache(P, tokens.shape[1] + capacity)
        hidden, cache = model.prefill(params, tokens, valid, cache)
        each = lambda x: jnp.repeat(x, beams, axis=0)  # noqa: E731
        none = empty(P, beams, capacity, pad_id)
        # one reply to begin with: equal ones would stay equal
        first = none._replace(score=none.score.at[:, 0].set(0.0))

        def step(carry: tuple) -> tuple:
            t, hidden, cache, writing, done, open_P = carry
            logits = output.logits(hidden, kernel, softcap=model.config.logit_softcap)
            found, beam_PN = continued(writing, jax.nn.log_softmax(logits, axis=-1), t, ends)
            over_PN = found.ended | (t + 1 >= capacity)
            done = finished(done, found, over_PN & open_P[:, None], penalty)
            writing, place_PW = found._replace(score=jnp.where(over_PN, -jnp.inf, found.score)).best(beams)
            row_R = (jnp.arange(P)[:, None] * beams + jnp.take_along_axis(beam_PN, place_PW, axis=1)).reshape(-1)
            cache = jax.tree.map(lambda x: x[row_R], cache)
            token_R1 = writing.tokens[:, :, t].reshape(-1, 1)
            hidden, cache = model.extend(layers, token_R1, jnp.ones(token_R1.shape, bool), cache)
            open_P = open_P & improvable(writing, done, t + 1, capacity, penalty, early_stopping)
            return t + 1, hidden[:, 0], cache, writing, done, open_P

        start = jnp.int32(0), each(hidden[:, -1]), jax.tree.map(each, cache), first, none, jnp.ones(P, bool)
        return jax.lax.while_loop(lambda carry: (carry[0] < capacity) & carry[5].any(), step, start)[4]

    whole: dict[str, Any] = {"params": params, "ends": jnp.asarray(eos_ids), "pad_id": jnp.asarray(pad_id)}
    done = model.by_rows(search)(tokens, valid, penalty=jnp.asarray(length_penalty, jnp.float32), **whole)
    return found_of(tokens, valid, Paths(*(x[:, :n] for x in done)))


def empty(P: int, W: int, C: int, pad_id: Array) -> Paths:
    """No reply."""
    tokens, nothing = jnp.broadcast_to(pad_id.astype(jnp.int32), (P, W, C)), jnp.full((P, W), -jnp.inf)
    return Paths(tokens, jnp.zeros((P, W, C)), nothing, jnp.zeros((P, W), jnp.int32), jnp.zeros((P, W), bool))


def continued(
    writing: Paths, logp_RV: Float[Array, "R V"], t: Int[Array, ""], ends: Int[Array, " E"]
) -> tuple[Paths, Int[Array, "P N"]]:
    """The best continuations by token t, and of which beam each is. So many that W of them are no end."""
    P, W = writing.score.shape
    V = logp_RV.shape[1]
    total_PWV = writing.score[:, :, None] + logp_RV.reshape(P, W, V)
    total_PN, place_PN = jax.lax.top_k(total_PWV.reshape(P, -1), min(W * max(2, 1 + len(ends)), W * V))
    beam_PN, token_PN = place_PN // V, place_PN % V
    own_PN = jnp.take_along_axis(logp_RV.reshape(P, -1), place_PN, axis=1)
    found = writing.pick(beam_PN)
    return found._replace(
        tokens=found.tokens.at[:, :, t].set(token_PN),
        logp=found.logp.at[:, :, t].set(own_PN),
        score=total_PN,
        length=found.length + 1,
        ended=(token_PN[:, :, None] == ends[None, None]).any(2),
    ), beam_PN


def finished(done: Paths, found: Paths, over_PN: Bool[Array, "P N"], penalty: Float[Array, ""]) -> Paths:
    """The best of the finished replies and of those continuations that are over and among the best W."""
    W = done.score.shape[1]
    score_PN = found.score / found.length.astype(jnp.float32) ** penalty
    score_PN = jnp.where(over_PN & (jnp.arange(score_PN.shape[1]) < W)[None], score_PN, -jnp.inf)
    both = [jnp.concatenate(x, axis=1) for x in zip(done, found._replace(score=score_PN), strict=True)]
    return Paths(*both).best(W)[0]


def improvable(
    writing: Paths, done: Paths, t: Array, capacity: int, penalty: Float[Array, ""], early_stopping: bool | str
) -> Bool[Array, " P"]:
    """Whether the search goes on, by prompt: see `beam`. No finished reply is worse than any."""
    length = jnp.where(penalty > 0, capacity, t) if early_stopping == "never" else t
    worst_P = done.score[:, -1]
    better_P = writing.score[:, 0] / length.astype(jnp.float32) ** penalty > worst_P
    return better_P & jnp.isneginf(worst_P) if early_stopping is True else better_P


def found_of(tokens: Int[Array, "P L"], valid: Bool[Array, "P L"], done: Paths) -> Found:
    """The replies behind their prompts."""
    P, n, C = done.tokens.shape
    flat = Paths(*(x.reshape(P * n, *x.shape[2:]) for x in done))
    there_R = jnp.isfinite(flat.score)
    mask_RC = (jnp.arange(C)[None] < flat.length[:, None]) & there_R[:, None]
    reason_R = jnp.where(flat.ended & there_R, END, LENGTH)
    said = Said(flat.tokens, jnp.where(mask_RC, flat.logp, 0.0), mask_RC, mask_RC, reason_R)
    return Found(rollout_of(tokens, valid, said), flat.score)
