"""A second policy, which an environment asks: what a config says of it, and what answers."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import sharding
from alignax.bound import fill, plan_record, static
from alignax.config import Reader
from alignax.data.arrays import pad
from alignax.data.counts import DataError
from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import Tokenizer
from alignax.envs.protocol import Partner
from alignax.ops.checks import Scalar
from alignax.sampling.options import Options
from alignax.sampling.sample import check_context, row_keys
from alignax.sampling.sampler import sampler
from alignax.stages import parents, plans
from alignax.stages.folder import Stage

KEY = "env_partner"
# roles of a stage that may have an environment, and of a probe
READS = {"partner": plans.Parent(f"{KEY}.init_from", reads=())}
OF_PROBE = {"probe_partner": plans.Parent(f"probe.{KEY}.init_from", reads=())}


def get_config() -> ConfigDict:
    """Every key of a partner, with its default and unit. Without a folder there is none."""
    c = ConfigDict()
    c.init_from = ""  # folder of a finished policy of the same tokenizer and template
    c.max_prompt_length = 64  # tokens; a longer question is an error
    c.max_new_tokens = 16  # of an answer
    c.temperature = 0.0  # 0: the most probable answer; above it one is drawn, by the question
    c.batch_size = 64  # questions answered at once
    return c


@plan_record
class Plan:
    """How a partner is asked."""

    max_prompt_length: int = static()
    max_new_tokens: int = static()
    temperature: Scalar
    batch_size: int = static()


def plan(r: Reader) -> Plan | None:
    """The partner of a config; None where it names no folder. Raises ConfigError for what does not fit."""
    if not r.init_from:
        r.items()  # the others are what a partner would have
        return None
    for name in ("max_prompt_length", "max_new_tokens", "batch_size"):
        r.require(getattr(r, name) >= 1, name, "expected a whole number of 1 or more")
    r.require(r.temperature >= 0, "temperature", "expected 0 or more")
    return fill(Plan, r)


def load(stage: Stage, role: str, plan: Plan, tokenizer: Tokenizer, template: str, mesh: Mesh) -> Partner:
    """What answers questions by the policy in the folder of a role, many at once."""
    model, params, _ = parents.load_model(stage, role, tokenizer, mesh)
    check_context(
        getattr(model.config, "context", 0), plan.max_prompt_length, plan.max_new_tokens, f"{KEY}.max_new_tokens"
    )
    own, options = sampler(model, tokenizer, template, plan.max_new_tokens), Options(temperature=plan.temperature)
    answer = jax.jit(lambda params, tokens, valid, keys: own.reply(params, tokens, valid, keys, options))
    key, width = jax.random.key(stage.plan.seed), plan.max_prompt_length

    def ids_of(question: str) -> list[int]:
        ids = encode_prompt(tokenizer, question, template)
        if len(ids) > width:
            raise DataError(
                f"the question {question[:80]!r} has {len(ids)} tokens: expected at most "
                f"{KEY}.max_prompt_length = {width}; raise it"
            )
        return ids

    def partner(questions: Sequence[str]) -> list[str]:
        out: list[str] = []
        for first in range(0, len(questions), plan.batch_size):
            asked = list(questions[first : first + plan.batch_size])
            rows = asked + asked[:1] * (plan.batch_size - len(asked))  # one shape, and one program
            tokens, valid = pad([ids_of(question) for question in rows], width, own.pad, left=True)
            noise = np.array([zlib.crc32(question.encode()) & 0x7FFFFFFF for question in rows], np.int32)
            put = sharding.put_batch({"tokens": tokens, "valid": valid}, mesh)
            rollout = answer(params, put["tokens"], put["valid"], row_keys(key, jnp.asarray(noise)))
            out += own.texts(rollout)[: len(asked)]
        return out

    return partner
