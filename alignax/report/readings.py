"""What the numbers say, in one sentence each, and no more than they say: intervals that overlap show nothing."""

import dataclasses
from typing import Any

from alignax.report.folder import Run, is_number, label


@dataclasses.dataclass
class Reading:
    """One sentence. `mark`: "up" or "down" (intervals apart), "open" (not shown), "note" (a fact or a caution)."""

    mark: str
    text: str


def readings(run: Run) -> list[Reading]:
    """Sentences derived from the evaluation: each policy against SFT, the policies against each other, the RM."""
    policies, out = run.policies, []
    others = [name for name in policies if name != "sft"]
    for name in others if "sft" in policies else []:
        out += _against_sft(name, policies[name], policies["sft"])
    for i, first in enumerate(others):
        out += [_rivals(first, second, policies) for second in others[i + 1 :]]
    return out + _reward_model(run.reward_model)


def compare(first: dict[str, Any], second: dict[str, Any], key: str) -> str | None:
    """Whether the interval of `first` lies above ("up"), below ("down") or neither ("open"); None without one."""
    intervals = [record.get(f"{key}_ci95") for record in (first, second)]
    if not all(interval and all(is_number(end) for end in interval) for interval in intervals):
        return None
    (low, high), (other_low, other_high) = intervals  # type: ignore[misc]
    return "up" if low > other_high else "down" if high < other_low else "open"


def _against_sft(name: str, policy: dict[str, Any], sft: dict[str, Any]) -> list[Reading]:
    out = [_gold(name, policy, "SFT", sft)]
    optimised = _over_optimisation(name, policy, sft)
    return [*out, *optimised, *_win_rate(name, policy), *_parts(name, policy, sft), *_form(name, policy, sft)]


def _gold(name: str, policy: dict[str, Any], other: str, base: dict[str, Any]) -> Reading:
    value, other_value = policy.get("gold_reward"), base.get("gold_reward")
    if not (is_number(value) and is_number(other_value)):
        return Reading("open", f"{label(name)}: no gold reward to compare with {other}'s.")
    verdict = compare(policy, base, "gold_reward")
    numbers = f"({value:.2f} against {other_value:.2f})"
    if verdict is None:
        return Reading("open", f"{label(name)}'s gold reward {numbers} has no interval: a difference is not shown.")
    if verdict == "open":
        return Reading(
            "open", f"{label(name)}'s gold reward and {other}'s {numbers}: intervals overlap, not shown to differ."
        )
    side = "above" if verdict == "up" else "below"
    return Reading(verdict, f"{label(name)}'s gold reward is {side} {other}'s {numbers}: intervals do not overlap.")


def _over_optimisation(name: str, policy: dict[str, Any], sft: dict[str, Any]) -> list[Reading]:
    proxy, gold = compare(policy, sft, "proxy_reward"), compare(policy, sft, "gold_reward")
    if proxy != "up" or gold in ("up", None):
        return []
    fell = "fell: the reward model was over-optimised" if gold == "down" else "is not shown to have: watch it"
    return [
        Reading("down" if gold == "down" else "note", f"{label(name)}'s proxy reward rose, its gold reward {fell}.")
    ]


def _win_rate(name: str, policy: dict[str, Any]) -> list[Reading]:
    rate, interval = policy.get("win_rate"), policy.get("win_rate_ci95")
    if not is_number(rate):
        return []
    if not interval:
        return [Reading("open", f"{label(name)} wins {rate:.0%} against SFT; without an interval this shows nothing.")]
    mark = "up" if interval[0] > 0.5 else "down" if interval[1] < 0.5 else "open"
    ending = {"up": "above one half", "down": "below one half", "open": "one half is inside: not shown"}[mark]
    between = f"[{interval[0]:.0%}, {interval[1]:.0%}]"
    return [Reading(mark, f"{label(name)} wins {rate:.0%} {between} of the prompts against SFT: {ending}.")]


def _parts(name: str, policy: dict[str, Any], sft: dict[str, Any]) -> list[Reading]:
    parts, sft_parts = policy.get("gold_parts") or {}, sft.get("gold_parts") or {}
    shared = [part for part in parts if is_number(parts[part]) and is_number(sft_parts.get(part))]
    change = {part: parts[part] - sft_parts[part] for part in shared}
    if len(change) < 2:
        return []
    most, least = max(change, key=change.__getitem__), min(change, key=change.__getitem__)
    text = f"most in {most} ({change[most]:+.2f}), least in {least} ({change[least]:+.2f})"
    return [Reading("note", f"Of the parts of gold, {label(name)} gained {text}; parts carry no intervals.")]


def _form(name: str, policy: dict[str, Any], sft: dict[str, Any]) -> list[Reading]:
    """Length and endings: the two cheapest ways to please a reward model."""
    out, before, after, eos = [], sft.get("length"), policy.get("length"), policy.get("eos_rate")
    if is_number(before) and is_number(after) and before and not 0.8 < after / before < 1.25:
        word = "longer" if after > before else "shorter"
        out.append(
            Reading("note", f"{label(name)}'s replies are {word}: {after:.1f} tokens against SFT's {before:.1f}.")
        )
    if is_number(eos) and eos < 0.95:
        out.append(Reading("note", f"{label(name)} ends {eos:.0%} of its replies with EOS; the others are cut off."))
    return out


def _rivals(first: str, second: str, policies: dict[str, dict[str, Any]]) -> Reading:
    reading = _gold(first, policies[first], label(second), policies[second])
    kl = [item for name in (first, second) if is_number(item := policies[name].get("kl"))]
    if len(kl) == 2:
        reading.text += f" Their KL from SFT is {kl[0]:.1f} and {kl[1]:.1f} nats" + (
            ": not a comparison at matched KL." if max(kl) > 1.25 * min(kl) else "."
        )
    return reading


def _reward_model(model: dict[str, Any]) -> list[Reading]:
    accuracy, interval = model.get("heldout_accuracy"), model.get("heldout_accuracy_ci95")
    if not is_number(accuracy):
        return []
    best, above = model.get("bayes_accuracy"), bool(interval) and interval[0] > 0.5
    text = f"The reward model predicts {accuracy:.1%} of held-out preferences"
    text += ", above chance" if above else ": not shown to be above chance"
    if is_number(best) and interval:
        verdict = "below" if interval[1] < best else "at" if interval[0] <= best else "above"
        text += f"; the labels' own noise allows {best:.1%} at best, and the interval lies {verdict} that"
    golden = model.get("golden/accuracy")
    known = [Reading("note", f"It orders {golden:.0%} of its golden set as it should.")] if is_number(golden) else []
    return [Reading("up" if above else "open", text + "."), *known]
