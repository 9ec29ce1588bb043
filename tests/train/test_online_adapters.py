"""An iteration whose learners are adapters on a frozen decoder: equal to one by hand on the merged kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import close, prompt_batch
from tiny_online import ALONE, build_actors, build_algorithm, build_iteration, models

from alignax import lora
from alignax.rewards.model import score
from alignax.stages.programs import Said, on_device, sampling, two_programs
from alignax.stages.roles import megabytes, shared
from alignax.train import objectives, online
from alignax.train.step import gradients
from tests.marks import quick

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


def setting(algorithm, size):
    """(state, frozen): four roles on one decoder, the reference and the reward model with an adapter of `size` too."""
    _, base, critic, _ = models()
    policy, value, judge = ({"lora": adapter(base, seed, size)} for seed in (1, 3, 5))
    value, judge = (tree | {"scalar": critic["scalar"]} for tree in (value, judge))
    still = {"policy": base, "critic": base if algorithm.value else {}}
    frozen = {"reference": base | policy, "reward": {"reward": base | judge}, "base": still}
    return online.start(algorithm, policy, value, 0), frozen


@pytest.fixture(scope="module")
def program():
    """(algorithm, the iteration as one compiled program of the distinct arrays)."""
    algorithm = build_algorithm(**ONCE, **PLAIN)
    state, frozen = setting(algorithm, 0.0)
    arrays, tree = shared(frozen)
    whole = lambda state, arrays, prompts: build_iteration(algorithm)(state, tree(arrays), prompts)  # noqa: E731
    return algorithm, jax.jit(whole).lower(state, arrays, prompt_batch()).compile()


@pytest.fixture(scope="module")
def by_hand():
    """The gradients of all parameters of merged models, with losses and metrics: no adapter anywhere in the program."""
    algorithm, actors = build_algorithm(**ONCE, **PLAIN), build_actors()

    @jax.jit
    def run(state, frozen, prompts):
        policy, critic, coef = state.policy.params, state.critic.params, state.kl_coef
        key = jax.random.wrap_key_data(state.key)
        rollout = online.produce(algorithm, actors, frozen, policy, prompts, key, state.step)
        rollout = online.annotate(algorithm, actors, frozen, policy, critic, rollout)
        score_B = score(actors.policy, frozen["reward"]["reward"], rollout)
        shaped_B, _ = algorithm.scoring(score_B, rollout.finished, rollout.mask.sum(1), state.moments)
        rollout, _, metrics = online.advantages(algorithm, rollout, shaped_B, coef)
        bound = lambda params, part: objectives.policy_objective(algorithm, actors, frozen, params, part, coef)  # noqa: E731
        value = lambda params, part: objectives.critic_objective(algorithm, actors, frozen, params, part)  # noqa: E731
        policy, more = gradients(bound, policy, rollout)
        critic, further = gradients(value, critic, rollout)
        return policy, critic, metrics | more | further

    def call(state, frozen):
        policy, value = (lora.merge(frozen["base"]["policy"] | x.params) for x in (state.policy, state.critic))
        judge = lora.merge(frozen["reward"]["reward"])
        merged = {"reference": lora.merge(frozen["reference"]), "reward": {"reward": judge}}
        return run(online.start(algorithm, policy, value, 0), merged, prompt_batch())

    return call


@pytest.mark.parametrize("size", quick([0.0, 0.1], 0.1))
def test_an_update_is_the_one_by_hand_through_the_merged_kernel(program, by_hand, size):
    # W' = W + s A B: dA = s dW B^T and dB = s A^T dW, each times the learning rate of plain gradient descent
    algorithm, iteration = program
    state, frozen = setting(algorithm, size)
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
    roles = {"reference": frozen["reference"], "reward": frozen["reward"]["reward"]}
    parts |= {role: {k: v for k, v in tree.items() if k != "decoder"} for role, tree in roles.items()}
    assert set(state.policy.params) == {"lora"} and set(state.critic.params) == {"lora", "scalar"}
    # four roles and one base among the arguments; the optimizers here remember nothing
    assert program[1].memory_analysis().argument_size_in_bytes == pytest.approx(size(parts), rel=0.01)
    assert size(frozen) > 4 * size(parts["base"]) and 1e6 * megabytes(frozen) < 1.5 * size(parts["base"])


def rivalry(opponent, advantage):
    """(algorithm, state, frozen) of a learner beside an opponent, with all that a recipe may add."""
    algorithm = build_algorithm(
        **ONCE, **ALONE, optimizer_args=PLAIN["optimizer_args"], opponent=opponent, advantage=advantage,
        samples_per_prompt=2, oversample=2, correction_args=dict(cap=2.0), batch_size=4,
    )  # fmt: skip
    return algorithm, *setting(algorithm, 0.1)


@pytest.mark.parametrize("names", [("reference", "vbon"), ("mixture", "win_probability"), ("greedy", "remax")])
def test_an_iteration_beside_any_opponent_keeps_the_shape_of_its_state(names):
    algorithm, state, frozen = rivalry(*names)
    after, metrics = jax.eval_shape(build_iteration(algorithm), state, frozen, prompt_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state) and "sampling/importance_ratio" in metrics


@pytest.mark.slow  # of whole models: test_online_iteration
def test_two_programs_around_a_reward_on_the_host_take_adapters_too():
    algorithm = build_algorithm(**ONCE, **PLAIN)
    state, frozen = setting(algorithm, 0.1)
    on_host = lambda rollout, prompts: Said({"reward": np.asarray(rollout.finished, np.float32)}, {})  # noqa: E731
    own = jax.tree.map(jnp.copy, state)  # which the second program may overwrite
    given = algorithm, build_actors()
    step = two_programs(*given, on_device(algorithm, {}), on_host, frozen, own, sampling(*given, frozen))
    after, metrics = step(own, prompt_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state) and "critic/loss" in metrics


@pytest.mark.slow  # mixtures: sampling/test_opponent
def test_a_mixture_of_adapted_policies_is_the_one_of_merged_policies():
    algorithm, state, frozen = rivalry("mixture", "win_probability")
    other, base = frozen["reward"]["reward"], frozen["base"]["policy"]  # the former with an adapter of its own

    @jax.jit
    def draw(frozen, policy):
        return online.produce(
            algorithm, build_actors(), frozen, policy, prompt_batch(), jax.random.key(0), jnp.int32(0)
        )

    got = draw(frozen | {"reference": other}, state.policy.params)
    want = draw({"reference": lora.merge(other)}, lora.merge(base | state.policy.params))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=2e-5)
    assert got.source.sum() == len(got.source) // 2
