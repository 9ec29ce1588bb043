"""A second policy, which an environment asks: what a config says of it, and what answers."""

import threading
import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import sharding
from alignax.bound import fill, plan_record, refusals, static
from alignax.config import ConfigError, Reader, plain
from alignax.data.arrays import pad
from alignax.data.boundary import Ids
from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import Tokenizer
from alignax.envs.observed import Observer
from alignax.envs.protocol import Partner
from alignax.ops.checks import Scalar
from alignax.sampling.sample import check_context
from alignax.sampling.sampler import sampler
from alignax.stages import parents, plans
from alignax.stages.folder import Stage

KEY = "env_partner"
NOTHING = "?"  # what is asked where a question has no words
# roles of a stage that may have an environment, and of a probe
READS = {"partner": plans.Parent(f"{KEY}.init_from", reads=())}
OF_PROBE = {"probe_partner": plans.Parent(f"probe.{KEY}.init_from", reads=())}


def get_config() -> ConfigDict:
    """Every key of a partner, with its default and unit. Without a folder there is none."""
    c = ConfigDict()
    c.init_from = ""  # folder of a finished policy of the same tokenizer and template
    c.max_prompt_length = 64  # tokens of a question, with what the template puts around it; a longer one is cut
    c.max_new_tokens = 16  # of an answer
    c.temperature = 0.0  # 0: the most probable answer; above it one is drawn, the same for the same question
    c.batch_size = 64  # questions answered at once
    return c


@plan_record
class Plan:
    """How a partner is asked."""

    max_prompt_length: int = static()
    max_new_tokens: int = static()
    temperature: Scalar
    batch_size: int = static()
    key: str = static()  # of its group in the config


def plan(r: Reader) -> Plan | None:
    """The partner of a config; None where it names no folder. Raises ConfigError for what does not fit."""
    if not r.init_from:
        plans.unset(r, plain(get_config()), "init_from")
        return None
    for name in ("max_prompt_length", "max_new_tokens", "batch_size"):
        r.require(getattr(r, name) >= 1, name, "expected a whole number of 1 or more")
    r.require(r.temperature >= 0, "temperature", "expected 0 or more")
    return fill(Plan, r, key=r.key(""))


def load(stage: Stage, role: str, plan: Plan, tokenizer: Tokenizer, template: str, mesh: Mesh) -> Partner:
    """What answers questions by the policy in the folder of a role, many at once. A question is cleaned and cut as an
    observation is. Raises ConfigError where the template leaves no room for one, or the model's context none for both.
    """
    model, params, _ = parents.load_model(stage, role, tokenizer, mesh)
    with refusals(f"{plan.key}max_new_tokens"):
        check_context(
            getattr(model.config, "context", 0), plan.max_prompt_length, plan.max_new_tokens, "max_new_tokens"
        )
    own, key = sampler(model, tokenizer, template, plan.max_new_tokens), jax.random.key(stage.plan.seed)
    answer = jax.jit(lambda params, batch: own.draw(params, batch, key, temperature=plan.temperature))
    room = plan.max_prompt_length - len(encode_prompt(tokenizer, NOTHING, template))
    if room < 1:
        raise ConfigError(
            f"config.{plan.key}max_prompt_length = {plan.max_prompt_length}: the template alone takes "
            f"{plan.max_prompt_length - room}; expected more"
        )
    observer, one_by_one = Observer(tokenizer, template, room), threading.Lock()

    def ids_of(question: str) -> Ids:
        left, ids = room, None
        while ids is None or len(ids) > plan.max_prompt_length:  # a cut text may be read as a token more
            text, _ = observer.short(observer.harmless(question), left)
            ids, left = encode_prompt(tokenizer, text if text.strip() else NOTHING, template), left - 1
        return ids

    def answered(questions: list[str]) -> list[str]:
        filled = lambda found: [*found, *found[:1] * (plan.batch_size - len(found))]  # noqa: E731 - one shape, one program
        tokens, valid = pad(filled([*map(ids_of, questions)]), plan.max_prompt_length, own.pad, left=True)
        noise = filled([zlib.crc32(question.encode()) & 0x7FFFFFFF for question in questions])
        put = sharding.put_batch({"tokens": tokens, "valid": valid, "row": np.array(noise, np.int32)}, mesh)
        return own.texts(answer(params, put))[: len(questions)]

    def partner(questions: Sequence[str]) -> list[str]:
        each, said = list(dict.fromkeys(questions)), {}
        with one_by_one:  # environments may ask from several threads
            for first in range(0, len(each), plan.batch_size):
                asked = each[first : first + plan.batch_size]
                said |= zip(asked, answered(asked), strict=True)
        return [said[question] for question in questions]

    partner([NOTHING])  # compiles it, before there are time limits
    return partner
