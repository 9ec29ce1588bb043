"""The preference family: special cases, bounds, minima and gradients that hold exactly; wrong settings are refused."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from loss_inputs import NAMES, loss, make, record_type

from alignax.losses.alphapo import alphapo
from alignax.losses.aot import aot
from alignax.losses.aot_unpaired import aot_unpaired
from alignax.losses.apo_down import apo_down
from alignax.losses.apo_zero import apo_zero
from alignax.losses.apo_zero_unpaired import apo_zero_unpaired
from alignax.losses.bco import bco
from alignax.losses.bco_pair import bco_pair
from alignax.losses.chosen_nll import chosen_nll
from alignax.losses.cpo import cpo
from alignax.losses.discopop import discopop
from alignax.losses.dpo import dpo
from alignax.losses.dpo_norm import dpo_norm
from alignax.losses.dpo_positive import dpo_positive
from alignax.losses.exo import exo
from alignax.losses.f_dpo import f_dpo
from alignax.losses.hinge import hinge
from alignax.losses.ipo import ipo
from alignax.losses.kto import kto
from alignax.losses.ld_dpo import ld_dpo
from alignax.losses.nca import nca
from alignax.losses.orpo import orpo
from alignax.losses.r_dpo import r_dpo
from alignax.losses.robust_dpo import robust_dpo
from alignax.losses.sft import sft
from alignax.losses.simpo import simpo
from alignax.losses.slic import slic
from alignax.losses.sppo_hard import sppo_hard
from alignax.losses.wpo import wpo
from alignax.losses.xpo import xpo
from alignax.ops.masked import reduce, reduce_metrics
from alignax.ops.preference import log_odds, log_ratio, mean_logp, power_reward
from alignax.types import Demo, Pair, Side, Unpaired

LOG2 = float(np.log(2))
FREE = {"alphapo", "chosen_nll", "cpo", "orpo", "simpo", "slic"}  # of a reference
PAIRED = [name for name in NAMES if record_type(name) is Pair]
UNPAIRED = [name for name in NAMES if record_type(name) is Unpaired]


def swap(pair):
    return Pair(chosen=pair.rejected, rejected=pair.chosen, reference_is_chosen=pair.reference_is_chosen)


def both(pair, f):
    return pair.replace(chosen=f(pair.chosen), rejected=f(pair.rejected))


def without_reference(side):
    return side.replace(ref_logp=jnp.zeros_like(side.logp))


def full(seed=0, B=4, T=3):
    """A pair whose replies all have T tokens."""
    return both(make("dpo", B, T, seed), lambda side: side.replace(mask=jnp.ones((B, T), bool)))


def one_token(r):
    """A side of one-token replies with log-ratios r."""
    r = jnp.asarray(r, jnp.float32)[:, None]
    return Side(logp=r, ref_logp=jnp.zeros_like(r), mask=jnp.ones(r.shape, bool))


def ratios(w, l):
    """A pair with these log-ratios."""
    return Pair(chosen=one_token(w), rejected=one_token(l))


def thumbs(pair):
    """Chosen replies up, rejected ones down; the mismatched are at the reference."""
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), pair.chosen, pair.rejected)
    up = jnp.arange(stacked.logp.shape[0]) < pair.chosen.logp.shape[0]
    return Unpaired(side=stacked, desirable=up, mismatched=stacked.replace(ref_logp=stacked.logp))


def slopes(fn, w, l, **args):
    """Gradient of one pair's loss by r_w and by r_l."""
    return jax.grad(lambda w, l: fn(ratios(w[None], l[None]), **args).value[0], (0, 1))(jnp.float32(w), jnp.float32(l))


