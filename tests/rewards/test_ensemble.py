"""Ensembles of reward models: stacked and scored as one program, each as it is alone."""

import dataclasses

import jax
import numpy as np
import pytest
from errors import refuses
from tiny import prompt_batch, tiny
from tiny_online import build_actors, build_algorithm, build_frozen, build_state, models

from alignax import forward, lora
from alignax.bound import bound
from alignax.rewards import combine
from alignax.rewards.ensemble import is_ensemble, joined, scores, stacked
from alignax.stages import programs
from alignax.stages.roles import shared
from alignax.train import online
from alignax.train.algorithm import Combined

SEEDS = (4, 5, 6)


def member(seed):
    return tiny(seed=seed, scalar=True, layers=1)


def adapted():
    """Three adapters and heads on one decoder."""
    model, base = member(4)
    for seed in SEEDS:
        noise = lambda x, seed=seed: x + jax.random.normal(jax.random.key(seed), x.shape)  # noqa: E731
        fresh = lora.init(jax.random.key(seed), base, rank=2)
        yield model, base | {"lora": jax.tree.map(noise, fresh), "scalar": jax.tree.map(noise, base["scalar"])}


@pytest.mark.parametrize("build", [lambda: map(member, SEEDS), adapted], ids=["whole", "adapters"])
def test_members_scored_at_once_are_members_scored_one_by_one(build):
    found = list(build())
    model, trees = found[0][0], [params for _, params in found]
    params, batch = stacked(trees), prompt_batch()
    given = batch["tokens"], batch["valid"]
    want = np.stack([forward.score(model, one, *given) for one in trees], axis=1)
    assert np.ptp(want, axis=1).min() > 1e-3  # members do differ
    got = jax.jit(lambda params: scores(model, params, *given))(params)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_what_members_have_in_common_stands_there_once():
    trees = [params for _, params in adapted()]
    params = stacked(trees)
    embed, head = (lambda tree: tree["decoder"]["embed"]), (lambda tree: tree["scalar"]["kernel"])
    assert embed(params["shared"]) is embed(trees[0]) and embed(params["own"]) is None
    assert head(params["shared"]) is None and head(params["own"]).shape == (3, *head(trees[0]).shape)
    arrays, _ = shared({"reference": trees[0]["decoder"], "reward": params})
    assert sum(x is embed(trees[0]) for x in arrays) == 1  # one argument of a program, whatever roles it has
    assert is_ensemble(params) and not is_ensemble(trees[0])
    assert head(joined(**params)).shape[0] == 3


def test_members_that_cannot_be_stacked():
    same = member(4)[1]
    with refuses(ValueError, "all the same"):
        stacked([same, same])
    with refuses(ValueError, "an ensemble of 1"):
        stacked([same])
    with refuses(ValueError, "shapes"):
        stacked([same, tiny(seed=5, scalar=True, layers=2)[1]])


@pytest.mark.slow
def test_an_iteration_of_an_ensemble_is_one_of_its_members_scores():
    """Three models by name whose scores are combined, and the ensemble of them: the same update."""
    names = ("a", "b", "c")
    function = bound(combine.mean_less_std, {"coef": 0.5}, key="x", args_key="x")
    algorithm, trees = build_algorithm(), [member(seed)[1] for seed in SEEDS]

    def after(weights, made, models_of, params):
        changed = dataclasses.replace(algorithm, weights=weights, combined=made)
        score = programs.on_device(changed, models_of)
        frozen = build_frozen() | {"reward": params}
        step = jax.jit(lambda state, prompts: online.iteration(changed, build_actors(), score, state, frozen, prompts))
        return step(build_state(changed), prompt_batch())

    model = models()[0]
    one_by_one = after(
        dict.fromkeys(names, 0.0) | {"all": 1.0}, {"all": Combined(function=function, of=names)},
        dict.fromkeys(names, model), dict(zip(names, trees, strict=True)),
    )  # fmt: skip
    at_once = after({"all": 1.0}, {"all": Combined(function=function)}, {"all": model}, {"all": stacked(trees)})
    for name in ("objective/scores", "objective/scores_sd", "loss/policy_total"):
        np.testing.assert_allclose(at_once[1][name], one_by_one[1][name], rtol=1e-4, atol=1e-5)
    leaves = [jax.tree.leaves(state.policy.params) for state, _ in (one_by_one, at_once)]
    for want, got in zip(*leaves, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    members = np.std([one_by_one[1][f"rewards/{name}/mean"] for name in names])
    assert at_once[1]["rewards/all/disagreement/mean"] >= members * 0.999  # the mean of deviations is no less


def test_heads_of_one_trunk_are_members():
    model, params = member(4)
    heads = params | {"scalar": model.init_scalar(jax.random.key(0), 3)}
    batch = prompt_batch()
    got = forward.score(model, heads, batch["tokens"], batch["valid"])
    for i in range(3):
        one = params | {"scalar": jax.tree.map(lambda x, i=i: x[..., i], heads["scalar"])}
        want = forward.score(model, one, batch["tokens"], batch["valid"])
        np.testing.assert_allclose(got[:, i], want, rtol=1e-5, atol=1e-6)
