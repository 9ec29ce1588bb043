"""Reward models: a scalar head on a trunk, with one score for a reply."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import forward
from alignax.config import ConfigError, suggest, typed
from alignax.models.heads import weighted
from alignax.types import Model, Params, Rollout


def check_weights(known: list[str], weights: Mapping[str, Any], *, key: str, folder: Path, imported: bool) -> None:
    """Checks the weights of the attributes that a reward model rates, `known`; [] of one that has a single score.

    Raises ConfigError for weights of a model that rates no attributes, of an attribute that it does not rate, and for a
    weight that is no finite number. Of an imported classifier, whose labels may be classes and of opposite signs, each
    has to be named.
    """
    for name, value in weights.items():
        if not known:
            raise ConfigError(f"config.{key} is set, but the reward model {folder} has a single score")
        if name not in known:
            raise ConfigError(f"config.{key}.{name}: the reward model rates no such attribute{suggest(name, known)}")
        if not math.isfinite(typed(value, float, key=f"{key}.{name}")):
            raise ConfigError(f"config.{key}.{name} = {value}: expected a finite weight")
    missing = [name for name in known if name not in weights] if imported else []
    if missing:
        example = {name: float(weights.get(name, 0.0)) for name in known}
        raise ConfigError(
            f"config.{key} says no weight of {', '.join(map(repr, missing))}: {folder} is an imported classifier of "
            f"{len(known)} labels, of which each needs one, such as --config.{key}={example}"
        )


def folded(params: Params, known: list[str], weights: Mapping[str, float]) -> Params:
    """The parameters with the scalar head of sum_a weights_a score_a, in the order of `known`; 1 where none says."""
    return params | {"scalar": weighted(params["scalar"], jnp.array([float(weights.get(name, 1.0)) for name in known]))}


def score(model: Model, params: Params, rollout: Rollout) -> Float[Array, " B"]:
    """The score at the last real token of each reply."""
    return forward.score(model, params, rollout.tokens, rollout.valid)
