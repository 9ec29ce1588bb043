"""The scripts under experiments/, as modules."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """experiments/NAME/run.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", ROOT / f"experiments/{name}/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
