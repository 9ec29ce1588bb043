"""Who replies beside the policy: baselines to beat and opponents to be compared with (`config.opponent`).

Each is a function of (model, live policy, reference, temperature) -> `Author`; one of your own, by its
dotted path, is as good. Its own settings are keyword-only: `config.opponent_args`.
"""

from typing import Any, NamedTuple

from alignax.ops.checks import Scalar, declares
from alignax.sampling import mixture as mixtures
from alignax.types import Model, Params


class Author(NamedTuple):
    """Who samples replies: a model, its parameters, and the temperature."""

    model: Model
    params: Any
    temperature: Scalar


@declares(deterministic=True)
def greedy(model: Model, policy: Params, reference: Params, temperature: Scalar) -> Author:
    """The policy at temperature 0: one reply, as every other would be the same. ReMax (Li et al. 2023, 2310.10505)."""
    del reference, temperature
    return Author(model, policy, 0.0)


def reference(model: Model, policy: Params, reference: Params, temperature: Scalar) -> Author:
    """The reference policy: XPO (Xie et al. 2024, 2405.21046), vBoN (Amini et al. 2024, 2407.06057)."""
    del policy
    return Author(model, reference, temperature)


def mixture(model: Model, policy: Params, reference: Params, temperature: Scalar, *, share: Scalar = 0.5) -> Author:
    """pi^(1 - share) ref^share, token by token: Nash-MD (Munos et al. 2023, 2312.00886). `sampling.mixture.mixture`.

    Raises ValueError if share is outside [0, 1], or the model caps its logits.
    """
    return Author(mixtures.mixture(model, share), (policy, reference), temperature)
