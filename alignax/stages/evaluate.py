"""Evaluate: several policies on the same held-out prompts, with gold and proxy reward and KL -> eval.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alignax import host
from alignax.bound import fill, plan_record, static
from alignax.config import ConfigError
from alignax.evals.intervals import bootstrap
from alignax.log import replace_file
from alignax.manifest import files_hash, read_manifest
from alignax.stages import fitting, folder, parents, plans, probe
from alignax.stages.plans import Declaration, Parent

STAGE = Declaration("evaluate", plans.FILES, {"policy": Parent("init_from"), "*": Parent("policies.*")} | probe.READS)
FILES = ("eval.json", "samples.jsonl")


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("evaluate")
    c.template = "chat"
    c.policies = ConfigDict()  # name -> folder of a finished policy; `init_from` is the reference of every KL
    c.probe = probe.get_config()
    return c


@plan_record
class Plan(plans.Shared):
    """What a run does."""

    template: str = static()
    policies: tuple[str, ...] = static()  # their names; the first is what the others are read against
    probe: probe.Plan


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    watch, given = probe.plan(r.probe, r.template), sorted(r.policies)
    if watch is None:
        raise ConfigError(
            f"config.{r.key('probe.source')} is empty: there are no prompts to evaluate on; name a source"
        )
    # the policy that the others are read against is the reference of every KL, where it is among them
    names = sorted(given, key=lambda name: r.policies[name] != r.init_from)
    fields = plans.shared(r, batches=probe.batches(watch))
    made = fill(Plan, r, probe=watch, policies=tuple(names), **fields)
    r.finish()
    return made


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Writes eval.json (means with 95% bootstrap intervals over prompts) and samples.jsonl (every completion)."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan
    workdir = stage.workdir

    # ---- reference and prompts
    tokenizer, mesh = parents.get_tokenizer(stage), parents.get_mesh(p.mesh)
    model, reference = parents.new_or_loaded(stage, tokenizer, mesh)
    watch = probe.build(stage, p.probe, model, tokenizer, mesh)
    assert watch is not None

    # ---- every policy with the same noise per prompt, so that differences are paired
    measured, texts = {}, {}
    for name in p.policies:
        params = parents.load_model(stage, name, tokenizer, mesh, expected=model.config)[1]
        measured[name] = watch.measure(params, reference)
        texts[name] = watch.look(params, reference, measured[name])
        folder.say(f"{workdir.name}: {name} measured on {len(measured[name])} prompts")

    # ---- write
    base = measured[p.policies[0]]
    table = {name: describe(rows, base, watch.prompts) | texts[name] for name, rows in measured.items()}
    reward = read_manifest(stage.parents["proxy"])["metrics"] if "proxy" in stage.parents else {}
    samples = side_by_side(watch.prompts, measured)
    files = {FILES[0]: json.dumps({"policies": table, "reward_model": reward}, indent=1) + "\n"}
    files |= {FILES[1]: "".join(json.dumps(row) + "\n" for row in samples)}
    host.in_first(lambda: [replace_file(workdir / name, text) for name, text in files.items()])
    metrics = {f"{name}/{key}": row[key] for name, row in table.items() for key in ("gold_reward", "kl") if key in row}
    content = files_hash(workdir, FILES)
    return folder.finish(stage, params=None, content=content, files=FILES, step=0, metrics=metrics)


def describe(rows: list[dict], base: list[dict], prompts: list[dict]) -> dict[str, Any]:
    """Means of one policy over the prompts, with intervals, and its wins against `base` on the same prompts.

    The gold reward is over the prompts whose reply has one, gains and wins over those where both replies have.
    """
    column = lambda name: [row[name] for row in rows]  # noqa: E731
    out = {"kl": float(np.mean(column("kl"))), "kl_ci95": bootstrap(column("kl"))}
    out |= {"length": float(np.mean(column("length"))), "eos_rate": float(np.mean(column("finished")))}
    if "proxy" in rows[0]:
        out |= {"proxy_reward": float(np.mean(column("proxy"))), "proxy_reward_ci95": bootstrap(column("proxy"))}
    out |= probe.counted(rows)
    scored = [i for i, row in enumerate(rows) if row.get("gold") is not None]
    both = [i for i in scored if base[i].get("gold") is not None]
    gold = np.array([rows[i]["gold"] for i in scored])
    if scored:
        out |= {"gold_reward": float(gold.mean()), "gold_reward_ci95": bootstrap(gold), "gold_sd": float(gold.std())}
    if both:
        gain = np.array([rows[i]["gold"] - base[i]["gold"] for i in both])
        wins = np.sign(gain) / 2 + 0.5
        out |= {"gold_gain": float(gain.mean()), "gold_gain_ci95": bootstrap(gain)}  # paired by prompt
        out |= {"win_rate": float(wins.mean()), "win_rate_ci95": bootstrap(wins)}
    if scored:
        parts = dict.fromkeys(part for i in scored for part in rows[i]["parts"])
        of_part = lambda part: [rows[i]["parts"][part] for i in scored if part in rows[i]["parts"]]  # noqa: E731
        out["gold_parts"] = {part: float(np.mean(of_part(part))) for part in parts}
        of = np.array([prompts[i].get("family", "") for i in scored])
        out["families"] = {family: float(gold[of == family].mean()) for family in sorted(set(of.tolist()) - {""})}
    return out


def side_by_side(prompts: list[dict], measured: dict[str, list[dict]]) -> list[dict]:
    """One row per prompt with what every policy said, for people to read."""
    keep = ("completion", "gold", "proxy", "parts", "kl", "finished")
    rows = []
    for index, prompt in enumerate(prompts):
        policies = {name: {k: v for k, v in found[index].items() if k in keep} for name, found in measured.items()}
        rows.append(
            {"row": index, "family": prompt.get("family", ""), "prompt": prompt["prompt"], "policies": policies}
        )
    return rows
