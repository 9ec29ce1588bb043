"""Losses on scores, rankings, ratings, steps and teachers: a general one equals its special case."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_inputs import make, value_and_grad

from alignax.losses.bradley_terry import bradley_terry
from alignax.losses.bradley_terry_margin import bradley_terry_margin
from alignax.losses.bradley_terry_noisy import bradley_terry_noisy
from alignax.losses.davidson import davidson
from alignax.losses.forward_kl import forward_kl
from alignax.losses.gkd import gkd
from alignax.losses.ordinal import ordinal
from alignax.losses.plackett_luce import plackett_luce
from alignax.losses.process import process
from alignax.losses.ranked_pairs import ranked_pairs
from alignax.losses.rao_kupper import rao_kupper
from alignax.losses.regression import regression
from alignax.losses.reverse_kl import reverse_kl
from alignax.ops.masked import reduce
from alignax.types import Distill, Ranked, Rated, Scored, Stepwise

RNG = np.random.default_rng(0)
SCORED = make("bradley_terry")
DECIDED = SCORED.replace(tie=jnp.zeros(8, bool))
TIED = SCORED.replace(tie=jnp.ones(8, bool))
PAIRED = Ranked(score=jnp.stack([SCORED.chosen, SCORED.rejected], axis=1), mask=jnp.ones((8, 2), bool))


def swapped(scored):
    return scored.replace(chosen=scored.rejected, rejected=scored.chosen)


def same(one, two, rtol=1e-5):
    """Values, weights and gradients with respect to both scores agree."""
    (loss, record), (other, like) = one, two
    np.testing.assert_allclose(loss(record).value, other(like).value, rtol=rtol, atol=1e-7)
    np.testing.assert_array_equal(loss(record).weight, other(like).weight)
    chex.assert_trees_all_close(
        value_and_grad(loss, record)[1][:2], value_and_grad(other, like)[1][:2], rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    "loss, record",
    [
        (lambda s: bradley_terry_margin(s, scale=0.0), SCORED),
        (bradley_terry_margin, SCORED.replace(margin=jnp.zeros(8))),
        (lambda s: bradley_terry_noisy(s, flip_rate=0.0), SCORED),
        (lambda s: bradley_terry_noisy(s, flip_rate=0.0, form="unbiased"), SCORED),
        (lambda s: rao_kupper(s, theta=1.0), DECIDED),
        (lambda s: davidson(s, nu=0.0), DECIDED),
    ],
    ids=["scale-0", "margin-0", "conservative-0", "unbiased-0", "rao-kupper-1", "davidson-0"],
)
def test_is_bradley_terry(loss, record):
    same((loss, record), (bradley_terry, SCORED))
    chex.assert_trees_all_equal(loss(record).metrics["accuracy"], bradley_terry(SCORED).metrics["accuracy"])


@pytest.mark.parametrize("loss", [plackett_luce, ranked_pairs, lambda r: plackett_luce(r, top=1)])
def test_a_ranking_of_two_is_bradley_terry(loss):
    np.testing.assert_allclose(loss(PAIRED).value, bradley_terry(SCORED).value, rtol=1e-5, atol=1e-7)
    grad = jax.grad(lambda s: reduce(loss(PAIRED.replace(score=s))))(PAIRED.score)
    pairs = jax.grad(lambda s: reduce(bradley_terry(SCORED.replace(chosen=s[:, 0], rejected=s[:, 1]))))(PAIRED.score)
    np.testing.assert_allclose(grad, pairs, rtol=1e-4, atol=1e-7)
    for name in ("accuracy", "margin"):
        got, want = loss(PAIRED).metrics[name], bradley_terry(SCORED).metrics[name]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_centering_is_that_of_bradley_terry():
    same(
        (lambda s: bradley_terry_margin(s, scale=0.0, centering=0.1), SCORED),
        (lambda s: bradley_terry(s, centering=0.1), SCORED),
    )


def test_large_margins_are_three_times_the_small_ones():
    # Llama 2: 3, 2, 1, 0 against 1, 2/3, 1/3, 0
    small = SCORED.replace(margin=jnp.tile(jnp.array([1, 2 / 3, 1 / 3, 0]), 2))
    large = SCORED.replace(margin=jnp.tile(jnp.array([3.0, 2, 1, 0]), 2))
    same((lambda s: bradley_terry_margin(s, scale=3.0), small), (bradley_terry_margin, large))


@pytest.mark.parametrize("model", [lambda s: rao_kupper(s, theta=2.5), lambda s: davidson(s, nu=0.7)])
def test_win_tie_and_loss_are_all_that_can_happen(model):
    win, tie, lose = (np.exp(-model(record).value) for record in (DECIDED, TIED, swapped(DECIDED)))
    np.testing.assert_allclose(win + tie + lose, 1.0, rtol=1e-5)
    np.testing.assert_allclose(tie, model(TIED).metrics["tie_probability"][0], rtol=1e-5)
    np.testing.assert_allclose(tie, np.exp(-model(swapped(TIED)).value), rtol=1e-5)  # a tie has no sides
    np.testing.assert_array_equal(model(TIED).metrics["accuracy"][1], 0)  # nor an accuracy


def test_decided_pairs_of_davidson_are_bradley_terry():
    # P(w) / (P(w) + P(l)) = sigmoid(d) for any nu; of Rao-Kupper it is not so
    win, lose = (np.exp(-davidson(record, nu=0.7).value) for record in (DECIDED, swapped(DECIDED)))
    np.testing.assert_allclose(win / (win + lose), jax.nn.sigmoid(SCORED.chosen - SCORED.rejected), rtol=1e-5)
    win, lose = (np.exp(-rao_kupper(record, theta=2.0).value) for record in (DECIDED, swapped(DECIDED)))
    assert np.abs(win / (win + lose) - jax.nn.sigmoid(SCORED.chosen - SCORED.rejected)).max() > 0.02


def test_equal_replies_are_tied_half_of_the_time_by_default():
    equal = TIED.replace(rejected=SCORED.chosen)
    for model in (rao_kupper, davidson):
        np.testing.assert_allclose(np.exp(-model(equal).value), 0.5, rtol=1e-6)


def test_a_tie_pulls_the_scores_together():
    for model in (rao_kupper, davidson):
        grads = value_and_grad(model, TIED)[1]
        assert (np.sign(grads[0]) == np.sign(SCORED.chosen - SCORED.rejected)).all()  # downhill: the higher one falls


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_unbiased_over_the_flips(rate):
    """Exact expectation over whether a label was flipped; the conservative form has another one."""

    def expected(form):
        kept, flipped = (bradley_terry_noisy(s, flip_rate=rate, form=form).value for s in (SCORED, swapped(SCORED)))
        return (1 - rate) * kept + rate * flipped

    clean = bradley_terry(SCORED).value
    np.testing.assert_allclose(expected("unbiased"), clean, rtol=1e-4)
    assert np.abs(expected("conservative") - clean).max() > 0.1


def test_conservative_is_least_where_the_model_agrees_with_the_flip_rate():
    # sigmoid(d) = 1 - e, and no lower bound for the unbiased form
    d = jnp.float32(np.log(0.8 / 0.2))
    record = lambda d: Scored(chosen=d[None], rejected=jnp.zeros(1), mask=jnp.ones(1, bool))  # noqa: E731
    slope = jax.grad(lambda d: reduce(bradley_terry_noisy(record(d), flip_rate=0.2)))
    np.testing.assert_allclose(slope(d), 0.0, atol=1e-7)
    assert slope(d - 1) < -0.01 < 0.01 < slope(d + 1)
    assert reduce(bradley_terry_noisy(record(jnp.float32(100)), flip_rate=0.2, form="unbiased")) < -30


COMPARISONS = (
    bradley_terry, bradley_terry_margin, bradley_terry_noisy, rao_kupper, davidson, plackett_luce, ranked_pairs,
)  # fmt: skip


def shifted(record, by_B):
    """Every score of a prompt moved by the same amount."""
    if isinstance(record, Scored):
        return record.replace(chosen=record.chosen + by_B, rejected=record.rejected + by_B)
    return record.replace(score=record.score + by_B[:, None])


@pytest.mark.parametrize("loss", COMPARISONS)
def test_a_comparison_knows_scores_up_to_a_constant_per_prompt(loss):
    record = make(loss.__name__)
    by_B = jnp.asarray(RNG.normal(size=8), jnp.float32)
    np.testing.assert_allclose(loss(shifted(record, by_B)).value, loss(record).value, rtol=1e-4, atol=1e-6)
    assert not np.allclose(
        loss(shifted(record, by_B)).metrics["mean_reward"][0], loss(record).metrics["mean_reward"][0]
    )


@pytest.mark.parametrize("loss", [bradley_terry, bradley_terry_margin])
def test_centering_pins_the_constant(loss):
    far = reduce(loss(shifted(SCORED, jnp.full(8, 3.0)), centering=0.01))
    assert far > reduce(loss(SCORED, centering=0.01)) + 0.1
    # and the least of the centred loss over a common shift is where the mean of r_w + r_l is 0
    least = -jnp.mean(SCORED.chosen + SCORED.rejected) / 2
    slope = jax.grad(lambda c: reduce(loss(shifted(SCORED, jnp.broadcast_to(c, (8,))), centering=0.01)))
    np.testing.assert_allclose(slope(least), 0.0, atol=1e-6)


@pytest.mark.parametrize("top, orders", [(0, 24), (1, 4), (2, 12), (3, 24), (9, 24)])
def test_plackett_luce_is_a_distribution_over_orders(top, orders):
    """Over all orders of four replies, of which only the first `top` are told apart."""
    score = np.float32([0.3, -1.0, 2.0, 0.7])
    seen = {order[: top or 4]: order for order in itertools.permutations(range(4))}
    assert len(seen) == orders
    records = Ranked(score=jnp.stack([score[list(order)] for order in seen.values()]), mask=jnp.ones((orders, 4), bool))
    np.testing.assert_allclose(np.exp(-plackett_luce(records, top=top).value).sum(), 1.0, rtol=1e-5)


def test_the_order_of_the_rest_does_not_matter_to_a_partial_ranking():
    record = Ranked(score=jnp.float32([[2.0, 1.0, -1.0, 0.5]]), mask=jnp.ones((1, 4), bool))
    other = record.replace(score=record.score[:, jnp.array([0, 1, 3, 2])])
    for r in (plackett_luce(record, top=2), plackett_luce(other, top=2)):
        np.testing.assert_allclose(r.value, plackett_luce(record, top=2).value, rtol=1e-6)
    np.testing.assert_allclose(
        plackett_luce(record, top=2).metrics["accuracy"][0], plackett_luce(other, top=2).metrics["accuracy"][0]
    )
    assert abs(float(plackett_luce(record).value[0] - plackett_luce(other).value[0])) > 0.1


def test_the_first_choice_is_cross_entropy():
    # Ziegler et al. 2019: the best of four is a class
    score = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    want = optax.softmax_cross_entropy_with_integer_labels(score, jnp.zeros(5, jnp.int32))
    np.testing.assert_allclose(
        plackett_luce(Ranked(score=score, mask=jnp.ones((5, 4), bool)), top=1).value, want, rtol=1e-5
    )


def test_ranked_pairs_is_the_mean_of_bradley_terry_over_the_pairs_of_each_prompt():
    score = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    got = ranked_pairs(Ranked(score=score, mask=jnp.ones((3, 4), bool))).value
    pairs = [
        bradley_terry(Scored(chosen=score[:, i], rejected=score[:, j], mask=jnp.ones(3, bool))).value
        for i, j in itertools.combinations(range(4), 2)
    ]
    np.testing.assert_allclose(got, np.mean(pairs, axis=0), rtol=1e-5)


def test_a_prompt_weighs_the_same_however_many_replies_it_has():
    # the weight 1 / C(K, 2) of InstructGPT: three replies and two give the mean of the two prompts
    score = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
    ragged = Ranked(score=score, mask=jnp.array([[True] * 3, [True, True, False]]))
    for loss in (ranked_pairs, plackett_luce):
        alone = [float(reduce(loss(Ranked(score=score[i : i + 1], mask=ragged.mask[i : i + 1])))) for i in range(2)]
        np.testing.assert_allclose(reduce(loss(ragged)), np.mean(alone), rtol=1e-6)


@pytest.mark.parametrize("grades, spacing", [(2, 1.0), (5, 1.0), (5, 0.01), (7, 3.0)])
def test_grades_are_a_distribution(grades, spacing):
    score = jnp.asarray(3 * RNG.normal(size=(6, 1)), jnp.float32)
    score = jnp.broadcast_to(score, (6, grades))
    target = jnp.broadcast_to(jnp.arange(grades, dtype=jnp.float32), (6, grades))
    out = ordinal(Rated(score=score, target=target, mask=jnp.ones((6, grades), bool)), grades=grades, spacing=spacing)
    np.testing.assert_allclose(np.exp(-out.value).sum(1), 1.0, rtol=1e-5)


def test_two_grades_are_a_verdict():
    # one cutpoint, at 0: binary cross-entropy, whatever the spacing
    logit, target = (
        jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
        jnp.asarray(RNG.integers(0, 2, (4, 3)), jnp.float32),
    )
    mask = jnp.ones((4, 3), bool)
    graded = ordinal(Rated(score=logit, target=target, mask=mask), grades=2, spacing=0.3)
    np.testing.assert_allclose(graded.value, process(Stepwise(logit=logit, target=target, mask=mask)).value, rtol=1e-5)
    np.testing.assert_allclose(graded.value, optax.sigmoid_binary_cross_entropy(logit, target), rtol=1e-5)


def test_process_is_binary_cross_entropy_for_rates_too():
    logit, target = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), jnp.asarray(RNG.random((4, 3)), jnp.float32)
    out = process(Stepwise(logit=logit, target=target, mask=jnp.ones((4, 3), bool)))
    np.testing.assert_allclose(out.value, optax.sigmoid_binary_cross_entropy(logit, target), rtol=1e-5)
    # least where the predicted rate is the rate
    at = Stepwise(logit=jnp.log(target / (1 - target)), target=target, mask=jnp.ones((4, 3), bool))
    np.testing.assert_allclose(value_and_grad(process, at)[1][0], 0.0, atol=1e-7)


def test_regression_over_attributes_is_the_mean_of_one_head_each():
    rated = make("regression")
    whole = Rated(score=rated.score, target=rated.target, mask=jnp.ones((8, 8), bool))
    heads = [reduce(regression(Rated(score=s[:, None], target=t[:, None], mask=jnp.ones((8, 1), bool))))
             for s, t in zip(rated.score.T, rated.target.T)]  # fmt: skip
    np.testing.assert_allclose(reduce(regression(whole)), np.mean(heads), rtol=1e-6)


# ---- distillation

DISTILL = make("forward_kl", B=4, T=4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gkd_tends_to_the_two_kls(temperature):
    # JSD_b / b -> KL(teacher || student) as b -> 0, JSD_b / (1 - b) -> KL(student || teacher) as b -> 1: the error
    # is of the order of b, so it falls tenfold; float32 leaves about 1e-7 / b of noise
    for kl, scale in ((forward_kl, lambda b: b), (reverse_kl, lambda b: 1 - b)):
        want = reduce(kl(DISTILL, temperature=temperature))
        errors = []
        for small in (1e-1, 1e-2, 1e-3):
            beta = small if kl is forward_kl else 1 - small
            got = reduce(gkd(DISTILL, beta=beta, temperature=temperature)) / scale(beta)
            errors.append(abs(float(got / want) - 1))
        assert errors[1] < 0.2 * errors[0] and errors[2] < 0.3 * errors[1] and errors[2] < 5e-3, errors


def test_gkd_is_symmetric_under_an_exchange_of_roles_and_bounded():
    turned = DISTILL.replace(logits=DISTILL.teacher_logits, teacher_logits=DISTILL.logits)
    np.testing.assert_allclose(gkd(DISTILL, beta=0.2).value, gkd(turned, beta=0.8).value, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(forward_kl(DISTILL).value, reverse_kl(turned).value, rtol=1e-4, atol=1e-7)
    apart = Distill(  # no token in common: JSD is at its bound, the entropy of (beta, 1 - beta)
        logits=jnp.array([[[100.0, 0.0]]]), teacher_logits=jnp.array([[[0.0, 100.0]]]), mask=jnp.ones((1, 1), bool)
    )
    np.testing.assert_allclose(gkd(apart, beta=0.3).value, -0.3 * np.log(0.3) - 0.7 * np.log(0.7), rtol=1e-5)
    np.testing.assert_allclose(forward_kl(apart).value, 100.0, rtol=1e-5)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, gkd])
def test_a_student_that_agrees_has_nothing_to_learn(loss):
    same_logits = DISTILL.replace(logits=DISTILL.teacher_logits + 3.0)  # logits are known up to a constant
    out = loss(same_logits, temperature=1.7)
    np.testing.assert_allclose(out.value, 0.0, atol=1e-6)
    np.testing.assert_allclose(value_and_grad(loss, same_logits)[1][0], 0.0, atol=1e-6)
    assert (out.metrics["agreement"][0] == 1).all()


def test_forward_kl_is_cross_entropy_less_the_teachers_entropy():
    labels = jax.nn.softmax(DISTILL.teacher_logits)
    want = optax.softmax_cross_entropy(DISTILL.logits, labels)
    out = forward_kl(DISTILL)
    got = out.value + out.metrics["teacher_entropy"][0]
    np.testing.assert_allclose(got[DISTILL.mask], want[DISTILL.mask], rtol=1e-5)


def test_hintons_factor_keeps_the_size_of_the_gradient():
    # at high temperature the gradient tends to (z - v) / V for centred logits, whatever the temperature
    grads = [value_and_grad(lambda d, t=t: forward_kl(d, temperature=t), DISTILL)[1][0] for t in (50.0, 200.0)]
    centred = lambda x: x - x.mean(-1, keepdims=True)  # noqa: E731
    gap = centred(DISTILL.logits) - centred(DISTILL.teacher_logits)
    want = np.where(DISTILL.mask[..., None], gap / 5 / DISTILL.mask.sum(), 0)
    np.testing.assert_allclose(grads[0], want, atol=2e-3)
    np.testing.assert_allclose(grads[1], want, atol=5e-4)
    assert np.abs(want).max() > 0.02


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, gkd])
def test_tokens_outside_the_vocabulary_cost_nothing(loss):
    """Columns of -inf, as padding of the vocabulary has: value and gradient are those without them."""
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 2)), constant_values=-jnp.inf)  # noqa: E731
    wide = DISTILL.replace(logits=pad(DISTILL.logits), teacher_logits=pad(DISTILL.teacher_logits))
    value, grads = value_and_grad(loss, wide)
    want, narrow = value_and_grad(loss, DISTILL)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(grads[0], np.pad(narrow[0], ((0, 0), (0, 0), (0, 2))), rtol=1e-5, atol=1e-7)


def test_forward_covers_and_reverse_seeks():
    """A teacher with two modes, students on one and on both: each KL prefers the student that its docstring says."""
    teacher = jnp.log(jnp.array([[[0.495, 0.495, 0.01]]]))
    one, both = jnp.log(jnp.array([[[0.98, 0.01, 0.01]]])), jnp.log(jnp.array([[[0.3, 0.3, 0.4]]]))
    cost = lambda loss, logits: float(  # noqa: E731
        loss(Distill(logits=logits, teacher_logits=teacher, mask=jnp.ones((1, 1), bool))).value[0, 0]
    )
    assert cost(forward_kl, both) < cost(forward_kl, one)
    assert cost(reverse_kl, one) < cost(reverse_kl, both)
