"""top-k and top-p against a sort in NumPy, and as settings of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import forward
from alignax.ops.filters import min_p, top_k, top_p
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample

LOGITS = np.random.default_rng(0).normal(0, 2, (6, 17)).astype(np.float32)


def _kept_by_k(row, k):
    return set(range(len(row))) if k <= 0 else set(np.argsort(-row)[:k])


def _kept_by_p(row, p):
    prob, kept = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum(), []
    for token in np.argsort(-prob):
        kept.append(token)
        if prob[kept].sum() >= p:  # the smallest set that reaches p, at least one token
            break
    return set(range(len(row))) if p >= 1 else set(kept)


def _kept_by_min_p(row, p):
    prob = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum()
    return set(np.flatnonzero(prob >= p * prob.max() * (1 - 1e-6)))


@pytest.mark.parametrize("fn, oracle, values", [
    (min_p, _kept_by_min_p, (0.0, 0.01, 0.1, 0.5, 1.0)),
    (top_k, _kept_by_k, (-1, 0, 1, 3, 16, 17, 40)),
    (top_p, _kept_by_p, (0.0, 1e-6, 0.3, 0.7, 0.95, 1.0, 2.0)),
])  # fmt: skip
def test_filter_keeps_what_a_sort_keeps_with_one_compile(fn, oracle, values):
    run = jax.jit(fn)
    for value in values:
        got = np.asarray(run(jnp.asarray(LOGITS), jnp.asarray(value)))
        for row, out in zip(LOGITS, got):
            kept = oracle(row, value)
            assert set(np.flatnonzero(np.isfinite(out))) == kept, value
            np.testing.assert_array_equal(out[sorted(kept)], row[sorted(kept)])  # unchanged where kept
            assert (out[sorted(set(range(17)) - kept)] == -np.inf).all()
    assert run._cache_size() == 1


def test_ties_of_the_kth_and_of_the_last_mass_are_kept_together():
    tied = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(jnp.isfinite(top_k(tied, 2))[0], [True, True, True, False])
    np.testing.assert_array_equal(jnp.isfinite(top_p(tied, 0.1))[0], [True, True, True, False])


@pytest.mark.parametrize("k, p, allowed", [(2, 1.0, 2), (0, 0.5, 1), (1, 1.0, 1), (3, 0.75, 2), (0, 1.0, 4)])
def test_sampler_draws_and_scores_under_the_filtered_distribution(markov, k, p, allowed):
    # next-token probabilities 0.5, 0.3, 0.15, 0.05 whatever came before; top_p acts on what top_k left:
    # (3, 0.75): 0.5/0.95 = 0.526 is below 0.75, so the second is needed too; (0, 0.5): 0.5 reaches 0.5
    prob = np.array([0.5, 0.3, 0.15, 0.05])
    table = jnp.tile(jnp.log(jnp.asarray(prob, jnp.float32)), (4, 1))
    prompts = jnp.zeros((400, 1), jnp.int32)
    rollout = jax.jit(lambda k, p: sample(
        markov(4), table, prompts, jnp.ones_like(prompts, bool), row_keys(jax.random.key(0), jnp.arange(400)),
        capacity=1, eos_ids=jnp.array([9]), pad_id=0, options=Options(top_k=k, top_p=p),
    ))(k, p)  # fmt: skip
    token_B = np.asarray(rollout.tokens[:, 1])
    assert set(token_B) == set(range(allowed))  # 400 draws: each of 0.05 or more appears, 0.95^400 = 1e-9
    kept = prob[:allowed] / prob[:allowed].sum()
    np.testing.assert_allclose(rollout.old_logp[:, 1], np.log(kept[token_B]), atol=1e-5)


@pytest.fixture(scope="module")
def scored():
    """(temperature, filters) -> (Rollout of the tiny decoder, statistics of the learner under the same)."""
    model, params = tiny()
    prompts = prompt_batch()

    @jax.jit
    def run(temperature, filters):
        keys, options = row_keys(jax.random.key(1), prompts["row"]), Options(temperature=temperature, **filters)
        fixed = dict(capacity=7, eos_ids=jnp.array([EOS]), pad_id=PAD, options=options)
        rollout = sample(model, params, prompts["tokens"], prompts["valid"], keys, report=("entropy",), **fixed)
        rows = rollout.tokens, rollout.valid
        return rollout, *(
            forward.token_statistics(model, params, *rows, temperature=temperature, filters=one, start=5)
            for one in (filters, None)
        )

    return run


SETTINGS = [(1.0, 5, 1.0, 0.0), (0.7, 0, 0.8, 0.0), (1.3, 0, 1.0, 0.3), (0.9, 12, 0.9, 0.02)]


@pytest.mark.parametrize("temperature, k, p, least", SETTINGS)
def test_what_the_sampler_says_of_a_token_the_learner_says_too(scored, temperature, k, p, least):
    rollout, forced, whole = scored(temperature, dict(top_k=k, top_p=p, min_p=least))
    mask = np.asarray(rollout.mask)
    assert mask.sum() > 30
    np.testing.assert_allclose(rollout.old_logp[mask], forced.logp[mask], atol=1e-5)
    np.testing.assert_allclose(rollout.entropy[mask], forced.entropy[mask], atol=1e-5)
    assert (whole.logp[mask] < rollout.old_logp[mask] - 1e-3).mean() > 0.9  # the filter takes something away
