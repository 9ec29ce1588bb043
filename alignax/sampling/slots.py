"""Slots: as many rows as are decoded at once. Admit replies into them, advance all by a token, keep what they say.

All three are pure and of fixed shapes. Every array of a slot, its cache included, begins with the slots: to move a
reply is to index. What replies say is written by the row of the request, so neither the slot nor its neighbours leave a
trace in it; a row's noise comes from its own key and place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops import output
from alignax.sampling.choose import choose, entropy, noise
from alignax.sampling.options import Options, shaped
from alignax.types import Model, Params

UNFINISHED, LENGTH, END, STOP = -1, 0, 1, 2  # why a reply is over: not yet; its limit, an end of sequence, a stop text
LEAST = 16  # slots, and new tokens, that are not worth a smaller program
MOST = 4  # smaller programs: each is compiled
WIDTH = 64  # tokens that are read at once at most where layers have a window: their ring has room for these beside it


class Job(NamedTuple):
    """What is asked for: replies to P prompts, `group` to each, R = P * group rows."""

    model: Model
    params: Params
    layers: Params  # the same, unstacked
    kernel: Float[Array, "D V"]  # without the padding of the vocabulary
    tokens: Int[Array, "P L"]
    valid: Bool[Array, "P L"]
    keys: Array  # [R], the data of keys
    group: int
    capacity: int
    ends: Int[Array, " E"]
    options: Options
    limit: Int[Array, " R"]  # of new tokens
    report: tuple[str, ...]
    begun: "Said | None" = None  # what the replies have said before
    enough: int = 0  # prompts: when all replies to so many are over, the others are left as they are; 0: all prompts


class Slots(NamedTuple):
    """N replies that are being written."""

    cache: Any  # of a reply alone where its prompt is among the `prompts`
    prompts: Any  # keys and values of all P prompts, each of which its replies share; None: each reply has its own
    hidden: Float[Array, "N D"]  # after the last token
    row: Int[Array, " N"]  # of the request
    t: Int[Array, " N"]  # tokens so far
    live: Bool[Array, " N"]  # more are to come; the others are free
    key: Array
    said: Int[Array, "N V"]  # how often each token is in the reply; of no columns where no setting asks
    read: Bool[Array, "N V"]  # whether it is in the prompt
    stop: Int[Array, " N"]  # state of the automaton of stop texts


class Said(NamedTuple):
    """The replies so far, by row."""

    tokens: Int[Array, "R C"]
    logp: Float[Array, "R C"]
    mask: Bool[Array, "R C"]  # chosen by the policy
    valid: Bool[Array, "R C"]  # there: chosen, or given as a prefix
    reason: Int[Array, " R"]  # UNFINISHED until it is over
    raw_logp: Float[Array, "R C"] | None = None
    entropy: Float[Array, "R C"] | None = None


class Spoken(NamedTuple):
    """One token of each of N slots."""

    token: Int[Array, " N"]
    logp: Float[Array, " N"]
    row: Int[Array, " N"]
    t: Int[Array, " N"]  # tokens before it
    live: Bool[Array, " N"]  # it was one of a reply
    given: Bool[Array, " N"]  # by a prefix
    over: Bool[Array, " N"]  # it is the last
    reason: Int[Array, " N"]  # why, if it is
    raw_logp: Float[Array, " N"] | None = None
    entropy: Float[Array, " N"] | None = None


def nothing(job: Job, pad_id: Array | int) -> Said:
    """No reply yet."""
    shape = job.limit.shape[0], job.capacity
    zeros = lambda dtype: jnp.zeros(shape, dtype)  # noqa: E731
    more = {name: zeros(jnp.float32) for name in job.report}
    tokens = jnp.full(shape, pad_id, jnp.int32)
    reason = jnp.where(job.limit > 0, UNFINISHED, LENGTH).astype(jnp.int32)
    return Said(tokens, zeros(jnp.float32), zeros(bool), zeros(bool), reason, **more)


def admit(job: Job, first: Array | int, count: int, prompts: Any = None) -> Slots:
    """The replies to `count` prompts from the `first` on, before their next token. A prompt is read once for all of
    its replies, and stands in the cache once if it is put among the `prompts`."""
    tokens, valid = (jax.lax.dynamic_slice_in_dim(x, first, count) for x in (job.tokens, job.valid))
    each = lambda x: jnp.repeat(x, job.group, axis=0)  # noqa: E731
    if prompts is None:
        cache = job.model.init_cache(count, tokens.shape[1] + job.capacity)
        hidden, cache = job.model.prefill(job.params, tokens, valid, cache)
        cache = jax.tree.map(each, cache)
    else:
        empty = job.model.init_cache(count, tokens.shape[1], job.capacity)
        hidden, read = job.model.prefill(job.params, tokens, valid, empty)
        put = lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, first, 0)  # noqa: E731
        prompts = jax.tree.map(put, prompts, {name: read[name] for name in prompts})
        cache = job.model.init_cache(count * job.group, job.capacity, tokens.shape[1])
        cache |= {"position": each(read["position"])}
    row = first * job.group + jnp.arange(count * job.group)
    V = job.kernel.shape[1]
    said = jnp.zeros((len(row), V if job.options.counts else 0), jnp.int32)
    at = jnp.where(valid, tokens, V)
    read = jnp.zeros((count, V if job.options.remembers else 0), bool)
    read = each(read.at[jnp.arange(count)[:, None], at].set(True, mode="drop"))
    memory = {"said": said, "read": read, "stop": jnp.zeros(len(row), jnp.int32)}
    state = {"row": row, "t": jnp.zeros(len(row), jnp.int32), "live": job.limit[row] > 0, "key": job.keys[row]}
    last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1])[None], 0), axis=1)  # a prompt may be padded on any side
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    slots = Slots(cache=cache, prompts=prompts, hidden=each(hidden), **state, **memory)
    return slots if job.begun is None else behind(job, slots, job.begun)


def behind(job: Job, slots: Slots, begun: Said) -> Slots:
    """The slots behind what their replies have said, which is read again: the weights may be others by now."""
    of, pad = jax.tree.map(lambda x: x[slots.row], begun), -job.capacity % min(WIDTH, job.capacity)
    goes_on = of.reason == UNFINISHED
    ids, valid = (jnp.pad(x, ((0, 0), (0, pad))) for x in (of.tokens, of.valid & goes_on[:, None]))
    width = min(WIDTH, job.capacity)

    def part(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        i, slots = carry
        here = (jax.lax.dynamic_slice_in_dim(x, i * width, width, 1) for x in (ids, valid))
        return i + 1, read(job, slots, *here)

    longest = valid.sum(1).max()
    _, slots = jax.lax.while_loop(lambda carry: carry[0] * width < longest, part, (jnp.int32(0), slots))
    if job.options.counts:
        rows = jnp.arange(len(ids))[:, None]
        slots = slots._replace(said=slots.said.at[rows, ids].add(valid.astype(jnp.int32), mode="drop"))
    if (stops := job.options.stops) is not None:
        after = lambda stop, at: (jnp.where(at[1], stops.after(stop, at[0]), stop), None)  # noqa: E731
        slots = slots._replace(stop=jax.lax.scan(after, slots.stop, (ids.T, valid.T))[0])
    return slots._replace(live=goes_on & (slots.t < job.limit[slots.row]))


def read(job: Job, slots: Slots, ids: Int[Array, "N C"], valid: Bool[Array, "N C"]) -> Slots:
    """The slots behind more tokens, padded on the right; one without any stays as it is."""
    hidden_NCD, cache = job.model.extend(job.layers, ids, valid, context(job, slots))
    count = valid.sum(1, dtype=jnp.int32)
    last = jnp.take_along_axis(hidden_NCD, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    hidden = jnp.where((count > 0)[:, None], last, slots.hidden)
    return slots._replace(cache=cache, hidden=hidden, t=slots.t + count)


def room_for_prompts(job: Job) -> Any:
    """Where the keys and values of all prompts go."""
    empty = job.model.init_cache(*job.tokens.shape, job.capacity)
    return {name: empty[name] for name in ("k", "v", "at")}


def moved(slots: Slots, f: Callable[[Array], Array]) -> Slots:
    """The slots with every array that they have replaced; the prompts stay where they are."""
    return jax.tree.map(f, slots._replace(prompts=None))._replace(prompts=slots.prompts)


def context(job: Job, slots: Slots) -> Any:
    """The cache with the prompts that it has not itself."""
    if slots.prompts is None:
        return slots.cache
    shape, N = (len(job.tokens), job.group), len(slots.row)
    row = jnp.full(shape[0] * shape[1], N, jnp.int32).at[slots.row].set(jnp.arange(N, dtype=jnp.int32))
    return slots.cache | {"shared": slots.prompts | {"row": row.reshape(shape), "place": slots.row}}


def apart(job: Job, slots: Slots) -> Slots:
    """Each slot with its prompt in its own cache."""
    if slots.prompts is None:
        return slots
    assert job.model.join is not None
    return slots._replace(cache=job.model.join(slots.prompts, slots.row // job.group, slots.cache), prompts=None)


def spoken(job: Job, slots: Slots) -> tuple[Slots, Spoken]:
    """One more token of every live slot, and what each says; of a slot that is not live it means nothing."""
    options, softcap = job.options.of(slots.row), job.model.config.logit_softcap
    logits = whole(output.logits(slots.hidden, job.kernel, softcap=softcap))
    final = shaped(logits, options, slots.t, job.ends, slots.said, slots.read)
    greedy = jnp.broadcast_to(jnp.asarray(options.temperature) <= 0, slots.t.shape)
    token, logp = choose(final, noise(jax.random.wrap_key_data(slots.key), slots.t), greedy)
    given = jnp.zeros(slots.t.shape, bool)
    if options.prefix is not None and options.prefix_valid is not None:
        place = jnp.minimum(slots.t, options.prefix.shape[-1] - 1)
        at = lambda x: x[place] if x.ndim == 1 else jnp.take_along_axis(x, place[:, None], axis=1)[:, 0]  # noqa: E731
        given = at(options.prefix_valid) & (slots.t < options.prefix.shape[-1])
        token = jnp.where(given, at(options.prefix), token)
    more = {"raw_logp": lambda: log_probability(logits, token), "entropy": lambda: entropy(final)}
    reports = {name: more[name]() for name in job.report}
    # ---- is it over
    ended, spelled, t = (token[:, None] == job.ends[None]).any(1) & ~given, jnp.zeros(token.shape, bool), slots.t + 1
    if options.stops is not None:
        stop = options.stops.after(slots.stop, token)
        slots, spelled = slots._replace(stop=stop), stop == options.stops.hit
    over = ended | spelled | (t >= job.limit[slots.row])
    reason = jnp.where(ended, END, jnp.where(spelled, STOP, LENGTH))
    new = Spoken(token, logp, slots.row, slots.t, slots.live, given, over, reason, **reports)
    slots = slots._replace(said=slots.said.at[jnp.arange(len(token)), token].add(1, mode="drop"))
    hidden, cache = job.model.extend(job.layers, token[:, None], slots.live[:, None], context(job, slots))
    t = jnp.where(slots.live, t, slots.t)  # what is free may yet go on, from where it is
    return slots._replace(cache=cache, hidden=hidden[:, 0], t=t, live=slots.live & ~over), new


def whole(x: Array) -> Array:
    """The array on each of the devices that share a row, where some do: choosing is then no matter of the others."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    shared = jax.sharding.AxisType.Manual in kinds and jax.sharding.AxisType.Auto in kinds
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec()) if shared else x


