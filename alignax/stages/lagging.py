"""Rollouts that wait in the state: k steps off-policy, and partial ones; and a sampler on devices of its own."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignax import host, sharding
from alignax.config import Reader
from alignax.stages import parents
from alignax.stages.programs import Produce, Step
from alignax.train import online, waiting
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.state import OnlineState
from alignax.types import Rollout

# what partial rollouts do not go with, and its value where it is off
ALONE = (("steps_off_policy", 0), ("sampler_devices", 0), ("engine", ""), ("env", ""), ("opponent", "none"))


def check(r: Reader) -> None:
    """Whether a config's lag, what it carries over, and devices that sample alone, can be. Raises ConfigError."""
    lag, alone, partial = r.steps_off_policy, r.sampler_devices, r.partial_rollouts
    r.require(lag >= 0, "steps_off_policy", "expected 0 (on-policy) or a number of steps, such as 1")
    r.require(not (lag and r.engine), "steps_off_policy", "expected 0 with an engine, whose lag is engine_args.every")
    r.require(not (lag and r.env), "steps_off_policy", "expected 0 with an env, whose episodes are played in the step")
    r.require(partial >= 0, "partial_rollouts", "expected 0 (none) or a number of batches, such as 1")
    for key, off in ALONE if partial else ():
        r.require(getattr(r, key) == off, key, f"expected {off!r} with partial_rollouts: the policy writes those here")
    replies = r.batch_size * r.oversample * r.samples_per_prompt
    more = f"expected more than the {replies} replies of a step, as partial_rollouts has others beside them; or 0"
    r.require(not (partial and 0 < r.slots <= replies), "slots", more)
    if alone:
        r.require(not r.engine, "sampler_devices", "expected 0 with an engine, which has devices of its own")
        r.require(
            lag > 0, "sampler_devices", "set steps_off_policy to 1 or more: else samplers and learners wait in turn"
        )
        r.require(host.count() == 1, "sampler_devices", "expected 0 with several processes")
        prompts = r.batch_size * r.oversample
        r.require(prompts % alone == 0, "sampler_devices", f"{prompts} prompts do not divide over them")


def with_pending(state: OnlineState, rollout_of: Callable, prompts: dict, lag: int, mesh: Mesh) -> OnlineState:
    """The state with room for `lag` rollouts, of the shapes that rollout_of(state, prompts) has, and their prompts."""
    shapes = jax.eval_shape(rollout_of, state, prompts), prompts
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes,) * lag)  # noqa: E731
    return state.replace(pending=jax.jit(zeros, out_shardings=sharding.batch_sharding(mesh))())


def with_begun(algorithm: Algorithm, state: OnlineState, batches: list[dict], mesh: Mesh) -> OnlineState:
    """The state with the first batches of prompts, none of whose replies has begun."""

    def first(state: OnlineState, batches: list[dict]) -> tuple:
        made = [waiting.begun(algorithm, state, prompts, i) for i, prompts in enumerate(batches)]
        return (functools.reduce(waiting.joined, made),)

    made = jax.jit(first, out_shardings=sharding.batch_sharding(mesh))(state, batches)
    return state.replace(pending=made)


def filled_first(step: Step, sample: Produce, batch: Callable[[int], dict], lag: int) -> Step:
    """The step, before whose first call the start's weights sample the first `lag` batches, `batch(i)`."""
    fresh = True

    def filling(state: OnlineState, prompts: dict) -> tuple[OnlineState, dict]:
        nonlocal fresh
        if fresh and int(state.step) == 0:
            for i in range(lag):
                # the noise of a batch is that of step + lag: of the start, which is step 0, that of batch i
                asked, early = batch(i), state.replace(step=jnp.int32(i - lag))
                rollout, _ = sample(early, asked)
                rollout = rollout.replace(version=jnp.zeros(rollout.tokens.shape[0], jnp.int32))
                state = state.replace(pending=(*state.pending[1:], (rollout, asked)))
        fresh = False
        return step(state, prompts)

    return filling


def sampler(algorithm: Algorithm, actors: Actors, frozen: Mapping, mesh: Mesh, devices: int) -> Produce:
    """Replies sampled on the first devices, with copies of the weights; the others go on learning meanwhile."""
    own = sharding.make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:devices])
    model = parents.on_mesh(actors.policy.config, own)
    there = Actors(actors.sampler._replace(model=model))
    whole, rows = sharding.replicated(own), sharding.batch_sharding(own)
    reads = {name: frozen[name] for name in ("reference", "base") if frozen.get(name)}
    if alone := all(draw.author is None for draw in algorithm.draws):
        reads.pop("reference", None)
    copied = jax.device_put(reads, whole)
    draw = jax.jit(lambda state, frozen, prompts: online.sampled(algorithm, there, frozen, state, prompts))

    def produce(state: OnlineState, prompts: dict) -> tuple[Rollout, dict]:
        needed = jax.device_put(slim(state, alone), whole)
        rollout = draw(needed, copied, jax.device_put(prompts, rows))
        return jax.device_put(rollout, sharding.batch_sharding(mesh)), {}

    return produce


def slim(state: OnlineState, alone: bool) -> OnlineState:
    """What of a state a sampler reads, a reference that moves unless it is `alone`; of what waits how much it is."""
    reference = None if alone else state.reference
    kept = {"policy": state.policy.replace(opt_state=()), "reference": reference}
    left_out = dict.fromkeys(("critic", "ema", "entropy_coef"))
    return state.replace(**kept, **left_out, kl_memory=(), pending=((),) * len(state.pending))
