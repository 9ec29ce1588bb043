"""Writes llama.npz: a tiny Llama's parameters, prompts and transformers' logits, for tests that run without PyTorch.

    python tests/goldens/make_llama.py

made the file at hand, with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0 and numpy 2.4.6.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))

import torch_llama  # noqa: E402


def main():
    arrays = {}
    for tied in (True, False):
        tokens, valid, params = torch_llama.inputs(tied)
        name = torch_llama.name_of(tied)
        arrays |= {f"{name}/params/{path}": leaf for path, leaf in params.items()}
        arrays |= {f"{name}/tokens": tokens, f"{name}/valid": valid}
        arrays[f"{name}/logits"] = torch_llama.logits(params, tokens, valid)
    np.savez_compressed(HERE / "llama.npz", **arrays)
    print(f"wrote {len(arrays)} arrays to {HERE / 'llama.npz'}")


if __name__ == "__main__":
    main()
