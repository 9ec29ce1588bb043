"""A probe: what a policy does on held-out prompts, with its gold and proxy rewards and its KL to the reference."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import host, sharding
from alignax.bound import Args, Bound, fill, of_config, plan_record, static
from alignax.config import ConfigError, Reader
from alignax.data.loader import eval_batches
from alignax.evals.policy import Measured, make_judge, make_measure
from alignax.evals.texts import PHRASES, self_bleu, shares
from alignax.ops.checks import Scalar
from alignax.rewards import config as rewards
from alignax.rewards.text import total_reward
from alignax.sampling.sampler import Sampler, sampler
from alignax.stages import episodes, inputs, lengths, parents, partner, plans
from alignax.stages.folder import Stage
from alignax.stages.programs import last_turn
from alignax.types import Model, Params

# roles of a stage with one
READS = {"proxy": plans.Parent("probe.reward_from", makes=plans.REWARD, reads=("probe.",))} | partner.OF_PROBE


def get_config() -> ConfigDict:
    """Every key of a probe, with its default and unit. Without a source nothing is probed."""
    c = ConfigDict()
    plans.add_prompts(c, "")  # without a source there is no probe
    # the split of the source that is read; "heldout": what its `heldout_percent`, or a set's own split, holds out
    c.split = "train"
    c.batch_size = 64  # prompts sampled at once
    episodes.add_keys(c)  # an environment that the policy talks with
    # the gold reward: module:function of (row, completion, *, finished) -> number or parts with a total. "": that of
    # the environment, if there is one
    c.reward = ""
    c.reward_args = ConfigDict()
    c.reward_from = ""  # folder of a finished reward model: the proxy reward
    c.reward_weights = ConfigDict()  # of its attributes, where it rates several; 1 each where nothing is said
    c.repeats = 1  # further replies to the first batch of prompts, for how alike the replies to one prompt are
    c.phrases = ConfigDict(PHRASES)  # kind = phrases: the share of replies that hold one of them
    return c


@plan_record
class Plan:
    """What is probed, and how."""

    source: plans.Source
    template: str = static()
    max_prompt_length: int = static()
    max_new_tokens: int = static()
    slots: int = static()
    temperature: Scalar
    split: str = static()
    batch_size: int = static()
    env: episodes.Plan | None
    gold: Bound | None  # (row, completion, *, finished) -> number, parts or None
    reward_weights: Args = static()
    repeats: int = static()
    phrases: Args = static()
    key: str = static()


def plan(r: Reader, template: str) -> Plan | None:
    """The probe of a config; None where it has no source. Raises ConfigError for what does not fit."""
    plans.sampling(r)
    check_phrases(r)
    source, gold = plans.source(r, drawn=False, required=False), of_config(r, "reward", given=("finished",))
    rewards.model(r)
    r.one_of("split", ("train", "heldout"))
    _ = r.reward_from  # open_stage finds the folder
    env = episodes.plan(r)
    if env:
        r.require(r.slots == 0, "slots", "expected 0 with an env: all replies of a batch are written side by side")
    if source is None:
        r.items()  # the others are what a probe would have
        return None
    key = r.key("reward_weights")
    return fill(Plan, r, source=source, env=env, gold=gold, template=template, key=key)


def check_phrases(r: Reader) -> None:
    """Kinds of phrases are lists of texts. Raises ConfigError."""
    r.require(r.repeats >= 0, "repeats", "expected a number of further replies, or 0 for none")
    for kind, phrases in r.phrases.items():
        if not isinstance(phrases, list) or not phrases or not all(isinstance(x, str) and x.strip() for x in phrases):
            raise ConfigError(f"config.{r.key(f'phrases.{kind}')} = {phrases!r}: expected phrases, ('it depends', ...)")


def batches(plan: Plan | None) -> dict[str, int]:
    """The sizes that have to divide over the devices, by their keys."""
    return {"probe.batch_size": plan.batch_size} | episodes.batches(plan.env, "probe.") if plan else {}


class Probe(NamedTuple):
    """Prompts and the function that runs a policy on them."""

    prompts: list[dict]  # text rows
    # (policy, reference) -> one dict per prompt, in their order; "gold" is None where the reply could not be scored
    measure: Callable[[Params, Params], list[dict]]
    look: Callable[[Params, Params, list[dict]], dict[str, float]]  # how its texts are, those it measured and some more

    def summary(self, params: Params, reference: Params) -> dict[str, float]:
        """Means over the prompts, and how the texts are, under the names of the log's "eval" rows."""
        rows = self.measure(params, reference)
        return means(rows) | {f"eval/{name}": value for name, value in self.look(params, reference, rows).items()}


