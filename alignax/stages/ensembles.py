"""Ensembles of reward models as parents of an online stage: refused unless they are alike, then stacked."""

from typing import Any

import jax
from jax.sharding import Mesh

from alignax import lora
from alignax.config import ConfigError
from alignax.manifest import CheckpointError, read_manifest
from alignax.rewards.config import Reward
from alignax.rewards.ensemble import stacked
from alignax.stages import parents
from alignax.stages.alike import check_alike
from alignax.stages.folder import Stage
from alignax.types import Model, Params


def load(
    stage: Stage, reward: Reward, tokenizer: Any, mesh: Mesh, bases: dict[str, Params] | None = None
) -> tuple[Model, Params]:
    """Model and parameters of an ensemble: of several folders (`rewards.ensemble`), or of one with several heads.

    Members that are adapters on one decoder keep it in common. `bases`: see `parents.load_model`. Raises
    CheckpointError, before anything is loaded, for members that are not alike, and for one with a single score.
    """
    if not reward.members:
        folder = stage.parents[reward.role]
        if not parents.rated_attributes(read_manifest(folder)):
            raise ConfigError(
                f"config.{reward.key}.function: the reward model {folder} has a single score, no members; name several "
                "folders under 'from', or train one with config.heads"
            )
        return parents.load_model(stage, reward.role, tokenizer, mesh, bases=bases)[:2]
    roles, key = [f"{reward.role}.{i}" for i in range(reward.members)], f"{reward.key}.from"
    check_alike({role: stage.parents[role] for role in roles}, key=key)
    common = {} if bases is None else bases
    loaded = [parents.load_reward(stage, role, {}, tokenizer, mesh, key=key, bases=common) for role in roles]
    (model, _), trees = loaded[0], [params for _, params in loaded]
    if len({_outline(tree) for tree in trees}) > 1:  # whole ones and adapters, or adapters of different shapes
        trees = [lora.merge(tree) for tree in trees]
    try:
        return model, stacked(trees)
    except ValueError as error:
        raise CheckpointError(f"config.{key}: {error}") from None


def _outline(params: Params) -> str:
    """The structure and shapes of a tree, to be compared."""
    return str(jax.tree.map(lambda x: x.shape, params))