def same(one, two, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(one.value, two.value, rtol=rtol, atol=atol)
    np.testing.assert_array_equal(one.weight, two.weight)


# ---- special cases of DPO


@pytest.mark.parametrize(
    "special",
    [
        lambda pair: robust_dpo(pair, beta=0.3, label_smoothing=0.0),
        lambda pair: f_dpo(pair, beta=0.3, divergence="reverse_kl"),
        lambda pair: f_dpo(pair, beta=0.3, alpha=0.0),
        lambda pair: r_dpo(pair, beta=0.3, alpha=0.0),
        lambda pair: dpo_positive(pair, beta=0.3, penalty=0.0),
        lambda pair: ld_dpo(pair, beta=0.3, alpha=1.0),
        lambda pair: xpo(pair, beta=0.3, alpha=0.0),
        lambda pair: wpo(both(pair, lambda side: side.replace(collision=side.logp)), beta=0.3),
    ],
    ids=["robust_dpo", "f_dpo_reverse", "f_dpo_alpha_0", "r_dpo", "dpo_positive", "ld_dpo", "xpo", "wpo_at_weight_1"],
)
def test_is_dpo(special):
    pair = make("dpo")
    same(special(pair), dpo(pair, beta=0.3))
    got, want = (out.metrics["rewards/margins"] for out in (special(pair), dpo(pair, beta=0.3)))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


def test_equal_lengths_make_these_dpo():
    pair = full(T=3)
    want = dpo(pair, beta=0.3)
    for alpha in (0.0, 0.4):
        same(ld_dpo(pair, beta=0.3, alpha=alpha), want)
        same(r_dpo(pair, beta=0.3, alpha=alpha), want)
    same(dpo_norm(pair, beta=3 * 0.3), want)


def test_simpo_with_a_reference_and_without_length_is_dpo():
    # Log-ratios in the place of log-probabilities, all replies of 3 tokens, so that beta / |y| = 0.3, and no margin.
    pair = full(T=3)
    moved = both(pair, lambda side: side.replace(logp=side.logp - side.ref_logp))
    same(simpo(moved, beta=3 * 0.3, gamma=0.0), dpo(pair, beta=0.3))


def test_a_reference_of_zeros_is_none():
    pair = both(make("dpo"), without_reference)
    same(cpo(pair, beta=0.3, alpha=0.0), dpo(pair, beta=0.3))
    same(simpo(pair, beta=0.3, gamma=0.0), dpo_norm(pair, beta=0.3))
    same(slic(pair, delta=1.0, regularization=0.0), hinge(pair, beta=1.0))


def test_robust_dpo_is_unbiased_under_flips():
    # e of the labels are flipped: (1 - e) L(w, l) + e L(l, w) is the DPO loss of the clean labels, value and gradient.
    pair, e = make("dpo"), 0.3

    def noisy(pair):
        clean, flipped = (reduce(robust_dpo(x, label_smoothing=e)) for x in (pair, swap(pair)))
        return (1 - e) * clean + e * flipped

    np.testing.assert_allclose(noisy(pair), reduce(dpo(pair)), rtol=1e-5)
    by_chosen = lambda f: jax.grad(lambda x: f(pair.replace(chosen=pair.chosen.replace(logp=x))))(pair.chosen.logp)  # noqa: E731
    np.testing.assert_allclose(by_chosen(noisy), by_chosen(lambda pair: reduce(dpo(pair))), rtol=1e-4, atol=1e-7)


def test_dpo_positive_is_dpo_where_chosen_replies_are_above_the_reference():
    pair = ratios([0.5, 2.0, -0.5], [1.0, -1.0, -2.0])
    got, want = dpo_positive(pair, beta=0.3, penalty=5.0), dpo(pair, beta=0.3)
    np.testing.assert_allclose(got.value[:2], want.value[:2], rtol=1e-6)
    assert got.value[2] > want.value[2] + 0.1


def test_ld_dpo_without_tails_does_not_see_them():
    pair = Pair(chosen=make("dpo").chosen, rejected=one_token(jnp.zeros(8)))  # one token against more
    first = pair.chosen.mask & (jnp.cumsum(pair.chosen.mask, axis=1) == 1)
    tail = pair.chosen.mask & ~first
    grad = jax.grad(lambda x: reduce(ld_dpo(pair.replace(chosen=pair.chosen.replace(logp=x)), alpha=0.0)))
    got = grad(pair.chosen.logp)
    assert tail.any() and not np.any(got[tail]) and np.all(np.asarray(got)[np.asarray(first)] < 0)


def test_r_dpo_pushes_a_long_winner_less():
    short, long = make("dpo").chosen, make("dpo").rejected
    mask = lambda n: jnp.broadcast_to(jnp.arange(8) < n, (8, 8))  # noqa: E731
    at = lambda side, n: side.replace(mask=mask(n), ref_logp=side.logp)  # noqa: E731
    push = lambda w, l: -r_dpo(Pair(chosen=w, rejected=l), alpha=0.2).value.mean()  # noqa: E731
    assert push(at(long, 6), at(short, 2)) > push(at(short, 4), at(long, 4)) > push(at(short, 2), at(long, 6))


# ---- divergences


def test_alpha_divergence_runs_from_reverse_to_forward_kl():
    pair = make("dpo")
    same(f_dpo(pair, alpha=1.0), f_dpo(pair, divergence="forward_kl"))
    same(f_dpo(pair, alpha=1e-4), f_dpo(pair, divergence="reverse_kl"), rtol=1e-3)
    reverse, half, forward = (reduce(f_dpo(pair, beta=0.3, alpha=a)) for a in (0.0, 0.5, 1.0))
    assert len({round(float(x), 5) for x in (reverse, half, forward)}) == 3


def test_divergences_agree_at_the_reference_up_to_their_curvature():
    # d f'(u) / d log u at u = 1 is f''(1): 1 for reverse KL, forward KL and alpha, 1/2 for JS.
    want = np.array(slopes(dpo, 0.0, 0.0, beta=0.4))
    for divergence, curvature in {"reverse_kl": 1, "forward_kl": 1, "js": 0.5, "alpha": 1}.items():
        got = np.array(slopes(f_dpo, 0.0, 0.0, beta=0.4, divergence=divergence))
        np.testing.assert_allclose(got, curvature * want, rtol=1e-6)


def test_power_reward():
    x = jnp.linspace(-3, 3, 7)
    np.testing.assert_array_equal(power_reward(x, 0.0), x)
    np.testing.assert_allclose(power_reward(x, 1e-4), x, rtol=1e-3)  # x - alpha x^2 / 2
    np.testing.assert_allclose(power_reward(x, -1.0), np.exp(x) - 1, rtol=1e-6)
    grad = jax.grad(lambda x, a: power_reward(x[None], a)[0])
    assert grad(jnp.float32(-1e3), 1.0) > 1e6 and np.isfinite(grad(jnp.float32(-1e3), 1.0))
    assert grad(jnp.float32(2.0), 0.0) == 1.0 and np.isfinite(grad(jnp.float32(1e3), 0.0))


# ---- minima and gradients


def test_ipo_is_least_at_half_the_inverse_of_tau():
    for aggregation in ("sum", "mean"):
        at = lambda h, a=aggregation: float(slopes(ipo, h, 0.0, beta=0.2, aggregation=a)[0])  # noqa: E731
        assert at(2.5) == 0 and ipo(ratios([2.5], [0.0]), beta=0.2).value[0] == 0
        assert at(2.4) < -0.1 and at(2.6) > 0.1  # beyond the target it pulls back, as DPO never does


def test_ipo_aggregations_agree_on_one_token_and_differ_by_length():
    same(
        ipo(ratios([1.0, 2.0], [0.5, -1.0]), aggregation="sum"),
        ipo(ratios([1.0, 2.0], [0.5, -1.0]), aggregation="mean"),
    )
    pair = full(T=3)
    # h is divided by 3: the square of (h / 3 - 1 / (2 beta)) is 1/9 of that with 3 times the target
    np.testing.assert_allclose(ipo(pair, beta=0.3, aggregation="mean").value, ipo(pair, beta=0.1).value / 9, rtol=1e-5)


def test_sppo_is_ipo_for_opposite_replies():
    # r_w = -r_l = h / 2: 2 (h / 2 - 1 / (2 beta))^2 = (h - 1 / beta)^2 / 2, half of IPO with beta / 2
    pair = ratios([1.5, -0.5], [-1.5, 0.5])
    np.testing.assert_allclose(sppo_hard(pair, beta=0.3).value, 0.5 * ipo(pair, beta=0.15).value, rtol=1e-6)
    assert sppo_hard(ratios([2.5], [-2.5]), beta=0.2).value[0] == 0


def test_exo_gradient():
    # d/dz KL((p, 1 - p) || (1 - e, e)) = p (1 - p) (z - log((1 - e) / e)), z = beta h
    beta, e = 0.5, 0.2
    for h in (-3.0, 0.0, 1.0, 4.0):
        p = 1 / (1 + np.exp(-beta * h))
        want = beta * p * (1 - p) * (beta * h - np.log((1 - e) / e))
        got = slopes(exo, h, 0.0, beta=beta, label_smoothing=e)
        np.testing.assert_allclose(got, (want, -want), rtol=1e-5)
    least = exo(ratios([np.log((1 - e) / e) / beta], [0.0]), beta=beta, label_smoothing=e)
    np.testing.assert_allclose(least.value, 0.0, atol=1e-7)


def test_conservative_dpo_is_the_other_kl_of_exo():
    # cDPO is the cross-entropy: KL((1 - e, e) || (p, 1 - p)) + entropy of e. Both KLs vanish at the same p.
    pair, e = make("dpo"), 0.2
    p = jax.nn.sigmoid(dpo(pair).metrics["rewards/margins"][0])
    kl = (1 - e) * jnp.log((1 - e) / p) + e * jnp.log(e / (1 - p))
    entropy = -(1 - e) * np.log(1 - e) - e * np.log(e)
    np.testing.assert_allclose(dpo(pair, label_smoothing=e).value, kl + entropy, rtol=1e-5)
    backward = p * jnp.log(p / (1 - e)) + (1 - p) * jnp.log((1 - p) / e)
    np.testing.assert_allclose(exo(pair, label_smoothing=e).value, backward, rtol=1e-4, atol=1e-6)


def test_nca_holds_chosen_replies_up():
    # least at sigmoid(beta r_w) = 2/3, whatever r_l: beta r_w = log 2
    for l in (-2.0, 0.0, 3.0):
        np.testing.assert_allclose(slopes(nca, LOG2 / 0.5, l, beta=0.5)[0], 0.0, atol=1e-7)
        assert slopes(nca, LOG2 / 0.5 - 1, l, beta=0.5)[0] < 0 < slopes(nca, LOG2 / 0.5 + 1, l, beta=0.5)[0]


def test_nca_is_the_mean_of_two_bcos():
    # -log s(a) - log s(-a) / 2 - log s(-b) / 2: half of BCO on (w, l) and half on (w, w)
    pair = make("dpo")
    twice = pair.replace(rejected=pair.chosen)
    want = 0.5 * bco_pair(pair, beta=0.3).value + 0.5 * bco_pair(twice, beta=0.3).value
    np.testing.assert_allclose(nca(pair, beta=0.3).value, want, rtol=1e-5)


def test_bco_bounds_dpo_from_above_for_every_shift():
    # s(a) s(b) < s(a + b): with a = beta r_w - delta and b = delta - beta r_l the right side is DPO's
    pair = make("dpo")
    assert (bco_pair(pair, beta=0.3).value > dpo(pair, beta=0.3).value).all()
    rows = bco(thumbs(pair), beta=0.3).value
    assert (rows[:8] + rows[8:] > dpo(pair, beta=0.3).value).all()


def test_bco_without_a_shift_is_bco_pair():
    pair = ratios([1.0, -0.5, 2.0], [-1.0, 0.5, -2.0])  # rewards of mean 0
    np.testing.assert_allclose(2 * reduce(bco(thumbs(pair), beta=0.3)), reduce(bco_pair(pair, beta=0.3)), rtol=1e-6)
    shifted = ratios([4.0, 2.5, 5.0], [2.0, 3.5, 1.0])  # all 3 more: the shift takes it back
    np.testing.assert_allclose(bco(thumbs(shifted), beta=0.3).value, bco(thumbs(pair), beta=0.3).value, rtol=1e-5)


def test_the_shift_of_bco_lies_halfway_between_its_labels_however_many_there_are_of_each():
    # rewards 1, 1, 1 up and -3 down: (1 - 3) / 2 = -1, where the mean of all four is 0; one label alone: its own mean
    unpaired = thumbs(ratios([1.0, 1.0, 1.0, 9.0], [9.0, 9.0, 9.0, -3.0]))
    counts = jnp.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    of = lambda keep: unpaired.replace(side=unpaired.side.replace(mask=unpaired.side.mask & keep[:, None]))  # noqa: E731
    shift = lambda keep: float(reduce_metrics(bco(of(keep), beta=1.0).metrics)["delta"])  # noqa: E731
    assert shift(counts) == -1.0
    assert shift(counts & unpaired.desirable) == 1.0 and shift(counts & ~unpaired.desirable) == -3.0
    # theorem 4: of every shift this one has the least e^-(r_w - delta) + e^(r_l - delta)
    bound = lambda delta: np.exp(-(1.0 - delta)) + np.exp(-3.0 - delta)  # noqa: E731
    assert bound(-1.0) < min(bound(-1.1), bound(-0.9), bound(0.0))


def test_bco_gradient_holds_the_shift_constant():
    unpaired, beta = make("bco"), 0.3
    reward = beta * log_ratio(unpaired.side)
    sign = jnp.where(unpaired.desirable, 1.0, -1.0)
    delta = (reward[unpaired.desirable].mean() + reward[~unpaired.desirable].mean()) / 2
    want = -beta * sign * jax.nn.sigmoid(-sign * (reward - delta)) / 8
    got = jax.grad(lambda x: reduce(bco(unpaired.replace(side=unpaired.side.replace(logp=x)), beta=beta)))
    np.testing.assert_allclose(
        got(unpaired.side.logp), np.where(unpaired.side.mask, want[:, None], 0), rtol=1e-5, atol=1e-8
    )


# ---- anchors


def test_apo_is_bounded_and_points_where_it_says():
    pair = make("dpo")
    for fn in (apo_zero, apo_down):
        values = fn(both(pair, lambda side: side.replace(logp=30 * side.logp)), beta=2.0).value
        assert (values >= 0).all() and (values <= 2).all()
    for w, l in ((0.5, -1.0), (-0.5, 1.0), (0.0, 0.0)):
        up, down = slopes(apo_zero, w, l)
        assert up < 0 < down  # chosen up, rejected down: a step goes against the gradient
        assert up >= -0.025 - 1e-7 and down <= 0.025 + 1e-7  # beta / 4
    for w, l in ((0.5, -1.0), (-0.5, -3.0)):  # |r_w| < h
        both_down = slopes(apo_down, w, l)
        assert both_down[0] > 0 and both_down[1] > 0


def test_apo_zero_is_two_thumbs():
    pair = make("dpo")
    np.testing.assert_allclose(reduce(apo_zero(pair)), 2 * reduce(apo_zero_unpaired(thumbs(pair))), rtol=1e-6)


def test_kto_with_its_reference_point_at_zero_is_apo_zero_unpaired():
    unpaired = thumbs(make("dpo"))
    same(kto(unpaired), apo_zero_unpaired(unpaired))
    # a negative estimate of KL is cut at 0: mismatched replies below the reference change nothing
    below = unpaired.replace(mismatched=unpaired.mismatched.replace(ref_logp=unpaired.side.logp + 1))
    same(kto(below), kto(unpaired))
    assert reduce_metrics(kto(below).metrics)["kl"] < -1  # the metric tells


def test_kto_reference_point_is_the_mean_of_mismatched_rows():
    unpaired = thumbs(ratios([1.0, 2.0], [0.5, -1.0]))
    mismatched = one_token([3.0, 1.0, 0.0, 2.0])  # z0 = 1.5
    got = kto(unpaired.replace(mismatched=mismatched), beta=0.4)
    want = [0.4 * (1.5 - 1.0), 0.4 * (1.5 - 2.0), 0.4 * (0.5 - 1.5), 0.4 * (-1.0 - 1.5)]
    np.testing.assert_allclose(got.value, 1 / (1 + np.exp(-np.array(want))), rtol=1e-6)
    # a row without a mismatched reply still counts, but not in z0 = (3 + 1 + 2) / 3
    mask = jnp.array([True, True, False, True])[:, None]
    got = kto(unpaired.replace(mismatched=mismatched.replace(mask=mask)), beta=0.4)
    np.testing.assert_allclose(reduce_metrics(got.metrics)["kl"], 2.0, rtol=1e-6)
    assert got.weight.tolist() == [1, 1, 1, 1]


def test_kto_refuses_one_label_where_it_can_see_it():
    unpaired = make("kto")
    for label in (True, False):
        one = unpaired.replace(desirable=jnp.full(8, label))
        with refuses(ValueError, "all replies", "one label"):
            kto(one)
        assert np.isfinite(jax.jit(lambda record: reduce(kto(record)))(one))
    only_up = unpaired.desirable[:, None] & unpaired.side.mask  # the undesirable rows do not count
    with pytest.raises(ValueError, match="one label"):
        kto(unpaired.replace(side=unpaired.side.replace(mask=only_up)))
    with pytest.raises(ValueError, match="one label"):
        kto(jax.tree.map(lambda x: x[:1], unpaired))
    nothing = unpaired.replace(side=unpaired.side.replace(mask=jnp.zeros((8, 8), bool)))
    assert reduce(kto(nothing)) == 0


# ---- optimal transport


def test_aot_unpaired_does_not_know_the_pairs():
    pair = make("dpo")
    mixed = pair.replace(rejected=jax.tree.map(lambda x: x[::-1], pair.rejected))
    np.testing.assert_allclose(reduce(aot_unpaired(mixed)), reduce(aot_unpaired(pair)), rtol=1e-6)
    assert abs(reduce(dpo(mixed, beta=1.0)) - reduce(dpo(pair, beta=1.0))) > 1e-3


def test_aot_does_not_know_which_pair_a_reference_margin_belongs_to():
    pair = full(B=4)
    mixed = both(pair, lambda side: side.replace(ref_logp=side.ref_logp[::-1]))
    np.testing.assert_allclose(reduce(aot(mixed, beta=1.0)), reduce(aot(pair, beta=1.0)), rtol=1e-6)
    assert abs(reduce(dpo(mixed, beta=1.0)) - reduce(dpo(pair, beta=1.0))) > 1e-3
    across = pair.replace(rejected=jax.tree.map(lambda x: x[::-1], pair.rejected))  # other pairs, other margins
    assert abs(reduce(aot(across, beta=1.0)) - reduce(aot(pair, beta=1.0))) > 1e-3


def test_aot_is_the_cheapest_of_all_matchings():
    # A convex cost of a_i - b_j is least when both are sorted; DPO's own matching is one of the 24.
    pair = full(B=4, seed=1)
    rejected = [jax.tree.map(lambda x, p=p: x[jnp.array(p)], pair.rejected) for p in itertools.permutations(range(4))]
    costs = [float(reduce(dpo(pair.replace(rejected=side), beta=0.7))) for side in rejected]
    np.testing.assert_allclose(reduce(aot_unpaired(pair, beta=0.7)), min(costs), rtol=1e-6)
    assert max(costs) > min(costs) + 1e-3
    shuffles = [
        both(pair, lambda side, p=p: side.replace(ref_logp=side.ref_logp[jnp.array(p)]))
        for p in itertools.permutations(range(4))
    ]
    np.testing.assert_allclose(
        reduce(aot(pair, beta=0.7)), min(float(reduce(dpo(s, beta=0.7))) for s in shuffles), rtol=1e-6
    )


def test_aot_of_one_pair_is_dpo():
    pair = make("dpo", B=1)
    for fn in (aot, aot_unpaired):
        same(fn(pair, beta=0.3), dpo(pair, beta=0.3))


# ---- weights and shapes


def test_wpo_gradient_is_dpos_times_a_constant():
    pair = make("wpo")
    for alignment in ("sampled", "none"):
        scale = np.exp(mean_logp(pair.chosen) + mean_logp(pair.rejected))
        if alignment == "sampled":
            for side in (pair.chosen, pair.rejected):
                scale = scale / np.exp(mean_logp(side.replace(logp=side.collision)))
        out = wpo(pair, alignment=alignment)
        np.testing.assert_allclose(out.metrics["wpo/weight"][0], scale, rtol=1e-5)
        np.testing.assert_allclose(out.value, scale * dpo(pair).value, rtol=1e-5)
        by_chosen = lambda fn: jax.grad(lambda x: reduce(fn(pair.replace(chosen=pair.chosen.replace(logp=x)))))(  # noqa: E731
            pair.chosen.logp
        )
        got = by_chosen(lambda pair, a=alignment: wpo(pair, alignment=a))
        np.testing.assert_allclose(got, scale[:, None] * by_chosen(dpo), rtol=1e-5, atol=1e-8)


def test_wpo_weight_of_one_row_is_a_mean_over_its_tokens():
    # A reply of 6 tokens at 1 nat each weighs e^-1, not e^-6 (the sum), in a batch of one as in any other.
    side = Side(logp=-jnp.ones((1, 6)), ref_logp=-jnp.ones((1, 6)), mask=jnp.ones((1, 6), bool))
    out = wpo(Pair(chosen=side, rejected=side), alignment="none")
    np.testing.assert_allclose(out.value, [np.exp(-2) * LOG2], rtol=1e-6)


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_discopop_draws_a_policy_at_its_reference_to_the_rejected_reply_if_tau_is_small(tau):
    # dL/dz at 0: s' (e^0 - log 2) - (1 - s) / 2 - s, where s = 1/2 and s' = 1 / (4 tau)
    pair = ratios([0.0], [0.0])
    raised = lambda x: pair.replace(chosen=pair.chosen.replace(logp=pair.chosen.logp + x))  # noqa: E731
    slope = jax.grad(lambda x: discopop(raised(x), tau=tau).value.sum())
    length = int(pair.chosen.mask.sum())
    want = 0.05 * length * ((1 - np.log(2)) / (4 * tau) - 0.75)
    np.testing.assert_allclose(slope(0.0), want, rtol=1e-5)
    assert (want > 0) == (tau == 0.05)


def test_discopop_blends_a_logistic_and_an_exponential_loss():
    pair = ratios([3.0, -2.0], [0.0, 0.0])
    z = np.array([1.5, -1.0])
    logistic, exponential = np.log1p(np.exp(-z)), np.exp(-z)
    np.testing.assert_allclose(discopop(pair, beta=0.5, tau=1e7).value, (logistic + exponential) / 2, rtol=1e-5)
    np.testing.assert_allclose(discopop(pair, beta=0.5, tau=1e-3).value, [exponential[0], logistic[1]], rtol=1e-5)


def test_alphapo_without_alpha_is_simpo():
    pair = make("simpo")
    same(alphapo(pair, alpha=0.0), simpo(pair))
    same(alphapo(pair, alpha=1e-4), simpo(pair), rtol=5e-3, atol=5e-3)
    assert abs(reduce(alphapo(pair, alpha=0.25)) - reduce(simpo(pair))) > 1e-2


def test_simpo_is_blind_to_length_and_its_margin_moves_the_target():
    pair = make("simpo")
    doubled = both(pair, lambda side: jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), side))
    same(simpo(doubled), simpo(pair))
    np.testing.assert_allclose(
        simpo(pair, gamma=0.0).metrics["rewards/margins"][0], simpo(pair).metrics["rewards/margins"][0]
    )
    assert (simpo(pair, gamma=1.0).value > simpo(pair, gamma=0.5).value).all()


