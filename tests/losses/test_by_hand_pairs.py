"""The preference losses on one example of 2 x 3 tokens, by hand.

The first token of each row counts on no side, and the shorter replies have one token:

    row 0: log pi(y_w) = -1 - 2, ref -2 - 3: r_w = 2;  log pi(y_l) = -5, ref -4: r_l = -1;  h = 3
    row 1: log pi(y_w) = -6, ref -6: r_w = 0;  log pi(y_l) = -1 - 2, ref -2 - 3: r_l = 2;  h = -2

Below, sp is softplus, sp(x) = log(1 + e^x) = -log sigmoid(-x), and s the sigmoid. sp(-1.5) = 0.201413,
sp(1) = 1.313262, sp(-1) = 0.313262, sp(0.5) = 0.974077, sp(-0.5) = 0.474077, sp(0) = 0.693147; s(1) = 0.731059.
"""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from alignax.ops.masked import reduce, reduce_metrics
from alignax.types import Pair, Side, Unpaired

NAN = jnp.nan
CHOSEN = Side(
    logp=jnp.array([[NAN, -1, -2], [NAN, -6, NAN]]),
    ref_logp=jnp.array([[NAN, -2, -3], [NAN, -6, NAN]]),
    collision=jnp.array([[NAN, -1, -1], [NAN, -6, NAN]]),
    mask=jnp.array([[False, True, True], [False, True, False]]),
)
REJECTED = Side(
    logp=jnp.array([[NAN, -5, NAN], [NAN, -1, -2]]),
    ref_logp=jnp.array([[NAN, -4, NAN], [NAN, -2, -3]]),
    collision=jnp.array([[NAN, -4.5, NAN], [NAN, -1, -1]]),
    mask=jnp.array([[False, True, False], [False, True, True]]),
)
PAIR = Pair(chosen=CHOSEN, rejected=REJECTED, reference_is_chosen=jnp.array([False, True]))
EXCHANGED = Pair(chosen=REJECTED, rejected=CHOSEN)
THUMBS = Unpaired(side=CHOSEN, mismatched=REJECTED, desirable=jnp.array([True, False]))

