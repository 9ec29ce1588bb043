"""Eight CPU devices, rank promotion raises, and jaxtyping's shapes are checked by beartype in every test."""

import dataclasses
import inspect
import os
import sys

import jax
import jaxtyping
import pytest

# The tests compile far more than they compute: machine code without optimisation takes half as long. Eight devices on
# two busy cores may wait long for each other in a collective: XLA would end the process after 40 seconds.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=900"
if jax.__version_info__ < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # half the time again; later releases end the process with it
os.environ["ALIGNAX_CACHE"] = "off"  # a test that asks for encoded data on disk names a folder of its own
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

jaxtyping.install_import_hook("alignax", "beartype.beartype")

from beartype import beartype  # noqa: E402

from alignax import types  # noqa: E402
from alignax.train import state  # noqa: E402


def _check_fields(cls):
    """Checks a record's shapes where the package builds it from arrays.

    Not where JAX rebuilds one from its leaves: these may be specs, shapes or None, and under vmap, or cut into
    microbatches, they have one axis more.
    """
    plain = inspect.unwrap(cls.__init__)  # without the check that the import hook put around it
    checked = jaxtyping.jaxtyped(plain, typechecker=beartype)

    def init(self, **fields):
        leaves, caller = jax.tree.leaves(fields), sys._getframe(1).f_globals.get("__name__", "")
        arrays = leaves and all(isinstance(leaf, jax.Array) for leaf in leaves)
        (checked if arrays and caller.startswith(("alignax", "dataclasses")) else plain)(self, **fields)

    cls.__init__ = init


for _module in (types, state):
    for _, _cls in inspect.getmembers(_module, dataclasses.is_dataclass):
        if _cls.__module__ == _module.__name__:
            _check_fields(_cls)


_slow: set[str] = set()  # files of tests that are left out


def pytest_deselected(items):
    _slow.update(item.path.name for item in items)


def pytest_collection_finish(session):
    """CI fails when a test file yields no test (a whole-suite run only: a selection may leave files out)."""
    chosen = session.config.option
    whole = session.config.args == session.config.getini("testpaths") and not chosen.keyword
    if not whole or chosen.markexpr != "not slow":
        return
    files = {path.name for path in (session.config.rootpath / "tests").rglob("test_*.py")}
    empty = files - _slow - {item.path.name for item in session.items}
    if empty:
        raise pytest.UsageError(f"these test files yield no test: {sorted(empty)}")
