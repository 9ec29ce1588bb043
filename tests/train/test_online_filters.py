"""Learning from replies that were sampled under top-k, top-p and min-p: who is seen under the filter, and who whole."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec
from tiny import close, prompt_batch, rollout_batch, tiny
from tiny_online import ALONE, P, build_actors, build_algorithm, build_frozen, build_iteration, build_state, models

from alignax import forward, sharding
from alignax.models.decoder import decoder
from alignax.ops.masked import reduce
from alignax.train import objectives, online
from alignax.types import Rollout
from tests.marks import quick

PPO = dict(top_k=12, top_p=0.9)
GRPO = ALONE | dict(advantage="group_baseline", loss="ppo_clip", samples_per_prompt=2, top_p=0.8, min_p=0.05)
PAIRS = ALONE | dict(advantage="best_and_worst", loss="dpo", samples_per_prompt=2, top_k=4)
SINGLE = ALONE | dict(advantage="reinforce_plus_plus", top_k=5)


def produced(algorithm, policy, reference):
    """A rollout of the policy, annotated."""

    @jax.jit
    def run(policy, reference):
        frozen, key = {"reference": reference}, jax.random.key(0)
        rollout = online.produce(algorithm, build_actors(), frozen, policy, prompt_batch(), key, jnp.int32(0))
        return online.annotate(algorithm, build_actors(), frozen, policy, None, rollout)

    return run(policy, reference)


@functools.cache
def log_probs():
    model = models()[0]
    return jax.jit(lambda params, rollout: forward.logits(model, params, rollout.tokens, rollout.valid))


def whole(params, rollout, temperature=0.9):
    """log p [B T V] of a policy of the tiny model, of which no filter leaves anything out."""
    plain = Rollout(tokens=rollout.tokens, valid=rollout.valid, mask=rollout.mask, old_logp=rollout.old_logp)
    logits_BTV = log_probs()(params, plain)
    logits_BTV = np.asarray(logits_BTV, np.float64) / temperature
    return logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))


def at_tokens(x_BTV, rollout):
    return np.take_along_axis(np.asarray(x_BTV), np.asarray(rollout.tokens)[..., None], axis=-1)[..., 0]


def largest(logp_BTV, k):
    """log p renormalised on the k largest, -inf elsewhere."""
    least = np.sort(logp_BTV, axis=-1)[..., -k, None]
    left = np.where(logp_BTV >= least, logp_BTV, -np.inf)
    return left - np.log(np.exp(left).sum(-1, keepdims=True))


@pytest.mark.parametrize("config", [PPO, GRPO], ids=["ppo", "grpo"])
def test_the_first_minibatch_has_ratio_one(config):
    """Trap 21; later minibatches have moved on, and so may tokens have left what is kept."""
    algorithm = build_algorithm(**config)
    _, metrics = jax.jit(build_iteration(algorithm))(build_state(algorithm), build_frozen(), prompt_batch())
    np.testing.assert_allclose(metrics["val/ratio_first"], 1.0, atol=1e-5)
    assert metrics["policy/approxkl_avg_first"] < 1e-10 < 1e-5 < metrics["policy/approxkl_avg"]
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["objective/kl"] > 0.05  # policy and reference are equal, but of the policy only S is sampled


def test_filters_that_are_off_are_not_there():
    off = build_algorithm(top_k=0, top_p=1.0, min_p=0.0)
    assert off.filters == {} and build_algorithm(**PPO).filters == PPO
    assert jax.tree.structure(off) == jax.tree.structure(build_algorithm())


@pytest.fixture(scope="module")
def single():
    """(algorithm, a rollout of the policy, which is the reference too)."""
    algorithm, policy = build_algorithm(**SINGLE), models()[1]
    return algorithm, produced(algorithm, policy, policy)


def test_the_reference_is_whole_and_the_kl_is_that_to_it(single):
    """log pi'(y) - log ref(y) = log pi(y) / ref(y) - log pi(S): with equal parameters the last term alone."""
    (_, rollout), policy = single, models()[1]
    mask, logp_BTV = np.asarray(rollout.mask), whole(policy, rollout)
    np.testing.assert_allclose(rollout.ref_logp[mask], at_tokens(logp_BTV, rollout)[mask], atol=1e-5)
    kept = np.log(np.exp(np.sort(logp_BTV, axis=-1)[..., -5:]).sum(-1))
    np.testing.assert_allclose((rollout.old_logp - rollout.ref_logp)[mask], -kept[mask], atol=1e-5)