def build(
    stage: Stage, plan: Plan | None, model: Model, tokenizer: Any, mesh: Mesh,
    proxy: tuple[Model, Params] | None = None, bases: dict[str, Params] | None = None,
) -> Probe | None:  # fmt: skip
    """The probe of a plan, or None where it has none. `proxy` is a reward model that the stage has loaded already;
    `bases`: see `parents.load_model`."""
    if plan is None:
        return None
    key = jax.random.key(stage.plan.seed)  # the same noise at every step and for every policy
    encode = episodes.readings(plan.env, plan.template, plan.max_prompt_length)
    prompts, _, rows = inputs.encoded(plan, encode, tokenizer, plan.split, stage.root)
    if "proxy" in stage.parents:
        options = {"key": plan.key, "bases": bases}
        proxy = parents.load_reward(stage, "proxy", plan.reward_weights, tokenizer, mesh, **options)
    reward_model, reward_params = proxy or (None, None)
    sizes = plan.batch_size, 1, plan.max_prompt_length, plan.max_new_tokens
    lengths.check_slots(model, plan.slots, *sizes, key="probe.slots")
    own = sampler(model, tokenizer, plan.template, plan.max_new_tokens, plan.slots)
    temperature = jnp.float32(plan.temperature)
    asked = [rows[i] for i in prompts["row"]]
    table = None
    if plan.env:
        asks = episodes.asked_by(stage, "probe_partner", plan.env, tokenizer, plan.template, mesh)
        options = {"template": plan.template, "longest": plan.max_prompt_length, "rows": rows, "asks": asks}
        table = episodes.Table(plan.env, own, tokenizer, group=1, **options)
    run = episodes.measured(table, jax.jit(make_judge(own, reward_model))) if table else alone(own, reward_model)

    def measure(params: Params, reference: Params) -> list[dict]:
        out = []
        for batch in eval_batches(prompts, plan.batch_size, **host.share()):
            put = sharding.put_batch(batch, mesh)
            found, more = run(params, reference, reward_params, put, key, temperature)
            got, ids = host.everywhere((found, put["row"]))
            mask = last_turn(got.rollout.mask, got.rollout.valid)
            for i, completion in enumerate(own.texts_of(got.rollout.tokens, mask)):
                if ids[i] < 0:
                    continue
                done = bool(got.rollout.finished[i])
                entry = {"completion": completion, "finished": done, "length": int(got.rollout.mask[i].sum())}
                entry |= {name: float(x[i]) for name, x in more.items()}
                entry |= {"kl": float(got.kl[i])}
                if got.proxy is not None:
                    entry["proxy"] = float(got.proxy[i])
                out.append(entry)
        if (gold := plan.gold) is None:
            return [entry | paid(entry) for entry in out]
        said = host.of_first(lambda: [gold_of(gold, *one) for one in zip(asked, out, strict=True)])
        return [entry | more for entry, more in zip(out, said, strict=True)]

    def look(params: Params, reference: Params, measured: list[dict]) -> dict[str, float]:
        texts = [row["completion"] for row in measured]
        first = sharding.put_batch(next(eval_batches(prompts, plan.batch_size, **host.share())), mesh)
        again = lambda i: run(params, reference, reward_params, first, jax.random.fold_in(key, i), temperature)[0]  # noqa: E731
        repeats = 0 if plan.env else plan.repeats  # no environment is played for this alone
        drawn = [host.everywhere(again(i + 1).rollout) for i in range(repeats)]
        further = [own.texts_of(one.tokens, last_turn(one.mask, one.valid)) for one in drawn]
        return of_texts(texts, list(zip(texts, *further)), plan.phrases)

    return Probe(asked, measure, look)


def alone(own: Sampler, reward_model: Model | None) -> Callable[..., tuple[Measured, dict]]:
    """A measure of replies of one turn, of which there is nothing more to be said."""
    run = make_measure(own, reward_model)
    return lambda *given: (run(*given), {})


def paid(entry: dict) -> dict[str, Any]:
    """The reward of the environment as the gold one; {} where there was none."""
    if "env/reward" not in entry:
        return {}
    gold = entry["env/reward"]
    return {"gold": None if math.isnan(gold) else gold, "parts": {}}


def gold_of(reward: Callable, row: dict, reply: dict) -> dict[str, Any]:
    """The gold reward of a reply to a prompt, None where it has none, and its parts."""
    found = total_reward(reward, row, reply["completion"], reply["finished"], missing=True)
    parts = {name: part for name, part in found.items() if not math.isnan(part)}
    return {"gold": parts.pop("total", None), "parts": parts}


def of_texts(texts: list[str], to_one_prompt: list[tuple[str, ...]], phrases: Args) -> dict[str, float]:
    """How alike the replies are, to different prompts and to one, and how many hold a phrase of each kind."""
    known = [bleu for replies in to_one_prompt if not math.isnan(bleu := self_bleu(replies))]
    out = {"self_bleu": self_bleu(texts), "self_bleu_in_prompt": float(np.mean(known)) if known else math.nan}
    out |= {f"phrases/{kind}": share for kind, share in shares(texts, phrases).items()}
    return {name: value for name, value in out.items() if not math.isnan(value)}


def counted(rows: list[dict]) -> dict[str, float]:
    """Means of what an environment counts; an episode that says nothing of it has 0."""
    names = dict.fromkeys(name for row in rows for name in row if "/" in name)
    return {name: float(np.mean([row.get(name, 0.0) for row in rows])) for name in names}


def means(rows: list[dict]) -> dict[str, float]:
    """Means over the prompts, under the names of the log's "eval" rows; of the gold reward over those that have one."""
    mean = lambda name, of=rows: float(np.mean([row[name] for row in of]))  # noqa: E731
    out = {"eval/kl": mean("kl"), "eval/mean_length": mean("length"), "eval/eos_rate": mean("finished")}
    scored = [row for row in rows if row.get("gold") is not None]
    out |= {"eval/gold_reward": mean("gold", scored)} if scored else {}
    out |= {f"eval/{name}": value for name, value in counted(rows).items()}
    return out | ({"eval/proxy_reward": mean("proxy")} if "proxy" in rows[0] else {})
