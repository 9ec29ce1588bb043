"""Optimizers from a config: schedules at their landmarks, rules over paths, clipping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from errors import refuses

from alignax.train.optimizer import (
    adamw,
    clip_by_global_norm,
    matrices,
    muon,
    scale_by_adam_tf,
    sgd,
    updates_done,
    warmup_then,
)
from alignax.train.state import new_learner
from alignax.train.step import apply_gradients

PARAMS = {
    "decoder": {
        "embed": jnp.ones((3, 2)),
        "layers": {"q": {"kernel": jnp.ones((2, 2))}},
        "norm": {"scale": jnp.ones(2)},
    },
    "scalar": {"kernel": jnp.ones(2), "bias": jnp.ones(())},
}


@pytest.mark.parametrize(
    "schedule, middle, end", [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_schedule_rises_to_its_peak_and_falls_to_its_end(schedule, middle, end):
    # 100 steps, 10 of warm-up: 0.1 at step 0, the peak at step 9 and 10; half way down at step 55, where both decays
    # are (1 + 0.1) / 2; the end at step 100 and after
    rate = warmup_then(schedule, 1.0, 100, 10.0, 10.0)
    got = [float(rate(step)) for step in (0, 4, 9, 10, 55, 100, 150)]
    np.testing.assert_allclose(got, [0.1, 0.5, 1.0, 1.0, middle, end, end], rtol=1e-5)


def test_without_warm_up_the_first_step_has_the_peak():
    assert warmup_then("cosine", 3.0, 10, 0.0, 10.0)(0) == 3.0


def test_the_last_cosine_and_linear_steps_differ_on_the_way():
    quarter = {name: float(warmup_then(name, 1.0, 100, 0.0, 0.0)(25)) for name in ("cosine", "linear")}
    np.testing.assert_allclose(quarter["linear"], 0.75, rtol=1e-5)
    np.testing.assert_allclose(quarter["cosine"], 0.5 * (1 + np.cos(np.pi / 4)), rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_percent", [0.0, 30.0])
def test_a_schedule_takes_a_traced_peak_and_end(schedule, warmup_percent):
    def rates(peak, end):
        rate = warmup_then(schedule, peak, 10, warmup_percent, end)
        return jnp.stack([jnp.float32(rate(step)) for step in range(12)])

    traced = jax.jit(jax.vmap(rates))(jnp.float32([3e-4, 0.1]), jnp.float32([0.0, 20.0]))
    np.testing.assert_allclose(traced, [rates(3e-4, 0.0), rates(0.1, 20.0)], rtol=1e-6, atol=1e-10)


def test_unknown_schedule_is_refused():
    with refuses(ValueError, "schedule = 'cosin'", "'cosine', 'linear', 'constant'"):
        adamw(total_steps=10, schedule="cosin")


@pytest.mark.parametrize("make, name", [
    (adamw, "learning_rate"), (adamw, "clip_norm"), (adamw, "weight_decay"), (adamw, "end_percent"),
    (muon, "adam_learning_rate"), (muon, "momentum"), (sgd, "learning_rate"), (sgd, "clip_norm"),
])  # fmt: skip
def test_numbers_that_are_negative_or_nan_are_refused(make, name):
    for wrong in (-0.1, np.nan):
        with refuses(ValueError, f"{name} = {wrong}:", "0 or more"):
            make(total_steps=10, **{name: wrong})


def test_an_optimizer_knows_how_many_updates_it_has_made():
    for optimizer, want in ((adamw(total_steps=10, frozen="embed"), 2), (sgd(total_steps=10), 7)):
        learner = new_learner(PARAMS, optimizer)
        for _ in range(2):
            learner = apply_gradients(learner, PARAMS, optimizer)
        assert updates_done(learner.opt_state, jnp.int32(7)) == want  # plain gradient descent counts nothing


def test_the_rate_in_the_log_is_the_rate_of_the_update():
    # a constant gradient: Adam's update is then the learning rate itself, of sign minus, at every step
    optimizer = adamw(total_steps=10, learning_rate=0.1, warmup_percent=30.0, clip_norm=0.0, eps=0.0)
    learner = new_learner(jnp.float32(0), optimizer)
    for step in range(10):
        after = apply_gradients(learner, jnp.float32(2), optimizer)
        np.testing.assert_allclose(learner.params - after.params, optimizer.learning_rate(step), rtol=1e-4)
        learner = after


def _first_update(optimizer, grads):
    learner = new_learner(PARAMS, optimizer)
    after = apply_gradients(learner, grads, optimizer)
    return jax.tree.map(lambda new, old: np.asarray(new - old), after.params, PARAMS)


def test_weight_decay_pulls_matrices_only():
    # no gradient: the update is -rate * decay * w on kernels, nothing on norms, biases and embeddings
    optimizer = adamw(total_steps=10, learning_rate=0.1, weight_decay=0.5, warmup_percent=0.0)
    got = _first_update(optimizer, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(got["decoder"]["layers"]["q"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(got["scalar"]["kernel"], -0.05, rtol=1e-5)
    kept = got["decoder"]["embed"], got["decoder"]["norm"]["scale"], got["scalar"]["bias"]
    assert all((leaf == 0).all() for leaf in kept)


@pytest.mark.parametrize("make", [adamw, muon, sgd])
def test_frozen_paths_get_no_update_and_no_state(make):
    optimizer = make(total_steps=10, frozen=r"decoder/(embed|layers)")
    got = _first_update(optimizer, jax.tree.map(jnp.ones_like, PARAMS))
    assert not got["decoder"]["embed"].any() and not got["decoder"]["layers"]["q"]["kernel"].any()
    assert got["decoder"]["norm"]["scale"].all() and got["scalar"]["kernel"].all()
    state = new_learner(PARAMS, optimizer).opt_state
    assert (3, 2) not in {leaf.shape for leaf in jax.tree.leaves(state)}  # no moments of the embedding


@pytest.mark.parametrize("clip_norm, factor", [(0.0, 1.0), (100.0, 1.0), (1.5, 0.5)])
def test_clip_scales_the_whole_gradient_to_the_norm(clip_norm, factor):
    # six entries in the embedding of 1 and others 0 but one of 3^0.5: norm (6 + 3)^0.5 = 3
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    grads["decoder"]["embed"], grads["scalar"]["bias"] = jnp.ones((3, 2)), jnp.float32(3**0.5)
    got = _first_update(sgd(total_steps=1, learning_rate=1.0, clip_norm=clip_norm), grads)
    np.testing.assert_allclose(optax.global_norm(got), 3 * factor, rtol=1e-5)
    np.testing.assert_allclose(got["decoder"]["embed"], -factor, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [0.3, 1.0, 7.0, 100.0])
def test_a_clip_that_is_on_is_optaxs_to_the_last_bit(max_norm):
    # gradients of norm 7 exactly, (2^2 + 3^2 + 6^2)^0.5, in two dtypes, and others of no round norm
    rng = np.random.default_rng(0)
    round_ones = {"a": jnp.float32([2.0, 3.0]), "b": jnp.bfloat16([6.0])}
    others = {"a": jnp.float32(rng.normal(size=(3, 5))), "b": jnp.bfloat16(rng.normal(size=7))}
    for grads in (round_ones, others):
        want = jax.jit(lambda g: optax.clip_by_global_norm(max_norm).update(g, optax.EmptyState())[0])(grads)
        fixed = jax.jit(lambda g: clip_by_global_norm(max_norm).update(g, optax.EmptyState())[0])(grads)
        traced = jax.jit(lambda g, norm: clip_by_global_norm(norm).update(g, optax.EmptyState())[0])(grads, max_norm)
        chex.assert_trees_all_equal(fixed, want)
        chex.assert_trees_all_equal(traced, want)


def test_a_clip_that_is_off_moves_no_bit():
    # gradients made inside the program, so that the compiler may fuse the norm into them; not even a nan moves another
    x, w = (jnp.float32(np.random.default_rng(seed).normal(size=(17, 17))) for seed in (0, 1))
    grads = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 3))

    @jax.jit
    def clipped(w, max_norm):
        return clip_by_global_norm(max_norm).update({"w": grads(w), "nan": jnp.nan * w}, optax.EmptyState())[0]

    for max_norm in (0.0, jnp.float32(0.0)):
        np.testing.assert_array_equal(clipped(w, max_norm)["w"], jax.jit(grads)(w))
        eager = clip_by_global_norm(max_norm).update({"w": grads(w)}, optax.EmptyState())[0]
        np.testing.assert_array_equal(eager["w"], grads(w))


def test_the_state_of_an_optimizer_has_one_shape_whether_it_clips_or_not():
    for make in (adamw, muon, sgd):
        on, off = (jax.tree.structure(new_learner(PARAMS, make(total_steps=9, clip_norm=c))) for c in (1.0, 0.0))
        assert on == off


def test_clip_acts_before_adam_sees_the_gradient():
    optimizer = adamw(total_steps=10, clip_norm=1.0)
    learner = new_learner(PARAMS, optimizer)
    after = apply_gradients(learner, jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), PARAMS), optimizer)
    first = optax.tree_utils.tree_get(after.opt_state, "mu")
    np.testing.assert_allclose(optax.global_norm(first), 0.1, rtol=1e-3)  # (1 - b1) * the clipped gradient


def _muon_update(kernel_grad, **options):
    """The first update of a stack of layer matrices, with 0 for every other gradient."""
    params = {"layers": {"q": {"kernel": jnp.zeros(kernel_grad.shape)}}, "norm": {"scale": jnp.ones(2)}}
    optimizer = muon(total_steps=10, learning_rate=0.1, clip_norm=0.0, warmup_percent=0.0, **options)
    grads = jax.tree.map(jnp.zeros_like, params) | {"layers": {"q": {"kernel": kernel_grad}}}
    after = apply_gradients(new_learner(params, optimizer), grads, optimizer)
    return np.asarray(after.params["layers"]["q"]["kernel"])


def test_muon_moves_every_direction_of_a_matrix_alike():
    # singular values 100, 10 and 1 of the gradient; five Newton-Schulz steps bring each to between 0.7 and 1.2
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :3] for _ in range(2))
    grad = jnp.asarray((u * [100.0, 10.0, 1.0]) @ v.T, jnp.float32)
    moved = np.linalg.svd(-_muon_update(grad), compute_uv=False)[:3] / 0.1
    assert (moved > 0.6).all() and (moved < 1.3).all()
    np.testing.assert_array_less(0, np.diag(u.T @ -_muon_update(grad) @ v))  # and each downhill


def test_muon_takes_the_layers_of_a_stack_one_by_one():
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6)) * [[[1.0]], [[10.0]], [[100.0]]], jnp.float32)
    alone = np.stack([_muon_update(layer) for layer in stack])
    np.testing.assert_allclose(_muon_update(stack), alone, rtol=1e-4, atol=1e-6)


def test_stacked_sinks_and_biases_of_experts_are_no_matrices_and_are_not_decayed():
    experts = {"gate": jnp.ones((2, 3, 4, 5)), "gate_bias": jnp.ones((2, 3, 5))}
    params = {"layers": {"sinks": {"logit": jnp.ones((2, 4))}, "experts": experts}}
    taken = matrices(params)["layers"]
    assert taken["sinks"]["logit"] is None and taken["experts"]["gate_bias"] is None
    assert (taken["experts"]["gate"].reduction_axis, taken["experts"]["gate"].output_axis) == (2, 3)
    learner = new_learner(params, optimizer := adamw(total_steps=10, weight_decay=0.5, warmup_percent=0.0))
    after = apply_gradients(learner, jax.tree.map(jnp.zeros_like, params), optimizer).params["layers"]
    assert (after["sinks"]["logit"] == 1).all() and (after["experts"]["gate_bias"] == 1).all()
    assert (after["experts"]["gate"] < 1).all()


def test_muon_leaves_norms_embeddings_and_heads_to_adam():
    # A constant gradient, no clipping. Adam's first update with Nesterov momentum (Dozat 2016), whatever the size of
    # the gradient g: the rate times b1 m / (1 - b1^2) + (1 - b1) g / (1 - b1), over g, with m = (1 - b1) g.
    first = 0.9 * 0.1 / (1 - 0.9**2) + 1
    optimizer = muon(total_steps=10, learning_rate=0.1, adam_learning_rate=0.02, clip_norm=0.0, warmup_percent=0.0)
    got = _first_update(optimizer, jax.tree.map(lambda x: jnp.full_like(x, 7.0), PARAMS))
    for leaf in (got["decoder"]["embed"], got["decoder"]["norm"]["scale"], *got["scalar"].values()):
        np.testing.assert_allclose(leaf, -0.02 * first, rtol=1e-4)


def _descend(optimizer, start, steps):
    """Parameters after each step down (curvature / 2) x^2, with curvatures over six decades."""
    learner, out = new_learner(jnp.asarray(start, jnp.float32), optimizer), []
    for _ in range(steps):
        learner = apply_gradients(learner, jnp.asarray(CURVATURE, jnp.float32) * learner.params, optimizer)
        out.append(np.asarray(learner.params))
    return np.array(out)


CURVATURE = np.array([1e-6, 1e-4, 1e-2, 1.0])


def _published(start, steps, *, rate, b1, b2, eps, hat):
    """Kingma & Ba 2015, float64. hat: the reordered form at the end of section 2. Otherwise algorithm 1."""
    x, m, v, out = np.array(start, np.float64), np.zeros(4), np.zeros(4), []
    for t in range(1, steps + 1):
        g = CURVATURE * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if hat:
            x = x - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        else:
            x = x - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize("hat", [True, False])
def test_both_forms_of_adams_epsilon_are_the_published_ones(hat):
    shape = dict(b1=0.9, b2=0.999, eps=1e-5)
    fixed = dict(clip_norm=0.0, warmup_percent=0.0, schedule="constant")
    optimizer = adamw(total_steps=20, learning_rate=0.01, epsilon_hat=hat, **shape, **fixed)
    start = [1.0, -2.0, 0.5, 1.0]
    want = _published(start, 20, rate=0.01, hat=hat, **shape)
    np.testing.assert_allclose(_descend(optimizer, start, 20) - start, want - start, rtol=2e-4, atol=1e-6)


def test_the_forms_differ_where_gradients_are_small():
    # first step: g / (|g| + eps / sqrt(1 - b2)) against g / (|g| + eps), with sqrt(1 - 0.999) = 0.0316
    start, fixed = np.ones(4), dict(learning_rate=0.1, clip_norm=0.0, warmup_percent=0.0, b2=0.999, eps=1e-5)
    first = {hat: 1 - _descend(adamw(total_steps=9, epsilon_hat=hat, **fixed), start, 1)[0] for hat in (True, False)}
    np.testing.assert_allclose(first[True], 0.1 * CURVATURE / (CURVATURE + 1e-5 / 0.001**0.5), rtol=2e-3)
    np.testing.assert_allclose(first[False], 0.1 * CURVATURE / (CURVATURE + 1e-5), rtol=2e-3)
    assert (first[True] < 0.05 * first[False])[0] and first[True][-1] > 0.999 * first[False][-1]


def test_epsilon_hat_keeps_decay_freezing_and_the_shape_of_the_state():
    settings = dict(total_steps=10, learning_rate=0.1, weight_decay=0.5, warmup_percent=0.0, frozen="embed")
    optimizer = adamw(epsilon_hat=True, **settings)
    got = _first_update(optimizer, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(got["decoder"]["layers"]["q"]["kernel"], -0.05, rtol=1e-5)
    assert not got["scalar"]["bias"].any() and not got["decoder"]["embed"].any()
    states = [new_learner(PARAMS, adamw(epsilon_hat=hat, **settings)).opt_state for hat in (True, False)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*map(jax.tree.leaves, states))


def test_without_bias_correction_to_speak_of_the_forms_agree():
    # after many steps of one gradient the corrections are 1
    grads, states = jnp.array([1e-3, 2.0]), []
    for transform in (scale_by_adam_tf(0.9, 0.95, 1e-3), optax.scale_by_adam(0.9, 0.95, 1e-3)):
        step = lambda _, carry, update=transform.update: update(grads, carry[1])  # noqa: E731
        states.append(jax.lax.fori_loop(0, 400, step, (grads, transform.init(grads)))[0])
    np.testing.assert_allclose(*states, rtol=1e-4)
