"""The pure parts of the online loop, one by one: scores, advantages, and how often a rollout is used."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import PAD, close, prompt_batch, rollout_batch
from tiny_online import ALONE, CAPACITY, ENDS, P, build_actors, build_algorithm, build_state, models

from alignax import forward
from alignax.config import ConfigError
from alignax.losses.kl import kl as kl_loss
from alignax.models.bigram import bigram
from alignax.ops.kl import START, adaptive_kl, fixed_kl, pid_kl
from alignax.ops.masked import reduce
from alignax.sampling.sampler import Sampler
from alignax.train import advantages, objectives, online, rewarded
from alignax.train.algorithm import Actors
from alignax.train.optimizer import adamw, sgd, updates_done
from alignax.train.scores import shape_scores, update_moments
from alignax.train.state import Moments, new_learner
from alignax.train.updates import Once, epochs_over, updates
from alignax.types import Loss, Rollout
from tests.marks import quick

EMPTY = Moments(count=jnp.float32(0), mean=jnp.float32(0), square=jnp.float32(0))
DONE = jnp.ones(4, bool)


def shape(scores, done, moments, *, tokens=0, **options):
    """shape_scores of replies of so many tokens, of 10 at most."""
    return shape_scores(scores, done, jnp.broadcast_to(tokens, scores.shape), moments, max_tokens=10, **options)


def _scores(seed, size=4, mean=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 2.0, size), jnp.float32)


def test_moments_over_batches_equal_those_of_all_scores_at_once():
    moments, seen = EMPTY, []
    for seed, size in ((0, 4), (1, 7), (2, 1), (3, 20)):
        moments = update_moments(moments, _scores(seed, size, mean=100.0))
        seen += [float(x) for x in _scores(seed, size, mean=100.0)]
    assert moments.count == 32
    np.testing.assert_allclose(moments.mean, np.mean(seen), rtol=1e-6)
    np.testing.assert_allclose(moments.square, np.var(seen) * 32, rtol=1e-4)


def test_scores_are_normalised_by_their_history_this_batch_included():
    _, moments = shape(_scores(0), DONE, EMPTY)
    got, _ = shape(_scores(1), DONE, moments, clip=0.0)
    both = np.concatenate([_scores(0), _scores(1)])
    np.testing.assert_allclose(got, (np.asarray(_scores(1)) - both.mean()) / both.std(ddof=1), rtol=1e-4)


def test_one_score_alone_is_finite():
    got, _ = shape(jnp.array([7.0]), DONE[:1], EMPTY)
    np.testing.assert_array_equal(got, [0.0])


def test_clipping_comes_before_the_penalty_so_that_nothing_hides_it():
    got, _ = shape(
        jnp.array([9.0, 1.0, -9.0, -9.0]), jnp.array([True, True, True, False]), EMPTY,
        normalize=False, clip=2.0, missing_eos_penalty=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(got, [2.0, 1.0, -2.0, -2.5])


def test_the_last_tokens_are_charged_for_where_asked():
    # a buffer of 4 of 10 tokens: 6 are free, 8 cost a half, 10 the whole point, after clipping and the penalty
    scores, done = jnp.array([9.0, 9.0, 9.0]), jnp.array([True, True, False])
    options = dict(normalize=False, clip=2.0, missing_eos_penalty=0.5)
    got, _ = shape(scores, done, EMPTY, tokens=jnp.array([6, 8, 10]), overlong_buffer=4, **options)
    np.testing.assert_array_equal(got, [2.0, 1.5, 0.5])
    got, _ = shape(scores, done, EMPTY, tokens=jnp.array([6, 8, 10]), **options)
    np.testing.assert_array_equal(got, [2.0, 2.0, 1.5])


def test_without_normalising_and_clipping_scores_stay_but_history_goes_on():
    got, moments = shape(_scores(0), DONE, EMPTY, normalize=False, clip=0.0)
    np.testing.assert_array_equal(got, _scores(0))
    assert moments.count == 4


def test_score_shaping_is_permutation_equivariant():
    order, done = np.array([2, 0, 3, 1]), jnp.array([True, False, True, True])
    straight, moments = shape(_scores(0), done, EMPTY)
    turned, same = shape(_scores(0)[order], done[order], EMPTY)
    np.testing.assert_allclose(turned, straight[order], rtol=1e-5)
    close(same, moments, rtol=1e-5, atol=0)


def test_a_missing_score_stays_missing_and_leaves_the_moments_to_the_others():
    scores = jnp.array([1.0, jnp.nan, -jnp.inf, 3.0])
    for normalize in (False, True):
        shaped, moments = shape(scores, jnp.ones(4, bool), EMPTY, normalize=normalize)
        np.testing.assert_array_equal(np.isnan(shaped), [False, True, True, False])
        np.testing.assert_allclose([moments.count, moments.mean, moments.square], [2, 2, 2])  # of 1 and 3
    again = update_moments(moments, jnp.full(3, jnp.nan))
    close(again, moments, rtol=0, atol=0)


# ---- advantages


def _rollout():
    """Two rows: prompt 1, completions of 3 and 1 tokens, T = 5. KL 0.1 per token in row 0, 0.2 in row 1."""
    mask = jnp.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]], bool)
    old = jnp.where(mask, jnp.array([[-1.0] * 5, [-2.0] * 5]), 0.0)
    return Rollout(
        tokens=jnp.zeros((2, 5), jnp.int32), valid=mask.at[:, 0].set(True), mask=mask, old_logp=old,
        ref_logp=old - jnp.array([[0.1], [0.2]]) * mask, old_value=jnp.zeros((2, 5)),
    )  # fmt: skip


PLAIN = dict(gamma=1.0, lam=1.0, whiten_rewards=False, whiten_advantages=False)


@pytest.mark.parametrize("score", [0.7, -0.25, 3.0])
def test_undiscounted_advantage_of_every_action_is_the_score_minus_the_kl_to_go(score):
    # traps 10 and J1: gamma = lambda = 1, V = 0, coefficient 0.5. First row: score - 0.5 * 0.1 * (3, 2, 1)
    got, kl, metrics = advantages.gae(_rollout(), jnp.array([score, 1.0]), jnp.float32(0.5), kl_in_reward=True, **PLAIN)
    want = [[0, score - 0.15, score - 0.1, score - 0.05, 0], [0, 0.9, 0, 0, 0]]
    np.testing.assert_allclose(got.advantage, want, atol=1e-6)
    np.testing.assert_allclose(got.returns, want, atol=1e-6)  # V = 0
    np.testing.assert_allclose(kl, (0.3 + 0.2) / 2, rtol=1e-5)  # mean over rows of the sum over tokens
    np.testing.assert_allclose(metrics["objective/non_score_reward"], -0.125, rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/rlhf_reward"], (score + 1) / 2 - 0.125, rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/entropy"], (3 + 2) / 2, rtol=1e-5)


def test_a_penalty_in_the_loss_is_not_charged_in_the_reward_as_well():
    got, kl, metrics = advantages.gae(_rollout(), jnp.array([1.0, 2.0]), jnp.float32(0.5), kl_in_reward=False, **PLAIN)
    np.testing.assert_array_equal(got.advantage, [[0, 1, 1, 1, 0], [0, 2, 0, 0, 0]])
    assert kl > 0 == metrics["objective/non_score_reward"]


def test_values_enter_delta_and_returns_but_the_end_is_not_bootstrapped():
    # gamma = lambda = 1: advantage = reward to go - V of the token; a value after the last action is never read
    rollout = _rollout().replace(old_value=jnp.array([[9.0, 0.5, 0.25, 1.0, 9.0], [9.0, 2.0, 9.0, 9.0, 9.0]]))
    got, _, metrics = advantages.gae(rollout, jnp.array([1.0, 1.0]), jnp.float32(0), kl_in_reward=True, **PLAIN)
    np.testing.assert_allclose(got.advantage, [[0, 0.5, 0.75, 0, 0], [0, -1.0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(np.asarray(got.returns)[np.asarray(got.mask)], 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics["critic/values"], (0.5 + 0.25 + 1 + 2) / 4, rtol=1e-6)


def test_whitening_leaves_mean_zero_and_variance_one_over_the_actions():
    rollout = rollout_batch()
    got, _, _ = advantages.gae(rollout, _scores(1, 8), jnp.float32(0.1), kl_in_reward=True)
    inside = np.asarray(got.advantage)[np.asarray(rollout.mask)]
    np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [0, 1], atol=1e-5)
    assert not np.asarray(got.advantage)[~np.asarray(rollout.mask)].any()


def test_whitened_rewards_keep_their_mean():
    options = PLAIN | {"whiten_rewards": True}
    got, _, _ = advantages.gae(_rollout(), jnp.array([4.0, 8.0]), jnp.float32(0), kl_in_reward=True, **options)
    # rewards of the four actions: 0, 0, 4, 8, with mean 3 and variance (9 + 9 + 1 + 25) / 3 = 44 / 3
    white = (np.array([0, 0, 4, 8]) - 3) / (44 / 3) ** 0.5 + 3
    np.testing.assert_allclose(got.advantage[0, 1:4], np.cumsum(white[:3][::-1])[::-1], rtol=1e-5)
    np.testing.assert_allclose(got.advantage[1, 1], white[3], rtol=1e-5)


def test_advantages_are_permutation_equivariant():
    rollout, scores, order = rollout_batch(), _scores(1, 8), np.array([3, 1, 7, 0, 2, 6, 5, 4])
    run = lambda r, s: advantages.gae(r, s, jnp.float32(0.1), kl_in_reward=True)  # noqa: E731
    straight, _, metrics = run(rollout, scores)
    turned, _, same = run(jax.tree.map(lambda x: x[order], rollout), scores[order])
    close(turned, jax.tree.map(lambda x: x[order], straight), rtol=1e-4, atol=1e-5)
    close(same, metrics, rtol=1e-4, atol=1e-5)


# ---- updates: parameters are one number per row, and the gradient of a minibatch says which rows it held

B = 8


def _objective(params, rollout):
    """The mean over the minibatch of p[row]: each update adds 1 / (rows of the minibatch) to -p of its rows."""
    value_B = (params[None, :] * rollout.old_logp).sum(1)
    return {"x": (1.0, Loss(value=value_B, weight=jnp.ones_like(value_B), metrics={}))}


def _measured(params, rollout):
    """The same, with a KL that grows by 1 with each update."""
    loss = _objective(params, rollout)["x"][1]
    kl_B = jnp.full_like(loss.value, -params.sum())
    return {"x": (1.0, loss.replace(metrics={"policy/approxkl_avg": (kl_B, jnp.ones_like(kl_B))}))}


ONCE = Once(_measured, _objective, *[sgd(total_steps=1, learning_rate=1.0)] * 2)


def _run(once=ONCE, *, key=0, order=None, learners=None, mask_B=None, **settings):
    """(policy, critic, metrics) after one rollout of which `mask_B` counts."""
    one_hot = jnp.eye(B) if order is None else jnp.eye(B)[order]
    flags = jnp.ones((B, B), bool)
    mask = flags if mask_B is None else flags & mask_B[:, None]
    rollout = Rollout(tokens=jnp.zeros((B, B), jnp.int32), valid=flags, mask=mask, old_logp=one_hot)
    fresh = tuple(new_learner(jnp.zeros(B), of) for of in (once.policy_optimizer, once.critic_optimizer))
    run = jax.jit(lambda learners, r, k: epochs_over(once, updates(**settings), learners, r, k))
    return run(learners or fresh, rollout, jax.random.key(key))


def _update(key=0, order=None, **settings):
    policy, critic, metrics = _run(key=key, order=order, **settings)
    return -np.asarray(policy.params), -np.asarray(critic.params), metrics


@pytest.mark.parametrize("epochs, minibatches, microbatches", [(1, 1, 1), (3, 2, 1), (2, 4, 2)])
def test_every_row_is_used_once_per_epoch(epochs, minibatches, microbatches):
    # trap J7: epochs updates of 1 / (B / minibatches) each
    policy, critic, metrics = _update(epochs=epochs, minibatches=minibatches, microbatches=microbatches)
    np.testing.assert_allclose(policy, epochs * minibatches / B, rtol=1e-5)
    np.testing.assert_allclose(critic, policy)
    assert metrics["policy/updates"] == epochs * minibatches
    np.testing.assert_allclose(metrics["policy/approxkl_avg"], np.arange(epochs * minibatches).mean(), atol=1e-5)
    assert metrics["policy/approxkl_avg_first"] == 0


def test_the_kl_limit_drops_the_update_that_passes_it_and_all_after_it():
    # approxkl of updates 1, 2, 3, ... is 0, 1, 2, ...: a limit of 1.5 lets two through and finds out at the third
    policy, critic, metrics = _update(epochs=2, minibatches=4, kl_limit=1.5)
    assert metrics["policy/updates"] == 2
    np.testing.assert_allclose(np.sort(policy), [0] * 4 + [0.5] * 4, atol=1e-6)  # two minibatches of two rows
    np.testing.assert_allclose(critic, policy)  # the critic rests as well
    np.testing.assert_allclose(metrics["policy/approxkl_avg"], (0 + 1 + 2) / 3, rtol=1e-5)  # over minibatches seen
    assert _update(epochs=2, minibatches=4, kl_limit=100.0)[2]["policy/updates"] == 8


def test_a_kl_of_nan_counts_as_one_beyond_the_limit():
    def broken(params, rollout):
        nan_B = jnp.full(rollout.tokens.shape[0], jnp.nan)
        metrics = {"policy/approxkl_avg": (nan_B, 1 + 0 * nan_B)}
        return {"x": (1.0, Loss(value=nan_B, weight=jnp.ones_like(nan_B), metrics=metrics))}

    policy, _, metrics = _run(ONCE._replace(policy=broken), kl_limit=1.0)
    assert not policy.params.any() and metrics["policy/updates"] == 0


def test_a_minibatch_without_a_row_that_counts_is_no_update():
    """Under AdamW a gradient of 0 is an update: momentum goes on, and weights decay."""
    optimizer = adamw(total_steps=8, learning_rate=0.1, weight_decay=0.1, schedule="linear", warmup_percent=0.0)
    once, often = ONCE._replace(policy_optimizer=optimizer, critic_optimizer=optimizer), dict(epochs=1, minibatches=4)
    some = jnp.arange(B) < 2  # at least two of four minibatches, of two rows each, have none
    *moved, metrics = _run(once, mask_B=some, **often)
    assert 1 <= metrics["policy/updates"] <= 2
    for learner in moved:
        assert updates_done(learner.opt_state, jnp.int32(-1)) == metrics["policy/updates"]
    moved = tuple(moved)  # their momentum is not 0
    policy, critic, metrics = _run(once, learners=moved, mask_B=jnp.zeros(B, bool), **often)
    close((policy, critic), moved, rtol=0, atol=0)
    assert metrics["policy/updates"] == 0 and np.isfinite([*metrics.values()]).all()


def test_epochs_are_shuffled_anew_and_by_the_key():
    # a limit of 0.5 lets the first minibatch through: its rows. One of 4.5 stops after the first minibatch of the
    # second epoch: its rows are those used twice. Equal by chance under 4 keys: 1 / C(8, 2)^4
    used = lambda key, limit: tuple(_update(key=key, epochs=2, minibatches=4, kl_limit=limit)[0] > limit / 5)  # noqa: E731
    firsts, seconds = ([used(key, limit) for key in range(4)] for limit in (0.5, 4.5))
    assert [sum(rows) for rows in firsts + seconds] == [2] * 8
    assert firsts != seconds and len(set(firsts)) > 1
    assert used(0, 0.5) == firsts[0]


def test_one_minibatch_is_permutation_equivariant():
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    for got, want in zip(_update(order=order, epochs=2)[:2], _update(epochs=2)[:2]):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_minibatches_must_divide_the_rollouts():
    with refuses(ValueError, "8 prompts", "3 minibatches"):
        _update(epochs=1, minibatches=3)


@pytest.mark.parametrize("kl, want", [(0.5, 0.1), (0.4, 0.1 * (1 - 0.2 * 0.08)), (9.0, 0.1 * (1 + 0.2 * 0.08))])
def test_the_adaptive_coefficient_moves_towards_its_target(kl, want):
    # target 0.5, 8 episodes of a horizon of 100: at most 20 % * 8 / 100 per iteration, and 0.4 is 20 % below
    got = adaptive_kl(0.1, kl, target=0.5, horizon=100.0, batch_size=8)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def _remembering(coef, kl, memory=(1.0, 2.0)):
    return coef * kl, (memory[0] + kl, 7.0)


@pytest.mark.parametrize("kl", [np.nan, np.inf, 2.0])
def test_a_kl_that_is_not_finite_leaves_coefficient_and_memory_to_every_controller(kl):
    controllers = {"adaptive_kl": dict(target=0.5, horizon=1.0), "pid_kl": dict(target=0.5), _remembering: {}}
    for controller, args in controllers.items():
        algorithm = build_algorithm(kl_controller=controller, kl_controller_args=args)
        state = build_state(algorithm)
        held, memory = (state.kl_coef, state.kl_memory), [state.kl_memory] if algorithm.memory else []
        followed = algorithm.controller(state.kl_coef, kl, *memory)
        followed = followed if memory else (followed, ())
        got = online.next_coefficient(algorithm, state, jnp.float32(kl))
        chex.assert_trees_all_equal(got, followed if np.isfinite(kl) else held)


def test_a_controller_that_gives_nan_is_not_followed():
    algorithm = build_algorithm(kl_controller=lambda coef, kl: coef * jnp.nan, kl_controller_args={})
    assert online.next_coefficient(algorithm, build_state(algorithm), jnp.float32(1))[0] == np.float32(0.1)


@pytest.mark.parametrize("name, wrong", [("clip", -1.0), ("clip", np.nan), ("missing_eos_penalty", np.nan)])
def test_shaping_refuses(name, wrong):
    with refuses(ValueError, f"{name} = {wrong}", "expected"):
        shape(_scores(0), DONE, EMPTY, **{name: wrong})


@pytest.mark.parametrize("wrong", [-0.1, np.nan])
def test_a_kl_limit_is_no_less_than_zero(wrong):
    with refuses(ValueError, f"kl_limit = {wrong}:", "expected"):
        updates(kl_limit=wrong)


def test_a_controller_with_memory_is_known_by_its_signature_and_the_others_have_none():
    plain = build_algorithm(kl_controller=fixed_kl, kl_controller_args={})
    assert plain.memory == () and plain.controller(0.1, 3.0) == jnp.float32(0.1)
    pid = build_algorithm(kl_controller="pid_kl", kl_controller_args=dict(target=4.0))
    assert pid.memory == START
    chex.assert_trees_all_equal(pid.controller(0.1, 3.0, pid.memory), pid_kl(0.1, 3.0, target=4.0))
    with refuses(ConfigError, "kl_controller", "'memory'"):
        build_algorithm(kl_controller=lambda coef, kl, memory: (coef, memory), kl_controller_args={})


# ---- what comes between score and update: a learner of four prompts with two replies each


def _learn(scores, *, state=None, advantage, loss, **changes):
    """(state, metrics, the state before) after one iteration on these scores: a model that is two tables, no critic."""
    changes = ALONE | dict(update_args=dict(epochs=1), batch_size=4) | changes
    algorithm = build_algorithm(samples_per_prompt=2, advantage=advantage, loss=loss, **changes)
    model = bigram(5)
    state = state or online.start(algorithm, model.init(jax.random.key(0)), None, 0)
    tokens = jnp.tile(jnp.arange(B, dtype=jnp.int32)[:, None] % 5, CAPACITY + 1)
    flags, zeros = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape)
    rollout = Rollout(
        tokens=tokens, valid=flags, mask=flags.at[:, 0].set(False), old_logp=zeros, ref_logp=zeros,
        finished=jnp.ones(B, bool),
    )  # fmt: skip
    rollout = rewarded.scored(algorithm, rollout, {"reward": jnp.asarray(scores, jnp.float32)})
    after, metrics = online.learn(algorithm, Actors(Sampler(model, CAPACITY, ENDS, PAD)), {}, state, rollout)
    return after, metrics, state


def _unweighed(rollout, score_B, coef):
    return rollout, jnp.float32(0.2), {"shaped": score_B}


def _likelihood(rollout: Rollout) -> Loss:
    """The more probable the tokens, the further from the sampler."""
    metrics = {"policy/approxkl_avg": (jnp.exp(rollout.logp), rollout.mask.astype(jnp.float32))}
    return Loss(value=-rollout.logp, weight=rollout.mask.astype(jnp.float32), metrics=metrics)


def test_moments_are_of_all_that_was_scored_also_of_what_is_not_learnt_from():
    scores = [1, 1, 2, 6, np.nan, 4, 3, 3]  # of four groups the second alone has two different scores
    keep = dict(oversample=4, batch_size=1)  # one group
    state, metrics, _ = _learn(scores, advantage=_unweighed, loss=_likelihood, **keep)
    known = np.array([1, 1, 2, 6, 4, 3, 3], np.float64)
    assert state.moments.count == 7
    np.testing.assert_allclose([state.moments.mean, state.moments.square], [known.mean(), known.var() * 7], rtol=1e-6)
    np.testing.assert_allclose(metrics["shaped"], (np.array([2, 6]) - known.mean()) / known.std(ddof=1), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/scores"], known.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/scores_sd"], known.std(), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/missing_scores"], 1 / 8, rtol=1e-6)


def test_scores_of_a_batch_without_any_are_zeros_that_say_so():
    state, metrics, _ = _learn([np.nan] * B, advantage=_unweighed, loss=_likelihood)
    assert state.moments.count == 0 and metrics["objective/missing_scores"] == 1
    assert metrics["objective/scores"] == metrics["objective/scores_sd"] == 0


def test_an_estimator_that_does_not_know_of_missing_scores_teaches_nothing_of_them():
    heard = []

    def listening(rollout: Rollout) -> Loss:
        value_B = -(rollout.logp * rollout.advantage).sum(1)
        jax.debug.callback(lambda *seen: heard.append(seen), rollout.mask, rollout.advantage)
        return Loss(value=value_B, weight=rollout.mask.any(1).astype(jnp.float32), metrics={})

    def naive(rollout, score_B, coef):  # the mean over each pair takes the missing score with it
        away_B = score_B - jnp.repeat(score_B.reshape(-1, 2).mean(1), 2)
        return rollout.replace(advantage=away_B[:, None] * rollout.mask), jnp.float32(0.2), {}

    scores = [1.0, 1.5, np.nan, 6.0, 2.0, 4.0, 3.0, 3.5]
    state, _, before = _learn(scores, advantage=naive, loss=listening)
    jax.effects_barrier()
    [(mask, advantage)] = heard
    moved = jax.tree.map(lambda a, b: bool(np.isfinite(a).all() and (a != b).any()), state.policy, before.policy)
    assert np.isfinite(advantage).all() and all(jax.tree.leaves(moved.params))
    # without the row, and without the one it was compared to
    assert (mask.any(1).sum(), mask[:, 1:].all(1).sum()) == (6, 6)


def test_what_is_logged_as_first_is_of_the_first_minibatch_that_counts():
    def count(params, rollout):
        rows_B = rollout.mask.any(1).astype(jnp.float32)
        loss = Loss(value=0 * rows_B, weight=rows_B, metrics={"val/ratio": (rows_B, jnp.ones_like(rows_B))})
        return {"x": (1.0, loss)}

    once, often = ONCE._replace(policy=count), dict(epochs=1, minibatches=4)
    firsts = [_run(once, key=key, mask_B=jnp.arange(B) < 2, **often)[2]["val/ratio_first"] for key in range(3)]
    assert min(firsts) >= 0.5  # one row or two count of the two in a minibatch; in the others none


def test_one_score_for_each_reply():
    for wrong in (np.zeros((B, 1)), np.zeros(B - 1), 1.0):
        with refuses(ValueError, "'length'", "8 replies", "each"):
            rewarded.one_for_each(wrong, jnp.zeros((B, 3)), "length")
    one = rewarded.one_for_each([True] * B, jnp.zeros((B, 3)), "length")
    np.testing.assert_array_equal(one, np.ones(B, np.float32))


def test_the_logged_rate_is_that_of_the_updates_that_were_made():
    # tokens of a probability above 0.9 are beyond the limit: not all of the 24 updates are made
    rate = dict(learning_rate=1.0, schedule="linear", warmup_percent=0.0, end_percent=0.0)
    often = dict(update_args=dict(epochs=2, minibatches=4, kl_limit=0.9), total_steps=2)  # a schedule of 16 updates
    state, rates, made = None, [], 0
    for _ in range(3):
        state, metrics, _ = _learn(
            _scores(0, B), state=state, advantage=_unweighed, loss=_likelihood, optimizer="adamw", optimizer_args=rate,
            **often,
        )  # fmt: skip
        rates.append((float(metrics["lr"]), float(1 - made / 16)))
        made += int(metrics["policy/updates"])
    assert 0 < updates_done(state.policy.opt_state, jnp.int32(-1)) == made < 3 * 8
    np.testing.assert_allclose(*np.transpose(rates), rtol=1e-6)


# ---- what the stage binds: opponents and importance weights


@pytest.fixture(scope="module")
def two():
    """(model, policy, another policy as the reference)."""
    model, policy, _, other = models()
    return model, policy, {name: leaf for name, leaf in other.items() if name != "scalar"}


def _produce(algorithm, policy, reference, key=0):
    frozen = {"reference": reference}
    rows = prompt_batch(), jax.random.key(key), jnp.int32(0)
    return online.produce(algorithm, build_actors(), frozen, policy, *rows)


@pytest.mark.parametrize("rival", quick(["greedy", "reference", "mixture"], "mixture"))
def test_each_opponent_is_who_it_is_called(two, rival):
    model, policy, reference = two
    advantage = {"greedy": "remax", "reference": "vbon", "mixture": "win_probability"}[rival]
    share = dict(share=0.3) if rival == "mixture" else {}
    settings = dict(advantage=advantage, samples_per_prompt=2, opponent=rival, opponent_args=share)
    algorithm = build_algorithm(**ALONE, **settings)
    draw = jax.jit(lambda key: _produce(algorithm, policy, reference, key))
    rollout, again = draw(0), draw(1)
    np.testing.assert_array_equal(rollout.source, np.arange(16) % 2)
    assert (rollout.tokens[::2] != again.tokens[::2]).any()
    assert (rollout.tokens[1::2] == again.tokens[1::2]).all() == (rival == "greedy")

    def scores(params, heat):
        hidden_BTD = model.apply(params, rollout.tokens, rollout.valid)
        logits_BTV = (hidden_BTD @ model.unembed(params))[:, :-1, : model.config.vocab_size] / heat
        return jnp.pad(logits_BTV, ((0, 0), (1, 0), (0, 0)))

    def logp(logits_BTV):
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), rollout.tokens[..., None], axis=-1)
        return np.asarray(taken[..., 0])

    theirs = {
        "greedy": scores(policy, 1.0),
        "reference": scores(reference, 0.9),
        "mixture": 0.7 * scores(policy, 0.9) + 0.3 * scores(reference, 0.9),
    }[rival]
    mask, by_rival = np.asarray(rollout.mask), np.asarray(rollout.source == 1)[:, None]
    np.testing.assert_allclose(rollout.old_logp[mask & by_rival], logp(theirs)[mask & by_rival], atol=2e-5)
    noted = online.annotate(algorithm, build_actors(), {"reference": reference}, policy, None, rollout)
    own = mask & ~by_rival
    np.testing.assert_allclose(noted.ref_logp[own], logp(scores(reference, 0.9))[own], atol=2e-5)


def test_importance_weights_of_a_sampler_that_is_not_the_learner(two):
    _, policy, reference = two
    settings = dict(advantage="group_baseline", samples_per_prompt=2, correction_args=dict(cap=1.5))
    algorithm, frozen = build_algorithm(**ALONE, **settings), {"reference": reference}
    annotate = lambda rollout: online.annotate(algorithm, build_actors(), frozen, policy, None, rollout)  # noqa: E731
    rollout = _produce(algorithm, policy, reference)
    off = rollout.replace(old_logp=rollout.old_logp - jnp.where(rollout.mask, 0.3, 0.0))  # said to be less likely
    noted = annotate(off)
    mask = np.asarray(rollout.mask)
    np.testing.assert_allclose(noted.old_logp[mask], rollout.old_logp[mask], atol=2e-5)
    np.testing.assert_array_equal(noted.sampler_logp, off.old_logp)
    scores = jnp.arange(16.0)
    plain = online.advantages(algorithm, annotate(rollout), scores, jnp.float32(0))[0].advantage
    weighed, _, metrics = online.advantages(algorithm, noted, scores, jnp.float32(0))
    np.testing.assert_allclose(weighed.advantage, plain * np.exp(0.3), rtol=1e-4)
    np.testing.assert_allclose(metrics["sampling/importance_ratio"], np.exp(0.3), rtol=1e-4)


def test_a_masked_reply_is_one_that_is_not_there(two):
    """Its tokens are in no denominator: loss and gradient are those of the other rows alone."""
    settings = dict(advantage="group_baseline", samples_per_prompt=2, correction="masked_weights")
    algorithm = build_algorithm(**ALONE, **settings, correction_args=dict(level="sequence", cap=1.5))
    rollout = rollout_batch(T=9)
    far = (jnp.arange(8) == 3)[:, None] & rollout.mask
    noted = rollout.replace(sampler_logp=rollout.old_logp - jnp.where(far, 1.0, 0.0))
    weighed, _, metrics = online.advantages(algorithm, noted, jnp.arange(8.0), jnp.float32(0))
    assert not weighed.mask[3].any() and (weighed.mask == rollout.mask)[jnp.arange(8) != 3].all()
    np.testing.assert_allclose(metrics["sampling/kept"], 1 - far.sum() / rollout.mask.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["sampling/importance_sampling_ratio/max"], np.e, rtol=1e-4)
    others = jax.tree.map(lambda x: jnp.delete(x, 3, axis=0), weighed)

    @jax.jit
    @jax.value_and_grad
    def loss(params, rollout):
        terms = objectives.policy_objective(algorithm, build_actors(), {}, params, rollout, 0.1)
        return reduce(terms["loss/policy_avg"][1])

    close(loss(two[1], weighed), loss(two[1], others), atol=2e-6)


def test_the_kl_in_the_loss_is_weighed_unless_the_config_says_otherwise(two):
    policy = two[1]
    settings = ALONE | dict(advantage="reinforce_plus_plus", kl_placement="loss", kl_estimator="k3")
    rollout = rollout_batch(T=9).replace(advantage=jnp.zeros((8, 9)))  # of which the policy knows nothing: ratios off 1

    def penalty(**args):
        algorithm = build_algorithm(**settings, **args)
        return objectives.policy_objective(algorithm, build_actors(), {}, policy, rollout, 0.1)["loss/kl_avg"]

    for found, weighted in ((penalty(), True), (penalty(kl_loss_args=dict(importance_weighted=False)), False)):
        view = forward.policy_view(two[0], policy, rollout, temperature=0.9, start=P)
        want = kl_loss(view, estimator="k3", importance_weighted=weighted)
        assert found[0] == 0.1
        np.testing.assert_allclose(reduce(found[1]), reduce(want), rtol=1e-5)


def test_an_adaptive_coefficient_counts_the_policys_replies():
    for rival, oversample, replies in (("none", 1, 16), ("reference", 1, 8), ("none", 3, 48)):
        settings = dict(critic_init="none", samples_per_prompt=2, opponent=rival, oversample=oversample)
        settings["advantage"] = "group_baseline" if rival == "none" else "vbon"
        coef = build_algorithm(**settings).controller(jnp.float32(0.1), jnp.float32(5.0))
        np.testing.assert_allclose(
            coef, adaptive_kl(0.1, 5.0, target=0.5, horizon=100.0, batch_size=replies), rtol=1e-6
        )