def test_log_odds():
    p = np.array([0.01, 0.5, 0.9])
    np.testing.assert_allclose(log_odds(jnp.log(jnp.float32(p))), np.log(p / (1 - p)), rtol=1e-5, atol=1e-6)
    edge = jnp.array([0.0, -1e-9, 5.0, -1e3])
    assert np.isfinite(log_odds(edge)).all()
    assert (jax.grad(lambda x: log_odds(x).sum())(edge) >= 1).all()


def test_orpo_at_even_odds_is_sft_and_log_2():
    pair = make("orpo")
    even = pair.replace(rejected=pair.chosen)
    np.testing.assert_allclose(orpo(even, beta=0.3).value, -mean_logp(pair.chosen) + 0.3 * LOG2, rtol=1e-5)
    up, down = slopes(lambda pair: orpo(pair, beta=0.3), -1.0, -2.0)
    assert up < -1 and down > 0  # more than SFT alone for the chosen reply, and the rejected one goes down


def test_cpo_is_a_margin_and_a_likelihood():
    pair = full(T=3)
    for nll, scale in (("mean", 1.0), ("sum", 3.0)):
        added = reduce(cpo(pair, alpha=0.7, nll=nll)) - reduce(cpo(pair, alpha=0.0))
        np.testing.assert_allclose(added, 0.7 * scale * reduce(chosen_nll(pair)), rtol=1e-4)


