"""The functional sampler: prompts and keys in, a Rollout out, under jit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Int

from alignax.ops.checks import require
from alignax.sampling import slots as _slots
from alignax.sampling.memory import sharing
from alignax.sampling.options import Options
from alignax.types import Model, Params, Rollout

REPORTS = ("raw_logp", "entropy")


def row_keys(key: Array, rows: Int[Array, " B"]) -> Array:
    """One key per row from its id, 0 or more: its noise depends neither on its place nor on the size of the batch.

    A row that comes again in the *global* batch draws anew: its key also has how often it came before.
    """

    def one(row: Array, before: Array) -> Array:
        other = jax.random.fold_in(key, jnp.uint32(0) - before.astype(jnp.uint32))  # 2^32 - n is no id: nobody's key
        return jnp.where(before > 0, jax.random.fold_in(other, row), jax.random.fold_in(key, row))

    return jax.vmap(one)(rows, occurrences(rows))


def occurrences(rows: Int[Array, " B"]) -> Int[Array, " B"]:
    """How often each row's id stands before it."""
    order_B = jnp.argsort(rows, stable=True)
    sorted_B = rows[order_B]
    before_B = jnp.arange(rows.shape[0]) - jnp.searchsorted(sorted_B, sorted_B)  # place in a run of equal ids
    return jnp.zeros_like(before_B).at[order_B].set(before_B)


