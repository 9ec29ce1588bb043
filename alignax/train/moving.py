"""What moves over the iterations beside policy and critic: the reference, an average, the entropy's coefficient."""

import dataclasses

from jaxtyping import Array, Float

from alignax.ops.masked import masked_mean
from alignax.train.algorithm import Algorithm
from alignax.train.reference import mix
from alignax.train.state import OnlineState
from alignax.types import Params, Rollout


def present(frozen: dict, state: OnlineState) -> dict:
    """The frozen parameters, with the reference where it is now if it moves."""
    return frozen if state.reference is None else frozen | {"reference": state.reference}


def result(state: OnlineState) -> Params:
    """What a run is for: the average of the policy, if there is one, else the policy; without its value head."""
    return headless(state.policy.params if state.ema is None else state.ema)


def headless(params: Params) -> Params:
    """A policy's parameters without the value head that its trunk may have."""
    return {name: x for name, x in params.items() if name != "scalar"} if "scalar" in params else params


def entropy_bonus(
    algorithm: Algorithm, state: OnlineState, rollout: Rollout
) -> tuple[Algorithm, Float[Array, ""] | None, dict]:
    """(the algorithm with this iteration's coefficient of the entropy, the next one, metrics), if it is controlled.

    The entropy is that of the policy which sampled, from its tokens: the mean of -log pi.
    """
    if algorithm.entropy_controller is None:
        return algorithm, state.entropy_coef, {}
    entropy = masked_mean(-rollout.old_logp, rollout.mask & rollout.own[:, None])
    applied, after = algorithm.entropy_controller(state.entropy_coef, entropy)
    terms = algorithm.policy | {"entropy": (applied, algorithm.policy["entropy"][1])}
    return dataclasses.replace(algorithm, policy=terms), after, {"objective/entropy_coef": applied}


def averages(algorithm: Algorithm, state: OnlineState, params: Params) -> dict[str, Params | None]:
    """A reference that moves and an average of the policy, after the updates of an iteration that led to `params`."""
    follow, decay = algorithm.follow, algorithm.ema
    return {
        "reference": follow(state.reference, headless(params), state.step + 1) if follow else state.reference,
        "ema": state.ema if decay is None else mix(state.ema, params, 1.0 - decay),
    }
