"""Choose among a policy's samples by their rewards -> demonstrations.jsonl, or pairs.jsonl. No policy is changed.

"best": the best of n of each prompt, to fine-tune on (RAFT, best-of-n); "above": all that score enough (rejection
sampling, ReST); "best_and_worst": pairs for the offline losses (iterated DPO). See configs/world/select.py.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alignax.bound import fill, plan_record, static
from alignax.config import Reader
from alignax.data.counts import DataError
from alignax.ops.checks import Scalar
from alignax.rewards import asking
from alignax.rewards.config import Reward, rewards_of
from alignax.stages import fitting, folder, plans, samples
from alignax.stages.plans import Declaration, Parent
from alignax.stages.samples import Replies, question, usable

STAGE = Declaration(
    "select",
    plans.FILES,
    {
        "policy": Parent("init_from"),
        "reward": Parent("reward_from", makes=plans.REWARD, reads=("",)),
        "reward.*": Parent("rewards.*.from", makes=plans.REWARD, reads=("",)),
    },
)
# what each way to choose reads of its own, and what it makes
READS = {"best": "top_k", "above": "least", "best_and_worst": "least_margin"}
FILES = {"best": "demonstrations.jsonl", "above": "demonstrations.jsonl", "best_and_worst": "pairs.jsonl"}


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("select")
    samples.add_keys(c, samples_per_prompt=8)
    asking.add_keys(c)
    c.keep = "best"  # "best", "above" or "best_and_worst": what is kept of the replies to a prompt
    c.top_k = 1  # best: so many of them
    c.least = 1.0  # above: the score that a reply needs, in the unit of the rewards
    c.least_margin = 0.0  # best_and_worst: the difference of scores that a pair needs, and more than none
    return c


@plan_record
class Plan(samples.Sampled):
    """What a run does."""

    rewards: dict[str, Reward]
    asking: asking.Asking
    keep: str = static()
    top_k: int = static()
    least: Scalar
    least_margin: Scalar


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    plans.sampling(r)
    rewards = rewards_of(r)
    samples.check_rewards(r, rewards)
    check_keep(r)
    fields = plans.shared(r, batches={"batch_size": r.batch_size}) | {"source": plans.source(r, drawn=False)}
    made = fill(Plan, r, rewards=rewards, asking=asking.asking(r), **fields)
    r.finish()
    return made


def check_keep(r: Reader) -> None:
    """What is kept decides how many samples it needs, and which keys it reads. Raises ConfigError."""
    keep, defaults = r.one_of("keep", READS), get_config()
    pairs = keep == "best_and_worst"
    expected = "a best and a worst are two replies; expected 2 or more" if pairs else "expected 1 or more"
    r.require(r.samples_per_prompt >= (2 if pairs else 1), "samples_per_prompt", expected)
    most = f"expected 1 to {r.samples_per_prompt} (samples_per_prompt)"
    r.require(1 <= r.top_k <= r.samples_per_prompt, "top_k", most)
    r.require(r.least_margin >= 0, "least_margin", "expected a difference of scores, 0 or more")
    for name in READS.values():
        if name != READS[keep] and getattr(r, name) != defaults[name]:
            raise r.error(name, f"keep = {keep!r} does not read it; leave it at {defaults[name]}")


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Writes what is kept. Deterministic in the seed, so a run that was killed starts over and gives the same rows."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- policy, prompts and rewards
    asked = samples.asked(stage)
    judge = samples.judge(stage, p.rewards, asked)

    # ---- sample and score
    drawn = samples.draw(stage, asked, {"score": judge}, f"{p.samples_per_prompt} replies a prompt")

    # ---- choose
    kept, dropped = [], Counter()
    for replies in drawn:
        found, lost = chosen(p, replies)
        kept += found
        dropped.update(lost)
    what = "pairs" if p.keep == "best_and_worst" else "demonstrations"
    counts = dict(asked.counts) | {what: len(kept)} | {f"dropped_replies_{name}": n for name, n in dropped.items()}
    folder.say(f"{stage.workdir.name}: {counts}")
    if not kept:
        raise DataError(nothing(p, what, drawn, dropped))

    # ---- write
    return samples.write(stage, {FILES[p.keep]: kept}, counts, metrics(p, drawn, kept))


def chosen(p: Plan, replies: Replies) -> tuple[list[dict], list[str]]:
    """The rows that are made of the replies to one prompt, and why the other replies are in none of them."""
    known, lost = usable(replies)
    scores = replies.scores["score"]
    order = sorted(known, key=lambda i: -scores[i])  # stable: of equal ones the first
    if p.keep == "best":
        return [demonstration(replies, i) for i in order[: p.top_k]], lost + ["not_best"] * len(order[p.top_k :])
    if p.keep == "above":
        good = [i for i in order if scores[i] >= p.least]
        return [demonstration(replies, i) for i in good], lost + ["below"] * (len(order) - len(good))
    if len(order) < 2:
        return [], lost + ["alone"] * len(order)
    margin = scores[order[0]] - scores[order[-1]]
    if margin <= 0 or margin < p.least_margin:
        return [], lost + ["level"] * len(order)
    return [pair(replies, order[0], order[-1])], lost + ["between"] * (len(order) - 2)


def demonstration(replies: Replies, i: int) -> dict:
    """A reply to learn, with its score, and the parts of it where there are several."""
    score = replies.scores["score"][i]
    parts = {name: values[i] for name, values in replies.parts.items() if math.isfinite(values[i])}
    return (
        question(replies.row)
        | {"completion": replies.texts[i], "score": score}
        | ({"rewards": parts} if len(replies.parts) > 1 else {})
    )


def pair(replies: Replies, best: int, worst: int) -> dict:
    """Two replies to learn from, with their scores and by how much they differ."""
    scores = replies.scores["score"]
    texts = {"chosen": replies.texts[best], "rejected": replies.texts[worst]}
    judged = {"score_chosen": scores[best], "score_rejected": scores[worst], "margin": scores[best] - scores[worst]}
    judged |= {"tie": False}  # as the pairs of collect have it, so that both may be read together
    return question(replies.row) | texts | judged


def metrics(p: Plan, drawn: list[Replies], kept: list[dict]) -> dict[str, Any]:
    """What was sampled and what is kept: mean scores, the share of the replies, and of the prompts."""
    all_KP = np.array([replies.scores["score"] for replies in drawn])
    known = np.isfinite(all_KP)
    groups = [x[k] for x, k in zip(all_KP, known, strict=True) if k.any()]
    pairs = p.keep == "best_and_worst"
    names = ("score_chosen", "score_rejected") if pairs else ("score",)
    of = {name: float(np.mean([row[name] for row in kept])) for name in names}
    out = {"mean_score": float(all_KP[known].mean())} | {f"mean_{name}_kept": value for name, value in of.items()}
    out |= {"kept": len(kept), "share_kept": len(names) * len(kept) / all_KP.size}
    out |= {"missing_scores": float(1 - known.mean())}
    out |= {"frac_reward_zero_std": float(np.mean([x.min() == x.max() for x in groups]))}
    return out | ({"kl_bound": best_of_n_kl(p.samples_per_prompt)} if p.keep == "best" and p.top_k == 1 else {})


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: no less than KL(best-of-n || policy), and equal to it where no two replies score alike
    (Stiennon et al. 2020, 2009.01325; a bound by Beirami et al. 2024, "Theoretical guarantees on the best-of-n
    alignment policy", 2401.01879)."""
    return math.log(n) - (n - 1) / n


def nothing(p: Plan, what: str, drawn: list[Replies], dropped: Counter) -> str:
    """Why nothing was kept, and what to do."""
    fixes = {
        "unfinished": "train the policy longer, so that it ends its replies, or raise max_new_tokens",
        "unscorable": "the rewards have no score for them: look at what they need of a row",
        "below": f"lower least ({p.least:g})",
        "level": f"raise the temperature or samples_per_prompt, or lower least_margin ({p.least_margin:g})",
        "alone": "raise the temperature or samples_per_prompt, so that replies differ",
        "identical": "raise the temperature",
    }
    (reason, _), *_ = dropped.most_common() or [("", 0)]
    sampled = len(drawn) * p.samples_per_prompt
    return f"none of {what} left of {sampled} replies ({dict(dropped)}): {fixes.get(reason, 'give more prompts')}"
