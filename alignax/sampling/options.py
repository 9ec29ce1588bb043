"""How a row is sampled: every setting is traced, and is one for all rows or one for each."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from alignax.ops.checks import Refused, between, require
from alignax.ops.filters import FILTERS, filtered
from alignax.sampling.stops import Stops
from alignax.types import Record, record

Real = float | Float[Array, ""] | Float[Array, " B"]
Whole = int | Int[Array, ""] | Int[Array, " B"]
# axes of a setting beside the rows: a bias has one number for each token, a prefix one token for each place
AXES = {"logit_bias": 1, "prefix": 1, "prefix_valid": 1}


@record
class Options(Record):
    """Settings of sampling. None is off and costs nothing; a number is traced: another one does not compile again.

    Each is a number for all rows, or an array [B] with one for each row. They act in this order: bias, penalties, the
    ban of an end before `min_new_tokens`, temperature, top-k, top-p, min-p. The log-probability of a token is that of
    the distribution which all of them leave, so a ratio to it compares like with like only where the learner scores
    under the same temperature and filters.
    """

    temperature: Real | None = 1.0  # 0 takes the most probable token, scored untempered
    top_k: Whole | None = None  # tokens; 0 or less: all
    top_p: Real | None = None  # mass in [0, 1]; 1: all
    min_p: Real | None = None  # share of the largest probability in [0, 1]; 0: all
    # l / p or l * p, towards less, of what stands in prompt or reply; 1: none (Keskar et al. 2019, 1909.05858, 4.1)
    repetition_penalty: Real | None = None
    presence_penalty: Real | None = None  # taken from the logit of what is in the reply
    frequency_penalty: Real | None = None  # taken once for each time that it is in the reply
    min_new_tokens: Whole | None = None  # no end of sequence before
    max_new_tokens: Whole | None = None  # at most the capacity
    logit_bias: Float[Array, " V"] | Float[Array, "B V"] | None = None  # added to the logits; -inf bans a token
    # what the reply begins with, padded on the right: read and counted as new tokens, but masked out, since nobody
    # chose it; an end of sequence in it ends nothing
    prefix: Int[Array, " F"] | Int[Array, "B F"] | None = None
    prefix_valid: Bool[Array, " F"] | Bool[Array, "B F"] | None = None
    stops: Stops | None = None  # texts that end a reply

    @property
    def counts(self) -> bool:
        """Whether a row has to know how often each token stands in its reply."""
        return self.presence_penalty is not None or self.frequency_penalty is not None or self.remembers

    @property
    def remembers(self) -> bool:
        """Whether a row has to know which tokens stand in its prompt."""
        return self.repetition_penalty is not None

    def of(self, rows: Int[Array, " N"]) -> "Options":
        """The settings of these rows; what is one for all stays so."""
        return self.replace(**{name: jnp.asarray(x)[rows] for name, x in self._by_row().items()})

    def _by_row(self) -> dict[str, Any]:
        """The settings that differ from row to row."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "stops"}
        return {name: x for name, x in found.items() if x is not None and jnp.ndim(x) > AXES.get(name, 0)}

    def split(self) -> tuple[dict[str, Any], "Options"]:
        """The settings that differ from row to row, by name, and those that are one for all."""
        rows = self._by_row()
        return rows, self.replace(**dict.fromkeys(rows))

    def check(self, rows: int, vocab_size: int) -> None:
        """Raises ValueError for a value that is out of range, naming the first row that has it, and for a wrong shape.

        Traced values pass: whoever traces a program checks its numbers before.
        """
        for name, (fits, expected) in RANGES.items():
            if (x := getattr(self, name)) is not None:
                require_each(x, fits, name, expected)
        for name, x in self._by_row().items():
            if x.shape[0] != rows:
                raise ValueError(f"{name} has {x.shape[0]} rows: expected one value for all, or {rows}, one for each")
        if self.logit_bias is not None and self.logit_bias.shape[-1] != vocab_size:
            raise ValueError(f"logit_bias has {self.logit_bias.shape[-1]} columns: expected {vocab_size}, the tokens")
        if known(self.logit_bias):
            check_bias(np.atleast_2d(np.asarray(self.logit_bias)))
        if known(self.min_new_tokens) and known(self.max_new_tokens):
            both = np.broadcast_arrays(np.asarray(self.min_new_tokens), np.asarray(self.max_new_tokens))
            for row in np.flatnonzero(both[0] > both[1])[:1]:
                least, most = (x.ravel()[row] for x in both)
                raise Refused(f"min_new_tokens = {least}, max_new_tokens = {most}, row {row}: expected as many or more")
        if self.prefix is not None and (self.prefix_valid is None or self.prefix_valid.shape != self.prefix.shape):
            raise ValueError(
                f"prefix has the shape {self.prefix.shape}, prefix_valid "
                f"{self.prefix_valid is not None and self.prefix_valid.shape}: expected one shape, with True where the "
                "prefix is"
            )
        if known(self.prefix) and known(self.prefix_valid):
            prefix, there = (np.atleast_2d(np.asarray(x)) for x in (self.prefix, self.prefix_valid))
            check_prefix(prefix, there, vocab_size)


