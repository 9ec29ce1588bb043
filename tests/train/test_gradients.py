"""gradients(): the same for every number of microbatches, and metrics that a NumPy oracle gives too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import close, demo_batch, objectives, tiny

from alignax.train.optimizer import sgd
from alignax.train.state import new_state
from alignax.train.step import cut, gradients, make_step

OBJECTIVES = objectives(tiny()[0])


@functools.lru_cache
def _compiled(name):
    """A jitted (params, frozen, batch) -> [(gradients, metrics) for 1, 2 and 4 microbatches], and its arguments."""
    objective, batch, scalar = OBJECTIVES[name]
    params, frozen = (tiny(seed=seed, scalar=scalar)[1] for seed in (0, 1))

    def run(params, frozen, batch):
        return [gradients(lambda p, b: objective(p, frozen, b), params, batch, microbatches=n) for n in (1, 2, 4)]

    return jax.jit(run), params, frozen, batch


def _run(name, **changes):
    run, params, frozen, batch = _compiled(name)
    batch = batch | changes if isinstance(batch, dict) else batch.replace(**changes)
    return run(params, frozen, batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_microbatches_change_neither_gradients_nor_metrics(name):
    # trap 1, with lengths from 1 token to the whole context and a row without any token (ppo, value)
    (grads, metrics), *others = _run(name)
    for got, got_metrics in others:
        close(got, grads, rtol=1e-5, atol=1e-6)
        close(got_metrics, metrics, rtol=1e-5, atol=1e-6)
    assert metrics["grad_norm"] > 0.05


@pytest.fixture(scope="module")
def log_softmax():
    """Log-probabilities over the vocabulary of every position after the first, [B, T - 1, V], float64."""

    def run(params, tokens, valid, temperature=1.0):
        model = tiny()[0]
        hidden = np.asarray(model.apply(params, tokens, valid), np.float64)[:, :-1]
        logits = hidden @ np.asarray(model.unembed(params), np.float64)[:, :50] / temperature
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return run


def test_sft_metrics_equal_a_numpy_oracle(log_softmax):
    _, params, _, batch = _compiled("sft")
    metrics = _run("sft")[2][1]
    logp = log_softmax(params, batch["tokens"], batch["valid"])
    targets, mask = np.asarray(batch["tokens"])[:, 1:], np.asarray(batch["mask"])[:, 1:]
    nll = -np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["loss"], nll[mask].mean(), rtol=1e-5)  # over tokens, not over rows
    np.testing.assert_allclose(metrics["entropy"], -(np.exp(logp) * logp).sum(-1)[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_token_accuracy"], (logp.argmax(-1) == targets)[mask].mean(), rtol=1e-5)
    means = np.mean([nll[i::4][mask[i::4]].mean() for i in range(4)])
    assert abs(means - nll[mask].mean()) > 1e-3  # a mean of means over microbatches would be seen


def test_ppo_metrics_and_total_equal_a_numpy_oracle(log_softmax):
    _, params, _, r = _compiled("ppo")
    metrics = _run("ppo")[1][1]
    tokens, mask = np.asarray(r.tokens)[:, 1:], np.asarray(r.mask)[:, 1:]
    logp_BTV = log_softmax(params, r.tokens, r.valid, temperature=0.9)
    logp = np.take_along_axis(logp_BTV, tokens[..., None], -1)[..., 0]
    old, ref, advantage = (np.asarray(getattr(r, name))[:, 1:] for name in ("old_logp", "ref_logp", "advantage"))
    ratio = np.exp(logp - old)
    free, clipped = -ratio * advantage, -np.clip(ratio, 0.8, 1.2) * advantage
    policy, k2 = np.maximum(free, clipped)[mask].mean(), (ratio * 0.5 * (logp - ref) ** 2)[mask].mean()
    want = {
        "loss/policy_avg": policy,
        "loss/kl_avg": k2,
        "loss": policy + 0.3 * k2,
        "policy/approxkl_avg": (0.5 * (logp - old) ** 2)[mask].mean(),
        "policy/clipfrac_avg": (clipped > free)[mask].mean(),
        "policy/entropy_avg": -(np.exp(logp_BTV) * logp_BTV).sum(-1)[mask].mean(),
        "val/ratio": ratio[mask].mean(),
        "kl": (ratio * (np.exp(ref - logp) - 1 - (ref - logp)))[mask].mean(),
    }
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert metrics.keys() == want.keys() | {"grad_norm"}


def test_grad_norm_is_that_of_the_whole_gradient():
    grads, metrics = _run("sft")[1]
    want = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], want, rtol=1e-5)


def test_terms_add_up_with_their_coefficients_and_own_denominators():
    # two terms over p = 3: p * x weighted over 4 rows, p^2 over the first row only.
    # loss = 1 * 3 * (1 + 2 + 3 + 4) / 4 + 10 * 9 = 97.5; gradient = 2.5 + 10 * 2 * 3 = 62.5
    from alignax.types import Loss

    def objective(p, x):
        first = (x == 1).astype(jnp.float32)
        return {
            "a": (1.0, Loss(value=p * x, weight=jnp.ones_like(x), metrics={})),
            "b": (10.0, Loss(value=p**2 * jnp.ones_like(x), weight=first, metrics={"x": (x, first)})),
        }

    for count in (1, 2, 4):
        grad, metrics = gradients(objective, jnp.float32(3), jnp.arange(1.0, 5.0), microbatches=count)
        assert (grad, metrics["a"], metrics["b"], metrics["loss"], metrics["x"]) == (62.5, 7.5, 9.0, 97.5, 1.0)


def test_a_masked_row_is_as_good_as_no_row_and_an_empty_batch_gives_zero():
    # traps 2 and 3
    batch = _compiled("sft")[3]
    mask, tokens = batch["mask"].at[7].set(False), batch["tokens"]
    one, other = _run("sft", mask=mask), _run("sft", mask=mask, tokens=tokens.at[7].set(9))
    close(other, one, atol=0)  # what a masked row holds is not seen
    weight = np.asarray(mask).sum() / np.asarray(batch["mask"]).sum()
    alone = _run("sft", mask=batch["mask"] & ~mask)[0][1]["loss"]
    whole = _run("sft")[0][1]["loss"]
    np.testing.assert_allclose(
        whole, weight * one[0][1]["loss"] + (1 - weight) * alone, rtol=1e-5
    )  # the divisor follows
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(_run("sft", mask=jnp.zeros_like(mask))))


def test_rows_that_do_not_divide_are_refused():
    with refuses(ValueError, "8 rows", "3 microbatches"):
        gradients(lambda p, b: {}, {}, demo_batch(), microbatches=3)


def test_cut_keeps_every_row_once_and_fields_together():
    parts = cut({"a": jnp.arange(6), "b": jnp.arange(12).reshape(6, 2)}, 3)
    np.testing.assert_array_equal(parts["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(parts["b"][..., 0], 2 * parts["a"])


def test_make_step_is_one_gradient_step_that_reads_frozen_parameters():
    run, params, reference, batch = _compiled("dpo")
    optimizer = sgd(total_steps=3, learning_rate=0.1)
    step = jax.jit(make_step(OBJECTIVES["dpo"][0], optimizer, microbatches=2))
    state, metrics = step(new_state(params, optimizer), batch, reference)
    grads = run(params, reference, batch)[0][0]
    close(state.learner.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), atol=1e-6)
    assert state.step == 1 and metrics["learning_rate"] == np.float32(0.1)
    _, other = step(new_state(params, optimizer), batch, params)  # the policy as its own reference
    assert abs(other["loss"] - np.log(2)) < 1e-6 < abs(metrics["loss"] - np.log(2))


def test_values_outside_the_mask_reach_neither_loss_nor_gradient():
    # trap 4, through a whole objective: nan in every masked slot of what a rollout carries
    rollout = _compiled("ppo")[3]
    hole = jnp.where(rollout.mask, 0.0, jnp.nan)
    fields = ("old_logp", "ref_logp", "old_value", "advantage", "returns")
    for name in ("ppo", "value"):
        close(_run(name, **{field: getattr(rollout, field) + hole for field in fields}), _run(name), atol=0)


def test_the_value_objective_trains_trunk_and_head():
    grads = _run("value")[0][0]
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(grads))
