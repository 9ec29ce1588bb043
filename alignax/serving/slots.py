"""A checkpoint in slots: what chat and serve have in common."""

import jax

from alignax.config import ConfigError
from alignax.sampling.sampler import sampler
from alignax.sampling.service import Service
from alignax.stages.playground import Policy, load

LENGTH = 2048  # tokens, unless the model reads less


def opened(checkpoint: str, *, slots: int, max_length: int) -> tuple[Policy, Service]:
    """A finished policy on one device, and its slots; `max_length` 0 is 2048, or the model's context if that is less.

    Raises ConfigError for a length that the model cannot read.
    """
    policy = load(checkpoint, jax.devices()[:1])
    context = policy.model.config.context
    length = max_length or (min(LENGTH, context) if context else LENGTH)
    if 0 < context < length:
        raise ConfigError(f"--max-length={length}: this model reads {context} tokens; expected at most {context}")
    own = sampler(policy.model, policy.tokenizer, policy.template, length)
    return policy, Service(own, policy.params, slots=slots, length=length)
