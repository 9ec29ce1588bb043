"""What moves beside policy and critic: the entropy's coefficient, a reference that follows, an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from test_online_adapters import setting
from tiny import close, prompt_batch
from tiny_online import ALONE, build_actors, build_algorithm, build_frozen, build_iteration, models

from alignax.checkpoint import Steps
from alignax.config import ConfigError
from alignax.ops.entropy import adaptive_entropy
from alignax.stages import programs
from alignax.train import moving, online
from alignax.train.reference import mix

RLOO = dict(samples_per_prompt=2, advantage="group_baseline", loss="reinforce", **ALONE)
ENTROPY = dict(
    terms=dict(entropy=dict(coefficient=0.25)),
    entropy_controller="adaptive_entropy",
    entropy_controller_args=dict(target=100.0, change=0.5, most=1.0),
)


def start(algorithm):
    _, policy, critic, _ = models()
    return online.start(algorithm, policy, critic if algorithm.value else None, 0, policy)


@jax.jit
def iteration(algorithm, *given):
    """One program for all algorithms that differ in numbers alone."""
    return build_iteration(algorithm)(*given)


def history(algorithm, steps, save=None):
    """[(state after, metrics)] of so many iterations; the state goes through a checkpoint before step `save[0]`."""
    state, seen = start(algorithm), []
    for i in range(steps):
        if save and i == save[0]:
            with Steps(save[1], keep=1) as kept:
                kept.save(i, state)
            with Steps(save[1], keep=1) as kept:
                state = kept.restore_latest(start(algorithm))[1]
        state, metrics = iteration(algorithm, state, build_frozen(), prompt_batch(seed=i))
        seen.append((state, metrics))
    return seen


# ---- the entropy's coefficient


@pytest.mark.parametrize(
    "coef, entropy, applied, after",
    [
        (0.0, 0.1, 0.0, 0.005),  # too low: on from the next iteration
        (0.005, 0.2, 0.005, 0.01),  # at the target counts as below it
        (0.01, 0.3, 0.0, 0.005),  # high enough: off, and less if it is needed again
        (0.002, 0.3, 0.0, 0.0),  # not below its least
        (0.999, 0.1, 0.999, 1.0),  # nor above its most
        (0.5, np.nan, 0.0, 0.5),
    ],
)
def test_the_coefficient_of_the_entropy_by_hand(coef, entropy, applied, after):
    np.testing.assert_allclose(adaptive_entropy(coef, entropy, target=0.2), (applied, after), rtol=1e-5)


@pytest.mark.parametrize(
    "settings, key, word",
    [
        (dict(target=0.0), "target = 0.0:", "nats"),
        (dict(target=1.0, change=0.0), "change = 0.0:", "positive"),
        (dict(target=1.0, least=-0.1), "least = -0.1,", "0 <= least"),
        (dict(target=1.0, least=0.5, most=0.1), "most = 0.1:", "<= most"),
    ],
)
def test_an_entropy_controller_that_cannot_be(settings, key, word):
    with refuses(ValueError, key, word):
        adaptive_entropy(0.1, 1.0, **settings)


def test_the_coefficient_lives_in_the_state_and_is_what_the_loss_is_multiplied_by(tmp_path):
    """Entropy is below its target: 0.25, 0.75, 1 (the most); the third iteration from a checkpoint, bit for bit."""
    algorithm = build_algorithm(**RLOO, **ENTROPY)
    whole, resumed = history(algorithm, 3), history(algorithm, 3, save=(2, tmp_path))
    for i, want in enumerate((0.25, 0.75, 1.0)):
        metrics = whole[i][1]
        assert metrics["objective/entropy_coef"] == want
        total = metrics["loss/policy_avg"] + want * metrics["loss/entropy_avg"]
        np.testing.assert_allclose(metrics["loss/policy_total"], total, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, resumed[2], whole[2])


def test_a_bonus_that_is_off_learns_as_one_of_coefficient_0_and_one_that_is_on_as_a_fixed_one():
    one = lambda **changes: history(build_algorithm(**RLOO, **changes), 1)[0][0].policy.params  # noqa: E731
    fixed = lambda coefficient: one(terms=dict(entropy=dict(coefficient=coefficient)))  # noqa: E731
    high = ENTROPY | dict(entropy_controller_args=dict(target=1e-3))
    close(one(**ENTROPY), fixed(0.25), rtol=1e-6, atol=1e-7)
    close(one(**high), fixed(0.0), rtol=1e-6, atol=1e-7)
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), fixed(0.25), fixed(0.0))
    assert max(jax.tree.leaves(apart)) > 1e-3


def test_the_entropy_is_that_of_the_tokens_which_the_policy_sampled():
    algorithm = build_algorithm(**RLOO, **ENTROPY)
    (state, metrics), *_ = history(algorithm, 1)
    # per reply in the log; the controller's is per token
    per_token = metrics["objective/entropy"] / metrics["completions/mean_length"]
    targets = (float(per_token) * (1 - 1e-3), float(per_token) * (1 + 1e-3))
    on = []
    for target in targets:
        changed = build_algorithm(**RLOO, **ENTROPY | dict(entropy_controller_args=dict(target=target)))
        on.append(float(history(changed, 1)[0][1]["objective/entropy_coef"]))
    assert on == [0.0, 0.25]


# ---- a reference that follows, an average of the policy


def test_the_reference_follows_and_the_kl_is_to_where_it_is():
    """A copy of the policy after every second iteration: the KL of the third begins at 0 again."""
    seen = history(build_algorithm(**RLOO, reference_args=dict(alpha=1.0, every=2)), 4)
    kl = [float(metrics["objective/kl"]) for _, metrics in seen]
    assert abs(kl[0]) < 1e-5 < 1e-4 < abs(kl[1]) and abs(kl[2]) < 1e-5 < 1e-4 < abs(kl[3])
    jax.tree.map(np.testing.assert_array_equal, seen[0][0].reference, models()[1])
    jax.tree.map(np.testing.assert_array_equal, seen[1][0].reference, seen[1][0].policy.params)
    jax.tree.map(np.testing.assert_array_equal, seen[2][0].reference, seen[1][0].policy.params)


def test_both_averages_by_hand_and_after_a_checkpoint(tmp_path):
    """alpha = 0.25 each iteration, and a decay of 0.75: one and the same average, which is followed by hand."""
    algorithm = build_algorithm(**RLOO, reference_args=dict(alpha=0.25, every=1), ema=0.75)
    whole, resumed = history(algorithm, 3), history(algorithm, 3, save=(2, tmp_path))
    want = models()[1]
    for state, _ in whole:
        want = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, want, state.policy.params)
        close(state.ema, want, rtol=1e-5, atol=1e-7)
        close(state.reference, want, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, resumed[2], whole[2])
    assert moving.result(whole[2][0]) is whole[2][0].ema


@pytest.mark.slow
def test_an_average_changes_nothing_of_what_is_learnt():
    plain, averaged = (history(build_algorithm(**RLOO, **more), 2)[1] for more in ({}, {"ema": 0.9}))
    jax.tree.map(np.testing.assert_array_equal, averaged[0].replace(ema=None), plain[0])
    jax.tree.map(np.testing.assert_array_equal, averaged[1], plain[1])
    assert moving.result(plain[0]) is plain[0].policy.params


def test_without_any_of_them_the_state_and_the_program_are_as_they_were():
    algorithm = build_algorithm(**RLOO, ema=0.0, reference_args={}, entropy_controller="")
    assert (algorithm.ema, algorithm.follow, algorithm.entropy_controller) == (None, None, None)
    state, frozen = start(algorithm), build_frozen()
    assert (state.entropy_coef, state.reference, state.ema) == (None, None, None)
    assert moving.present(frozen, state) is frozen
    assert "objective/entropy_coef" not in history(algorithm, 1)[0][1]


@pytest.mark.slow
def test_two_programs_read_the_reference_of_the_state():
    algorithm = build_algorithm(**RLOO, reference_args=dict(alpha=1.0, every=1), ema=0.5)
    want = history(algorithm, 2)
    judge = jax.jit(lambda rollout: programs.on_device(algorithm, {"reward": models()[0]})(build_frozen(), rollout))
    on_host = lambda rollout, prompts: programs.Said(jax.tree.map(np.asarray, judge(rollout)), {})  # noqa: E731
    state, none = jax.tree.map(jnp.copy, start(algorithm)), programs.on_device(algorithm, {})
    given, frozen = (algorithm, build_actors()), build_frozen()
    step = programs.two_programs(*given, none, on_host, frozen, state, programs.sampling(*given, frozen))
    for i in range(2):
        state, metrics = step(state, prompt_batch(seed=i))
        close(metrics, want[i][1], rtol=1e-4, atol=1e-5)
    close(state, want[1][0], rtol=1e-5, atol=2e-6)
    assert abs(metrics["objective/kl"]) < 1e-5  # to a reference that is the policy itself


def test_the_average_of_an_adapter_is_of_the_adapter():
    algorithm = build_algorithm(**RLOO, ema=0.5)
    state, frozen = setting(algorithm, 0.1)
    after, _ = iteration(algorithm, state, frozen, prompt_batch())
    assert set(after.ema) == {"lora"}
    close(after.ema, mix(state.policy.params, after.policy.params, 0.5), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "changes, key, word",
    [
        (dict(ema=1.0), "config.ema = 1.0:", "below 1"),
        (dict(ema=-0.1), "config.ema = -0.1:", "0 (off)"),
        (dict(reference_args=dict(alpha=2.0)), "config.reference_args: mix: alpha = 2.0:", "share"),
        (dict(reference_args=dict(every=0)), "config.reference_args: follow: every = 0:", "1 or more"),
        (dict(reference_args=dict(alpha=0.5), lora_args=dict(rank=2)), "config.reference_args with lora_args:", "mix"),
        (dict(entropy_controller="adaptive_entropy"), "config.entropy_controller_args.target is missing", "needs it"),
        (ENTROPY | dict(terms={}), "config.entropy_controller = 'adaptive_entropy':", "terms.entropy"),
        (dict(entropy_controller_args=dict(target=1.0)), "config.entropy_controller_args is set", "empty"),
    ],
)
def test_settings_that_cannot_be(changes, key, word):
    with refuses(ConfigError, key, word):
        build_algorithm(**RLOO, **changes)


def test_a_reference_that_moves_has_to_begin_somewhere():
    algorithm = build_algorithm(**RLOO, reference_args=dict(alpha=0.5, every=1))
    with refuses(ValueError, "start: the reference", "begins"):
        online.start(algorithm, models()[1], None, 0)
