"""Numbers of a plan are leaves: one jitted vmap over plans that differ in every one of them equals the single steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import close, demo_batch, pair_batch, prompt_batch, tiny

from alignax.config import plain
from alignax.models.bigram import bigram
from alignax.sampling.sampler import Sampler
from alignax.stages import offline, online, reward, sft, supervised
from alignax.train import online as loop
from alignax.train.algorithm import Actors
from alignax.train.state import new_state

LANES = 3
FEW = dict(total_steps=20, batch_size=8)
WARM = dict(clip_norm=0.5, weight_decay=0.1, warmup_percent=0.0)


def planned(stage, **values):
    """The plan of a stage's own config with these values."""
    c = plain(stage.get_config()) | {"init_from": "somewhere", "data": {"path": "rows.jsonl"}} | values
    return stage.plan(c)


def lanes(plan):
    """Plans that differ in every number: each is smaller by a twentieth from lane to lane, and one that is 0 larger."""
    return [jax.tree.map(lambda x, i=i: x * (1 - 0.05 * i) or 0.01 * i, plan) for i in range(LANES)]


def check(run, plan, *args, atol=2e-5):
    """That one program of stacked plans gives what single programs do, and that every number counts for something."""
    one = lanes(plan)
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *one)
    swept = jax.jit(jax.vmap(run, in_axes=(0, *(None for _ in args))))(stacked, *args)
    single = jax.jit(run)
    for i, lane in enumerate(one):
        close(jax.tree.map(lambda x, i=i: x[i], swept), single(lane, *args), atol=atol, rtol=1e-4)
    first = jax.tree.leaves(jax.tree.map(lambda x: np.abs(x[0] - x[1]).max(), swept))
    assert max(first) > 1e-4  # the lanes are no copies


def twice(plan, view, params, batch, frozen):
    """Two updates of a supervised plan: what an optimizer remembers counts from the second."""
    step = supervised.update(plan, view)
    state = new_state(params, plan.optimizer())
    state, first = step(state, batch, frozen)
    state, second = step(state, batch, frozen)
    return state, first, second


def test_sft():
    model, params = tiny(layers=1)
    plan = planned(sft, model="harbor", tokenizer="a:b", optimizer_args=dict(learning_rate=0.01) | WARM, **FEW)
    assert len(jax.tree.leaves(plan)) == 8  # coefficient; learning rate, b1, b2, eps, decay, clip, end
    run = lambda plan, params, batch: twice(plan, functools.partial(sft.view, model), params, batch, {})  # noqa: E731
    check(run, plan, params, demo_batch())


def test_reward():
    model, params = tiny(layers=1, scalar=True)
    plan = planned(reward, loss_args=dict(centering=0.02), optimizer_args=dict(learning_rate=0.01) | WARM, **FEW)
    view = functools.partial(reward.view, plan, model)
    check(lambda plan, params, batch: twice(plan, view, params, batch, {}), plan, params, pair_batch())


@pytest.mark.parametrize("terms", [{}, {"chosen_nll": {"coefficient": 0.3}}])
def test_dpo(terms):
    (model, params), reference = tiny(layers=1), tiny(layers=1, seed=1)[1]
    args = dict(loss_args=dict(beta=0.2, label_smoothing=0.05), terms=terms)
    plan = planned(offline, optimizer_args=dict(learning_rate=0.01) | WARM, **args, **FEW)
    view = functools.partial(offline.view, plan, model)
    frozen = {"base": {}, "reference": reference}
    check(lambda plan, params, batch: twice(plan, view, params, batch, frozen), plan, params, pair_batch())


@pytest.mark.parametrize(
    "values",
    [
        dict(advantage_args=dict(gamma=0.9, lam=0.8), kl_controller="adaptive_kl",
             kl_controller_args=dict(target=0.5, horizon=100.0), loss_args=dict(clip=0.15),
             value_loss_args=dict(clip=0.1), scoring_args=dict(clip=2.0, missing_eos_penalty=0.5)),
        pytest.param(dict(advantage="group_baseline", samples_per_prompt=2, critic_init="none", kl_placement="loss",
             kl_estimator="k3", terms=dict(entropy=dict(coefficient=0.02)), opponent="none",
             scoring_args=dict(normalize=False, clip=0.5), correction_args=dict(cap=1.5),
             top_k=8, top_p=0.9, min_p=0.02), marks=pytest.mark.slow),
    ],
    ids=["ppo", "grpo"],
)  # fmt: skip
def test_online(values):
    """Every number of the algorithm, learning rates, clips, gamma, lambda, coefficient and temperature among them."""
    model = bigram(11)
    params = model.init(jax.random.key(0)) | {"scalar": model.init_scalar(jax.random.key(1))}
    policy = {"decoder": params["decoder"]}
    rates = dict(optimizer_args=dict(learning_rate=0.05) | WARM)
    rates |= dict(value_optimizer_args=dict(learning_rate=0.02) | WARM) if "critic_init" not in values else {}
    plan = planned(
        online, reward_from="judge", max_new_tokens=4, update_args=dict(epochs=2, minibatches=2, kl_limit=5.0),
        **FEW, **rates, **values,
    )  # fmt: skip
    sampler = Sampler(model, 4, ends=(1,), pad=0)
    actors = Actors(sampler, model if plan.algorithm.value else None)
    score = lambda frozen, rollout: {"reward": rollout.tokens[:, -4:].sum(1).astype(jnp.float32)}  # noqa: E731
    prompts = {name: x % 11 if name == "tokens" else x for name, x in prompt_batch().items()}

    def run(algorithm, policy, params, prompts):
        critic = params if algorithm.value else None
        state, frozen = loop.start(algorithm, policy, critic, 0), {"reference": policy}
        state, first = loop.iteration(algorithm, actors, score, state, frozen, prompts)
        state, second = loop.iteration(algorithm, actors, score, state, frozen, prompts)
        # val/clipfrac_avg counts where one number is larger than another, which may be equal but for rounding
        return state, [{k: v for k, v in one.items() if k != "val/clipfrac_avg"} for one in (first, second)]

    check(run, plan.algorithm, policy, params, prompts, atol=1e-4)


def test_plans_of_one_config_are_equal_and_of_one_structure():
    one, same, other = (planned(offline, loss_args={"beta": beta}, **FEW) for beta in (0.1, 0.1, 0.2))
    assert one == same and one != other
    assert jax.tree.structure(one) == jax.tree.structure(other)  # a number is no structure
    assert jax.tree.structure(one) != jax.tree.structure(planned(offline, loss="ipo", **FEW))