# (whether a number fits, what is expected) by setting: here, and where a request is read before there are arrays
RANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "temperature": (between(0.0), "0 (the most probable token) or more, such as 1.0"),
    "top_p": (between(0.0, 1.0), "a mass in [0, 1], such as 0.95; 1 keeps all"),
    "min_p": (between(0.0, 1.0), "a share in [0, 1], such as 0.05; 0 keeps all"),
    "repetition_penalty": (between(float(np.nextafter(0, 1))), "more than 0, such as 1.1; 1 is none"),
    "presence_penalty": (np.isfinite, "a finite number, such as 0.5; 0 is none"),
    "frequency_penalty": (np.isfinite, "a finite number, such as 0.5; 0 is none"),
    "min_new_tokens": (between(0.0), "0 or more"),
    "max_new_tokens": (between(0.0), "0 or more"),
}


def known(x: Any) -> bool:
    """Whether a setting is there and no program is being traced of it."""
    return x is not None and not isinstance(x, Tracer)


def check_bias(bias_BV: np.ndarray) -> None:
    """Raises Refused for a bias that is nan or infinite upwards, and where it bans every token."""
    for row, token in np.argwhere(np.isnan(bias_BV) | (bias_BV == np.inf))[:1]:
        raise Refused(f"logit_bias of row {row} and token {token} = {bias_BV[row, token]}: expected a number, or -inf")
    for row in np.flatnonzero((bias_BV == -np.inf).all(axis=1))[:1]:
        raise Refused(f"logit_bias of row {row} bans all {bias_BV.shape[1]} tokens: expected one or more that are left")


def check_prefix(prefix_BF: np.ndarray, valid_BF: np.ndarray, vocab_size: int) -> None:
    """Raises Refused for a prefix that is not padded on the right, and for a token that is none."""
    for row in np.flatnonzero((valid_BF[:, 1:] & ~valid_BF[:, :-1]).any(axis=1))[:1]:
        raise Refused(f"prefix_valid of row {row} = {valid_BF[row].tolist()}: expected a prefix padded on the right")
    wrong = valid_BF & ((prefix_BF < 0) | (prefix_BF >= vocab_size)) if vocab_size else np.zeros_like(valid_BF)
    for row, place in np.argwhere(wrong)[:1]:
        raise Refused(f"prefix of row {row} has the token {prefix_BF[row, place]}: expected 0 to {vocab_size - 1}")


def require_each(x, fits, name: str, expected: str) -> None:
    """Raises ValueError where a number, or one of an array, is known and does not fit."""
    if isinstance(x, Tracer):
        return
    if jnp.ndim(x) == 0:
        require(fits(x), f"{name} = {x}: expected {expected}")
        return
    values = np.asarray(x)
    for row in np.flatnonzero(~np.asarray(fits(values)))[:1]:
        raise Refused(f"{name} of row {row} = {values[row]}: expected {expected}")


def shaped(
    logits_BV: Float[Array, "B V"],
    options: Options,
    t_B: Int[Array, " B"],
    eos_ids: Int[Array, " E"],
    said_BV: Int[Array, "B W"],
    read_BV: Bool[Array, "B X"],
) -> Float[Array, "B V"]:
    """The logits that a reply's token t is drawn from. `said`: how often each token is in the reply so far; `read`:
    whether it is in the prompt; of no columns where no setting asks."""
    column = lambda x: jnp.broadcast_to(x, t_B.shape)[:, None]  # noqa: E731
    if options.logit_bias is not None:
        logits_BV = logits_BV + jnp.broadcast_to(options.logit_bias, logits_BV.shape)
    if options.repetition_penalty is not None:
        factor_B1 = column(options.repetition_penalty)
        lower_BV = jnp.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
        logits_BV = jnp.where(read_BV | (said_BV > 0), lower_BV, logits_BV)
    if options.presence_penalty is not None:
        logits_BV = logits_BV - column(options.presence_penalty) * (said_BV > 0)
    if options.frequency_penalty is not None:
        logits_BV = logits_BV - column(options.frequency_penalty) * said_BV
    if options.min_new_tokens is not None:
        early_B1 = (t_B < options.min_new_tokens)[:, None]
        ends_V = jnp.zeros(logits_BV.shape[1], bool).at[eos_ids].set(True, mode="drop")
        logits_BV = jnp.where(early_B1 & ends_V[None], -jnp.inf, logits_BV)
    temperature_B1 = column(options.temperature)
    logits_BV = logits_BV / jnp.where(temperature_B1 > 0, temperature_B1, 1.0)
    return filtered(logits_BV, {name: getattr(options, name) for name in FILTERS})
