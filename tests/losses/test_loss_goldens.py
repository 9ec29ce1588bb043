"""Values and gradients that PyTorch computed once (tests/goldens/make.py), compared without PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch_parity import compare

PATH = Path(__file__).parents[1] / "goldens" / "losses.npz"


def group(data, prefix):
    return {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}


@pytest.mark.parametrize("loss", ["token_stats", "bradley_terry", "dpo", "ppo_clip"])
def test_goldens(loss):
    data = np.load(PATH)
    settings = json.loads(str(data["settings"]))
    assert sorted(settings) == sorted({key.split("/")[0] for key in data.files} - {"settings"})
    inputs, values, grads = (group(data, f"{loss}/{part}/") for part in ("in", "out", "grad"))
    compare(loss, inputs, settings[loss], values, grads)
