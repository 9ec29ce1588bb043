"""Losses on scores, rankings, ratings, steps and teachers against numbers derived by hand, with the derivation."""

import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

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
from alignax.ops.masked import reduce, reduce_metrics
from alignax.types import Distill, Ranked, Rated, Scored, Stepwise

LOG = np.log
# Three rows, of which the last does not count: odds p_w : p_l of 3 : 1 and 4 : 1.
ODDS = dict(chosen=jnp.array([LOG(3.0), LOG(4.0), jnp.nan], jnp.float32), rejected=jnp.array([0.0, 0.0, 1.0]))
ROWS = jnp.array([True, True, False])
# 2 x 3 lanes, of which the last of the second row does not count.
MASK = jnp.array([[True, True, True], [True, True, False]])


def table(rows):
    """Values of the five lanes that count; nan in the sixth."""
    return jnp.array([rows[0], [*rows[1], jnp.nan]], jnp.float32)


def check(out, value, **metrics):
    np.testing.assert_allclose(reduce(out), value, rtol=1e-5)
    got = reduce_metrics(out.metrics)
    for name, want in metrics.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-7, err_msg=name)


def test_margin():
    # Margins of log 3 and 0: d - m = 0 and log 4: log 2 and -log(4/5) = 0.223144. Mean (0.693147 + 0.223144) / 2.
    # Scale 2: d - 2 m = -log 3 and log 4: -log(1/4) = 1.386294 and 0.223144.
    record = Scored(**ODDS, mask=ROWS, margin=jnp.array([LOG(3.0), 0.0, jnp.nan], jnp.float32))
    check(bradley_terry_margin(record), 0.458145, accuracy=1.0, margin=0.5 * LOG(12.0))  # the metric has no m in it
    check(bradley_terry_margin(record, scale=2.0), 0.804719)


def test_noisy():
    # sigmoid(d) = 3/4, 4/5. Right: 0.287682, 0.223144, mean 0.255413; wrong: -log(1/4) = 1.386294 and
    # -log(1/5) = 1.609438, mean 1.497866. e = 0.1, conservative: 0.9 * 0.255413 + 0.1 * 1.497866 = 0.379658;
    # unbiased: (0.229872 - 0.149787) / 0.8 = 0.100107.
    record = Scored(**ODDS, mask=ROWS)
    check(bradley_terry_noisy(record), 0.379658)
    check(bradley_terry_noisy(record, form="unbiased"), 0.100107, accuracy=1.0)


def test_ties():
    # Row 0 (3 : 1) is decided, row 1 (4 : 1) is tied.
    # Rao-Kupper, theta 2: P(w) = 3 / (3 + 2) = 0.6; P(tie) = 3 * 4 / ((4 + 2) * (1 + 8)) = 12 / 54 = 2/9.
    # Value (-log 0.6 - log 2/9) / 2 = (0.510826 + 1.504077) / 2. P(tie) of row 0: 3 * 3 / (5 * 7) = 9/35.
    record = Scored(**ODDS, mask=ROWS, tie=jnp.array([False, True, True]))
    tie = (9 / 35 + 2 / 9) / 2
    # Only row 0 is decided: accuracy 1, margin log 3; the mean reward is of both rows.
    shared = dict(accuracy=1.0, margin=LOG(3.0), mean_reward=0.25 * LOG(12.0))
    check(rao_kupper(record, theta=2.0), 1.007451, tie_probability=tie, **shared)
    # Davidson, nu 1: row 1: sqrt(4) = 2: P(tie) = 2 / (4 + 1 + 2) = 2/7; row 0: P(w) = 3 / (4 + sqrt 3) = 0.523373.
    # Value (0.647461 + 1.252763) / 2 = 0.950112. P(tie) of row 0: sqrt 3 / (4 + sqrt 3) = 0.302169.
    check(davidson(record, nu=1.0), 0.950112, tie_probability=(0.302169 + 2 / 7) / 2, **shared)


