"""A probe: what a policy does on held-out prompts, with its gold and proxy rewards and its KL to the reference."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import sharding
from alignax.config import ConfigError, Reader, bind, resolve, suggest, typed
from alignax.data.boundary import lead
from alignax.data.encode import prompt_rows
from alignax.data.loader import eval_batches
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import pad_id
from alignax.evals.policy import make_measure, texts, total_reward
from alignax.manifest import read_manifest
from alignax.models.heads import weighted
from alignax.stages import common, inputs, parents
from alignax.types import Model, Params


def get_config() -> ConfigDict:
    """Every key of a probe, with its default and unit. Without a source nothing is probed."""
    c = ConfigDict()
    c.source = ""  # prompts: function of alignax.data.sources, or module:function; "" for no probe
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.temperature = 1.0
    c.batch_size = 64  # prompts sampled at once
    c.reward = ""  # the gold reward: module:function of (row, completion, *, finished) -> number or parts with a total
    c.reward_args = ConfigDict()
    c.reward_from = ""  # folder of a finished reward model: the proxy reward
    c.reward_weights = ConfigDict()  # of its attributes, where it rates several; 1 each where nothing is said
    return c


class Probe(NamedTuple):
    """Prompts and the function that runs a policy on them."""

    prompts: list[dict]  # text rows
    # (policy, reference) -> one dict per prompt, in their order; "gold" is None where the reply could not be scored
    measure: Callable[[Params, Params], list[dict]]


def build(
    stage: common.Stage, cfg: Reader, model: Model, tokenizer: Any, template: str, mesh: Mesh, root: Path | None,
    reward: tuple[Model, Params] | None = None, bases: dict[str, Params] | None = None,
) -> Probe | None:  # fmt: skip
    """The probe of a config, or None where it has no source. `reward` is a proxy that the stage has loaded already;
    `bases`: see `parents.load_model`."""
    source, _, limit, batch_size = cfg.source, cfg.data, cfg.max_prompt_length, cfg.batch_size
    function, args, capacity, temperature = cfg.reward, cfg.reward_args, cfg.max_new_tokens, cfg.temperature
    _, weights = cfg.reward_from, cfg.reward_weights  # open_stage has found the folder
    key = jax.random.key(stage.cfg.seed)  # the same noise at every step and for every policy
    if not source:
        return None
    where = {"cfg": cfg, "key": "probe.source"}
    short = {"template": template, "max_prompt_length": limit}
    prompts, _, rows = inputs.encoded(stage, prompt_rows, tokenizer, "train", root, **where, **short)
    gold = gold_reward(function, args, key="probe.reward")
    if "proxy" in stage.parents:
        options = {"tokenizer": tokenizer, "template": template, "mesh": mesh, "key": "probe.reward_weights"}
        reward = load_reward(stage, "proxy", weights, bases=bases, **options)
    reward_model, reward_params = reward or (None, None)
    ends, before = stop_ids(tokenizer, template), lead(tokenizer, template)
    run = make_measure(
        model, capacity=capacity, eos_ids=sorted(ends), pad_id=pad_id(tokenizer), reward_model=reward_model
    )

    def measure(params: Params, reference: Params) -> list[dict]:
        out = []
        for batch in eval_batches(prompts, batch_size):
            put = sharding.put_batch(batch, mesh)
            got = jax.device_get(run(params, reference, reward_params, put, key, jnp.float32(temperature)))
            for i, completion in enumerate(texts(tokenizer, got.rollout, sorted(ends), before)):
                if batch["row"][i] < 0:
                    continue
                row = rows[batch["row"][i]]
                done = bool(got.finished[i])
                entry = {"completion": completion, "finished": done, "length": int(got.rollout.mask[i].sum())}
                entry |= {"kl": float(got.kl[i])}
                if got.proxy is not None:
                    entry["proxy"] = float(got.proxy[i])
                if gold:
                    told = total_reward(gold, row, completion, done, missing=True)
                    parts = {name: part for name, part in told.items() if not math.isnan(part)}
                    entry |= {"gold": parts.pop("total", None), "parts": parts}
                out.append(entry)
        return out

    return Probe([rows[i] for i in prompts["row"]], measure)


def gold_reward(path: str, args: dict, *, key: str) -> Callable | None:
    """The text reward that a config names, its arguments bound; None for an empty name."""
    if not path:
        return None
    if ":" not in path:
        raise ConfigError(f"config.{key} = {path!r}: expected module:function of a reward over text")
    function = resolve(path, "", key=key)
    options = bind(function, args, key=f"{key}_args", given=("finished",))
    return lambda row, completion, *, finished: function(row, completion, finished=finished, **options)


def load_reward(
    stage: common.Stage, role: str, weights: dict, *, tokenizer: Any, template: str, mesh: Mesh, key: str,
    bases: dict[str, Params] | None = None,
) -> tuple[Model, Params]:  # fmt: skip
    """Model and parameters of a reward model with one score.

    The head of one that rates attributes is folded into the scalar head of sum_a weights_a score_a; an attribute that
    `weights`, the config's `key`, does not name has weight 1. Of an imported classifier, whose labels may be classes
    and of opposite signs, each has to be named. A process reward model scores a reply by its verdict at the last token,
    which for a whole reply is that on the last step. `bases`: see `parents.load_model`. Raises ConfigError for weights
    of a model that rates no attributes, of an attribute that it does not rate, for one that has to be named and is not,
    and for a weight that is no finite number.
    """
    manifest = read_manifest(stage.parents[role])
    known = parents.rated_attributes(manifest)
    for name, value in weights.items():
        if not known:
            raise ConfigError(f"config.{key} is set, but the reward model {stage.parents[role]} has a single score")
        if name not in known:
            raise ConfigError(f"config.{key}.{name}: the reward model rates no such attribute{suggest(name, known)}")
        if not math.isfinite(typed(value, float, key=f"{key}.{name}")):
            raise ConfigError(f"config.{key}.{name} = {value}: expected a finite weight")
    missing = [name for name in known if name not in weights] if manifest["config"]["stage"] == "imported" else []
    if missing:
        example = {name: float(weights.get(name, 0.0)) for name in known}
        raise ConfigError(
            f"config.{key} says no weight of {', '.join(map(repr, missing))}: {stage.parents[role]} is an imported "
            f"classifier of {len(known)} labels, of which each needs one, such as --config.{key}={example}"
        )
    options = {"tokenizer": tokenizer, "template": template, "compute": parents.compute_of(stage.cfg), "mesh": mesh}
    model, params, _ = parents.load_model(stage, role, ("reward",), bases=bases, **options)
    if not known:
        return model, params
    weights_A = jnp.array([float(weights.get(name, 1.0)) for name in known])
    return model, params | {"scalar": parents.place(weighted, params["scalar"], weights_A, mesh=mesh)}


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over the prompts, under the names of the log's "eval" rows; of the gold reward over those that have one."""
    mean = lambda name, of=rows: float(np.mean([row[name] for row in of]))  # noqa: E731
    out = {"eval/kl": mean("kl"), "eval/mean_length": mean("length"), "eval/eos_rate": mean("finished")}
    scored = [row for row in rows if row.get("gold") is not None]
    out |= {"eval/gold_reward": mean("gold", scored)} if scored else {}
    return out | ({"eval/proxy_reward": mean("proxy")} if "proxy" in rows[0] else {})