HALF = {"beta": 0.5}  # then beta r_w = (1, 0), beta r_l = (-0.5, 1), beta h = (1.5, -1)
CASES = [
    # max(0, 1 - 1.5) = 0, max(0, 1 + 1) = 2
    ("hinge", PAIR, HALF, 1.0),
    # max(0, 3 + 3 - 5) + 0.1 * 3 = 1.3, max(0, 3 + 6 - 3) + 0.1 * 6 = 6.6
    ("slic", PAIR, {"delta": 3.0, "regularization": 0.1}, 3.95),
    # target 1 / (2 * 0.5) = 1: (3 - 1)^2 = 4, (-2 - 1)^2 = 9
    ("ipo", PAIR, HALF, 6.5),
    # per token: (2 / 2 + 1 / 1 - 1)^2 = 1, (0 / 1 - 2 / 2 - 1)^2 = 4
    ("ipo", PAIR, HALF | {"aggregation": "mean"}, 2.5),
    # (0.9 sp(-1.5) - 0.1 sp(1.5)) / 0.8 = (0.181272 - 0.170141) / 0.8 = 0.013913;
    # (0.9 sp(1) - 0.1 sp(-1)) / 0.8 = 1.438262
    ("robust_dpo", PAIR, HALF | {"label_smoothing": 0.1}, 0.726087),
    # p = 0.817574: p log(p / 0.9) = -0.078530, (1 - p) log((1 - p) / 0.1) = 0.109669;
    # p = 0.268941: -0.324854 + 1.454312
    ("exo", PAIR, HALF | {"label_smoothing": 0.1}, 0.580298),
    # sp(-1) + sp(1) / 2 + sp(-0.5) / 2 = 1.206931; sp(0) + sp(0) / 2 + sp(1) / 2 = 1.696352
    ("nca", PAIR, HALF, 1.451641),
    # sp(-1) + sp(-0.5) = 0.787339; sp(0) + sp(1) = 2.006409
    ("bco_pair", PAIR, HALF, 1.396874),
    # 1 / (2 * 0.5) = 1: (2 - 1)^2 + (-1 + 1)^2 = 1; (0 - 1)^2 + (2 + 1)^2 = 10
    ("sppo_hard", PAIR, HALF, 5.5),
    # policy margins -3 + 5 = 2, -6 + 3 = -3, reference margins -5 + 4 = -1, -6 + 5 = -1: sorted, -3 + 1 = -2 and
    # 2 + 1 = 3: sp(1) and sp(-1.5)
    ("aot", PAIR, HALF, 0.757337),
    # beta r_w sorted (0, 1), beta r_l sorted (-0.5, 1): sp(-0.5) and sp(0)
    ("aot_unpaired", PAIR, HALF, 0.583612),
    # 1 - s(1) + s(-0.5) = 0.646482; 1 - s(0) + s(1) = 1.231059
    ("apo_zero", PAIR, HALF, 0.938770),
    # s(1) + 1 - s(1.5) = 0.731059 + 0.182426; s(0) + 1 - s(-1) = 0.5 + 0.731059
    ("apo_down", PAIR, HALF, 1.072271),
    # z / tau = 3, -2: s(-3) sp(-1.5) + s(3) e^-1.5 = 0.009552 + 0.212548; s(2) sp(1) + s(-2) e = 1.156717 + 0.324027
    ("discopop", PAIR, HALF | {"tau": 0.5}, 0.851422),
    # a token mean: (1 + 2 + 6) / 3, where a mean of rows would give (1.5 + 6) / 2
    ("chosen_nll", PAIR, {}, 3.0),
    # 0.5 (2 / 2 + 1 / 1) = 1, 0.5 (0 / 1 - 2 / 2) = -0.5: sp(-1) and sp(0.5)
    ("dpo_norm", PAIR, HALF, 0.643669),
    # -1/u: 0.5 (-e^-2 + e^1) = 1.291473, 0.5 (-1 + e^-2) = -0.432332: sp(-1.291473) = 0.242841, sp(0.432332) = 0.932498
    ("f_dpo", PAIR, HALF | {"divergence": "forward_kl"}, 0.587669),
    # log s(2) - log s(-1) = -0.126928 + 1.313262, log s(0) - log s(2) = -0.693147 + 0.126928, times 0.5:
    # sp(-0.593167) and sp(0.283110)
    ("f_dpo", PAIR, HALF | {"divergence": "js"}, 0.642301),
    # 2 (1 - e^(-x/2)): 1.264241 + 1.297443 = 2.561684, 0 - 1.264241: sp(-1.280842) = 0.245142, sp(0.632121) = 1.058344
    ("f_dpo", PAIR, HALF | {"alpha": 0.5}, 0.651743),
    # sides exchanged, so that r_w = -1 falls below the reference: 0.5 (-3 - 2 * 1) and 0.5 * 2: sp(2.5) and sp(-1)
    ("dpo_positive", EXCHANGED, HALF | {"penalty": 2.0}, 1.446076),
    # 1.5 + 0.1 (2 - 1) = 1.6, -1 + 0.1 (1 - 2) = -1.1: sp(-1.6) = 0.183901, sp(1.1) = 1.387335
    ("r_dpo", PAIR, HALF | {"alpha": 0.1}, 0.785618),
    # second tokens count half: 0.5 (1.5 + 1) = 1.25, 0.5 (0 - 1.5) = -0.75: sp(-1.25) = 0.251929, sp(0.75) = 1.136871
    ("ld_dpo", PAIR, HALF | {"alpha": 0.5}, 0.694400),
    # log w: (0 - 1) / 2 - 0.5 = -1, 0 + (0 - 1) / 2 = -0.5: e^-1 sp(-1.5) = 0.074096, e^-0.5 sp(1) = 0.796533
    ("wpo", PAIR, HALF, 0.435315),
    # means -1.5, -5 and -6, -1.5: 2 * 3.5 - 0.5 = 6.5, 2 * -4.5 - 0.5 = -9.5: sp(-6.5) = 0.001502, sp(9.5) = 9.500075
    ("simpo", PAIR, {"beta": 2.0, "gamma": 0.5}, 4.750789),
    # log odds of e^-1.5, e^-5, e^-6: -1.247518, -4.993239, -5.997518. 1.5 + 0.1 sp(-3.745722), 6 + 0.1 sp(4.750001)
    ("orpo", PAIR, {"beta": 0.1}, 3.989098),
    # sp(-0.5 * 2) + 3 / 2 = 1.813262, sp(0.5 * 3) + 6 = 7.701413
    ("cpo", PAIR, HALF | {"alpha": 1.0}, 4.757337),
    # sp(-1) + 3, sp(1.5) + 6
    ("cpo", PAIR, HALF | {"alpha": 1.0, "nll": "sum"}, 5.507337),
    # 2 (1 - e^(-m/2)) at -1.5, -5, -6: -2.234000, -22.364988, -38.171074: sp(-9.565494) = 0.000070, sp(18.468537)
    ("alphapo", PAIR, HALF | {"gamma": 0.5, "alpha": 0.5}, 9.234304),
    # the reference wrote y_l of row 0 and y_w of row 1: sp(-1.5) + 0.1 * -5, sp(1) + 0.1 * -6
    ("xpo", PAIR, HALF | {"alpha": 0.1}, 0.207337),
    # z0 = max(0, (-1 + 2) / 2) = 0.5: up 1 - s(0.5 (2 - 0.5)) = s(-0.75) = 0.320821, down 1 - s(0.5 * 0.5) = 0.437823
    ("kto", THUMBS, HALF, 0.379322),
    # (2 * 0.320821 + 3 * 0.437823) / 2
    ("kto", THUMBS, HALF | {"desirable_weight": 2.0, "undesirable_weight": 3.0}, 0.977557),
    # delta = (1 + 0) / 2, one row of each label: both rows sp(-0.5)
    ("bco", THUMBS, HALF, 0.474077),
    # 1 - s(1) = 0.268941, s(0) = 0.5
    ("apo_zero_unpaired", THUMBS, HALF, 0.384471),
]


