"""k steps off-policy: what is learnt from when, by hand; the same by one program, by several, and by other devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import close, prompt_batch
from tiny_online import build_actors, build_algorithm, build_frozen, build_state, models

from alignax import sharding
from alignax.stages import lagging, programs
from alignax.train import online, rewarded

STEPS, LAG = 5, 2


def batch(i):
    """Prompts that differ from batch to batch."""
    prompts = prompt_batch()
    return prompts | {"tokens": jnp.where(prompts["valid"], (prompts["tokens"] + i) % 40 + 4, prompts["tokens"])}


@pytest.fixture(scope="module")
def by_hand():
    """The states and metrics of a lag of 2, from `sampled` and `learn` alone."""
    algorithm, frozen = build_algorithm(correction="truncated_weights"), build_frozen()
    score = programs.on_device(algorithm, {"reward": models()[0]})
    actors, states, metrics = build_actors(), [build_state(algorithm)], []
    key = jax.random.wrap_key_data(states[0].key)

    @jax.jit
    def one(state, params, prompts, number, version):
        rollout = online.produce(algorithm, actors, frozen, params, prompts, key, number)
        rollout = rollout.replace(version=jnp.full(8, version))
        return online.learn(
            algorithm, actors, frozen, state, rewarded.scored(algorithm, rollout, score(frozen, rollout))
        )

    for step in range(STEPS):
        sampled_at = max(step - LAG, 0)
        given = states[sampled_at].policy.params, batch(step), jnp.int32(step), jnp.int32(sampled_at)
        state, found = one(states[-1], *given)
        states.append(state)
        metrics.append(found)
    return algorithm, states, metrics


def run(algorithm, devices=0, host=False):
    """The same by the stage's own parts."""
    frozen, actors, mesh = build_frozen(), build_actors(), sharding.make_mesh({"data": -1}, jax.devices()[devices:][:1])
    state = jax.tree.map(jnp.copy, build_state(algorithm))
    here = partial(online.sampled, algorithm, actors, frozen)
    state = lagging.with_pending(state, here, batch(0), LAG, mesh)
    score = programs.on_device(algorithm, {"reward": models()[0]})
    sample = programs.sampling(algorithm, actors, frozen)
    if devices:
        on_mesh = jax.device_put((state.replace(pending=()), frozen), sharding.replicated(mesh))
        state, frozen = on_mesh[0].replace(pending=state.pending), on_mesh[1]
        sample = lagging.sampler(algorithm, actors, frozen, mesh, devices)
    if host or devices:
        step = programs.two_programs(algorithm, actors, score, None, frozen, state, sample)
    else:
        step = programs.one_program(algorithm, actors, score, frozen, state)
    put = lambda i: jax.device_put(batch(i), sharding.batch_sharding(mesh))  # noqa: E731
    step = lagging.filled_first(step, sample, put, LAG)
    found = []
    for i in range(STEPS):
        state, metrics = step(state, put(i + LAG))
        found.append(metrics)
    return state, found


SLOW = {"marks": pytest.mark.slow}  # on two meshes it is the same, but for the devices
WAYS = [
    pytest.param({}, id="one program", **SLOW),
    pytest.param({"host": True}, id="several", **SLOW),
    pytest.param({"devices": 2}, id="two meshes"),
]


@pytest.mark.parametrize("options", WAYS)
def test_a_batch_is_learnt_from_two_steps_after_it_was_sampled(by_hand, options):
    algorithm, states, metrics = by_hand
    state, found = run(algorithm, **options)
    for got, want in zip(found, metrics, strict=True):
        close(jax.device_get(got), jax.device_get(want), rtol=2e-4, atol=2e-5)
    close(jax.device_get(state.policy.params), jax.device_get(states[-1].policy.params), atol=1e-5)
    assert [float(one["sampling/staleness"]) for one in found] == [0, 1, 2, 2, 2]
    for i, (rollout, prompts) in enumerate(state.pending):  # batches 5 and 6, by the weights of steps 3 and 4
        assert rollout.version.tolist() == [3 + i] * 8
        np.testing.assert_array_equal(prompts["tokens"], batch(STEPS + i)["tokens"])
    # the ratio to the sampler is not 1 where the policy has moved on, and the correction sees it
    assert found[0]["sampling/importance_sampling_ratio/max"] == pytest.approx(1.0, abs=1e-4)
    assert abs(found[3]["sampling/importance_sampling_ratio/max"] - 1.0) > 1e-3
