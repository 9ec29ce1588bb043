"""A policy's sampler: its model, and all that has to be known to sample text from it and to read what it wrote."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from alignax.data.boundary import lead
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import pad_id
from alignax.ops.checks import Scalar
from alignax.sampling.beam import beam
from alignax.sampling.memory import slots_for
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.types import Model, Params, Rollout


class Sampler(NamedTuple):
    """What the replies of one model are sampled with. `sampler` makes it for a tokenizer and a template."""

    model: Model
    capacity: int  # room for new tokens
    ends: tuple[int, ...]  # every id that ends a reply
    pad: int
    tokenizer: Any = None  # for `texts` alone
    before: tuple[int, ...] = ()  # ids that a reply is decoded behind (`data.boundary.lead`)
    slots: int = 0  # replies that are written at once, about; 0: all that the memory holds

    def reply(
        self, params: Params, tokens: Array, valid: Array, keys: Array, options: Options | None = None, *,
        model: Model | None = None, group: int = 1, report: tuple[str, ...] = (), begun: Rollout | None = None,
        enough: int = 0,
    ) -> Rollout:  # fmt: skip
        """`group` replies to each prompt, by one key each; by another `model` than its own if that is given. Pure.

        `begun`, `enough`: replies that go on, and when the others are left for later: `sample`.
        """
        fixed = {"capacity": self.capacity, "eos_ids": jnp.asarray(self.ends, jnp.int32), "pad_id": self.pad}
        model, sizes = model or self.model, (len(keys), group, tokens.shape[1], self.capacity, self.slots)
        fixed |= {"options": options, "group": group, "slots": slots_for(model, *sizes), "report": report}
        fixed |= {"begun": begun, "enough": enough}
        return sample(model, params, tokens, valid, keys, **fixed)

    def search(self, params: Params, tokens: Array, valid: Array, *, beams: int, n: int = 1) -> Rollout:
        """The `n` best replies to each prompt that a search of `beams` comes by; one that it did not find is empty."""
        fixed = {"capacity": self.capacity, "eos_ids": jnp.asarray(self.ends, jnp.int32), "pad_id": self.pad}
        return beam(self.model, params, tokens, valid, beams=beams, n=n, **fixed).rollout

    def draw(self, params: Params, prompts: dict, key: Array, *, temperature: Scalar = 1.0, group: int = 1) -> Rollout:
        """`group` replies to each prompt of a batch: reply j of a row has the noise of number group * row + j under the
        `key`."""
        numbers = jnp.repeat(group * prompts["row"], group) + jnp.tile(jnp.arange(group), len(prompts["row"]))
        options = Options(temperature=temperature)
        given = prompts["tokens"], prompts["valid"], row_keys(key, numbers), options
        return self.reply(params, *given, group=group)

    def texts(self, rollout: Rollout) -> list[str]:
        """The replies as text."""
        return self.texts_of(np.asarray(rollout.tokens), np.asarray(rollout.mask))

    def texts_of(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """The replies of rows on the host as text: what the mask leaves of their tokens."""
        return texts(self.tokenizer, tokens, mask, self.ends, self.before)


def sampler(model: Model, tokenizer: Any, template: str, capacity: int, slots: int = 0) -> Sampler:
    """The sampler of a model under a tokenizer and a template, which say what ends a reply."""
    ends, before = sorted(stop_ids(tokenizer, template)), lead(tokenizer, template)
    return Sampler(model, capacity, tuple(ends), pad_id(tokenizer), tokenizer, tuple(before), slots)


def texts(
    tokenizer: Any, tokens: Int[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"], eos_ids: Sequence[int],
    lead: Sequence[int] = (),
) -> list[str]:  # fmt: skip
    """The completions, without prompt, padding and end of sequence; `lead`: ids to decode them behind, without these.

    Some tokenizers take the space away that a text begins with, and a completion goes on another.
    """
    drop = set(eos_ids)
    rows = [[int(t) for t in row[keep] if int(t) not in drop] for row, keep in zip(tokens, mask)]
    as_it_stands = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(lead, **as_it_stands) if lead else ""
    decoded = tokenizer.batch_decode([[*lead, *row] for row in rows], **as_it_stands)
    return [text.removeprefix(before) for text in decoded]
