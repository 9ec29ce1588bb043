"""The whole PPO iteration on a tiny model, with the stage's own parts: one program, two programs, many seeds."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_online
from tiny import close, prompt_batch
from tiny_online import (
    ALONE,
    CAPACITY,
    ENDS,
    P,
    build_actors,
    build_algorithm,
    build_frozen,
    build_iteration,
    build_state,
    compiled,
    models,
)  # fmt: skip

from alignax import forward
from alignax.checkpoint import Steps
from alignax.ops.kl import START, adaptive_kl, pid_kl
from alignax.replies import fitted
from alignax.rewards.model import score
from alignax.stages import programs
from alignax.train import online, reading, rewarded
from alignax.train.step import cut

STEPS = 3


def producer(algorithm):
    """(state, frozen, prompts) -> the rollout of the state's own step."""

    def run(state, frozen, prompts):
        key = jax.random.wrap_key_data(state.key)
        return online.produce(algorithm, build_actors(), frozen, state.policy.params, prompts, key, state.step)

    return run


@pytest.fixture(scope="module")
def run():
    """(states before each iteration and after the last, metrics of each, rollouts drawn from each state)."""
    algorithm, iteration, frozen = compiled()
    produce = jax.jit(producer(algorithm))
    states, metrics, rollouts = [build_state(algorithm)], [], []
    for step in range(STEPS):
        rollouts.append(produce(states[-1], frozen, prompt_batch(seed=step)))
        state, numbers = iteration(states[-1], frozen, prompt_batch(seed=step))
        states.append(state)
        metrics.append(numbers)
    return states, metrics, rollouts


@pytest.fixture(scope="module")
def teacher_forced():
    model = models()[0]
    return jax.jit(lambda p, r: forward.token_statistics(model, p, r.tokens, r.valid, temperature=0.9, start=P).logp)


def test_the_first_minibatch_has_ratio_one_and_no_kl_to_the_sampler(run):
    # trap 22, at every iteration: sampler and forward pass differ by rounding only, (1e-6)^2 in approxkl
    for metrics in run[1]:
        np.testing.assert_allclose(metrics["val/ratio_first"], 1.0, atol=1e-5)
        assert metrics["policy/approxkl_avg_first"] < 1e-10
        assert metrics["policy/approxkl_avg"] > 1e-5  # later minibatches have moved on


def test_kl_to_the_reference_starts_at_zero_and_grows(run):
    kl = [float(metrics["objective/kl"]) for metrics in run[1]]
    assert abs(kl[0]) < 1e-5 < 1e-3 < abs(kl[-1])


def test_old_log_probs_are_the_live_policys_at_every_iteration(run, teacher_forced):
    # trap J3
    states, _, rollouts = run
    for state, rollout in zip(states, rollouts):
        mask = np.asarray(rollout.mask)
        np.testing.assert_allclose(
            rollout.old_logp[mask], teacher_forced(state.policy.params, rollout)[mask], atol=1e-5
        )
    stale = teacher_forced(states[0].policy.params, rollouts[-1])
    assert np.abs(rollouts[-1].old_logp - stale)[np.asarray(rollouts[-1].mask)].max() > 1e-2


@pytest.fixture(scope="module")
def draw():
    """(state, prompts) -> tokens."""
    algorithm, _, frozen = compiled()
    return jax.jit(lambda state, prompts: producer(algorithm)(state, frozen, prompts).tokens)


def test_two_rollouts_of_the_same_prompts_differ_and_the_same_step_repeats(run, draw):
    # trap J2
    state, prompts = run[0][0], prompt_batch()
    first = draw(state, prompts)
    np.testing.assert_array_equal(draw(state, prompts), first)
    assert (draw(state.replace(step=jnp.int32(1)), prompts) != first).any()
    assert (draw(build_state(compiled()[0], seed=1), prompts) != first).any()


def test_a_prompt_that_comes_twice_in_a_batch_gets_another_reply(run, draw):
    twice = jax.tree.map(lambda x: x[jnp.array([0, 1, 2, 3, 0, 1, 2, 3])], prompt_batch())
    tokens, alone = draw(run[0][0], twice)[:, P:], draw(run[0][0], prompt_batch())[:, P:]
    np.testing.assert_array_equal(tokens[:4], alone[:4])
    assert (tokens[4:] != tokens[:4]).any(1).all()


def test_metrics_describe_the_rollout(run):
    states, metrics, rollouts = run
    reward = models()[3]
    for step, rollout in enumerate(rollouts):
        scores, done = score(models()[0], reward, rollout), rollout.finished
        got = metrics[step]
        np.testing.assert_allclose(got["objective/scores"], scores.mean(), atol=1e-5)
        np.testing.assert_allclose(got["objective/scores_sd"], scores.std(), atol=1e-5)
        last_B = rollout.mask.shape[1] - 1 - np.asarray(rollout.mask)[:, ::-1].argmax(1)
        ended_B = np.isin(np.asarray(rollout.tokens)[np.arange(len(last_B)), last_B], ENDS)
        np.testing.assert_array_equal(done, ended_B)
        assert got["val/num_eos_tokens"] == done.sum() and (rollout.version == step).all()
        np.testing.assert_allclose(got["completions/mean_length"], rollout.mask.sum(1).mean())
        np.testing.assert_allclose(got["completions/clipped_ratio"], 1 - done.mean(), atol=1e-6)
        assert got["episode"] == 8 * (step + 1) and got["policy/updates"] == 4
        assert got["objective/kl_coef"] == states[step].kl_coef
    assert max(float(m["completions/mean_length"]) for m in metrics) <= CAPACITY


