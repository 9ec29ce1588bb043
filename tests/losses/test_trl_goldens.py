"""TRL's own loss code ran once on random arrays (tests/parity/trl_losses.py): same values and gradients here."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_inputs import loss

from alignax.ops.masked import reduce
from alignax.types import Pair, Side, Unpaired

GOLDENS = Path(__file__).parents[1] / "goldens"
DATA = {which: np.load(GOLDENS / f"trl_{which}.npz") for which in ("current", "retired")}
SETTINGS = {which: json.loads(str(data["settings"])) for which, data in DATA.items()}
CASES = [(which, case) for which, settings in SETTINGS.items() for case in settings]


def record(fields):
    """A record from arrays named `side/field` or `field`."""
    sides = {}
    for key, array in fields.items():
        if "/" in key:
            side, field = key.split("/")
            sides.setdefault(side, {})[field] = jnp.asarray(array)
    rest = {key: jnp.asarray(array) for key, array in fields.items() if "/" not in key}
    kind = Unpaired if "side" in sides else Pair
    return kind(**{name: Side(**side) for name, side in sides.items()}, **rest)


@pytest.mark.parametrize("which, case", CASES)
def test_trl_agrees(which, case):
    data, setting = DATA[which], SETTINGS[which][case]
    prefix = f"in/{setting['record']}/"
    fields = {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}
    grads = {key.removeprefix(f"grad/{case}/"): data[key] for key in data.files if key.startswith(f"grad/{case}/")}

    def total(leaves):
        made = record(fields | leaves)
        return sum(coef * reduce(loss(name)(made, **args)) for coef, name, args in setting["terms"])

    value, got = jax.value_and_grad(total)({key: jnp.asarray(fields[key]) for key in grads})
    np.testing.assert_allclose(value, data[f"out/{case}"], rtol=1e-5, atol=1e-6)
    assert any(np.any(grad) for grad in grads.values())
    for key, grad in grads.items():
        np.testing.assert_allclose(got[key], grad, rtol=1e-4, atol=1e-6, err_msg=key)
