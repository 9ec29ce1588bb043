"""Every option against its formula: frequencies against exact probabilities, and what a row with it may not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.sampling.choose import choose, inverse
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.sampling.slots import END, LENGTH, STOP
from alignax.sampling.stops import Stops, automaton

V, ROWS = 6, 4000
TABLE = jnp.asarray(np.random.default_rng(3).normal(0, 1, (V, V)), jnp.float32)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(presence_penalty=np.nan), ("presence_penalty = nan:", "finite")),
        (dict(frequency_penalty=np.inf), ("frequency_penalty = inf:", "finite")),
        (dict(logit_bias=np.full(9, -np.inf)), ("logit_bias of row 0 bans all 9", "left")),
        (dict(logit_bias=np.array([0, np.inf, *[0] * 7])), ("logit_bias of row 0 and token 1 = inf", "-inf")),
        (dict(min_new_tokens=9, max_new_tokens=2), ("min_new_tokens = 9, max_new_tokens = 2", "as many")),
        (dict(prefix=np.array([0, 4]), prefix_valid=np.array([False, True])), ("prefix_valid of row 0", "right")),
        (dict(prefix=np.array([3, 400]), prefix_valid=np.ones(2, bool)), ("prefix of row 0 has the token 400", "8")),
    ],
)
def test_settings_that_would_sample_nothing(settings, words):
    with refuses(ValueError, *words):
        Options(**settings).check(2, 9)


def replies(model, table, options, *, rows=ROWS, capacity=2, start=0, eos=(99,), prompt=None, **more):
    prompts = jnp.full((rows, 1), start, jnp.int32) if prompt is None else jnp.tile(jnp.array([prompt]), (rows, 1))
    keys = row_keys(jax.random.key(11), jnp.arange(rows))
    fixed = dict(capacity=capacity, eos_ids=jnp.array(eos), pad_id=0, options=options, **more)
    return jax.jit(lambda: sample(model, table, prompts, jnp.ones_like(prompts, bool), keys, **fixed))()


def first_logits(logits, options):
    """What the first token is drawn from, in NumPy's float64."""
    l = np.asarray(logits, float)
    if options.logit_bias is not None:
        l = l + np.asarray(options.logit_bias, float)
    l = l / (options.temperature or 1.0)
    order = np.argsort(-l)
    if options.top_k is not None and options.top_k > 0:
        l[order[options.top_k :]] = -np.inf
    p = np.exp(l - l.max())
    p /= p.sum()
    if options.top_p is not None:
        before = np.cumsum(p[np.argsort(-p)]) - p[np.argsort(-p)]
        l[np.argsort(-p)[before >= options.top_p]] = -np.inf
    if options.min_p is not None:
        l[p < options.min_p * p.max()] = -np.inf
    p = np.exp(l - l.max())
    return p / p.sum()


CHI = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}  # 99.9 % points of chi-square by degrees of freedom
BIAS = jnp.array([0.0, -jnp.inf, 1.0, 0.0, -1.0, 0.0])


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(temperature=0.6),
        Options(temperature=1.7),
        Options(top_k=3),
        Options(top_p=0.7),
        Options(min_p=0.1),
        Options(logit_bias=BIAS),
        Options(temperature=1.4, top_k=5, top_p=0.9, min_p=0.05, logit_bias=BIAS),
    ],
    ids=["plain", "colder", "warmer", "top-k", "top-p", "min-p", "bias", "all"],
)
def test_frequencies_are_the_exact_probabilities_and_log_probs_theirs(markov, options):
    want = first_logits(TABLE[0], options)
    rollout = replies(markov(V), TABLE, options, capacity=1)
    token = np.asarray(rollout.tokens[:, 1])
    kept = want > 0
    counts = np.bincount(token, minlength=V)
    assert not counts[~kept].any() and kept.sum() > 1
    chi = ((counts[kept] - ROWS * want[kept]) ** 2 / (ROWS * want[kept])).sum()
    assert chi < CHI[kept.sum() - 1]
    np.testing.assert_allclose(rollout.old_logp[:, 1], np.log(want[token]), atol=1e-5)


def test_raw_log_probs_and_entropy_are_told_on_request(markov):
    options = Options(temperature=0.7, top_k=3)
    rollout = replies(markov(V), TABLE, options, capacity=1, report=("raw_logp", "entropy"))
    token, p = np.asarray(rollout.tokens[:, 1]), first_logits(TABLE[0], options)
    np.testing.assert_allclose(rollout.raw_logp[:, 1], np.asarray(jax.nn.log_softmax(TABLE[0]))[token], atol=1e-5)
    np.testing.assert_allclose(rollout.entropy[:, 1], -(p[p > 0] * np.log(p[p > 0])).sum(), atol=1e-5)
    assert (rollout.entropy[:, 0] == 0).all() and replies(markov(V), TABLE, options, capacity=1).entropy is None


@pytest.mark.parametrize("name, value", [
    ("repetition_penalty", 3.0), ("presence_penalty", 2.0), ("frequency_penalty", 1.0),
])  # fmt: skip
def test_penalties_are_their_formulas(markov, name, value):
    """The log-probability of the fourth token, from what came before it by hand. Prompt: tokens 2 and 5."""
    rollout = replies(markov(V), TABLE, Options(**{name: value}), rows=300, capacity=4, prompt=(2, 5))
    for tokens, logp in zip(np.asarray(rollout.tokens), np.asarray(rollout.old_logp)):
        said, last = tokens[2:5].tolist(), tokens[4]
        l = np.asarray(TABLE[last], float)
        for token in range(V):
            if name == "repetition_penalty" and token in (2, 5, *said):
                l[token] = l[token] / value if l[token] > 0 else l[token] * value
            if name == "presence_penalty" and token in said:
                l[token] -= value
            if name == "frequency_penalty":
                l[token] -= value * said.count(token)
        assert logp[5] == pytest.approx(l[tokens[5]] - np.log(np.exp(l).sum()), abs=1e-4)


