"""Writes losses.npz: inputs, settings and PyTorch's values and gradients, for tests that run without PyTorch.

    python tests/goldens/make.py

made the file at hand, with Python 3.11, torch 2.13.0 (CPU) and numpy 2.4.6.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))

import torch_references  # noqa: E402


def main():
    arrays = {"settings": np.array(json.dumps(torch_references.SETTINGS))}
    for loss, fields in torch_references.inputs().items():
        arrays |= {f"{loss}/in/{name}": array for name, array in fields.items()}
    for loss, (value, grads) in torch_references.references().items():
        values = value if isinstance(value, dict) else {"value": np.float32(value)}
        arrays |= {f"{loss}/out/{name}": array for name, array in values.items()}
        arrays |= {f"{loss}/grad/{name}": array for name, array in grads.items()}
    np.savez_compressed(HERE / "losses.npz", **arrays)
    print(f"wrote {len(arrays)} arrays to {HERE / 'losses.npz'}")


if __name__ == "__main__":
    main()
