"""The rewards of the reference's replies to the prompts of an online run: computed once, kept in the run folder.

The score of a reply is then shaped by those of the reference to its prompt (`rewards.shaping`). The table goes into the
programs as an argument and is read by the prompt's row, so that every estimator can have it, one with a critic too; an
opponent would sample the reference again in each epoch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignax import host, sharding
from alignax.data.arrays import fingerprint
from alignax.data.loader import Loader, eval_batches
from alignax.log import progress
from alignax.ops.checks import needs
from alignax.stages import reference
from alignax.stages.folder import Stage, say
from alignax.stages.programs import HostScore, RewardOf, Said
from alignax.stages.roles import shared
from alignax.train import online, rewarded
from alignax.train.algorithm import Actors, Algorithm, Draw

FILE = "reference_rewards.npz"


def table(
    stage: Stage, actors: Actors, frozen: dict, reward_of: RewardOf, on_host: HostScore | None, prompts: Mapping,
    loader: Loader, rows: int, mesh: Mesh,
) -> dict[str, jax.Array]:  # fmt: skip
    """{reward: [N M]} of M replies of the reference to each of N rows of data, nan for rows that the run does not draw.

    `reward_of(algorithm)` gives the rewards on the device, `on_host` those of groups of M over text. From the folder if
    they are there: a folder of another config or other parents has been cleared.
    """
    plan, path = stage.plan, stage.workdir / FILE
    key = {"data": fingerprint(prompts), "replies": plan.reference_replies, "steps": plan.total_steps + plan.ahead}
    key |= reference.computation(actors.policy.config, mesh)
    found = reference.read(path, key, what="rewards")
    if found is None:
        drawn = np.unique(np.concatenate([loader.indices(step) for step in range(plan.total_steps + plan.ahead)]))
        asked = jax.tree.map(lambda x: x[drawn], prompts)
        found = computed(stage, actors, frozen, reward_of, on_host, asked, rows, mesh)
        silent = np.stack([np.isnan(x[drawn]).all(1) for x in found.values()]).any(0)
        if silent.any():
            say(f"[yellow]the reference has no score for {silent.sum()} of {len(drawn)} prompts: they teach nothing[/]")
        whole = found
        host.in_first(lambda: reference.write(path, key, whole))
    return {name: jax.device_put(x, sharding.replicated(mesh)) for name, x in found.items()}


def computed(
    stage: Stage, actors: Actors, frozen: dict, reward_of: RewardOf, on_host: HostScore | None, prompts: Any,
    rows: int, mesh: Mesh,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The table, in batches of as many prompts as an iteration has."""
    plan, replies, size = stage.plan, stage.plan.reference_replies, stage.plan.batch_size
    alone = only_reference(plan.algorithm, replies)
    key, score, (arrays, tree) = jax.random.fold_in(jax.random.key(plan.seed), 4), reward_of(alone), shared(frozen)

    def sampled(arrays: Any, batch: dict) -> Any:
        frozen = tree(arrays)
        rollout = online.produce(alone, actors, frozen, frozen["reference"], batch, key, jnp.int32(0))
        return rollout, score(frozen, rollout)

    run, join = (
        jax.jit(sampled, out_shardings=sharding.batch_sharding(mesh)),
        jax.jit(lambda rewards: rewarded.combined(alone, rewards)),
    )
    out: dict[str, np.ndarray] = {}
    batches = eval_batches(prompts, size, **host.share())
    for batch in progress(batches, "rewards of the reference", total=-(-len(prompts["row"]) // size)):
        put = sharding.put_batch(batch, mesh)
        rollout, rewards = run(arrays, put)
        (finished,) = needs(rollout, "finished")
        said = host.together(lambda r=rollout, p=put: on_host(r, p)) if on_host else Said({}, {})
        rewards |= {name: host.rows_like(x, finished) for name, x in said.scores.items()}
        parts, ids = host.everywhere((join(rewards), put["row"]))
        for name, x in parts.items():
            into = out.setdefault(name, np.full((rows, replies), np.nan, np.float32))
            into[ids[ids >= 0]] = np.asarray(x).reshape(-1, replies)[ids >= 0]
    return out


def only_reference(algorithm: Algorithm, replies: int) -> Algorithm:
    """The algorithm whose one author gives so many replies to each prompt."""
    alone = {"draws": (Draw(replies=replies),), "share_prompts": False, "length_buckets": 1, "keep": 0}
    return dataclasses.replace(algorithm, **alone)