def test_a_token_that_the_policy_no_longer_keeps_has_a_finite_log_prob_and_a_gradient(single):
    (algorithm, rollout), (model, _, moved, _) = single, models()
    moved = {"decoder": moved["decoder"]}  # far from the policy
    rollout = rollout.replace(advantage=jnp.ones(rollout.mask.shape))
    mask, logp_BTV = np.asarray(rollout.mask), whole(moved, rollout)
    fallen = mask & np.isneginf(at_tokens(largest(logp_BTV, 5), rollout))
    assert fallen.sum() > 20

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def value(params):
        logp_BT = forward.policy_view(
            model, params, rollout, temperature=0.9, start=P, filters=algorithm.sampling_filters
        ).logp
        terms = objectives.policy_objective(algorithm, build_actors(), {}, params, rollout, 0.1)
        return reduce(terms["loss/policy_avg"][1]), logp_BT

    (loss, logp_BT), grads = value(moved)
    # e^l / (e^l + the sum of the five)
    mass, own = np.exp(np.sort(logp_BTV, axis=-1)[..., -5:]).sum(-1), at_tokens(logp_BTV, rollout)
    np.testing.assert_allclose(logp_BT[fallen], (own - np.log(mass + np.exp(own)))[fallen], atol=1e-5)
    # rho A below the clip: - the mean of rho over all actions
    rho = np.minimum(np.exp(np.asarray(logp_BT) - rollout.old_logp)[mask], 1.2)
    np.testing.assert_allclose(loss, -rho.mean(), rtol=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("rival", quick(["greedy", "reference", "mixture"], "mixture"))
def test_an_opponent_is_sampled_under_the_same_filter_of_its_own_distribution(rival):
    advantage = {"greedy": "remax", "reference": "vbon", "mixture": "win_probability"}[rival]
    share = dict(share=0.3) if rival == "mixture" else {}
    settings = dict(advantage=advantage, samples_per_prompt=2, opponent=rival, opponent_args=share)
    algorithm, (_, policy, other, _) = build_algorithm(**ALONE, **settings, top_k=5), models()
    reference = {"decoder": other["decoder"]}
    rollout = produced(algorithm, policy, reference)
    ours, theirs = whole(policy, rollout), whole(reference, rollout)
    of_rival = {"greedy": whole(policy, rollout, 1.0), "reference": theirs, "mixture": 0.7 * ours + 0.3 * theirs}[rival]
    mask = np.asarray(rollout.mask)
    for source, logp_BTV in enumerate((ours, of_rival)):
        rows = mask & (np.asarray(rollout.source) == source)[:, None]
        want = at_tokens(largest(logp_BTV, 5), rollout)
        np.testing.assert_allclose(rollout.old_logp[rows], want[rows], atol=2e-5)


def test_pairs_are_seen_whole():
    """Implicit rewards of 0 and a loss of log 2 before the first update: a filter would credit what it cuts off."""
    algorithm, policy = build_algorithm(**PAIRS), models()[1]
    rollout = produced(algorithm, policy, policy)
    rollout = rollout.replace(advantage=jnp.tile(jnp.array([[1.0], [-1.0]]), (8, 1)) * rollout.mask)
    loss = jax.jit(lambda r: objectives.policy_objective(algorithm, build_actors(), {}, policy, r, 0.0))(rollout)
    np.testing.assert_allclose(reduce(loss["loss/policy_avg"][1]), np.log(2), rtol=1e-6)
    assert ((rollout.old_logp - rollout.ref_logp)[rollout.mask] > 0.01).all()  # sampled under the filter all the same


@pytest.mark.slow
def test_a_correction_sees_the_learner_under_the_filter():
    policy = models()[1]
    rollout = produced(build_algorithm(**GRPO, correction_args=dict(cap=2.0)), policy, policy)
    np.testing.assert_allclose((rollout.old_logp - rollout.sampler_logp)[rollout.mask], 0.0, atol=1e-5)


@pytest.mark.slow
def test_on_eight_devices_the_kernel_is_gathered_once_and_the_numbers_are_the_same():
    mesh = jax.make_mesh((1, 8), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, params = tiny(layers=1, vocab_size=5000)  # more than one chunk
    spread = decoder(model.config, sharding.rows(mesh), by_device=sharding.by_device(mesh))
    rollout, filters = rollout_batch(), dict(top_k=50, top_p=0.9)

    def slopes(model):
        view = lambda params, r: forward.policy_view(model, params, r, temperature=0.9, start=3, filters=filters)  # noqa: E731
        return jax.jit(jax.grad(lambda params, rollout: view(params, rollout).logp.sum()))

    cut = lambda x: NamedSharding(mesh, Spec("fsdp") if x.shape[0] % 8 == 0 else Spec())  # noqa: E731
    args = jax.tree.map(lambda x: jax.device_put(x, cut(x)), (params, rollout))
    program = slopes(spread).lower(*args).compile()
    close(program(*args), slopes(model)(params, rollout), atol=1e-4)
    assert len(re.findall(r"f32\[50\d\d,16\]\S* all-gather\(", program.as_text())) == 1