def run(name, record, args):
    return getattr(importlib.import_module(f"alignax.losses.{name}"), name)(record, **args)


@pytest.mark.parametrize("name, record, args, want", CASES, ids=[f"{name}-{args}" for name, _, args, _ in CASES])
def test_by_hand(name, record, args, want):
    np.testing.assert_allclose(reduce(run(name, record, args)), want, rtol=2e-6, atol=1e-6)


def test_metrics_by_hand():
    # rewards r / 2: chosen (1, 0), rejected (-0.5, 1), margins (1.5, -1), one of two won; logps (-3, -6) and (-5, -3)
    want = {"rewards/chosen": 0.5, "rewards/rejected": 0.25, "rewards/margins": 0.25, "rewards/accuracies": 0.5}
    want |= {"logps/chosen": -4.5, "logps/rejected": -4.0}
    got = reduce_metrics(run("nca", PAIR, HALF).metrics)
    assert got.keys() == want.keys()
    np.testing.assert_allclose([got[key] for key in want], [*want.values()], rtol=1e-6)
    # each over the rows of its own label: row 0 is up (r = 2, log pi = -3), row 1 down (0, -6); kl (-1 + 2) / 2
    want = {"rewards/chosen": 1.0, "rewards/rejected": 0.0, "logps/chosen": -3.0, "logps/rejected": -6.0, "kl": 0.5}
    got = reduce_metrics(run("kto", THUMBS, HALF).metrics)
    assert got.keys() == want.keys()
    np.testing.assert_allclose([got[key] for key in want], [*want.values()], rtol=1e-6)
    # log odds: row 0 -1.247518 + 4.993239, row 1 -5.997518 + 1.247518
    got = reduce_metrics(run("orpo", PAIR, {"beta": 0.1}).metrics)
    np.testing.assert_allclose(got["nll_loss"], 3.75, rtol=1e-6)
    np.testing.assert_allclose(got["log_odds_chosen"], (3.745722 - 4.750000) / 2, rtol=1e-5)
    np.testing.assert_allclose(got["log_odds_ratio"], -(0.023343 + 4.758614) / 2, rtol=1e-5)
