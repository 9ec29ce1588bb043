"""The sampler: what it draws, what it says of it, where it stops, and what it depends on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec
from tiny import EOS, PAD, VOCAB, prompt_batch, tiny

from alignax import forward
from alignax.evals.policy import exact_kl
from alignax.sampling.options import Options
from alignax.sampling.sample import occurrences, row_keys, sample

P, CAPACITY = 5, 7
TEMPERATURES = (0.5, 0.9, 1.0, 1.3)


@pytest.fixture(scope="module")
def draw():
    """(params, prompts, key, temperature) -> (Rollout of the tiny decoder, teacher-forced statistics of it)."""
    model, _ = tiny()

    @jax.jit
    def run(params, prompts, key, temperature):
        keys = row_keys(key, prompts["row"])
        options = dict(
            capacity=CAPACITY, eos_ids=jnp.array([EOS, 2]), pad_id=PAD, options=Options(temperature=temperature)
        )
        rollout = sample(model, params, prompts["tokens"], prompts["valid"], keys, **options)
        forced = forward.token_statistics(
            model, params, rollout.tokens, rollout.valid, temperature=temperature, start=P
        )
        return rollout, forced

    return run


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sampler_log_probs_equal_teacher_forced_ones(draw, temperature):
    rollout, forced = draw(tiny()[1], prompt_batch(), jax.random.key(1), temperature)
    mask = np.asarray(rollout.mask)
    assert mask.sum() > 30
    np.testing.assert_allclose(rollout.old_logp[mask], forced.logp[mask], atol=1e-5)
    assert (np.asarray(rollout.old_logp)[~mask] == 0).all()


def test_a_soft_cap_is_one_and_the_same_for_sampler_learner_and_kl():
    """c = 1.5 cuts deep: plain logits of the tiny model go beyond 3. Against the formula in numpy: cap, then heat."""
    model, params = tiny(logit_softcap=1.5)
    other, temperature = tiny(seed=1, logit_softcap=1.5)[1], 0.7

    @jax.jit
    def run(params, prompts):
        keys = row_keys(jax.random.key(1), prompts["row"])
        options = dict(
            capacity=CAPACITY, eos_ids=jnp.array([EOS]), pad_id=PAD, options=Options(temperature=temperature)
        )
        rollout = sample(model, params, prompts["tokens"], prompts["valid"], keys, **options)
        forced = forward.policy_view(model, params, rollout, temperature=temperature, start=P)
        whole = [forward.logits(model, p, rollout.tokens, rollout.valid) for p in (params, other)]
        kl_B = exact_kl(model, params, other, rollout, start=P, temperature=temperature)
        return rollout, forced, whole, kl_B, model.apply(params, rollout.tokens, rollout.valid)

    rollout, forced, whole, kl_B, hidden_BTD = run(params, prompt_batch())
    plain = np.asarray(hidden_BTD)[:, :-1] @ np.asarray(model.unembed(params))[:, :VOCAB]
    assert np.abs(plain).max() > 3
    np.testing.assert_allclose(whole[0][:, 1:], 1.5 * np.tanh(plain / 1.5), atol=1e-5)
    logp, ref_logp = (np.asarray(jax.nn.log_softmax(x / temperature)) for x in whole)
    mask = np.asarray(rollout.mask)
    want = np.take_along_axis(logp, np.asarray(rollout.tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(rollout.old_logp[mask], want[mask], atol=1e-5)
    np.testing.assert_allclose(forced.logp[mask], want[mask], atol=1e-5)
    kl_BT = (np.exp(logp) * (logp - ref_logp)).sum(-1)
    np.testing.assert_allclose(kl_B, np.where(mask, kl_BT, 0).sum(1), rtol=1e-4)


def test_a_policy_has_ratio_one_and_kl_zero_to_itself_at_every_temperature(draw):
    # trap J4: policy and reference are tempered alike, so equal parameters give equal numbers, exactly
    model, params = tiny()
    rollout, _ = draw(params, prompt_batch(), jax.random.key(1), 1.0)

    @jax.jit
    def both(policy, reference, temperature):
        view = forward.policy_view(model, policy, rollout, temperature=temperature, start=P)
        ref = forward.token_statistics(
            model, reference, rollout.tokens, rollout.valid, temperature=temperature, start=P
        )
        return view.logp, ref.logp

    for temperature in TEMPERATURES:
        logp, ref_logp = both(params, params, temperature)
        np.testing.assert_array_equal(np.exp(logp - ref_logp), 1.0)
    other = both(params, tiny(seed=1)[1], 1.0)
    assert np.abs(other[0] - other[1]).max() > 0.1  # and other parameters do not


def test_a_row_depends_neither_on_its_batch_nor_on_its_place(draw):
    params, prompts = tiny()[1], prompt_batch()
    whole, _ = draw(params, prompts, jax.random.key(1), 1.0)
    order = np.array([5, 2, 7, 4, 0, 6, 1, 3])  # another order
    other, _ = draw(params, jax.tree.map(lambda x: x[order], prompts), jax.random.key(1), 1.0)
    np.testing.assert_array_equal(other.tokens, whole.tokens[order])
    np.testing.assert_array_equal(other.mask, whole.mask[order])
    np.testing.assert_allclose(other.old_logp, whole.old_logp[order], atol=1e-6)
    few, _ = draw(params, jax.tree.map(lambda x: x[2:5], prompts), jax.random.key(1), 1.0)
    np.testing.assert_array_equal(few.tokens, whole.tokens[2:5])


def test_a_row_that_comes_again_draws_anew_and_the_first_as_if_it_were_alone(draw):
    params, prompts = tiny()[1], prompt_batch()
    whole, _ = draw(params, prompts, jax.random.key(1), 1.0)
    order = np.array([5, 2, 7, 2, 0, 2, 5, 3])  # row 2 three times, row 5 twice
    twice, _ = draw(params, jax.tree.map(lambda x: x[order], prompts), jax.random.key(1), 1.0)
    first = np.array([0, 1, 2, 4, 7])
    np.testing.assert_array_equal(twice.tokens[first], whole.tokens[order[first]])
    replies = lambda places: {tuple(np.asarray(twice.tokens[i, P:])) for i in places}  # noqa: E731
    assert len(replies([1, 3, 5])) == 3 and len(replies([0, 6])) == 2


def test_occurrences_and_keys_are_of_the_global_batch():
    ids = np.array([3, 0, 3, 7, 0, 3, 7, 1], np.int32)
    np.testing.assert_array_equal(occurrences(jnp.asarray(ids)), [0, 0, 1, 0, 1, 2, 1, 0])
    data = lambda rows: np.asarray(jax.jit(lambda r: jax.random.key_data(row_keys(jax.random.key(0), r)))(rows))  # noqa: E731
    want = data(jnp.asarray(ids))
    assert len(np.unique(want, axis=0)) == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(ids, NamedSharding(mesh, Spec("data")))  # one row on each device
    np.testing.assert_array_equal(data(spread), want)
    # a row that comes once has the key that its id alone gives
    np.testing.assert_array_equal(want[7], jax.random.key_data(jax.random.fold_in(jax.random.key(0), 1)))


@pytest.mark.parametrize("temperature", [-0.5, np.nan])
def test_a_temperature_below_zero_is_refused(markov, counting, temperature):
    with refuses(ValueError, f"temperature = {temperature}", "expected 0"):
        _count(markov(20), counting, [[1]], temperature=temperature)


def test_rows_with_the_same_prompt_and_other_ids_differ(draw):
    one = jax.tree.map(lambda x: jnp.repeat(x[1:2], 8, axis=0), prompt_batch())
    rollout, _ = draw(tiny()[1], one | {"row": jnp.arange(8)}, jax.random.key(1), 1.0)
    assert len({tuple(row) for row in np.asarray(rollout.tokens)}) == 8  # 8 equal 3-token starts: about 28 / 50^3


def test_two_steps_differ_and_the_same_step_repeats(draw):
    # trap J2
    def at(step):
        rollout, _ = draw(tiny()[1], prompt_batch(), jax.random.fold_in(jax.random.key(0), step), 1.0)
        return np.asarray(rollout.tokens[:, P:])

    np.testing.assert_array_equal(at(3), at(3))
    assert (at(3) != at(4)).mean() > 0.5


def test_padded_vocabulary_is_never_sampled(draw):
    params = tiny()[1]["decoder"]
    params = {"decoder": params | {"embed": params["embed"].at[VOCAB:].set(100.0)}}  # it would win by far
    assert draw(params, prompt_batch(), jax.random.key(0), 1.0)[0].tokens.max() < VOCAB


# ---- the counting table: after i comes i + 1, so every completion is known


def _count(model, table, prompts, **options):
    prompts = jnp.asarray(prompts, jnp.int32)
    defaults = dict(valid=jnp.ones(prompts.shape, bool), eos_ids=jnp.array([19]), pad_id=0, capacity=6)
    fixed = {name: options.pop(name, value) for name, value in defaults.items()}
    fixed |= {name: options.pop(name) for name in ("group", "slots", "report") if name in options}
    keys = row_keys(jax.random.key(0), jnp.arange(len(prompts) * fixed.get("group", 1)))
    return sample(model, table, prompts, fixed.pop("valid"), keys, options=Options(**options), **fixed)


def test_any_of_several_end_ids_ends_a_row_is_kept_and_nothing_follows(markov, counting):
    # traps 13 and 14: from 1 the row meets 4, from 5 it meets 7, from 10 neither within 6 tokens
    ends = jnp.array([7, 4])
    rollout = _count(markov(20), counting, [[1], [5], [10]], eos_ids=ends)
    want = [[1, 2, 3, 4, 0, 0, 0], [5, 6, 7, 0, 0, 0, 0], [10, 11, 12, 13, 14, 15, 16]]
    np.testing.assert_array_equal(rollout.tokens, want)
    np.testing.assert_array_equal(rollout.mask.sum(1), [3, 2, 6])
    np.testing.assert_array_equal(rollout.mask, np.asarray(rollout.valid) & (np.arange(7) > 0))
    np.testing.assert_array_equal(rollout.finished, [True, True, False])  # the third was cut off: no end


def test_an_end_id_before_the_last_token_of_a_cut_row_does_not_finish_it(markov, counting):
    rollout = _count(markov(20), counting, [[1], [1]], eos_ids=jnp.array([4, 7]), min_new_tokens=jnp.array([4, 0]))
    np.testing.assert_array_equal(rollout.tokens[1], [1, 2, 3, 4, 0, 0, 0])
    assert rollout.mask[0].sum() >= 4 and 4 not in np.asarray(rollout.tokens[0, 1:4])


def test_pad_may_equal_the_end_id_and_stand_in_the_prompt(markov, counting):
    # trap 12: masks come from lengths. 4 pads, ends, and is a real token of the second prompt
    prompts, valid = [[4, 4, 1], [3, 4, 9]], jnp.array([[False, False, True], [True, True, True]])
    other = _count(markov(20), counting, prompts, valid=valid, eos_ids=jnp.array([4]), pad_id=0)
    same = _count(markov(20), counting, prompts, valid=valid, eos_ids=jnp.array([4]), pad_id=4)
    np.testing.assert_array_equal(same.tokens[0], [4, 4, 1, 2, 3, 4, 4, 4, 4])
    np.testing.assert_array_equal(other.tokens[0], [4, 4, 1, 2, 3, 4, 0, 0, 0])
    for field in ("mask", "valid", "old_logp"):
        np.testing.assert_array_equal(getattr(same, field), getattr(other, field))
    np.testing.assert_array_equal(same.mask.sum(1), [3, 6])
    np.testing.assert_array_equal(same.valid[1], [True] * 9)
    np.testing.assert_array_equal(same.finished, [True, False])


def test_the_loop_stops_with_its_slowest_row_and_with_the_limit(markov, counting):
    calls = []
    model = markov(20, on_decode=lambda: calls.append(1))

    def steps(**options):
        calls.clear()
        jax.block_until_ready(_count(model, counting, [[1], [3], [5]], capacity=12, **options))
        jax.effects_barrier()
        return len(calls)

    assert steps(eos_ids=jnp.array([6])) == 5  # 5 meets 6 after one token, 3 after three, 1 after five
    assert steps(eos_ids=jnp.array([6, 4])) == 3  # now 1 and 3 meet 4 first, after three and one
    assert steps(eos_ids=jnp.array([19])) == 12  # nobody ends: the capacity
    assert steps(eos_ids=jnp.array([19]), max_new_tokens=2) == 2


def test_settings_are_traced_a_new_value_neither_compiles_again_nor_is_ignored(markov):
    # trap J5. A flat table: without noise or filters the tokens would be the same for every setting
    table = jax.random.normal(jax.random.key(4), (20, 20))
    defaults = dict(temperature=jnp.float32(1), eos_ids=jnp.array([17, 18]), max_new_tokens=jnp.int32(6),
                    top_k=jnp.int32(0), top_p=jnp.float32(1), pad_id=jnp.int32(0))  # fmt: skip
    prompts = jnp.arange(16, dtype=jnp.int32)[:, None]

    @jax.jit
    @chex.assert_max_traces(1)
    def run(temperature, eos_ids, max_new_tokens, top_k, top_p, pad_id):
        return _count(markov(20), table, prompts, temperature=temperature, eos_ids=eos_ids, pad_id=pad_id,
                      max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p)  # fmt: skip

    base = run(**defaults)
    changes = dict(temperature=jnp.float32(3), eos_ids=jnp.array([1, 2]), max_new_tokens=jnp.int32(2),
                   top_k=jnp.int32(2), top_p=jnp.float32(0.5), pad_id=jnp.int32(19))  # fmt: skip
    for name, value in changes.items():
        assert (run(**defaults | {name: value}).tokens != base.tokens).any(), name
    assert run(**defaults | {"max_new_tokens": changes["max_new_tokens"]}).mask.sum(1).max() == 2
    greedy = [run(**defaults | change).tokens for change in (
        {"temperature": jnp.float32(0)}, {"top_k": jnp.int32(1)}, {"top_p": jnp.float32(0)})]  # fmt: skip
    np.testing.assert_array_equal(greedy[1], greedy[0])
    np.testing.assert_array_equal(greedy[2], greedy[0])
    assert run._cache_size() == 1


def test_temperature_zero_takes_the_most_probable_token_and_scores_it_untempered(markov):
    table = jax.random.normal(jax.random.key(4), (20, 20))
    rollout = _count(markov(20), table, [[3], [8]], temperature=0.0, eos_ids=jnp.array([99]))
    logp = np.asarray(jax.nn.log_softmax(table, axis=-1))
    for tokens, scores in zip(np.asarray(rollout.tokens), rollout.old_logp):
        np.testing.assert_array_equal(tokens[1:], logp[tokens[:-1]].argmax(1))
        np.testing.assert_allclose(scores[1:], logp[tokens[:-1], tokens[1:]], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_frequencies_of_token_pairs_match_the_table(markov, temperature):
    # 4 tokens, 3000 rows from token 0: 16 pairs (second, third token). The statistic is chi-square with 15 degrees of
    # freedom; its 99.9 % point is 37.7. Noise that was used twice, at both positions, would empty most cells
    table, rows = 0.4 * jax.random.normal(jax.random.key(2), (4, 4)), 3000
    rollout = _count(markov(4), table, np.zeros((rows, 1)), capacity=2, eos_ids=jnp.array([9]), temperature=temperature)
    p = np.asarray(jax.nn.softmax(table / temperature, axis=-1), float)
    expected = rows * p[0][:, None] * p
    assert expected.min() > 5  # what the approximation asks for
    second, third = np.asarray(rollout.tokens[:, 1:]).T
    counts = np.zeros((4, 4))
    np.add.at(counts, (second, third), 1)
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


def test_shape_limit_and_empty_prompts(markov, counting):
    assert _count(markov(20), counting, [[1]], capacity=4).tokens.shape == (1, 5)
    over = _count(markov(20), counting, [[1]], capacity=4, max_new_tokens=9)  # a limit beyond the room is the room
    assert over.mask.sum() == 4
    none = _count(markov(20), counting, [[1]], capacity=4, max_new_tokens=0)
    assert none.mask.sum() == 0 and not none.finished.any()
    with refuses(ValueError, "(2, 0)", "non-empty"):
        _count(markov(20), counting, np.zeros((2, 0)))