def test_the_coefficient_follows_the_measured_kl_and_lives_in_the_state(run):
    for before, after, metrics in zip(run[0], run[0][1:], run[1]):
        want = adaptive_kl(before.kl_coef, metrics["objective/kl"], target=0.5, horizon=100.0, batch_size=8)
        np.testing.assert_allclose(after.kl_coef, want, rtol=1e-6)
    assert run[0][1].kl_coef < run[0][0].kl_coef  # a KL of 0 is below the target of 0.5


def test_policy_critic_and_moments_all_move_and_the_key_does_not(run):
    first, last = run[0][0], run[0][-1]
    for name in ("policy", "critic"):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), getattr(first, name).params, getattr(last, name).params)
        assert all(jax.tree.leaves(moved)), moved
    assert last.moments.count == 8 * STEPS and last.step == STEPS
    np.testing.assert_array_equal(last.key, first.key)


def test_one_program_equals_two_with_the_reward_on_the_host():
    algorithm, one, frozen = compiled()
    state, reward, seen = build_state(algorithm), jax.jit(partial(score, models()[0])), []

    def on_host(rollout, prompts):
        seen.append((rollout.finished.shape, prompts["row"].tolist()))
        return programs.Said({"reward": np.asarray(reward(frozen["reward"]["reward"], rollout))}, {})

    want, numbers = one(state, frozen, prompt_batch())
    own = jax.tree.map(jnp.copy, state)  # which the second program may overwrite
    none_on_device = programs.on_device(algorithm, {})
    given = algorithm, build_actors()
    sample = programs.sampling(*given, frozen)
    step = programs.two_programs(*given, none_on_device, on_host, frozen, own, sample)
    got, host_numbers = step(own, prompt_batch())
    close(got, want, atol=1e-6)
    close(host_numbers, numbers, rtol=1e-5, atol=1e-6)
    assert numbers["objective/scores_sd"] > 0.05 and seen == [((8,), list(range(8)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "together, changes",
    [
        pytest.param(False, {}, id="with a critic"),
        pytest.param(
            True, dict(samples_per_prompt=2, advantage="group_baseline", **ALONE), id="groups that share their prompt"
        ),
    ],
)
def test_programs_for_short_replies_learn_the_same(together, changes, monkeypatch):
    """Rows are cut to their replies, by programs of different room, and one update is made of several microbatches."""
    monkeypatch.setattr(tiny_online, "ENDS", tuple(range(1, 25)))  # of 50: replies of all lengths
    once = dict(update_args=dict(epochs=2, minibatches=1))
    parted = dict(update_args=dict(epochs=2, minibatches=1, microbatches=4))
    want, got = (build_algorithm(**changes, **values) for values in (once, parted))
    # a config's microbatch is of all devices, of which the tests have eight
    got = dataclasses.replace(got, share_prompts=together, length_buckets=4)
    used = reading.rooms(got)

    def room(valid):
        f = lambda room: jnp.int32(room)  # noqa: E731
        return fitted(f, used, valid, start=P, group=used[-1] // CAPACITY)

    frozen, prompts = build_frozen(), prompt_batch()
    rollout = jax.jit(producer(want))(build_state(want), frozen, prompts)
    parts = cut(rollout.valid, 4, used[-1] // CAPACITY)
    assert len({int(room(part)) for part in parts}) > 1
    (state, metrics), (other, others) = (
        jax.jit(build_iteration(one))(build_state(one), frozen, prompts) for one in (want, got)
    )
    close(other, state, rtol=1e-5, atol=2e-6)
    close(others, metrics, rtol=1e-4, atol=1e-5)
    assert float(metrics["grad_norm"]) > 1e-3


def test_missing_scores_teach_nothing_and_break_nothing(run):
    """PPO with a critic: rows without a score, then a whole batch without any; the same program."""
    (algorithm, _, frozen), states, rollout = compiled(), run[0], run[2][1]

    @jax.jit
    def learn(state, rollout, score_B):
        rollout = rewarded.scored(algorithm, rollout, {"reward": score_B})
        return online.learn(algorithm, build_actors(), frozen, state, rollout)

    some = jnp.array([1.0, jnp.nan, 0.5, -jnp.inf, 2.0, 0.0, jnp.nan, -1.0])
    after, metrics = learn(states[1], rollout, some)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after)) and np.isfinite([*metrics.values()]).all()
    assert metrics["objective/missing_scores"] == 3 / 8 and metrics["policy/updates"] == 4
    np.testing.assert_allclose(metrics["objective/scores"], 0.5, rtol=1e-6)
    assert after.moments.count == states[1].moments.count + 5

    after, metrics = learn(states[1], rollout, jnp.full(8, jnp.nan))
    close((after.policy, after.critic, after.moments), (states[1].policy, states[1].critic, states[1].moments), atol=0)
    assert np.isfinite([*metrics.values()]).all() and metrics["policy/updates"] == 0 and after.step == 2
    assert after.kl_coef != states[1].kl_coef  # the KL was measured all the same


def test_an_iteration_stays_on_the_device():
    """The program calls nothing on the host, and to run it moves nothing there or back."""
    algorithm, iteration, frozen = compiled()
    state, prompts = build_state(algorithm), jax.device_put(prompt_batch())
    asks = re.compile(r"callback|infeed|outfeed|\bsend\(|\brecv\(")
    talkative = jax.jit(lambda x: jax.pure_callback(np.asarray, x, x) + 1)
    assert asks.search(talkative.lower(jnp.ones(2)).compile().as_text())
    assert not asks.search(iteration.lower(state, frozen, prompts).compile().as_text())
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(iteration(state, frozen, prompts))


@pytest.mark.slow  # test_many_algorithms_are_one_program maps over states too
def test_many_seeds_are_one_program():
    # a sweep is an axis: vmap over states that differ by their seed, against a loop over them
    algorithm, iteration, frozen = compiled()
    states = jax.vmap(lambda seed: build_state(algorithm, seed))(jnp.arange(3))
    swept, metrics = jax.jit(jax.vmap(build_iteration(algorithm), in_axes=(0, None, None)))(
        states, frozen, prompt_batch()
    )
    for seed in range(3):
        want, numbers = iteration(build_state(algorithm, seed), frozen, prompt_batch())
        close(jax.tree.map(lambda leaf, seed=seed: leaf[seed], swept), want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(metrics["objective/scores"][seed], numbers["objective/scores"], atol=1e-5)
    assert np.unique(np.asarray(metrics["objective/scores"])).size == 3


def test_a_controller_with_memory_keeps_it_in_the_state(tmp_path):
    """Three iterations under PID, the last of them from a checkpoint: the same coefficients as a controller by hand."""
    algorithm = build_algorithm(kl_controller="pid_kl", kl_controller_args=dict(target=0.5, kp=2.0, kd=1.0))
    frozen, step = build_frozen(), jax.jit(build_iteration(algorithm))
    fresh = lambda: build_state(algorithm)  # noqa: E731
    state, coef, memory = fresh(), jnp.float32(0.1), START
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))  # arrays only
    for i in range(3):
        if i == 2:
            with Steps(tmp_path, keep=1) as steps:
                steps.save(i, state)
            with Steps(tmp_path, keep=1) as steps:
                state = steps.restore_latest(fresh())[1]
        before, (state, metrics) = state, step(state, frozen, prompt_batch())
        coef, memory = pid_kl(coef, metrics["objective/kl"], memory, target=0.5, kp=2.0, kd=1.0)
        np.testing.assert_allclose(state.kl_coef, coef, rtol=1e-5)
        np.testing.assert_allclose(state.kl_memory, memory, rtol=1e-5)
        assert metrics["objective/kl_coef"] == before.kl_coef
    assert state.kl_memory.seen == 3 and state.kl_coef > 0.12  # the KL has passed its target


@pytest.mark.slow  # one step of a plan: stages/test_plan_sweeps
def test_many_algorithms_are_one_program():
    # a sweep over numbers too: vmap over algorithms of one structure, against each of them by itself
    def changed(kl_coef, temperature, clip, lam, target, rate):
        return build_algorithm(
            kl_coef=kl_coef, temperature=temperature, loss_args=dict(clip=clip), advantage_args=dict(lam=lam),
            optimizer_args=dict(learning_rate=rate), kl_controller_args=dict(target=target, horizon=100.0),
        )  # fmt: skip

    settings = [(0.01, 0.9, 0.2, 0.95, 0.5, 0.5), (0.3, 0.7, 0.05, 0.5, 2.0, 0.1)]
    made = [changed(*numbers) for numbers in settings]
    frozen, prompts = build_frozen(), prompt_batch()
    one = jax.jit(lambda algorithm: build_iteration(algorithm)(build_state(algorithm), frozen, prompts))
    swept, metrics = jax.jit(jax.vmap(one))(jax.tree.map(lambda *x: jnp.stack(x), *made))
    for i, algorithm in enumerate(made):
        want, numbers = one(algorithm)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], swept), want, rtol=1e-5, atol=1e-5)
        assert metrics["objective/kl_coef"][i] == numbers["objective/kl_coef"] == np.float32(settings[i][0])
        np.testing.assert_allclose(metrics["objective/scores"][i], numbers["objective/scores"], atol=1e-5)
    assert one._cache_size() == 1 and all(np.unique(metrics[name]).size == 2 for name in ("objective/entropy", "lr"))