def test_chosen_nll_is_sft_on_chosen_replies():
    pair = make("chosen_nll")
    demo = Demo(logp=pair.chosen.logp, mask=pair.chosen.mask, entropy=pair.chosen.logp, correct=pair.chosen.mask)
    chex.assert_trees_all_equal(chosen_nll(pair).value, sft(demo).value)
    assert reduce(chosen_nll(pair)) == reduce(sft(demo))
    assert reduce(chosen_nll(pair)) == reduce(chosen_nll(pair.replace(rejected=pair.chosen)))


def test_xpo_lowers_what_the_reference_wrote():
    # beyond DPO's, each token of the reference's own sample has the gradient alpha / B, the policy's sample none
    pair, alpha = make("xpo"), 0.3
    grad = lambda a: jax.grad(  # noqa: E731
        lambda w, l: reduce(
            xpo(pair.replace(chosen=pair.chosen.replace(logp=w), rejected=pair.rejected.replace(logp=l)), alpha=a)
        ),
        (0, 1),
    )(pair.chosen.logp, pair.rejected.logp)
    (w, l), (w0, l0) = grad(alpha), grad(0.0)
    from_reference = np.asarray(pair.reference_is_chosen)[:, None]
    np.testing.assert_allclose(w - w0, np.where(pair.chosen.mask & from_reference, alpha / 8, 0), atol=1e-7)
    np.testing.assert_allclose(l - l0, np.where(pair.rejected.mask & ~from_reference, alpha / 8, 0), atol=1e-7)


