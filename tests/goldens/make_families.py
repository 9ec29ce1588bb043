"""Writes families.npz: transformers' logits for a small checkpoint of every family, for tests without PyTorch.

    python tests/goldens/make_families.py

made the file at hand, with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0 and numpy 2.4.6. The checkpoints are
those of tests/models/hf_cases.py, whose weights are a rule of their names.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "parity"), str(HERE.parent / "models")]

import hf_cases  # noqa: E402
import torch_families  # noqa: E402


def main():
    arrays = {}
    for name in hf_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            torch_families.save(torch_families.build(name), Path(folder))
            arrays[name] = torch_families.run(Path(folder))["logits"]
    np.savez_compressed(HERE / "families.npz", **arrays)
    print(f"wrote {len(arrays)} arrays to {HERE / 'families.npz'}")


if __name__ == "__main__":
    main()