def sample(
    model: Model,
    params: Params,
    tokens: Int[Array, "P L"],
    valid: Bool[Array, "P L"],
    keys: Array,
    *,
    capacity: int,
    eos_ids: Int[Array, " E"],
    pad_id: Int[Array, ""] | int,
    options: Options | None = None,
    group: int = 1,
    slots: int = 0,
    report: tuple[str, ...] = (),
    begun: Rollout | None = None,
    enough: int = 0,
) -> Rollout:
    """Replies to left-padded prompts, each written token by token until an end or its limit.

    A reply is the same whatever stands beside it: in all slots at once, in few that are filled again as they become
    free, alone.

    Args:
      model, params: the policy.
      tokens, valid: prompts padded on the left.
      keys: one per reply, R = P * group; see `row_keys`. The replies to a prompt are neighbours.
      capacity: room for new tokens, in tokens; static, as are `group`, `slots` and `report`: a new value compiles
        again. Everything else is traced.
      eos_ids: every id that ends a sequence; the first one sampled is kept and masked in.
      pad_id: fills the rest; may equal an end-of-sequence id, since masks come from lengths.
      options: temperature, filters, penalties, limits: `Options`. `old_logp` is under the distribution that they leave.
      group: replies to each prompt, which is read once for all of them.
      slots: replies that are written at once, a multiple of `group`; 0: all. Fewer take less memory, and their cache
        is never larger than they are.
      report: "raw_logp", under the model's own distribution, and "entropy", of the one that was sampled from.
      begun: what this function gave for the same prompts before: replies that are not over go on where they are, each
        as it would have gone on at once, but for weights and options that are others now.
      enough: prompts; once all replies to so many are over, the others stay as they are, UNFINISHED. 0: all prompts.
        Of several devices each has its share of them.

    Returns:
      Rollout with T = L + capacity: tokens, valid, mask, old_logp, finished, reason, and what `report` asks for.

    Raises:
      ValueError: shapes that do not fit, an option that is out of range, more slots than replies or no multiple of
        `group`, more prompts that are enough than there are.
    """
    P = len(tokens)
    R, options = P * group, options or Options()
    require(group >= 1, f"group = {group}: expected 1 reply to each prompt or more")
    require(capacity >= 1, f"capacity = {capacity}: expected room for 1 token or more")
    for name in set(report) - set(REPORTS):
        raise ValueError(f"report has {name!r}: expected some of {', '.join(REPORTS)}")
    check_prompts(tokens, valid)
    if not isinstance(valid, Tracer):
        longest = int(np.asarray(valid).sum(1).max())
        check_context(getattr(model.config, "context", 0), longest, capacity, "capacity")
    if len(keys) != R:
        raise ValueError(f"{len(keys)} keys for {P} prompts of {group} replies each: expected {R}, one for each reply")
    N = slots or R
    if not 0 < N <= R or N % group:
        raise ValueError(f"slots = {slots}: expected a multiple of group = {group} up to {R}, the replies; 0 is all")
    vocab_size = model.config.vocab_size
    options.check(R, vocab_size)
    require(0 <= enough <= P, f"enough = {enough}: expected 0 (all) or a number of prompts, up to {P}")
    before = None if begun is None else said_of(begun, R, tokens.shape[1], capacity, report)
    data = jax.random.key_data(keys)
    limit = jnp.minimum(capacity if options.max_new_tokens is None else options.max_new_tokens, capacity)

    def written(tokens, valid, data, limit, by_row, before, *, params, options, ends, pad_id):
        """The replies to the prompts that one device has."""
        order = None if before is None else queue(before, group)
        if order is not None:
            tokens, valid = by_group((tokens, valid), order)
            data, limit, by_row, before = by_group((data, limit, by_row, before), order, group)
        layers, kernel = model.unstack(params), model.unembed(params)[:, :vocab_size]
        options = options.replace(**by_row)
        first = max(1, N * len(tokens) // R)  # prompts that begin: of one device its share
        job = _slots.Job(
            model, params, layers, kernel, tokens, valid, data, group, capacity, ends, options, limit, report, before,
            -(-enough * len(tokens) // P),
        )  # fmt: skip
        said = _slots.nothing(job, pad_id) if before is None else said_before(before, limit, pad_id)
        shares = model.join is not None and sharing(len(tokens), len(tokens) * group, first * group)
        prompts = _slots.room_for_prompts(job) if shares else None
        state = _slots.admit(job, 0, first, prompts)
        if first < len(tokens):
            state, said = _slots.refilled(job, state, said, first, max(1, first // 8))
        said = _slots.drained(job, state, said, _slots.halves(first * group, capacity))
        return said if order is None else by_group(said, jnp.argsort(order), group)

    by_row, for_all = options.split()
    whole = {"params": model.cast(params), "options": for_all, "ends": jnp.asarray(eos_ids), "pad_id": pad_id}
    limit = jnp.broadcast_to(limit, (R,)).astype(jnp.int32)
    said = model.by_rows(written)(tokens, valid, data, limit, by_row, before, **whole)
    return rollout_of(tokens, valid, said)


def said_before(said: _slots.Said, limit: Int[Array, " R"], pad_id: Int[Array, ""] | int) -> _slots.Said:
    """What was said, with the padding of today; what is as long as its limit allows by now is over."""
    long = (said.reason == _slots.UNFINISHED) & (said.valid.sum(1) >= limit)
    reason = jnp.where(long, _slots.LENGTH, said.reason)
    return said._replace(tokens=jnp.where(said.valid, said.tokens, pad_id), reason=reason)


def queue(begun: _slots.Said, group: int) -> Int[Array, " P"]:
    """The order in which prompts get slots: those whose replies go on, new ones, and last those that need none."""
    written = begun.valid.reshape(-1, group * begun.valid.shape[1]).any(1)
    return jnp.argsort(jnp.where(_slots.answered(begun.reason, group), 2, jnp.where(written, 0, 1)), stable=True)


def by_group(tree: Any, order: Int[Array, " P"], group: int = 1) -> Any:
    """The rows of a tree by this order of their groups, which are neighbours."""
    return jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:])[order].reshape(x.shape), tree)


def said_of(rollout: Rollout, replies: int, prompt: int, capacity: int, report: tuple[str, ...]) -> _slots.Said:
    """What a rollout of `sample` says behind prompts of that length. Raises ValueError for one of other shapes."""
    want, reason = (replies, prompt + capacity), rollout.reason
    if rollout.tokens.shape != want or reason is None:
        raise ValueError(
            f"begun has the shape {rollout.tokens.shape}{'' if reason is not None else ' and no reason'}: expected "
            f"{want}, what was sampled for these prompts and this capacity"
        )
    for name in report:
        require(getattr(rollout, name) is not None, f"begun has no {name}: it was sampled without; report it always")
    more = {name: getattr(rollout, name)[:, prompt:] for name in report}
    tokens, logp, mask, valid = (x[:, prompt:] for x in (rollout.tokens, rollout.old_logp, rollout.mask, rollout.valid))
    return _slots.Said(tokens, logp, mask, valid, reason, **more)


def check_context(context: int, prompt: int, reply: int, name: str) -> None:
    """Raises Refused for a prompt that, with a whole reply, is longer than the model reads; a `context` of 0 has no
    end. `name`: what the reply's length is called."""
    require(
        not 0 < context < prompt + reply,
        f"a prompt and {name} = {reply} make {prompt + reply} tokens: this model reads at most {context}; lower {name}",
    )


def check_prompts(tokens: Int[Array, "P L"], valid: Bool[Array, "P L"]) -> None:
    """Raises ValueError unless there are prompts, and a word on each of their tokens whether it is there."""
    if tokens.shape != valid.shape or 0 in tokens.shape:
        raise ValueError(f"prompts {tokens.shape} and their validity {valid.shape} must be one non-empty [P, L] shape")
    for row in () if isinstance(valid, Tracer) else np.flatnonzero(~np.asarray(valid).any(axis=1))[:1]:
        raise ValueError(f"prompt {row} has no token: expected one or more in each")


def rollout_of(tokens: Int[Array, "P L"], valid: Bool[Array, "P L"], said: _slots.Said) -> Rollout:
    """The replies behind their prompts; those to one prompt are neighbours."""
    group = len(said.tokens) // len(tokens)
    each = lambda x, rest: jnp.concatenate([jnp.repeat(x, group, axis=0), rest], axis=1)  # noqa: E731
    behind = lambda x: each(jnp.zeros(valid.shape, x.dtype), x)  # noqa: E731
    return Rollout(
        tokens=each(tokens, said.tokens),
        valid=each(valid, said.valid),
        mask=behind(said.mask),
        old_logp=behind(said.logp),
        finished=said.reason > _slots.LENGTH,
        reason=said.reason,
        raw_logp=None if said.raw_logp is None else behind(said.raw_logp),
        entropy=None if said.entropy is None else behind(said.entropy),
    )
