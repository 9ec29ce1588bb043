"""Average: the weights of finished checkpoints of one architecture -> one checkpoint. See configs/world/average.py."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alignax.bound import fill, plan_record, static
from alignax.config import ConfigError
from alignax.manifest import CheckpointError
from alignax.stages import fitting, folder, parents, plans
from alignax.stages.alike import check_alike
from alignax.stages.plans import Declaration, Parent
from alignax.types import Params

MEMBER = Parent("members", makes=(plans.POLICY, plans.REWARD), reads=())
STAGE = Declaration("average", plans.POLICY, {"member": MEMBER})  # or what its members are


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("average")
    del c.init_from
    c.template = "chat"  # of the members
    c.members = ()  # folders of finished policies, or of finished reward models
    c.weights = ()  # of each, of any unit: they are divided by their sum. (): equal ones
    return c


@plan_record
class Plan(plans.Shared):
    """What a run does."""

    init_from: str = static(default="")
    template: str = static()
    weights: tuple[float, ...] = static()  # with the sum 1


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    members, weights = r.members, [float(x) for x in r.weights or [1.0] * len(r.members)]
    if len(members) < 2 or not all(isinstance(one, str) and one for one in members):
        raise r.error("members", "expected the folders of 2 checkpoints or more")
    if len(weights) != len(members):
        raise ConfigError(f"config.{r.key('weights')}: {len(weights)} weights of {len(members)} members")
    if not all(map(math.isfinite, weights)) or sum(weights) <= 0:
        raise r.error("weights", "expected finite numbers whose sum is above 0")
    made = fill(Plan, r, weights=tuple(x / sum(weights) for x in weights), **plans.shared(r))
    r.finish()
    return made


def averaged(total: Params | None, member: Params, weight: float) -> Params:
    """total + weight * member, in float32; without a total the first summand."""
    term = jax.tree.map(lambda x: weight * x.astype(jnp.float32), member)
    return term if total is None else jax.tree.map(jnp.add, total, term)


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Writes sum_i w_i theta_i of the members, which it reads one after the other; all are its parents.

    Of reward models it is WARM (Rame et al. 2024, 2401.12187, equation 1), of policies a soup (Rame et al. 2023,
    2306.04488). Members have to come from one initialisation, that of a reward model's head included (`head_seed` of
    the stage `reward`): between others the average is of nothing. An adapter counts as the whole parameters that it
    makes of its base, which all members then have in common. Raises CheckpointError for members that are not alike.
    """
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- members that fit each other
    manifests = check_alike(stage.parents, key="members")
    bases = [(one["base"] or {}).get("content_hash") for one in manifests]
    for path, base in zip(stage.parents.values(), bases, strict=True):
        if base != bases[0]:
            of = [f"an adapter on {x[:12]}" if x else "whole parameters" for x in (bases[0], base)]
            first = next(iter(stage.parents.values()))
            raise CheckpointError(
                f"config.members: {first} is {of[0]}, {path} is {of[1]}: expected adapters on one base, or none"
            )

    # ---- their weighted sum
    roles = list(stage.parents)
    tokenizer, mesh = parents.get_tokenizer(stage, parent=roles[0]), parents.get_mesh(p.mesh)
    add, total, model = jax.jit(averaged, static_argnums=2), None, None
    for role, weight in zip(roles, p.weights, strict=True):
        model, params, _ = parents.load_model(stage, role, tokenizer, mesh)
        total = add(total, params, weight)
        folder.say(f"{stage.workdir.name}: {weight:.3f} of {stage.parents[role]}")

    # ---- checkpoint
    kept = {name: x for name, x in (manifests[0]["data"] or {}).items() if name in ("attributes", "heads")}
    return folder.finish(
        stage,
        params=total,
        step=0,
        model=model,
        tokenizer=tokenizer,
        template=p.template,
        makes=manifests[0]["makes"],
        first=roles[0],
        data={"fingerprint": "", "counts": {}} | kept if kept else None,
    )