def test_rankings():
    # Worths 2, 1, 1 and 1, 3. Plackett-Luce: 2/4 * 1/2 = 1/4 and 1/4: -log(1/4) = 1.386294 both.
    # Its first pick alone: 1/2 and 1/4: (0.693147 + 1.386294) / 2 = 1.039721.
    record = Ranked(score=table([[LOG(2.0), 0, 0], [0, LOG(3.0)]]), mask=MASK)
    check(plackett_luce(record), 1.386294)
    check(plackett_luce(record, top=1), 1.039721, accuracy=0.5, margin=0.5 * (LOG(2.0) - LOG(3.0)))
    # Pairs: 2 : 1 twice, 1 : 1, over 3: (2 * 0.405465 + 0.693147) / 3 = 0.501359; the other prompt's one pair, 1 : 3,
    # weighs as much: (0.501359 + 1.386294) / 2 = 0.943827. Right: 2 of 3 (equal is not right) and 0 of 1.
    margin = 0.5 * (2 / 3 * LOG(2.0) - LOG(3.0))
    check(ranked_pairs(record), 0.943827, accuracy=1 / 3, margin=margin, mean_reward=0.2 * LOG(6.0))
    # A single reply tells no order: its prompt does not count.
    np.testing.assert_array_equal(
        plackett_luce(Ranked(score=record.score, mask=MASK & jnp.eye(2, 3, dtype=bool))).weight, 0
    )


def test_regression():
    # Errors 1, 0, -2, 0.5, 1: squares 1, 0, 4, 0.25, 1 over five ratings.
    record = Rated(score=table([[1, 2, 1], [4.5, 0]]), target=table([[0, 2, 3], [4, -1]]), mask=MASK)
    check(regression(record), 6.25 / 5, absolute_error=4.5 / 5, mean_reward=8.5 / 5)


def test_ordinal():
    # Three grades, spacing log 4: cutpoints -log 2 and log 2, so P(0), P(1), P(2) at score s = log x are
    # 1/(1 + 2x), 2x/(1 + 2x) - x/(2 + x), x/(2 + x). x = 1: 1/3, 1/3, 1/3; x = 4: 1/9, 2/9, 2/3.
    # Grades 0, 1, 2 at x = 1, then 2 and 1 at x = 4: -log: 3 * 1.098612 + 0.405465 + 1.504077 = 5.205378, over 5.
    # The median grade is 1 at x = 1 and 2 at x = 4: right at the second and the fourth, one off elsewhere.
    record = Rated(score=table([[0, 0, 0], [LOG(4.0), LOG(4.0)]]), target=table([[0, 1, 2], [2, 1]]), mask=MASK)
    check(ordinal(record, grades=3, spacing=LOG(4.0)), 5.205378 / 5, accuracy=0.4, absolute_error=0.6)
    # Beyond the scale is its end, and a fraction is rounded.
    off = Rated(score=record.score, target=table([[-3, 1.4, 9], [2, 0.8]]), mask=MASK)
    check(ordinal(off, grades=3, spacing=LOG(4.0)), 5.205378 / 5)


def test_process():
    # sigmoid(z) = 3/4 where z = log 3. Verdicts: right, wrong, half at 3/4, then right at 1/2 and at 1/4:
    # -log 3/4 = 0.287682, -log 1/4 = 1.386294, their mean 0.836988, 0.693147, 1.386294; sum 4.590405.
    z = LOG(3.0)
    record = Stepwise(logit=table([[z, z, z], [0, -z]]), target=table([[1, 0, 0.5], [1, 1]]), mask=MASK)
    check(process(record), 4.590405 / 5, accuracy=1 / 5, step_probability=(3 * 0.75 + 0.5 + 0.25) / 5)


def test_distillation():
    # One token, teacher (1/2, 1/2), student (3/4, 1/4). Forward: log(1/2 / 3/4)/2 + log(1/2 / 1/4)/2 = log(4/3) / 2.
    # Reverse: 3/4 log(3/2) + 1/4 log(1/2) = 0.304099 - 0.173287 = 0.130812.
    # JSD(1/2), mixture (5/8, 3/8): KL(t) = log(4/5)/2 + log(4/3)/2 = 0.032269, KL(s) = 3/4 log(6/5) + 1/4 log(2/3)
    # = 0.136741 - 0.101366 = 0.035375; half of the sum 0.033822.
    logits, teacher = (
        jnp.array([[[LOG(3.0), 0.0], [jnp.nan] * 2]], jnp.float32),
        jnp.array([[[1.0, 1.0], [jnp.inf] * 2]]),
    )
    record = Distill(logits=logits, teacher_logits=teacher, mask=jnp.array([[True, False]]))
    check(forward_kl(record), 0.5 * LOG(4 / 3), teacher_entropy=LOG(2.0), agreement=1.0)
    check(reverse_kl(record), 0.130812, entropy=0.562335)  # 3/4 log(4/3) + 1/4 log 4
    check(gkd(record), 0.033822)
    # At temperature 2 the student is sqrt 3 : 1, (0.633975, 0.366025): forward log(1/2 / 0.481717), times 4.
    check(forward_kl(record, temperature=2.0), 0.149009)


