"""Partial rollouts: a step ends when enough prompts are answered, and the other replies go on in the next ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EOS, PAD, close, prompt_batch
from tiny_online import build_algorithm, build_frozen, build_state, models

from alignax import sharding
from alignax.forward import token_statistics
from alignax.sampling.sampler import Sampler
from alignax.sampling.slots import UNFINISHED
from alignax.stages import lagging, programs
from alignax.train import online, waiting
from alignax.train.algorithm import Actors

STEPS, P, GROUP, CAPACITY = 4, 8, 2, 10
ENDS = (EOS, *range(2, 10))  # 9 of 50 tokens: lengths differ
GRPO = dict(
    samples_per_prompt=GROUP, max_new_tokens=CAPACITY, advantage="group_baseline", critic_init="none", loss="grpo",
    kl_controller="fixed_kl", kl_controller_args={}, kl_placement="loss", kl_estimator="k3",
)  # fmt: skip


def batch(i):
    """Prompts that differ from batch to batch, and so do their rows."""
    prompts = prompt_batch(B=P)
    tokens = jnp.where(prompts["valid"], (prompts["tokens"] + i) % 40 + 4, prompts["tokens"])
    return prompts | {"tokens": tokens, "row": prompts["row"] + P * i}


def parts(carried, rate=0.5, **changes):
    """(algorithm, actors, frozen, mesh, the state before the first step)."""
    algorithm = build_algorithm(
        partial_rollouts=carried, optimizer_args=dict(learning_rate=rate, clip_norm=1.0), **GRPO | changes
    )
    actors = Actors(Sampler(models()[0], CAPACITY, ENDS, PAD))
    mesh = sharding.make_mesh({"data": -1}, jax.devices()[:1])
    state = jax.tree.map(jnp.copy, build_state(algorithm))
    state = lagging.with_begun(algorithm, state, [batch(i) for i in range(carried)], mesh)
    return algorithm, actors, build_frozen(), mesh, state


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one batch", "two batches"])
def steps(request):
    """[(state before, the rollout that is learnt from, its prompts, what waits then)] of a policy that learns."""
    algorithm, actors, frozen, _, state = parts(request.param)
    score = programs.on_device(algorithm, {"reward": models()[0]})

    @jax.jit
    def produced(state, prompts):
        new = online.sampled(algorithm, actors, frozen, state, prompts)
        return waiting.next_batch(algorithm, state, new, prompts)

    iteration, found = jax.jit(partial(online.iteration, algorithm, actors, score)), []
    for step in range(STEPS):
        prompts = batch(step + request.param)
        rollout, asked, pending = produced(state, prompts)
        before, (state, metrics) = state, iteration(state, frozen, prompts)
        close(jax.device_get(state.pending), jax.device_get(pending), atol=1e-5)
        found.append((before, rollout, asked, pending[0], metrics))
    return found


def test_every_prompt_is_learnt_from_once_or_waits(steps):
    for i, (_, rollout, asked, (replies, waits), _) in enumerate(steps):
        assert (np.asarray(rollout.reason) != UNFINISHED).all() and len(rollout.tokens) == P * GROUP
        np.testing.assert_array_equal(
            rollout.tokens[:, : asked["tokens"].shape[1]], np.repeat(asked["tokens"], GROUP, axis=0)
        )
        learnt = [row for _, _, asked, _, _ in steps[: i + 1] for row in asked["row"].tolist()]
        both = sorted(learnt + waits["row"].tolist())
        assert both == list(range(len(both))) and len(both) == (i + 1) * P + len(waits["row"])
        assert waits["row"].tolist() == sorted(waits["row"].tolist())  # the oldest first
        np.testing.assert_array_equal(replies.tokens[::GROUP, : waits["tokens"].shape[1]], waits["tokens"])


def test_something_is_carried_and_the_metrics_say_so(steps):
    shares, ages = ([float(step[-1][f"sampling/{name}"]) for step in steps] for name in ("carried", "staleness"))
    assert shares[0] == ages[0] == 0 and max(shares) > 0.1
    for step, (_, rollout, _, _, _) in enumerate(steps):
        age = step - np.asarray(rollout.version)
        assert ages[step] == pytest.approx(age.mean()) and shares[step] == pytest.approx((age > 0).mean())


def test_each_token_has_the_log_probability_of_the_weights_that_wrote_it(steps):
    """Those of the step in which it came to be there, behind what older weights had written."""
    logp = jax.jit(
        lambda params, r: token_statistics(models()[0], params, r.tokens, r.valid, temperature=0.9, start=5).logp
    )
    mixed = 0
    for i, (state, rollout, asked, (replies, waits), _) in enumerate(steps):
        old = state.pending[0]
        had = {int(row): old[0].mask[GROUP * j : GROUP * (j + 1)] for j, row in enumerate(old[1]["row"])}
        for made, rows in ((rollout, asked["row"]), (replies, waits["row"])):
            before = np.concatenate([had.get(int(row), np.zeros((GROUP, made.mask.shape[1]), bool)) for row in rows])
            new = np.asarray(made.mask) & ~before
            want = np.asarray(logp(state.policy.params, made))
            np.testing.assert_allclose(np.asarray(made.old_logp)[new], want[new], atol=1e-5)
            both = before.any(1) & new.any(1)
            mixed += both.sum()
            begins = np.asarray(made.version)[new.any(1) & ~before.any(1)]
            assert (begins == i).all()
    assert mixed > 3


def test_a_policy_that_stands_still_says_what_it_says_without():
    algorithm, actors, frozen, _, state = parts(1, rate=0.0)
    key = jax.random.wrap_key_data(state.key)
    plain = jax.jit(lambda prompts, i: online.produce(algorithm, actors, frozen, state.policy.params, prompts, key, i))
    want = [plain(batch(i), i) for i in range(STEPS + 1)]

    @jax.jit
    def produced(state, prompts):
        new = online.sampled(algorithm, actors, frozen, state, prompts)
        return waiting.next_batch(algorithm, state, new, prompts)

    for step in range(STEPS):
        rollout, asked, pending = produced(state, batch(step + 1))
        state = state.replace(pending=pending, step=state.step + 1)
        for place, row in enumerate(asked["row"].tolist()):
            of, mine = slice(GROUP * (row % P), GROUP * (row % P + 1)), slice(GROUP * place, GROUP * (place + 1))
            for name in ("tokens", "mask", "reason"):
                np.testing.assert_array_equal(getattr(rollout, name)[mine], getattr(want[row // P], name)[of])
            np.testing.assert_allclose(rollout.old_logp[mine], want[row // P].old_logp[of], atol=1e-5)


@pytest.mark.slow
def test_two_programs_do_what_one_does():
    algorithm, actors, frozen, mesh, state = parts(1)
    score = programs.on_device(algorithm, {"reward": models()[0]})
    copy = lambda: jax.tree.map(jnp.copy, state)  # noqa: E731
    one = programs.one_program(algorithm, actors, score, frozen, copy())
    two = programs.two_programs(
        algorithm, actors, score, None, frozen, copy(), programs.sampling(algorithm, actors, frozen), mesh
    )
    ends = []
    for run in (one, two):
        now, found = copy(), []
        for step in range(STEPS):
            now, metrics = run(now, batch(step + 1))
            found.append(metrics)
        ends.append((jax.device_get(now), jax.device_get(found)))
    close(ends[0][0].policy.params, ends[1][0].policy.params, atol=1e-5)
    close(ends[0][0].pending, ends[1][0].pending, atol=1e-5)
    close(ends[0][1], ends[1][1], rtol=2e-4, atol=2e-5)
