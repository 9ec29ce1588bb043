"""Hard negatives: replies that a reward loves and gold does not -> pairs.jsonl; and the prompts of them, prompts.jsonl.

Both scores are read in their standard deviations over all replies, since they share no unit. See
configs/world/hard_negatives.py, where the pairs teach the next reward model and the prompts the next policy.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from alignax.bound import fill, of_config, plan_record, static
from alignax.config import ConfigError, Reader
from alignax.data.counts import DataError
from alignax.ops.checks import Scalar
from alignax.rewards import asking
from alignax.rewards import config as rewards
from alignax.rewards.config import Reward
from alignax.stages import fitting, folder, plans, samples
from alignax.stages.plans import Declaration, Parent
from alignax.stages.samples import Replies, question, usable

STAGE = Declaration(
    "mine",
    plans.FILES,
    {
        "policy": Parent("init_from"),
        "reward": Parent("reward_from", makes=plans.REWARD, reads=("",)),
        "reward.*": Parent("rewards.*.from", makes=plans.REWARD, reads=("",)),
        "gold": Parent("gold.reward_from", makes=plans.REWARD, reads=("",)),
    },
)
FILES = ("pairs.jsonl", "prompts.jsonl")


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("mine")
    samples.add_keys(c, samples_per_prompt=8)
    asking.add_keys(c)  # the proxy: what the policy was trained on, or will be
    # what is believed where the two contradict each other: module:function of text, or another reward model
    c.gold = ConfigDict(dict(reward="", reward_args={}, reward_from="", reward_weights={}))
    c.proxy_margin = 0.0  # by how much the proxy has to prefer the worse reply, in its standard deviations
    c.gold_margin = 0.5  # and by how much gold the other one, in its own
    c.prompts = 64  # the most prompts that are kept, of those that the proxy overrates the worst first; 0: none
    return c


@plan_record
class Plan(samples.Sampled):
    """What a run does."""

    rewards: dict[str, Reward]
    gold: dict[str, Reward]  # one, by its name
    asking: asking.Asking
    proxy_margin: Scalar
    gold_margin: Scalar
    prompts: int = static()


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    plans.sampling(r)
    proxy, gold = rewards.rewards_of(r), gold_of(r.gold)
    samples.check_rewards(r, proxy)
    r.require(r.samples_per_prompt >= 2, "samples_per_prompt", "two replies are compared; expected 2 or more")
    for name in ("proxy_margin", "gold_margin"):
        r.require(getattr(r, name) >= 0, name, "expected standard deviations, 0 or more")
    r.require(r.prompts >= 0, "prompts", "expected a number of prompts, or 0 for none")
    fields = plans.shared(r, batches={"batch_size": r.batch_size}) | {"source": plans.source(r, drawn=False)}
    made = fill(Plan, r, rewards=proxy, gold={"gold": gold}, asking=asking.asking(r), **fields)
    r.finish()
    return made


def gold_of(r: Reader) -> Reward:
    """The reward that is believed. Raises ConfigError for none and for two."""
    text, model = of_config(r, "reward", given=("finished",)), rewards.model(r)
    if (text is None) == (model is None):
        raise ConfigError(
            f"config.{r.key('reward')} (a function of text) or config.{r.key('reward_from')} (a reward model): set "
            "exactly one; it is what the proxy is checked by"
        )
    if model:
        return dataclasses.replace(model, role="gold")
    assert text is not None
    rewards.check_signature(text, r.key("reward"))
    return Reward(function=text, key=text.key)


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Writes pairs and prompts. Deterministic in the seed, so a run that was killed starts over with the same rows."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- policy, prompts, the reward that may be wrong and the one that is believed
    asked = samples.asked(stage)
    judges = {name: samples.judge(stage, some, asked) for name, some in (("proxy", p.rewards), ("gold", p.gold))}

    # ---- sample, score and compare
    drawn = samples.draw(stage, asked, judges, f"{p.samples_per_prompt} replies a prompt")
    of = {name: standardised([replies.scores[name] for replies in drawn]) for name in judges}
    found = [contradiction(p, *one) for one in zip(drawn, of["proxy"], of["gold"], strict=True)]
    pairs = [one.pair for one in found if one.pair]
    overrated = sorted((one.row | {"gap": one.gap} for one in found if one.gap > 0), key=lambda row: -row["gap"])
    prompts = overrated[: p.prompts]
    dropped, lost = Counter(one.lost for one in found), Counter(x for one in drawn for x in usable(one)[1])
    counts = dict(asked.counts) | {"pairs": len(pairs), "prompts": len(prompts)}
    counts |= {f"dropped_{name}": n for name, n in dropped.items() if name}
    counts |= {f"dropped_replies_{name}": n for name, n in lost.items()}
    folder.say(f"{stage.workdir.name}: {counts}")
    if not pairs:
        raise DataError(
            f"no hard negative in {len(drawn)} prompts ({dict(dropped)}): the proxy prefers nowhere what gold finds "
            f"worse; lower gold_margin ({p.gold_margin:g}) or proxy_margin ({p.proxy_margin:g}), raise "
            "samples_per_prompt, or mine a policy that has been trained on the proxy"
        )

    # ---- write
    files = {FILES[0]: pairs} | ({FILES[1]: prompts} if prompts else {})
    return samples.write(stage, files, counts, metrics(drawn, of, found))


class Found(NamedTuple):
    """What the replies to one prompt show."""

    row: dict  # of the prompt
    pair: dict | None  # gold's reply and the proxy's, where they contradict each other
    gap: float  # of the proxy's reply, proxy - gold, standardised; nan where no reply can be compared
    lost: str  # why there is no pair


def standardised(scores: list[list[float]]) -> Float[np.ndarray, "P M"]:
    """Scores in standard deviations from their mean over all replies that have one; nan where there is none."""
    score_PM = np.array(scores, np.float64)
    known_PM = np.isfinite(score_PM)
    if not known_PM.any():
        return score_PM
    sd = score_PM[known_PM].std()
    return (score_PM - score_PM[known_PM].mean()) / (sd if sd > 0 else 1.0)


def contradiction(
    p: Plan, replies: Replies, proxy_M: Float[np.ndarray, " M"], gold_M: Float[np.ndarray, " M"]
) -> Found:
    """The proxy's favourite as rejected, gold's as chosen, where each is preferred by more than its margin."""
    known, _ = usable(replies)
    if not known:
        return Found(replies.row, None, math.nan, "unusable")
    worse, better = (max(known, key=lambda i: score_M[i]) for score_M in (proxy_M, gold_M))
    gap = float(proxy_M[worse] - gold_M[worse])
    if not (proxy_M[worse] - proxy_M[better] > p.proxy_margin and gold_M[better] - gold_M[worse] > p.gold_margin):
        return Found(replies.row, None, gap, "agreed")
    told: dict[str, Any] = {"chosen": replies.texts[better], "rejected": replies.texts[worse]}
    for name in ("gold", "proxy"):
        told |= {f"{name}_chosen": replies.scores[name][better], f"{name}_rejected": replies.scores[name][worse]}
    told |= {"margin": told["gold_chosen"] - told["gold_rejected"], "tie": False}  # as the pairs of collect have them
    return Found(replies.row, question(replies.row) | told, gap, "")


def metrics(drawn: list[Replies], of: dict[str, np.ndarray], found: list[Found]) -> dict[str, Any]:
    """How often the two contradict each other, and how far apart they are."""
    known = np.isfinite(of["proxy"]) & np.isfinite(of["gold"])
    proxy, gold = of["proxy"][known], of["gold"][known]
    gaps = [one.gap for one in found if math.isfinite(one.gap)]
    raw = {name: np.array([replies.scores[name] for replies in drawn])[known] for name in of}
    varied = proxy.std() > 0 and gold.std() > 0
    return {
        "pairs": sum(one.pair is not None for one in found),
        "share_contradicted": float(np.mean([one.pair is not None for one in found])),
        "mean_gap": float(np.mean(gaps)),
        "correlation": float(np.corrcoef(proxy, gold)[0, 1]) if varied else 0.0,
        "mean_proxy": float(raw["proxy"].mean()),
        "mean_gold": float(raw["gold"].mean()),
    }