# ---- at the reference, far from it, and without it


# value of each loss where policy and reference agree, at its defaults
AT_REFERENCE = {
    "aot": LOG2,
    "aot_unpaired": LOG2,
    "apo_down": 1.0,
    "apo_zero": 1.0,
    "apo_zero_unpaired": 0.5,
    "bco": LOG2,
    "bco_pair": 2 * LOG2,
    "discopop": (LOG2 + 1) / 2,
    "dpo": LOG2,
    "dpo_norm": LOG2,
    "dpo_positive": LOG2,
    "exo": 0.5 * np.log(0.5 / 0.999) + 0.5 * np.log(0.5 / 1e-3),
    "f_dpo": LOG2,
    "hinge": 1.0,
    "ipo": 25.0,
    "kto": 0.5,
    "ld_dpo": LOG2,
    "nca": 2 * LOG2,
    "robust_dpo": LOG2,
    "sppo_hard": 5e5,
}


def at_reference(record):
    if isinstance(record, Side):
        return record.replace(ref_logp=record.logp)
    fields = {key: at_reference(x) for key, x in vars(record).items() if isinstance(x, Side)}
    return record.replace(**fields)


def test_known_values_at_the_reference():
    # the others there depend on lengths (r_dpo), on the weight (wpo) or on log pi itself (xpo)
    family = {name for name in PAIRED + UNPAIRED if name not in FREE}
    assert family - set(AT_REFERENCE) == {"r_dpo", "wpo", "xpo"}
    for name, want in AT_REFERENCE.items():
        out = loss(name)(at_reference(make(name)))
        np.testing.assert_allclose(out.value, np.full_like(out.value, want), rtol=1e-6, err_msg=name)
        assert not np.any(out.metrics["rewards/chosen"][0]) and not np.any(out.metrics["rewards/rejected"][0]), name