def test_each_row_has_its_own_settings_wherever_it_is_written(markov):
    options = Options(
        temperature=jnp.array([0.0, 1.0, 1.0, 1.0]), top_k=jnp.array([0, 1, 0, 0]),
        max_new_tokens=jnp.array([5, 5, 2, 5]), min_new_tokens=jnp.array([0, 0, 0, 5]),
    )  # fmt: skip
    for slots in (0, 1, 3):
        rollout = replies(markov(V), TABLE, options, rows=4, capacity=5, eos=(4,), slots=slots)
        greedy = [0]
        while len(greedy) < 6 and greedy[-1] != 4:
            greedy.append(int(TABLE[greedy[-1]].argmax()))
        for row in (0, 1):  # top-k of one token is greedy
            assert rollout.tokens[row, : len(greedy)].tolist() == greedy
        assert rollout.mask[2].sum() <= 2 and rollout.mask[3].sum() == 5
        assert (rollout.tokens[3, 1:5] != 4).all()


def test_a_prefix_is_read_and_nobody_chose_it(markov, counting):
    options = Options(prefix=jnp.array([[9, 5], [7, 0]]), prefix_valid=jnp.array([[True, True], [True, False]]))
    rollout = replies(markov(20), counting, options, rows=2, capacity=4, start=1, eos=(8,))
    np.testing.assert_array_equal(rollout.tokens, [[1, 9, 5, 6, 7], [1, 7, 8, 0, 0]])
    np.testing.assert_array_equal(rollout.mask, [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(rollout.valid, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert rollout.old_logp[0, 1] == 0 and rollout.finished.tolist() == [False, True]


def test_why_a_reply_is_over(markov, counting):
    words = [bytes([97 + i]) for i in range(20)]  # token i is a letter
    options = Options(
        stops=Stops(table=jnp.asarray(automaton([b"de", b"cdx"], words))), max_new_tokens=jnp.array([9, 9, 3])
    )
    prompts = jnp.array([[1], [8], [10]])
    rollout = sample(
        markov(20), counting, prompts, jnp.ones_like(prompts, bool), row_keys(jax.random.key(0), jnp.arange(3)),
        capacity=9, eos_ids=jnp.array([12]), pad_id=0, options=options,
    )  # fmt: skip
    assert rollout.reason.tolist() == [STOP, END, END]
    assert rollout.tokens[0, :5].tolist() == [1, 2, 3, 4, 0]  # c d e
    options = options.replace(max_new_tokens=jnp.array([2, 2, 1]))
    rollout = sample(
        markov(20), counting, prompts, jnp.ones_like(prompts, bool), row_keys(jax.random.key(0), jnp.arange(3)),
        capacity=9, eos_ids=jnp.array([12]), pad_id=0, options=options,
    )  # fmt: skip
    assert rollout.reason.tolist() == [LENGTH] * 3 and not rollout.finished.any()


def test_an_automaton_finds_what_a_search_finds():
    rng, words = np.random.default_rng(0), [b"a", b"b", b"ab", b"ba", b"", b"aab", b"c"]
    patterns = [b"abab", b"bb", b"caa"]
    table = automaton(patterns, words)
    for _ in range(300):
        state, text = 0, b""
        for token in rng.integers(0, len(words), 6):
            state, text = table[state, token], text + words[token]
            assert (state == len(table) - 1) == any(p in text for p in patterns)


def test_a_token_without_mass_is_never_drawn():
    mass = jnp.array([[0.0, 1.0, 0.0, 2.0, 0.0]])
    picked = [int(inverse(mass, jnp.array([u]))[0]) for u in (0.0, 0.3, 0.34, 1 - 2**-24)]
    assert picked == [1, 1, 3, 3]
    logits = jnp.full((3, 300), -jnp.inf).at[:, 257].set(0.0)
    noise = jnp.array([[0.0, 0.0], [0.5, 0.9], [1 - 2**-24, 1 - 2**-24]])
    got = choose(logits, noise, jnp.zeros(3, bool))
    np.testing.assert_array_equal(got.token, 257)
    np.testing.assert_array_equal(got.logp, 0.0)


@pytest.mark.parametrize("name, value, words", [
    ("temperature", -1.0, ("temperature = -1.0", "0 (the most")),
    ("temperature", np.array([1.0, -2.0]), ("temperature of row 1 = -2.0", "0 (the most")),
    ("top_p", -0.1, ("top_p = -0.1", "[0, 1]")),
    ("min_p", np.array([0.5, 3.0]), ("min_p of row 1 = 3.0", "[0, 1]")),
    ("repetition_penalty", 0.0, ("repetition_penalty = 0.0", "more than 0")),
    ("max_new_tokens", -1, ("max_new_tokens = -1", "0 or more")),
    ("temperature", np.ones(3), ("temperature has 3 rows", "or 2")),
    ("logit_bias", np.zeros(4), ("logit_bias has 4 columns", f"expected {V}")),
])  # fmt: skip
def test_an_option_out_of_range_is_refused_by_row(markov, name, value, words):
    with refuses(ValueError, *words):
        sample(
            markov(V), TABLE, jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool),
            row_keys(jax.random.key(0), jnp.arange(2)), capacity=2, eos_ids=jnp.array([9]), pad_id=0,
            options=Options(**{name: value}),
        )  # fmt: skip
