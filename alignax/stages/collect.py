"""Collect judgements of a policy's samples, by an annotator with known faults -> pairs.jsonl, or one of its kind.

"pairs": two samples per prompt, one preferred; "rankings": K samples in order; "ratings": each with its gold parts.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alignax import sharding
from alignax.config import bind
from alignax.data.boundary import lead
from alignax.data.counts import DataError
from alignax.data.encode import prompt_rows
from alignax.data.loader import eval_batches
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import pad_id
from alignax.evals.policy import texts, total_reward
from alignax.log import progress, replace_file
from alignax.manifest import files_hash
from alignax.sampling.sample import finished, row_keys, sample
from alignax.stages import common, inputs, parents, probe
from alignax.worlds.annotators import Annotator, prefer, preference, rank, utility_gap


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.shared_config("collect")
    c.template = "chat"
    c.source = "jsonl"  # prompts: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.temperature = 1.0
    c.batch_size = 64  # prompts sampled at once
    c.kind = "pairs"  # "pairs", "rankings" or "ratings": what is said of the samples
    c.samples_per_prompt = 2  # completions of each prompt; pairs take 2
    c.reward = ""  # what the annotator perceives: module:function of (row, completion, *, finished) -> gold parts
    c.reward_args = ConfigDict()
    c.annotator_args = ConfigDict()  # fields of alignax.worlds.annotators.Annotator
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Writes <kind>.jsonl. Deterministic in the seed, so a run that was killed starts over and gives the same rows."""
    stage = common.open_stage("collect", config, workdir, root, {"policy": "init_from"})
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir

    # ---- policy and prompts, each as often as it is sampled
    tokenizer, mesh = parents.get_tokenizer(stage), parents.get_mesh(cfg)
    model, params = parents.new_or_loaded(stage, "", {}, tokenizer, mesh)
    short = {"template": cfg.template, "max_prompt_length": cfg.max_prompt_length}
    prompts, counts, rows = inputs.encoded(stage, prompt_rows, tokenizer, "train", root, **short)
    kind, K = cfg.kind, cfg.samples_per_prompt
    each = jax.tree.map(lambda leaf: np.repeat(leaf, K, axis=0), prompts)
    sample_id = K * each["row"] + np.arange(len(each["row"]), dtype=np.int32) % K

    # ---- annotator
    annotator = Annotator(**bind(Annotator, cfg.annotator_args, key="annotator_args"))
    gold = probe.gold_reward(cfg.reward, cfg.reward_args, key="reward")

    # ---- sample
    ends, seed, size = sorted(stop_ids(tokenizer, cfg.template)), jax.random.key(cfg.seed), K * cfg.batch_size
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

    completions, done, before = [], [], lead(tokenizer, cfg.template)
    batches = list(eval_batches(each | {"sample": sample_id}, size))
    for batch in progress(batches, f"{workdir.name}: sampling {kind}"):
        rollout, ended = jax.device_get(draw(params, sharding.put_batch(batch, mesh)))
        completions += texts(tokenizer, rollout, ends, before)
        done += ended.tolist()

    # ---- judge
    rng = np.random.Generator(np.random.Philox(cfg.seed))
    kept, dropped = [], {"unfinished": 0, "identical": 0}
    for index, row_id in enumerate(prompts["row"]):
        replies = Replies(rows[row_id], *(column[K * index : K * (index + 1)] for column in (completions, done)))
        found, lost = KINDS[kind](annotator, gold, replies, rng)
        kept += found
        for reason in lost:
            dropped[reason] += 1
    lost_what = "dropped" if kind == "pairs" else "dropped_replies"  # a pair goes as a whole, of four replies one
    counts = dict(counts) | {kind: len(kept)} | {f"{lost_what}_{name}": n for name, n in dropped.items()}
    common.console.print(f"preferences: {counts}")

    if not kept:
        what = {"pairs": "preference pair", "rankings": "ranking", "ratings": "rated reply"}[kind]
        raise DataError(
            f"no {what} left of {len(prompts['row'])} prompts ({dropped}): train the policy longer, so that "
            "it ends its replies, or raise max_new_tokens or the temperature"
        )

    # ---- write
    file = f"{kind}.jsonl"
    replace_file(workdir / file, "".join(json.dumps(row) + "\n" for row in kept))
    content = files_hash(workdir, [file])
    common.finish(
        stage,
        params=None,
        content=content,
        files=(file,),
        step=len(kept),
        data={"fingerprint": content, "counts": counts},
        metrics={kind: len(kept)} | agreement(kind, kept),
    )
    return workdir


class Replies(NamedTuple):
    """The samples of one prompt."""

    row: dict  # of the prompt
    texts: list[str]
    done: list[bool]  # the sample came to its end of sequence


def pairs(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A labelled pair, or the reason why there is none; the annotator sees all, so that labels stay as they are."""
    row, sides, done = replies
    pair = judge(annotator, gold, row, sides, done, rng)
    reason = "unfinished" if not all(done) else "identical" if sides[0] == sides[1] else None
    return ([], [reason]) if reason else ([pair], [])


def rankings(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A ranking of the replies that are finished and differ, with their gold rewards in its order; none of fewer than
    two."""
    texts, lost = usable(replies)
    if len(texts) < 2:
        return [], lost
    parts = [total_reward(gold, replies.row, text, True) for text in texts]
    order = rank(annotator, parts, [len(text.split()) for text in texts], rng)
    ranking = {"replies": [texts[i] for i in order], "gold": [parts[i]["total"] for i in order]}
    return [question(replies.row) | ranking], lost


def ratings(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A rated reply for each that is finished and differs from the others: the gold parts are its attributes."""
    texts, lost = usable(replies)
    out = []
    for text in texts:
        parts = total_reward(gold, replies.row, text, True)
        total = parts.pop("total")
        rated = {"completion": text, "ratings": parts or {"total": total}, "gold": total}
        out.append(question(replies.row) | rated)
    return out, lost


KINDS = {"pairs": pairs, "rankings": rankings, "ratings": ratings}


def question(row: dict) -> dict:
    """What a reply answers: the prompt, and what else its chat template was told."""
    return {name: row[name] for name in ("prompt", "tools", "chat_template_kwargs") if name in row}


def usable(replies: Replies) -> tuple[list[str], list[str]]:
    """The finished replies, each text once, and why the others are left out."""
    finished_ones = [text for text, done in zip(replies.texts, replies.done, strict=True) if done]
    texts = list(dict.fromkeys(finished_ones))
    unfinished, identical = len(replies.texts) - len(finished_ones), len(finished_ones) - len(texts)
    return texts, ["unfinished"] * unfinished + ["identical"] * identical


def agreement(kind: str, rows: list[dict]) -> dict[str, float]:
    """How often the annotator's order of two replies is that of their gold rewards, over all pairs; none of ratings."""
    if kind == "ratings":
        return {}
    if kind == "pairs":
        right = [pair["gold_chosen"] > pair["gold_rejected"] for pair in rows]
    else:
        right = [a > b for row in rows for a, b in itertools.combinations(row["gold"], 2)]
    return {"annotator_agreement": float(np.mean(right))}


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
    return question(row) | {
        "chosen": sides[win],
        "rejected": sides[lose],
        "gold_chosen": parts[win]["total"],
        "gold_rejected": parts[lose]["total"],
        "p_chosen": p if first else 1 - p,
        "margin": gap if first else -gap,
        "tie": abs(gap) < annotator.tie_below,
    }
