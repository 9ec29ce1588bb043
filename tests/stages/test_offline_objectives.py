"""Every loss on pairs or thumbs, end to end from a config: two updates of the tiny policy on the tiny preferences."""

import numpy as np
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny

from alignax import catalogue
from alignax.config import ConfigError
from alignax.stages import offline, probe, reward
from tests.marks import quick

OBJECTIVES = [catalogue.objective(name) for name in catalogue.names()]
# xpo learns from samples of the reference made beside the policy's own: not from a file of pairs
OFFLINE = [o.name for o in OBJECTIVES if o.record in ("Pair", "Unpaired") and o.name != "xpo"]
SCORED = [o.name for o in OBJECTIVES if o.record == "Scored"]


def config(run, step, **values):
    c = tiny()[step]
    c.init_from, c.data.path = str(run / "sft"), str(run / "collect")
    c.total_steps, c.eval_every_steps, c.save_every_steps = 2, 0, 2
    if "probe" in c:
        c.probe = probe.get_config()
    for name, value in values.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", quick(OFFLINE, "ipo", "wpo", "bco"))
def test_an_offline_objective_trains(run, tmp_path, name):
    first, second = metrics(offline.run(config(run, "dpo", loss=name, loss_args={}), tmp_path / name))
    assert np.isfinite(first["loss"]) and first["grad_norm"] > 0 and first["loss"] != second["loss"]
    assert np.isfinite(read(tmp_path / name / "manifest.json")["metrics"]["eval/loss"])


@pytest.mark.parametrize("name", quick(SCORED, "davidson", "bradley_terry_margin"))
def test_a_reward_model_objective_trains(run, tmp_path, name):
    first, second = metrics(reward.run(config(run, "reward", loss=name, loss_args={}), tmp_path / name))
    assert np.isfinite(first["loss"]) and first["grad_norm"] > 0 and first["loss"] != second["loss"]


@pytest.mark.slow
def test_a_reference_that_moves(run, tmp_path):
    """TR-DPO with a hard copy after every update: each step starts at the reference, where DPO's loss is log 2."""
    still, hard = (
        offline.run(config(run, "dpo", total_steps=3, save_every_steps=1, reference_args=args), tmp_path / name)
        for name, args in (("base", {}), ("hard", dict(alpha=1.0, every=1)))
    )
    assert [row["loss"] for row in metrics(hard)] == pytest.approx([np.log(2)] * 3, rel=1e-6)
    assert abs(metrics(still)[2]["loss"] - np.log(2)) > 1e-4
    assert read(hard / "manifest.json")["metrics"]["eval/rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_a_loss_of_ones_own_that_wants_larger_shapes_is_no_bad_setting(run, tmp_path, monkeypatch):
    """What a loss is tried on before the start are guesses of shapes: failing on those is not refusing a setting."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = metrics(offline.run(config(run, "dpo", loss="mine:first_tokens", loss_args={}), tmp_path / "own"))
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)


OWN = """
import jax
import jax.numpy as jnp
from alignax.types import Loss, Pair

def first_tokens(pair: Pair, *, beta: float = 0.1) -> Loss:
    ratio = lambda side: jnp.where(side.mask, side.logp - side.ref_logp, 0.0)
    chosen, rejected = (jax.lax.top_k(ratio(side), 7)[0].sum(1) for side in (pair.chosen, pair.rejected))
    value = -jax.nn.log_sigmoid(beta * (chosen - rejected))
    return Loss(value=value, weight=jnp.ones_like(value), metrics={})
"""


def test_terms_are_added_with_their_coefficients(run, tmp_path):
    """MPO-like: DPO + 0.5 BCO on pairs + 0.25 NLL of the chosen reply."""
    terms = {"bco_pair": {"coefficient": 0.5, "beta": 0.2}, "chosen_nll": {"coefficient": 0.25}}
    rows = metrics(offline.run(config(run, "dpo", terms=terms), tmp_path / "mpo"))
    for row in rows:
        assert row["loss"] == pytest.approx(row["dpo"] + 0.5 * row["bco_pair"] + 0.25 * row["chosen_nll"], rel=1e-5)
    assert {"eval/dpo", "eval/bco_pair", "eval/chosen_nll"} <= set(read(tmp_path / "mpo/manifest.json")["metrics"])


@pytest.mark.parametrize(
    "step, values, key, word",
    [
        ("dpo", dict(loss="sft", loss_args={}), "config.loss: sft takes a Demo", "Pair or Unpaired"),
        ("reward", dict(loss="dpo", loss_args={}), "config.loss: dpo takes a Pair", "Scored"),
        ("dpo", dict(loss="kto", loss_args={}, microbatches=2), "'kto'", "rows"),
        ("dpo", dict(terms={"kto": {}}), "config.terms.kto takes a Unpaired", "config.loss a Pair"),
        ("dpo", dict(terms={"chosen_nll": {"alpha": 1.0}}), "config.terms.chosen_nll.alpha:", "argument"),
        ("dpo", dict(loss="xpo", loss_args={}), "'xpo'", "pairs"),
        ("dpo", dict(loss_args=dict(beta=-0.1)), "config.loss_args: dpo: beta = -0.1:", "positive"),
        (
            "reward",
            dict(loss="bradley_terry_noisy", loss_args=dict(flip_rate=0.7)),
            "config.loss_args: bradley_terry_noisy: flip_rate = 0.7:",
            "[0, 0.5)",
        ),
        ("dpo", dict(terms={"hinge": {"beta": 0.0}}), "config.terms.hinge: hinge: beta = 0.0:", "positive"),
        ("dpo", dict(reference_args=dict(alpha=1.5)), "config.reference_args: mix: alpha = 1.5:", "share"),
        (
            "dpo",
            dict(loss="simpo", loss_args={}, reference_args=dict(alpha=1.0)),
            "config.reference_args is set",
            "'simpo'",
        ),
        ("dpo", dict(reference_args=dict(tau=0.6)), "config.reference_args.tau:", "argument"),
        ("dpo", dict(terms={"dpo": {}}), "config.terms.dpo", "config.loss itself"),
        (
            "dpo",
            dict(terms={"chosen_nll": {"coefficient": "big"}}),
            "config.terms.chosen_nll.coefficient = 'big'",
            "float",
        ),
        ("dpo", dict(terms={"chosen": {}}), "config.terms.chosen = 'chosen'", "no module"),
    ],
)
def test_what_does_not_fit_is_refused_first(run, tmp_path, step, values, key, word):
    stage = {"dpo": offline, "reward": reward}[step]
    with refuses(ConfigError, key, word):
        stage.run(config(run, step, **values), tmp_path / "x")
    assert not (tmp_path / "x").exists()
