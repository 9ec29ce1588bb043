"""Slots for requests that arrive over time: a thin host queue around three programs that never compile again.

The programs are pure functions of one state, which is donated: `enter` reads a prompt into a slot, `again` gives one
more reply to a prompt that was just read, `advance` writes a few tokens of every live slot. Prompts are padded to a
power of two, on the right, so there is one `enter` for each such length; every setting is an array with a row for each
slot. A worker thread admits what waits, advances, and hands new tokens on. A reply's noise comes from its own seed and
place, so neither its slot nor its neighbours leave a trace in it.
"""

import collections
import copy
import queue
import secrets
import threading
from collections.abc import Callable, Generator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax.ops.checks import Refused, require
from alignax.sampling import slots as _slots
from alignax.sampling.programs import SEEDS, Ask, Said, buckets, check, programs, settings, weights_of
from alignax.sampling.sampler import Sampler
from alignax.sampling.stream import Growing, Until
from alignax.types import Params

REASONS = {_slots.END: "stop", _slots.STOP: "stop", _slots.LENGTH: "length"}


class Token(NamedTuple):
    """One token of a reply."""

    id: int
    logp: float  # under the model's own distribution, nats
    offset: int  # characters of the reply before it
    top: tuple[tuple[int, float], ...] = ()  # the most probable ones, if asked for


class Piece(NamedTuple):
    """What a reply says next. The last piece has a reason."""

    text: str
    tokens: tuple[Token, ...] = ()
    reason: str = ""  # "stop": an end of sequence or a stop text; "length"; "error"
    stop: str = ""  # the stop text, which is not in the text, or what the error was


class Writing:
    """A reply that waits or is being written; `abandon` frees its slot."""

    def __init__(self, ask: Ask, put: Callable[[Piece], Any], own: Sampler):
        self.ask, self.put, self.ends = ask, put, frozenset(own.ends)
        self.growing, self.until = Growing(own.tokenizer, own.before), Until(ask.stop)
        self.text, self.tokens, self.length = "", [], 0  # not handed on yet, but for the length
        self.stop, self.abandoned = "", False

    def abandon(self) -> None:
        """Nobody reads it any more."""
        self.abandoned = True

    def add(self, token: int, logp: float, top: tuple[tuple[int, float], ...], reason: str) -> str:
        """One more token, the last one if there is a reason. Returns why the reply is over, or ""."""
        self.tokens.append(Token(token, logp, self.length, top))
        piece = "" if token in self.ends else self.growing.add(token)
        piece += self.growing.rest() if reason else ""
        self.length += len(piece)
        heard = self.until.add(piece)
        self.stop = heard.stop
        self.text += heard.text + (self.until.rest() if reason and not self.stop else "")
        return "stop" if self.stop else reason

    def tell(self, reason: str) -> None:
        """Hands on what is new."""
        if (self.tokens or reason) and not self.abandoned:
            self.put(Piece(self.text, tuple(self.tokens), reason, self.stop))
        self.text, self.tokens = "", []


