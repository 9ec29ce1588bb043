"""Writes families.npz: transformers' logits for a small checkpoint of every family, for tests without PyTorch.

    python tests/goldens/make_families.py

made the file at hand, with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0 (from gpt_neox on 5.24.0) and numpy
2.4.6. The checkpoints are those of tests/models/hf_cases.py, whose weights are a rule of their names. A case that the
file has is kept, since another machine rounds otherwise: to make it again, delete the file.
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
    file = HERE / "families.npz"
    kept = dict(np.load(file)) if file.is_file() else {}
    arrays = {name: kept[name] for name in hf_cases.CASES if name in kept}
    for name in hf_cases.CASES.keys() - arrays.keys():
        with tempfile.TemporaryDirectory() as folder:
            torch_families.save(torch_families.build(name), Path(folder))
            arrays[name] = torch_families.run(Path(folder))["logits"]
    np.savez_compressed(file, **{name: arrays[name] for name in hf_cases.CASES})
    print(f"wrote {len(arrays)} arrays to {file}, {len(kept.keys() & arrays.keys())} of them as they were")


if __name__ == "__main__":
    main()