def advance(job: Job, slots: Slots, said: Said) -> tuple[Slots, Said]:
    """One more token of every live slot, written down."""
    slots, new = spoken(job, slots)
    values = {"tokens": new.token, "logp": new.logp, "mask": ~new.given, "valid": jnp.ones_like(new.given)}
    values |= {name: getattr(new, name) for name in job.report}
    # what is free, or was given, says nothing: it is written to a row that is not there
    row = jnp.where(new.live, new.row, len(job.limit))
    chosen = jnp.where(new.given, len(job.limit), row)

    def put(name: str, x: Array) -> Array:
        where = row if name in ("tokens", "valid") else chosen
        return getattr(said, name).at[where, new.t].set(x, mode="drop")

    reason = said.reason.at[jnp.where(new.over, row, len(job.limit))].set(new.reason, mode="drop")
    return slots, said._replace(reason=reason, **{name: put(name, x) for name, x in values.items()})


def log_probability(logits: Float[Array, "N V"], token: Int[Array, " N"]) -> Float[Array, " N"]:
    """log softmax(logits) at the token."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1)[:, 0]


def play(job: Job, slots: Slots, said: Said, floor: int) -> tuple[Slots, Said]:
    """Advances until no more than `floor` slots are live, or enough is said."""
    more = lambda carry: (carry[0].live.sum() > floor) & wanting(job, carry[1])  # noqa: E731
    return jax.lax.while_loop(more, lambda carry: advance(job, *carry), (slots, said))


def wanting(job: Job, said: Said) -> Array | bool:
    """Whether there are not yet enough prompts all of whose replies are over."""
    return answered(said.reason, job.group).sum() < job.enough if job.enough else True


def answered(reason: Int[Array, " R"], group: int) -> Bool[Array, " P"]:
    """Whether all replies to a prompt are over."""
    return (reason.reshape(-1, group) != UNFINISHED).all(1)


def refilled(job: Job, slots: Slots, said: Said, first: int, portion: int) -> tuple[Slots, Said]:
    """Plays until the prompts from the `first` on are admitted too, `portion` at a time, as soon as slots are free."""
    P, N, free = job.tokens.shape[0], slots.t.shape[0], portion * job.group

    def one(carry):
        slots, said, first = carry
        slots, said = play(job, slots, said, N - free)
        new = admit(job, jnp.minimum(first, P - portion), portion, slots.prompts)
        # the last portion may be smaller: rows that were admitted before go nowhere
        place = jnp.where(new.row >= first * job.group, jnp.argsort(slots.live, stable=True)[:free], N)
        put = lambda old, x: old.at[place].set(x, mode="drop")  # noqa: E731
        slots = jax.tree.map(put, slots._replace(prompts=None), new._replace(prompts=None))
        return slots._replace(prompts=new.prompts), said, first + portion

    more = lambda carry: (carry[2] < P) & wanting(job, carry[1])  # noqa: E731
    slots, said, _ = jax.lax.while_loop(more, one, (slots, said, jnp.int32(first)))
    return slots, said


def drained(job: Job, slots: Slots, said: Said, sizes: tuple[int, ...]) -> Said:
    """Plays to the end, in fewer slots as soon as the live ones fit into them."""
    for size in sizes:
        slots, said = play(job, slots, said, size)
        order = jnp.argsort(~slots.live, stable=True)[:size]
        slots = moved(slots, lambda x, order=order: x[order])
        if size <= len(job.tokens):  # no more replies than prompts: there is nothing left to share
            slots = apart(job, slots)
    return play(job, slots, said, 0)[1]


def halves(slots: int, capacity: int) -> tuple[int, ...]:
    """The numbers of slots to shrink to: each half of the one before, while that is worth a program of its own."""
    sizes = []
    while slots // 2 >= LEAST and len(sizes) < min(MOST, capacity // (2 * LEAST)):
        slots //= 2
        sizes.append(slots)
    return tuple(sizes)
