"""Terms beside the policy's own: a loss on data (PPO-ptx), and a value head on the policy's trunk."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from errors import refuses
from tiny import close, demo_batch, prompt_batch
from tiny_online import ALONE, build_actors, build_algorithm, build_frozen, build_state, models

from alignax import forward
from alignax.bound import bound
from alignax.config import ConfigError
from alignax.stages import programs
from alignax.train import objectives, online, rewarded
from alignax.train.algorithm import Actors, DataLoss
from alignax.train.step import gradients
from alignax.types import Demo

RATE = 0.5
ONCE = dict(update_args=dict(epochs=1, minibatches=1), optimizer_args=dict(learning_rate=RATE, clip_norm=0.0))


def reward():
    """The tiny reward model on the device."""
    return lambda algorithm: programs.on_device(algorithm, {"reward": models()[0]})


def with_data(coefficient, **changes):
    """An algorithm of one update, with an SFT loss on data."""
    term = bound("sft", {}, "alignax.losses", key="data_loss.loss")
    data = DataLoss(term=term, coefficient=coefficient, record=Demo)
    return dataclasses.replace(build_algorithm(**ONCE, **changes), data=data)


def test_an_update_is_that_of_the_rollout_and_gamma_times_that_of_the_data():
    plain, gamma = build_algorithm(**ONCE), 0.3
    algorithm, frozen, data = with_data(gamma), build_frozen(), demo_batch()
    run = lambda one, batch: jax.jit(  # noqa: E731
        lambda s, f, b: online.iteration(one, build_actors(), reward()(one), s, f, b)
    )(build_state(one), frozen, batch)
    (want, _), (got, metrics) = run(plain, prompt_batch()), run(algorithm, prompt_batch() | {"data": data})
    params, model = build_state(plain).policy.params, models()[0]
    of_data = lambda params, batch: {"sft": (1.0, algorithm.data.term(forward.demo(model, params, batch)))}  # noqa: E731
    grads, found = gradients(of_data, params, data)
    # plain gradient descent, one update: w - rate (g + gamma g_data)
    expected = jax.tree.map(lambda w, g: w - RATE * gamma * g, want.policy.params, grads)
    close(*jax.device_get((got.policy.params, expected)), atol=2e-6)
    close(*jax.device_get((got.critic.params, want.critic.params)), atol=1e-7)
    assert metrics["data/sft"] == pytest.approx(float(found["sft"]), rel=1e-5)
    assert metrics["data/loss"] == pytest.approx(gamma * float(found["sft"]), rel=1e-5)


@pytest.mark.slow
def test_each_minibatch_has_its_share_of_the_data_in_every_epoch():
    changes = dict(update_args=dict(epochs=2, minibatches=2), optimizer_args=dict(learning_rate=1e-9, clip_norm=0.0))
    term = bound("sft", {}, "alignax.losses", key="data_loss.loss")
    algorithm = dataclasses.replace(build_algorithm(**changes), data=DataLoss(term=term, coefficient=1.0, record=Demo))
    data, (model, params, *_) = jax.tree.map(jnp.asarray, demo_batch()), models()
    state, metrics = jax.jit(lambda s, f, b: online.iteration(algorithm, build_actors(), reward()(algorithm), s, f, b))(
        build_state(algorithm), build_frozen(), prompt_batch() | {"data": data}
    )
    halves = [jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], data) for i in range(2)]
    of = lambda half: gradients(lambda p, b: {"sft": (1.0, term(forward.demo(model, p, b)))}, params, half)[1]["sft"]  # noqa: E731
    assert metrics["data/sft"] == pytest.approx(float(sum(map(of, halves))) / 2, rel=1e-4)


def shared(**changes):
    """(algorithm, state, actors) of a policy with a value head on its own trunk."""
    algorithm = build_algorithm(critic_init="shared", value_coef=0.25, **(ONCE | changes))
    model, policy, critic, _ = models()
    state = online.start(algorithm, policy | {"scalar": critic["scalar"]}, None, 0)
    whole = build_actors()
    return algorithm, state, Actors(whole.sampler)


@pytest.mark.slow
def test_a_value_head_on_the_policys_trunk():
    algorithm, state, actors = shared()
    frozen, model = build_frozen(), models()[0]
    score = reward()(algorithm)
    after, metrics = jax.jit(lambda s, f, b: online.iteration(algorithm, actors, score, s, f, b))(
        state, frozen, prompt_batch()
    )
    assert after.critic is None and jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss/value_avg", "critic/vf_explained_var", "val/ratio"} <= set(metrics)

    # by hand: values and advantages of the same rollout, and one gradient of both terms
    params, key = state.policy.params, jax.random.wrap_key_data(state.key)
    rollout = online.produce(algorithm, actors, frozen, params, prompt_batch(), key, state.step)
    rollout = rewarded.scored(algorithm, rollout, score(frozen, rollout))
    scores, _ = algorithm.scoring(rollout.score, rollout.finished, rollout.mask.sum(1), state.moments)
    view = forward.token_statistics(model, frozen["reference"], rollout.tokens, rollout.valid, temperature=0.9)
    value_BT = forward.values(model, params, rollout.tokens, rollout.valid)
    rollout = rollout.replace(ref_logp=view.logp, old_value=value_BT)
    rollout, _, _ = algorithm.advantage(rollout, scores, state.kl_coef)

    def objective(params, r):
        policy = forward.policy_view(model, params, r, temperature=0.9)
        critic = r.replace(value=forward.values(model, params, r.tokens, r.valid))
        ((_, loss),) = algorithm.policy.values()
        return {"policy": (1.0, loss(policy)), "value": (0.25, algorithm.value(critic))}

    grads, _ = gradients(objective, params, rollout)
    close(after.policy.params, jax.tree.map(lambda w, g: w - RATE * g, params, grads), atol=1e-5)
    assert float(jnp.abs(grads["scalar"]["kernel"]).max()) > 1e-4  # the head learns


def test_the_trunk_is_walked_once_for_both_terms():
    algorithm, state, actors = shared()
    frozen = build_frozen()
    without = dataclasses.replace(algorithm, value_coef=None, value=None, advantage=build_algorithm(
        **ALONE, advantage="reinforce_plus_plus", loss="ppo_clip").advantage)  # fmt: skip

    def flops(one, state):
        rollout = jax.eval_shape(lambda: online.produce(
            one, actors, frozen, state.policy.params, prompt_batch(), jax.random.key(0), jnp.int32(0)))  # fmt: skip
        zeros = jnp.zeros(rollout.tokens.shape)
        full = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rollout).replace(
            advantage=zeros, returns=zeros, old_value=zeros, ref_logp=zeros
        )
        of = lambda params: gradients(  # noqa: E731
            lambda p, r: objectives.policy_objective(one, actors, frozen, p, r, 0.1), params, full
        )[0]
        return jax.jit(of).lower(state.policy.params).compile().cost_analysis()["flops"]

    both, alone = flops(algorithm, state), flops(without, state)
    assert alone < both < 1.1 * alone, (both, alone)


def test_a_head_that_is_shared_has_no_optimizer_of_its_own():
    with refuses(ConfigError, "config.value_optimizer", "shared"):
        build_algorithm(critic_init="shared", value_optimizer="sgd", value_optimizer_args=dict(learning_rate=0.1))
    with refuses(ConfigError, "config.value_coef", "shared"):
        build_algorithm(value_coef=0.5)
    with refuses(ConfigError, "config.value_coef = -1.0", "expected"):
        build_algorithm(critic_init="shared", value_coef=-1.0)


@pytest.mark.slow
def test_what_learns_beside_waits_for_nothing():
    """Two programs give the same, data included."""
    algorithm, frozen = with_data(0.3), build_frozen()
    batch, score = prompt_batch() | {"data": demo_batch()}, reward()(algorithm)
    given = algorithm, build_actors()
    want, _ = programs.one_program(*given, score, frozen, own := jax.tree.map(jnp.copy, build_state(algorithm)))(
        own, batch
    )
    own = jax.tree.map(jnp.copy, build_state(algorithm))
    step = programs.two_programs(*given, score, None, frozen, own, programs.sampling(*given, frozen))
    got, _ = step(own, batch)
    close(got.policy.params, want.policy.params, atol=1e-6)
