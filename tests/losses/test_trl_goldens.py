"""TRL's own loss code ran once on random arrays (tests/parity/trl_losses.py): same values, gradients, metrics here."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_inputs import loss

from alignax.ops.masked import reduce, reduce_metrics
from alignax.train import advantages
from alignax.types import Distill, Pair, Rollout, Scored, Side, Unpaired

GOLDENS = Path(__file__).parents[1] / "goldens"
DATA = {which: np.load(GOLDENS / f"trl_{which}.npz") for which in ("current", "retired")}
SETTINGS = {which: json.loads(str(data["settings"])) for which, data in DATA.items()}
CASES = [(which, case) for which, settings in SETTINGS.items() for case in settings]
ADVANTAGES = json.loads(str(DATA["current"]["advantages"]))


def record(fields):
    """A record from arrays named `side/field` or `field`."""
    sides = {}
    for key, array in fields.items():
        if "/" in key:
            side, field = key.split("/")
            sides.setdefault(side, {})[field] = jnp.asarray(array)
    rest = {key: jnp.asarray(array) for key, array in fields.items() if "/" not in key}
    if "old_logp" in rest:  # the losses look neither at the words nor at the prompts
        rest |= {"tokens": jnp.zeros(rest["mask"].shape, jnp.int32), "valid": rest["mask"]}
    kinds = {"side/logp": Unpaired, "chosen/logp": Pair, "old_logp": Rollout, "logits": Distill, "margin": Scored}
    (kind,) = (kinds[key] for key in fields if key in kinds)
    return kind(**{name: Side(**side) for name, side in sides.items()}, **rest)


def stored(data, prefix):
    return {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}


@pytest.mark.parametrize("which, case", CASES)
def test_trl_agrees(which, case):
    data, setting = DATA[which], SETTINGS[which][case]
    fields, grads = stored(data, f"in/{setting['record']}/"), stored(data, f"grad/{case}/")

    def total(leaves):
        made = record(fields | leaves)
        terms = [(coef, loss(name)(made, **args)) for coef, name, args in setting["terms"]]
        metrics = {name: metric for _, term in terms for name, metric in reduce_metrics(term.metrics).items()}
        return sum(coef * reduce(term) for coef, term in terms), metrics

    leaves = {key: jnp.asarray(fields[key]) for key in grads}
    (value, metrics), got = jax.value_and_grad(total, has_aux=True)(leaves)
    if not setting.get("gradient_only"):
        np.testing.assert_allclose(value, data[f"out/{case}"], rtol=1e-5, atol=1e-6)
    assert any(np.any(grad) for grad in grads.values())
    for key, grad in grads.items():
        np.testing.assert_allclose(got[key], grad, rtol=1e-4, atol=1e-6, err_msg=key)
    logged = stored(data, f"metric/{case}/")
    assert bool(logged) == bool(logged.keys() & metrics.keys())
    for name in logged.keys() & metrics.keys():
        np.testing.assert_allclose(metrics[name], logged[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_rollouts_reach_both_sides_of_every_clip():
    """Were no ratio clipped, agreement would say nothing of the clips. REINFORCE is taken where no bound holds."""
    shares = {key: data[key] for data in DATA.values() for key in data.files if key.startswith("metric/")}
    shares = {key: share for key, share in shares.items() if "clip" in key and "reinforce" not in key}
    assert len(shares) > 20
    assert not {key: share for key, share in shares.items() if not 0 < share < 1}


@pytest.mark.parametrize("case", ADVANTAGES)
def test_trl_agrees_on_advantages_of_several_rewards(case):
    values_KB, given = jnp.asarray(DATA["current"]["in/rewards/values"]), ADVANTAGES[case]
    weights, B = given["weights"], values_KB.shape[1]
    zeros, ones = jnp.zeros((B, 1)), jnp.ones((B, 1), bool)
    rollout = Rollout(
        tokens=jnp.zeros((B, 1), jnp.int32), valid=ones, mask=ones, old_logp=zeros, ref_logp=zeros,
        rewards={str(k): value_B for k, value_B in enumerate(values_KB)},
    )  # fmt: skip
    score_B = jnp.tensordot(jnp.array(weights), values_KB, 1)
    if given["aggregation"] == "normalize_then_sum":
        named = {str(k): weight for k, weight in enumerate(weights)}
        got = advantages.gdpo(rollout, score_B, jnp.float32(0), group=given["group"], weights=named)[0]
    else:
        options = dict(kl_in_reward=False, group=given["group"], baseline="standardise")
        got = advantages.group_baseline(rollout, score_B, jnp.float32(0), **options)[0]
    np.testing.assert_allclose(got.advantage[:, 0], DATA["current"][f"advantage/{case}"], rtol=1e-5, atol=1e-6)