@pytest.mark.parametrize(
    "call, key, word",
    [
        (lambda s: bradley_terry_margin(s), "Scored.margin is None", "fill"),
        (lambda s: bradley_terry_margin(s.replace(margin=s.chosen), scale=-1.0), "margin: scale = -1.0:", "margin"),
        (
            lambda s: bradley_terry_margin(s.replace(margin=s.chosen), centering=-1.0),
            "margin: centering = -1.0:",
            "off",
        ),
        (lambda s: bradley_terry_noisy(s, flip_rate=0.5), "noisy: flip_rate = 0.5:", "[0, 0.5)"),
        (lambda s: bradley_terry_noisy(s, flip_rate=-0.1), "noisy: flip_rate = -0.1:", "[0, 0.5)"),
        (lambda s: bradley_terry_noisy(s, form="robust"), "noisy: form = 'robust':", "'conservative'"),
        (lambda s: rao_kupper(s), "Scored.tie is None", "fill"),
        (lambda s: davidson(s), "Scored.tie is None", "fill"),
        (lambda s: rao_kupper(s.replace(tie=~ROWS), theta=0.9), "rao_kupper: theta = 0.9:", "1"),
        (lambda s: davidson(s.replace(tie=~ROWS), nu=-0.1), "davidson: nu = -0.1:", "0"),
        (lambda s: rao_kupper(s.replace(tie=ROWS), theta=1.0), "rao_kupper: theta = 1.0,", "ties"),
        (lambda s: davidson(s.replace(tie=ROWS), nu=0.0), "davidson: nu = 0.0,", "ties"),
    ],
)
def test_refuses_scores(call, key, word):
    with refuses(ValueError, key, word):
        call(Scored(**ODDS, mask=ROWS))


@pytest.mark.parametrize(
    "loss, settings, key, word",
    [
        (plackett_luce, {"top": -1}, "plackett_luce: top = -1:", "place"),
        (ordinal, {"grades": 1}, "ordinal: grades = 1:", "2"),
        (ordinal, {"spacing": 0.0}, "ordinal: spacing = 0.0:", "width"),
        (forward_kl, {"temperature": 0.0}, "forward_kl: temperature = 0.0:", "positive"),
        (reverse_kl, {"temperature": -1.0}, "reverse_kl: temperature = -1.0:", "positive"),
        (gkd, {"temperature": 0.0}, "gkd: temperature = 0.0:", "positive"),
        (gkd, {"beta": 0.0}, "gkd: beta = 0.0:", "forward_kl"),
        (gkd, {"beta": 1.0}, "gkd: beta = 1.0:", "reverse_kl"),
    ],
)
def test_refuses_settings(loss, settings, key, word):
    lanes = jnp.zeros((2, 3))
    record = {plackett_luce: Ranked(score=lanes, mask=MASK), ordinal: Rated(score=lanes, target=lanes, mask=MASK)}.get(
        loss, Distill(logits=lanes[..., None], teacher_logits=lanes[..., None], mask=MASK)
    )
    with refuses(ValueError, key, word):
        loss(record, **settings)


def test_a_tie_that_is_masked_is_no_tie():
    # theta = 1 and nu = 0 call ties impossible; the only one here does not count
    record = Scored(**ODDS, mask=ROWS, tie=~ROWS)
    want = reduce(bradley_terry(record))
    np.testing.assert_allclose(
        [reduce(rao_kupper(record, theta=1.0)), reduce(davidson(record, nu=0.0))], want, rtol=1e-6
    )