class Service:
    """Replies to requests as they come. `close` it, or use it as a context.

    Args:
      own: the policy's sampler; its capacity is not read.
      params: on one device.
      slots: replies that are written at once.
      length: tokens of a prompt with its reply, at most. A slot's cache is that long.

    Raises:
      ValueError: fewer than one slot, a length below 2, a cache that does not fit into memory.
    """

    def __init__(self, own: Sampler, params: Params, *, slots: int = 16, length: int = 2048):
        require(slots >= 1, f"slots = {slots}: expected 1 or more")
        require(length >= 2, f"max_length = {length} tokens: expected 2 or more, for a prompt and its reply")
        # the worker's own tokenizer: one that encodes in another thread cannot be read meanwhile
        self.own = own = own._replace(tokenizer=copy.deepcopy(own.tokenizer))
        self.length, self.buckets = length, buckets(length)
        self.vocab_size = own.model.config.vocab_size
        self.weights = weights_of(own, params)
        self._compile(slots)
        self.seats: list[Writing | None] = [None] * slots
        self.waiting: collections.deque[Writing] = collections.deque()
        self.changed, self.closed, self.failure = threading.Condition(), False, ""
        self.worker = threading.Thread(target=self._work, name="alignax-slots", daemon=True)
        self.worker.start()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stops the worker. Replies that are not over get no more pieces."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.worker.join()

    def submit(self, ask: Ask, put: Callable[[Piece], Any]) -> Writing:
        """Puts a request into the queue; the worker calls `put` with each piece of the reply. Raises ValueError for one
        that `programs.check` refuses, and RuntimeError where the worker has failed."""
        check(ask, self.length, self.vocab_size)
        ask = ask if ask.seed is not None else ask._replace(seed=secrets.randbelow(SEEDS))
        writing = Writing(ask, put, self.own)
        with self.changed:
            if self.closed:
                raise RuntimeError(self.failure or "the service is closed: make a new one")
            self.waiting.append(writing)
            self.changed.notify()
        return writing

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        """The pieces of a reply as they come; to close the iterator is to abandon the reply. Raises as `submit`, and
        RuntimeError if the worker fails meanwhile."""
        found: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        writing, reason = self.submit(ask, found.put), ""
        try:
            while not reason:
                piece = found.get()
                reason = piece.reason
                if reason == "error":
                    raise RuntimeError(piece.stop)
                yield piece
        finally:
            writing.abandon()

    # ---- programs

    def _compile(self, count: int) -> None:
        """Compiles every program for its only shapes, and makes the first state."""
        made, weights = programs(self.own, self.length), self.weights
        place, prompt = np.int32(0), lambda size: np.zeros((1, size), np.int32)
        ask = settings(Ask(ids=()), self.vocab_size)
        one = jax.eval_shape(made.first, weights, prompt(self.buckets[0]), np.int32(1), ask)
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), one)
        self.state = free(whole, f"slots = {count} of max_length = {self.length} tokens")
        traced = lambda f, *args: jax.jit(f, donate_argnums=0).lower(self.state, *args)  # noqa: E731
        reading = [traced(made.enter, weights, prompt(size), np.int32(1), place, ask) for size in self.buckets]
        writing = [traced(made.again, place, place, ask), traced(made.advance, weights, np.ones(count, bool))]
        with futures.ThreadPoolExecutor() as pool:  # the compiler lets other threads run
            self.again, self.advance, *enter = pool.map(lambda one: one.compile(), [*writing, *reading])
        self.enter = dict(zip(self.buckets, enter, strict=True))

    # ---- the worker

    def _work(self) -> None:
        try:
            while self._ready():
                self._admit()
                self._advance()
        except Exception as error:  # of the device, or of whoever was handed a piece: nothing goes on after it
            with self.changed:
                self.closed = True
                self.failure = f"the worker of the slots has failed ({type(error).__name__}: {error})"
                left, self.waiting = [*filter(None, self.seats), *self.waiting], collections.deque()
            for writing in left:
                writing.put(Piece("", (), "error", self.failure))
            raise

    def _ready(self) -> bool:
        """Waits until there is something to do; False if it is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.waiting or any(self.seats))
            return not self.closed

    def _admit(self) -> None:
        """Puts what waits into free slots. Replies to one prompt that begin together have it read once."""
        fresh: dict[tuple[int, ...], int] = {}
        for place, seat in enumerate(self.seats):
            if seat is not None:
                continue
            with self.changed:
                while self.waiting and self.waiting[0].abandoned:
                    self.waiting.popleft()
                if not self.waiting:
                    return
                writing = self.waiting.popleft()
                self.seats[place] = writing
            ids, ask = writing.ask.ids, settings(writing.ask, self.vocab_size)
            if ids in fresh:
                self.state = self.again(self.state, np.int32(fresh[ids]), np.int32(place), ask)
                continue
            size = next(size for size in self.buckets if size >= len(ids))
            tokens = np.zeros((1, size), np.int32)
            tokens[0, : len(ids)] = ids
            self.state = self.enter[size](self.state, self.weights, tokens, np.int32(len(ids)), np.int32(place), ask)
            fresh[ids] = place

    def _advance(self) -> None:
        """A few tokens of every slot whose reply somebody reads."""
        kept = np.array([seat is not None and not seat.abandoned for seat in self.seats])
        self.seats = [seat if keep else None for seat, keep in zip(self.seats, kept)]
        if not kept.any():
            return
        self.state, new = self.advance(self.state, self.weights, kept)
        said = jax.device_get(new)
        for place, seat in enumerate(self.seats):
            if seat is not None and self._hear(seat, place, said):
                self.seats[place] = None

    def _hear(self, seat: Writing, place: int, said: Said) -> str:
        """Hands on what a slot has said; why it is over, or ""."""
        spoken, reason = said.spoken, ""
        assert spoken.raw_logp is not None
        for k in np.flatnonzero(spoken.live[:, place]):
            over = REASONS[int(spoken.reason[k, place])] if spoken.over[k, place] else ""
            ids, logp = (x[k, place].tolist() if seat.ask.top else () for x in (said.top_id, said.top_logp))
            best = tuple(zip(ids, logp, strict=True))
            reason = seat.add(int(spoken.token[k, place]), float(spoken.raw_logp[k, place]), best, over)
            if reason:  # a stop text: what comes after it is not part of the reply
                break
        seat.tell(reason)
        return reason


def free(shapes: Any, what: str) -> Any:
    """A state of free slots. Raises Refused, naming `what`, where there is no memory for it."""
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) / 2**30
    try:
        return jax.block_until_ready(jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Refused(
            f"{what} take {held:.1f} GiB, more than there is: expected less; take fewer slots or a smaller max_length"
        ) from error