@pytest.mark.parametrize("name", [n for n in PAIRED if n not in ("apo_zero", "apo_down", "exo", "wpo", "chosen_nll")])
def test_a_pair_lost_by_far_is_still_pushed(name):
    # the bounded losses (APO, EXO) let go by design; wpo weighs by probability; chosen_nll looks at one side; and the
    # reward of alphapo and f_dpo has an upper bound, which the rejected side has reached
    up, down = slopes(lambda pair: loss(name)(pair.replace(reference_is_chosen=jnp.array([True]))), -1e3, 1e3)
    assert np.isfinite(up) and np.isfinite(down) and up < -1e-3
    assert down > 1e-3 or name in ("alphapo", "f_dpo")


@pytest.mark.parametrize("name", sorted(FREE))
def test_reference_free(name):
    record = make(name)
    bare = both(record, lambda side: Side(logp=side.logp, mask=side.mask))
    chex.assert_trees_all_equal(loss(name)(bare), loss(name)(record))


@pytest.mark.parametrize("name", [name for name in PAIRED + UNPAIRED if name not in FREE])
def test_needs_a_reference(name):
    record = make(name)
    side = "rejected" if record_type(name) is Pair else "side"
    with refuses(ValueError, "Side.ref_logp is None", "fill"):
        loss(name)(record.replace(**{side: getattr(record, side).replace(ref_logp=None)}))


