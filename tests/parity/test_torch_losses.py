"""The comparison of tests/losses/test_loss_goldens.py, live: PyTorch computes its side now."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "losses"))

import torch_references  # noqa: E402
from torch_parity import compare  # noqa: E402


@pytest.mark.parametrize("loss", sorted(torch_references.SETTINGS))
def test_torch_agrees(loss):
    value, grads = torch_references.references()[loss]
    want = value if isinstance(value, dict) else {"value": value}
    compare(loss, torch_references.inputs()[loss], torch_references.SETTINGS[loss], want, grads)
