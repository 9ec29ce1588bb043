"""Collect preferences: two samples per prompt, judged by an annotator with known faults -> pairs.jsonl."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alignax import sharding
from alignax.config import ConfigError, bind
from alignax.data.counts import DataError
from alignax.data.encode import prompt_rows
from alignax.data.loader import eval_batches
from alignax.data.tokenizer import eos_ids, pad_id
from alignax.evals.policy import texts, total_reward
from alignax.log import progress, replace_file
from alignax.manifest import files_hash
from alignax.sampling.sample import finished, row_keys, sample
from alignax.stages import common, probe
from alignax.worlds.annotators import Annotator, prefer, preference, utility_gap

PAIRS = "pairs.jsonl"


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.shared_config("collect")
    c.template = "chat"
    c.source = "jsonl"  # prompts: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.temperature = 1.0
    c.batch_size = 64  # prompts sampled at once, two completions each
    c.reward = ""  # what the annotator perceives: module:function of (row, completion, *, finished) -> gold parts
    c.reward_args = ConfigDict()
    c.annotator_args = ConfigDict()  # fields of alignax.worlds.annotators.Annotator
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Writes pairs.jsonl. Deterministic in the seed, so a run that was killed starts over and gives the same pairs."""
    stage = common.open_stage("collect", config, workdir, root, {"policy": "init_from"})
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- policy and prompts, each twice
    tokenizer, mesh = common.get_tokenizer(stage), common.get_mesh(cfg)
    model, params = common.new_or_loaded(stage, "", {}, tokenizer, mesh)
    rows, counts = common.load_rows(cfg.source, cfg.data, "train", root=root)
    prompts, counts = prompt_rows(
        rows, tokenizer, template=cfg.template, max_prompt_length=cfg.max_prompt_length, counts=counts
    )
    twice = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), prompts)
    sample_id = 2 * twice["row"] + np.arange(len(twice["row"]), dtype=np.int32) % 2

    # ---- annotator
    annotator = Annotator(**bind(Annotator, cfg.annotator_args, key="annotator_args"))
    gold = probe.gold_reward(cfg.reward, cfg.reward_args, key="reward")
    if gold is None:
        raise ConfigError("config.reward is empty: an annotator needs a gold reward to perceive, module:function")

    # ---- sample
    ends, seed, size = sorted(eos_ids(tokenizer)), jax.random.key(cfg.seed), 2 * cfg.batch_size
    eos = jnp.asarray(ends, jnp.int32)
    options = {
        "capacity": cfg.max_new_tokens,
        "eos_ids": eos,
        "pad_id": pad_id(tokenizer),
        "temperature": cfg.temperature,
    }
    cfg.finish()

    @jax.jit
    def draw(params, batch):
        rollout = sample(model, params, batch["tokens"], batch["valid"], row_keys(seed, batch["sample"]), **options)
        return rollout, finished(rollout, eos)

    completions, done = [], []
    batches = list(eval_batches(twice | {"sample": sample_id}, size))
    for batch in progress(batches, f"{workdir.name}: sampling pairs"):
        rollout, ended = jax.device_get(draw(params, sharding.put_batch(batch, mesh)))
        completions += texts(tokenizer, rollout, ends)
        done += ended.tolist()

    # ---- judge
    rng = np.random.Generator(np.random.Philox(cfg.seed))
    kept, dropped = [], {"unfinished": 0, "identical": 0}
    for index, row_id in enumerate(prompts["row"]):
        sides, ends_of = completions[2 * index : 2 * index + 2], done[2 * index : 2 * index + 2]
        pair = judge(annotator, gold, rows[row_id], sides, ends_of, rng)
        reason = "unfinished" if not all(ends_of) else "identical" if sides[0] == sides[1] else None
        if reason:
            dropped[reason] += 1
        else:
            kept.append(pair)
    counts = dict(counts) | {"pairs": len(kept)} | {f"dropped_{name}": n for name, n in dropped.items()}
    common.console.print(f"preferences: {counts}")

    if not kept:
        raise DataError(
            f"no preference pair left of {len(prompts['row'])} prompts ({dropped}): train the policy longer, so that "
            "it ends its replies, or raise max_new_tokens or the temperature"
        )

    # ---- write
    replace_file(workdir / PAIRS, "".join(json.dumps(pair) + "\n" for pair in kept))
    content = files_hash(workdir, [PAIRS])
    agreement = float(np.mean([pair["gold_chosen"] > pair["gold_rejected"] for pair in kept]))
    common.finish(
        stage,
        params=None,
        content=content,
        files=(PAIRS,),
        step=len(kept),
        data={"fingerprint": content, "counts": counts},
        metrics={"pairs": len(kept), "annotator_agreement": agreement},
    )
    return workdir


def judge(annotator: Annotator, gold: Any, row: dict, sides: list[str], done: list[bool], rng: Any) -> dict:
    """One labelled pair, with what is known of it: gold rewards, the annotator's probability of its own label, by how
    much it finds the chosen side better (the margin, negative where its noise chose the other), and whether it is a
    tie."""
    parts = [total_reward(gold, row, text, end) for text, end in zip(sides, done, strict=True)]
    lengths = [len(text.split()) for text in sides]
    shown = parts[0], parts[1], lengths[0], lengths[1]
    first, p = prefer(annotator, *shown, rng), preference(annotator, *shown)
    gap = utility_gap(annotator, *shown)
    win, lose = (0, 1) if first else (1, 0)
    return {
        "prompt": row["prompt"],
        "chosen": sides[win],
        "rejected": sides[lose],
        "gold_chosen": parts[win]["total"],
        "gold_rejected": parts[lose]["total"],
        "p_chosen": p if first else 1 - p,
        "margin": gap if first else -gap,
        "tie": abs(gap) < annotator.tie_below,
    }
