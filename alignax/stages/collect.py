"""Collect judgements of a policy's samples, by an annotator with known faults -> pairs.jsonl, or one of its kind.

"pairs": two samples per prompt, one preferred; "rankings": K samples in order; "ratings": each with its gold parts.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alignax import host
from alignax.bound import Bound, bound, fill, of_config, plan_record, static
from alignax.config import ConfigError, Reader
from alignax.data.counts import DataError
from alignax.rewards.text import total_reward
from alignax.stages import fitting, folder, plans, samples
from alignax.stages.plans import Declaration, Parent
from alignax.stages.samples import Replies, question, usable
from alignax.worlds.annotators import Annotator, prefer, preference, rank, utility_gap

STAGE = Declaration("collect", plans.FILES, {"policy": Parent("init_from")})


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("collect")
    samples.add_keys(c, samples_per_prompt=2)  # pairs take 2
    c.kind = "pairs"  # "pairs", "rankings" or "ratings": what is said of the samples
    c.reward = ""  # what the annotator perceives: module:function of (row, completion, *, finished) -> gold parts
    c.reward_args = ConfigDict()
    c.annotator_args = ConfigDict()  # fields of alignax.worlds.annotators.Annotator
    return c


@plan_record
class Plan(samples.Sampled):
    """What a run does."""

    kind: str = static()
    gold: Bound  # what the annotator perceives: (row, completion, *, finished) -> gold parts
    annotator: Bound  # () -> Annotator


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    plans.sampling(r)
    gold, key = of_config(r, "reward", given=("finished",)), r.key("annotator_args")
    if gold is None:
        raise ConfigError(
            f"config.{r.key('reward')} is empty: an annotator needs a gold reward to perceive, module:function"
        )
    annotator = bound(Annotator, r.annotator_args, key=key, args_key=key)
    try:
        annotator()
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"config.{key}: {error}") from None
    check_kind(r)
    batches = {"batch_size": r.batch_size}
    fields = plans.shared(r, batches=batches) | {"source": plans.source(r, drawn=False)}
    made = fill(Plan, r, gold=gold, annotator=annotator, **fields)
    r.finish()
    return made


def check_kind(r: Reader) -> None:
    """The kind of judgement decides how many samples it needs, and which of the annotator's faults it can show."""
    kind, samples, args = r.one_of("kind", KINDS), r.samples_per_prompt, r.annotator_args
    wrong = {"pairs": samples != 2, "rankings": samples < 2, "ratings": samples < 1}[kind]
    if wrong:
        expected = {"pairs": "2; for more take kind = 'rankings'", "rankings": "2 or more", "ratings": "1 or more"}
        raise r.error("samples_per_prompt", f"{kind} take {expected[kind]}")
    unread = {"ratings": args, "rankings": ["tie_below"] if args.get("tie_below") else []}.get(kind)
    if unread:
        raise ConfigError(
            f"config.{r.key('annotator_args')}.{next(iter(unread))}: {kind} do not read it; "
            + ("ratings are the gold parts themselves" if kind == "ratings" else "a ranking has no ties")
        )


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Writes <kind>.jsonl. Deterministic in the seed, so a run that was killed starts over and gives the same rows."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- policy and prompts, and its replies
    asked = samples.asked(stage)
    drawn = samples.draw(stage, asked, {}, p.kind)

    # ---- judge
    def judged() -> tuple[list[dict], dict[str, int]]:
        rng, annotator = np.random.Generator(np.random.Philox(p.seed)), p.annotator()
        kept, dropped = [], {"unfinished": 0, "identical": 0}
        for replies in drawn:
            found, lost = KINDS[p.kind](annotator, p.gold, replies, rng)
            kept += found
            for reason in lost:
                dropped[reason] += 1
        return kept, dropped

    kept, dropped = host.of_first(judged)
    lost_what = "dropped" if p.kind == "pairs" else "dropped_replies"  # a pair goes as a whole, of four replies one
    counts = dict(asked.counts) | {p.kind: len(kept)} | {f"{lost_what}_{name}": n for name, n in dropped.items()}
    folder.say(f"preferences: {counts}")

    if not kept:
        what = {"pairs": "preference pair", "rankings": "ranking", "ratings": "rated reply"}[p.kind]
        raise DataError(
            f"no {what} left of {len(drawn)} prompts ({dropped}): train the policy longer, so that "
            "it ends its replies, or raise max_new_tokens or the temperature"
        )

    # ---- write
    metrics = {p.kind: len(kept)} | agreement(p.kind, kept)
    return samples.write(stage, {f"{p.kind}.jsonl": kept}, counts, metrics)


def pairs(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A labelled pair, or the reason why there is none; the annotator sees all, so that labels stay as they are."""
    row, sides, done = replies.row, replies.texts, replies.done
    pair = judge(annotator, gold, row, sides, done, rng)
    reason = "unfinished" if not all(done) else "identical" if sides[0] == sides[1] else None
    return ([], [reason]) if reason else ([pair], [])


def rankings(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A ranking of the replies that are finished and differ, with their gold rewards in its order; none of fewer than
    two."""
    kept, lost = usable(replies)
    texts = [replies.texts[i] for i in kept]
    if len(texts) < 2:
        return [], lost
    parts = [total_reward(gold, replies.row, text, True) for text in texts]
    order = rank(annotator, parts, [len(text.split()) for text in texts], rng)
    ranking = {"replies": [texts[i] for i in order], "gold": [parts[i]["total"] for i in order]}
    return [question(replies.row) | ranking], lost


def ratings(annotator: Annotator, gold: Any, replies: Replies, rng: Any) -> tuple[list[dict], list[str]]:
    """A rated reply for each that is finished and differs from the others: the gold parts are its attributes."""
    kept, lost = usable(replies)
    out, texts = [], [replies.texts[i] for i in kept]
    for text in texts:
        parts = total_reward(gold, replies.row, text, True)
        total = parts.pop("total")
        rated = {"completion": text, "ratings": parts or {"total": total}, "gold": total}
        out.append(question(replies.row) | rated)
    return out, lost


KINDS = {"pairs": pairs, "rankings": rankings, "ratings": ratings}


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
