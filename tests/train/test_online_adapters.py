"""An iteration whose learners are adapters on a frozen decoder: equal to one by hand on the merged kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import close, prompt_batch
from tiny_online import build_parts, model_reward, models

from alignax import lora
from alignax.stages.programs import two_programs
from alignax.stages.roles import megabytes, shared
from alignax.train import online
from alignax.train.state import new_online_state
from alignax.train.step import gradients

ONCE = dict(update_args=dict(epochs=1, minibatches=1))
RATES = dict(policy=0.5, critic=0.1)
PLAIN = {key: dict(learning_rate=rate, clip_norm=0.0) for key, rate in
         (("optimizer_args", RATES["policy"]), ("value_optimizer_args", RATES["critic"]))}  # fmt: skip


def adapter(base, seed, size):
    """An adapter whose b is random, of this size: 0 is a fresh one."""
    fresh = lora.init(jax.random.key(seed), base, rank=3)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    noise = lambda path, x: x + size * jax.random.normal(next(keys), x.shape) if path[-1].key == "b" else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(noise, fresh)


def setting(parts, size):
    """(state, frozen): four roles on one decoder, the reference and the reward model with an adapter of `size` too."""
    _, base, critic, _ = models()
    policy, value, judge = ({"lora": adapter(base, seed, size)} for seed in (1, 3, 5))
    value, judge = (tree | {"scalar": critic["scalar"]} for tree in (value, judge))
    state = new_online_state(policy, value, parts.policy_optimizer, parts.critic_optimizer, 0.1, 0)
    frozen = {"reference": base | policy, "reward": base | judge, "still": {"policy": base, "critic": base}}
    return state, frozen


@pytest.fixture(scope="module")
def program():
    """(parts, the iteration as one compiled program of the distinct arrays)."""
    parts = build_parts(**ONCE, **PLAIN)
    state, frozen = setting(parts, 0.0)
    arrays, tree = shared(frozen)
    whole = lambda state, arrays, prompts: online.iteration(parts, model_reward, state, tree(arrays), prompts)  # noqa: E731
    return parts, jax.jit(whole).lower(state, arrays, prompt_batch()).compile()


@pytest.fixture(scope="module")
def by_hand():
    """The gradients of all parameters of merged models, with losses and metrics: no adapter anywhere in the program."""
    parts = build_parts(**ONCE, **PLAIN)

    @jax.jit
    def run(state, reference, judge, prompts):
        rollout, finished_B = online.roll(parts, state, reference, prompts)
        rollout = parts.annotate(state.policy.params, reference, state.critic.params, rollout)
        score_B = model_reward(judge, rollout)
        shaped_B, _ = parts.shape(score_B, finished_B, rollout.mask.sum(1), state.moments)
        rollout, _, metrics = parts.advantages(rollout, shaped_B, state.kl_coef)
        bound = lambda params, part: parts.policy_objective(params, part, state.kl_coef)  # noqa: E731
        policy, more = gradients(bound, state.policy.params, rollout)
        critic, further = gradients(parts.critic_objective, state.critic.params, rollout)
        return policy, critic, metrics | more | further

    def call(state, frozen):
        policy, value = (lora.merge(frozen["still"]["policy"] | x.params) for x in (state.policy, state.critic))
        full = new_online_state(policy, value, parts.policy_optimizer, parts.critic_optimizer, 0.1, 0)
        return run(full, lora.merge(frozen["reference"]), lora.merge(frozen["reward"]), prompt_batch())

    return call


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_an_update_is_the_one_by_hand_through_the_merged_kernel(program, by_hand, size):
    # W' = W + s A B: dA = s dW B^T and dB = s A^T dW, each times the learning rate of plain gradient descent
    parts, iteration = program
    state, frozen = setting(parts, size)
    after, metrics = iteration(state, shared(frozen)[0], prompt_batch())
    dW = {}
    dW["policy"], dW["critic"], want = by_hand(state, frozen)
    moved = {}
    for role, rate in RATES.items():
        before, now = (getattr(s, role).params["lora"]["layers"] for s in (state, after))
        for name, one in before.items():
            s, d = one["scale"][:, None, None], dW[role]["decoder"]["layers"][name]["kernel"]
            a = one["a"] - rate * s * d @ one["b"].swapaxes(1, 2)
            b = one["b"] - rate * s * one["a"].swapaxes(1, 2) @ d
            close(now[name], {"a": a, "b": b, "scale": one["scale"]}, atol=2e-5)
            moved[role] = max(moved.get(role, 0.0), float(jnp.abs(now[name]["b"] - one["b"]).max()))
    head, slope = state.critic.params["scalar"], dW["critic"]["scalar"]
    close(after.critic.params["scalar"], jax.tree.map(lambda x, d: x - RATES["critic"] * d, head, slope), atol=2e-5)
    assert min(moved.values()) > 1e-3  # what is compared has moved by far more than the tolerance
    # and what is measured on the way is that of the merged models: with a fresh adapter, of the base as it is
    same = {name: metrics[name] for name in want if name in metrics and name not in ("loss", "grad_norm")}
    assert {"loss/policy_avg", "loss/value_avg", "objective/kl", "critic/values", "val/ratio"} <= set(same)
    close(same, {name: want[name] for name in same}, rtol=1e-4, atol=1e-5)
    assert abs(metrics["objective/kl"]) < 1e-5 and metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)


def test_the_program_takes_the_decoder_once_and_keeps_it_out_of_the_state(program):
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    state, frozen = setting(program[0], 0.0)
    parts = {"state": state, "prompts": prompt_batch(), "base": models()[1]}
    parts |= {role: {k: v for k, v in frozen[role].items() if k != "decoder"} for role in ("reference", "reward")}
    assert set(state.policy.params) == {"lora"} and set(state.critic.params) == {"lora", "scalar"}
    # four roles and one base among the arguments; the optimizers here remember nothing
    assert program[1].memory_analysis().argument_size_in_bytes == pytest.approx(size(parts), rel=0.01)
    assert size(frozen) > 4 * size(parts["base"]) and 1e6 * megabytes(frozen) < 1.5 * size(parts["base"])


def rivalry(opponent, advantage):
    """(parts, state, frozen) of a learner beside an opponent, with all that a recipe may add."""
    parts = build_parts(
        **ONCE, **PLAIN, opponent=opponent, advantage=advantage, samples_per_prompt=2, oversample=2,
        correction_args=dict(cap=2.0), batch_size=4,
    )._replace(critic_objective=None, critic_optimizer=None)  # fmt: skip
    state, frozen = setting(parts, 0.1)
    return parts, state, frozen | {"still": frozen["still"] | {"critic": {}}}


@pytest.mark.parametrize("names", [("reference", "vbon"), ("mixture", "win_probability"), ("greedy", "remax")])
def test_an_iteration_beside_any_opponent_keeps_the_shape_of_its_state(names):
    parts, state, frozen = rivalry(*names)
    after, metrics = jax.eval_shape(partial(online.iteration, parts, model_reward), state, frozen, prompt_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state) and "sampling/importance_ratio" in metrics


def test_two_programs_around_a_reward_on_the_host_take_adapters_too():
    parts = build_parts(**ONCE, **PLAIN)
    state, frozen = setting(parts, 0.1)
    score = lambda rollout, finished_B, prompts: finished_B * 1.0  # noqa: E731
    step = two_programs(parts, score, frozen, state)
    after, metrics = jax.eval_shape(step, state, prompt_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state) and "critic/loss" in metrics


def test_a_mixture_of_adapted_policies_is_the_one_of_merged_policies():
    parts, state, frozen = rivalry("mixture", "win_probability")
    other, base = frozen["reward"], frozen["still"]["policy"]  # the former with an adapter of its own

    @jax.jit
    def draw(still, policy, reference):
        return online.on_base(parts, still).sample(policy, reference, prompt_batch(), jax.random.key(0))[0]

    got = draw(frozen["still"], state.policy.params, other)
    want = draw(None, lora.merge(base | state.policy.params), lora.merge(other))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=2e-5)
    assert got.opponent.sum() == len(got.opponent) // 2
