"""A tiny policy with a tokenizer, and its service of slots: what the tests of chat and serve talk to."""

from tiny import tiny

from alignax.sampling.sampler import sampler
from alignax.sampling.service import Service
from alignax.stages.playground import Policy
from alignax.worlds.tokenizer import build_tokenizer


def policy_in(folder) -> Policy:
    """A policy of random weights, as if it lay in the folder."""
    tokenizer = build_tokenizer()
    return Policy(folder, *tiny(vocab_size=len(tokenizer), layers=1), tokenizer, "chat")


def service_of(policy: Policy, *, slots: int, length: int) -> Service:
    """Its service; to be closed."""
    own = sampler(policy.model, policy.tokenizer, policy.template, length)
    return Service(own, policy.params, slots=slots, length=length)
