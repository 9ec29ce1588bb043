"""Exact KL against enumeration, and measuring a policy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import forward
from alignax.evals.policy import exact_kl, make_measure
from alignax.sampling.sampler import Sampler
from alignax.stages.evaluate import describe
from alignax.stages.probe import means
from alignax.types import Rollout

V, END, LONGEST = 4, 1, 3


def _completions():
    """Every completion of up to 3 tokens over 4, ended by token 1 or by the limit."""
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(V), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == LONGEST):
                yield tokens


def _enumerated() -> Rollout:
    rows = list(_completions())
    tokens, mask = np.zeros((len(rows), 2 + LONGEST), np.int32), np.zeros((len(rows), 2 + LONGEST), bool)
    tokens[:, :2] = [2, 3]  # the prompt
    for i, row in enumerate(rows):
        tokens[i, 2 : 2 + len(row)], mask[i, 2 : 2 + len(row)] = row, True
    valid = mask.copy()
    valid[:, :2] = True
    return Rollout(
        tokens=jnp.asarray(tokens), valid=jnp.asarray(valid), mask=jnp.asarray(mask), old_logp=jnp.zeros(mask.shape)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_exact_kl_averages_to_the_kl_of_whole_sequences(temperature):
    # sum_y p(y) sum_t KL_t(y) = sum_y p(y) log(p(y) / q(y)), over all 1 + 3 + 9 * 4 = 40 completions
    model, p_params = tiny(vocab_size=V, layers=1)
    q_params, rollout = tiny(seed=1, vocab_size=V, layers=1)[1], _enumerated()
    assert len(rollout.tokens) == 40

    @jax.jit
    def run(p, q):
        stats = [
            forward.token_statistics(model, x, rollout.tokens, rollout.valid, temperature=temperature) for x in (p, q)
        ]
        logs = [jnp.sum(s.logp, axis=1, where=rollout.mask) for s in stats]
        return *logs, exact_kl(model, p, q, rollout, start=2, temperature=temperature)

    logp, logq, per_row = (np.asarray(x, float) for x in run(p_params, q_params))
    np.testing.assert_allclose(np.exp(logp).sum(), 1.0, rtol=1e-5)  # the enumeration is complete
    want = (np.exp(logp) * (logp - logq)).sum()
    np.testing.assert_allclose((np.exp(logp) * per_row).sum(), want, rtol=1e-4)
    assert want > 0.1 and (per_row >= 0).all()
    assert (run(p_params, p_params)[2] == 0).all()  # exactly


@pytest.fixture(scope="module")
def measured():
    """(measure, arguments of one measurement, its result)."""
    model, params = tiny()
    reference, reward = tiny(seed=1)[1], tiny(seed=2, scalar=True)[1]
    measure = make_measure(Sampler(model, capacity=4, ends=(2, EOS), pad=PAD), model)
    arguments = params, reference, reward, prompt_batch(), jax.random.key(0), 1.0
    return measure, arguments, measure(*arguments)


def test_measure_reports_the_rollout_its_kl_and_its_score(measured):
    _, (params, reference, reward, *_), got = measured
    model, r = tiny()[0], got.rollout
    kl = jax.jit(lambda: exact_kl(model, params, reference, r, start=5))()
    np.testing.assert_allclose(got.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(got.proxy, forward.score(model, reward, r.tokens, r.valid), atol=1e-5)
    last = np.asarray(r.tokens)[np.arange(8), np.asarray(r.valid)[:, ::-1].argmax(1) * -1 - 1]
    np.testing.assert_array_equal(r.finished, np.isin(last, [2, EOS]))


def test_measure_repeats_per_row_id_is_traced_in_temperature_and_has_no_kl_to_itself(measured):
    measure, (params, reference, reward, prompts, key, _), got = measured
    order = np.array([3, 0, 7, 1, 2, 4, 5, 6])
    turned = measure(params, reference, reward, jax.tree.map(lambda x: x[order], prompts), key, 1.0)
    np.testing.assert_array_equal(turned.rollout.tokens, got.rollout.tokens[order])
    assert (measure(params, params, reward, prompts, key, 1.0).kl == 0).all()
    greedy = measure(params, reference, reward, prompts, jax.random.key(9), 1e-3).rollout.tokens
    np.testing.assert_array_equal(measure(params, reference, reward, prompts, key, 1e-3).rollout.tokens, greedy)
    assert (greedy != got.rollout.tokens).any() and measure._cache_size() == 1


def test_a_gold_reward_is_of_the_replies_that_have_one():
    # three prompts of two families; SFT's second reply has no score, and this policy's third
    def row(gold):
        parts = {} if gold is None else {"kind": gold}
        return {"kl": 1.0, "length": 2, "finished": True, "gold": gold, "parts": parts}

    mine, base = [row(1.0), row(3.0), row(None)], [row(0.5), row(None), row(2.0)]
    prompts = [{"family": "a"}, {"family": "b"}, {"family": "b"}]
    found = describe(mine, base, prompts)
    assert found["gold_reward"] == 2.0 and found["gold_parts"] == {"kind": 2.0}
    assert found["families"] == {"a": 1.0, "b": 3.0}
    assert found["gold_gain"] == 0.5 and found["win_rate"] == 1.0
    assert means(mine)["eval/gold_reward"] == 2.0
    silent = [row(None)] * 3
    for key in ("gold_reward", "gold_gain", "families"):
        assert key not in describe(silent, base, prompts)
    assert "eval/gold_reward" not in means(silent)


def test_the_kl_of_a_greedy_policy_is_that_of_the_untempered_ones():
    (model, params), other, prompts = tiny(), tiny(seed=1)[1], prompt_batch()
    measure = make_measure(Sampler(model, capacity=3, ends=(EOS,), pad=PAD))
    got = measure(params, other, None, prompts, jax.random.key(0), jnp.float32(0))
    want = exact_kl(model, params, other, got.rollout, start=prompts["tokens"].shape[1])
    assert (want > 0).all()
    np.testing.assert_allclose(got.kl, want, rtol=1e-4)