@pytest.mark.parametrize(
    "call, key, word",
    [
        (lambda: kto(make("kto").replace(mismatched=None)), "Unpaired.mismatched is None", "fill"),
        (lambda: xpo(make("xpo").replace(reference_is_chosen=None)), "Pair.reference_is_chosen is None", "fill"),
        (lambda: wpo(both(make("wpo"), lambda s: s.replace(collision=None))), "Side.collision is None", "fill"),
        (lambda: alphapo(make("dpo"), gamma=-1.0), "alphapo: gamma = -1.0:", "margin"),
        (lambda: alphapo(make("dpo"), alpha=np.inf), "alphapo: alpha = inf:", "finite"),
        (lambda: cpo(make("dpo"), alpha=-1.0), "cpo: alpha = -1.0:", "more"),
        (lambda: cpo(make("dpo"), nll="token"), "cpo: nll = 'token':", "'mean' or 'sum'"),
        (lambda: discopop(make("dpo"), tau=0.0), "discopop: tau = 0.0:", "positive"),
        (lambda: dpo_positive(make("dpo"), penalty=-1.0), "dpo_positive: penalty = -1.0:", "more"),
        (lambda: exo(make("dpo"), label_smoothing=0.0), "exo: label_smoothing = 0.0:", "infinite"),
        (lambda: f_dpo(make("dpo"), alpha=1.5), "f_dpo: alpha = 1.5:", "[0, 1]"),
        (lambda: f_dpo(make("dpo"), divergence="js", alpha=0.3), "f_dpo: alpha = 0.3:", "divergence = 'alpha'"),
        (lambda: f_dpo(make("dpo"), divergence="kl"), "f_dpo: divergence = 'kl':", "reverse_kl"),
        (lambda: ipo(make("dpo"), aggregation="token"), "ipo: aggregation = 'token':", "'sum' or 'mean'"),
        (lambda: kto(make("kto"), desirable_weight=0.0), "kto: desirable_weight = 0.0:", "positive"),
        (lambda: kto(make("kto"), undesirable_weight=-1.0), "kto: undesirable_weight = -1.0:", "positive"),
        (lambda: ld_dpo(make("dpo"), alpha=1.1), "ld_dpo: alpha = 1.1:", "[0, 1]"),
        (lambda: r_dpo(make("dpo"), alpha=-0.1), "r_dpo: alpha = -0.1:", "more"),
        (lambda: robust_dpo(make("dpo"), label_smoothing=0.5), "robust_dpo: label_smoothing = 0.5:", "[0, 0.5)"),
        (lambda: simpo(make("dpo"), gamma=-0.1), "simpo: gamma = -0.1:", "margin"),
        (lambda: slic(make("dpo"), delta=0.0), "slic: delta = 0.0:", "positive"),
        (lambda: slic(make("dpo"), regularization=-0.1), "slic: regularization = -0.1:", "off"),
        (lambda: wpo(make("dpo"), alignment="greedy"), "wpo: alignment = 'greedy':", "'sampled' or 'none'"),
        (lambda: xpo(make("dpo"), alpha=-1.0), "xpo: alpha = -1.0:", "more"),
    ],
)
def test_refuses(call, key, word):
    with refuses(ValueError, key, word):
        call()


@pytest.mark.parametrize("name", [n for n in PAIRED + UNPAIRED if n not in ("chosen_nll", "slic")])
def test_refuses_a_beta_that_is_not_positive(name):
    for beta in (0.0, -0.5):
        with refuses(ValueError, f"{name}: beta = {beta}:", "positive"):
            loss(name)(make(name), beta=beta)


@pytest.mark.parametrize("name", PAIRED + UNPAIRED)
def test_says_when_to_use_it(name):
    *_, last = loss(name).__doc__.strip().splitlines()
    assert last.strip().startswith("Use when ")
