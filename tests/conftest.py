"""Eight CPU devices, rank promotion raises, and jaxtyping's shapes are checked by beartype in every test."""

import dataclasses
import gc
import inspect
import os
import sys
from pathlib import Path

import jax
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache

# The tests compile far more than they compute: machine code without optimisation takes half as long. Eight devices on
# two busy cores may wait long for each other in a collective: XLA would end the process after 40 seconds.
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_collective_call_terminate_timeout_seconds=900"
)
if jax.__version_info__ < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # half the time again; later releases end the process with it
# what is traced lives long: looking for garbage among it took a fourteenth of the time
gc.set_threshold(100_000, 10, 20)
os.environ["ALIGNAX_CACHE"] = "off"  # a test that asks for encoded data on disk names a folder of its own
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from beartype import beartype  # noqa: E402

jaxtyped = jaxtyping.jaxtyped


def _checked(*, typechecker):
    """What the import hook decorates with: jaxtyping's check, whose calls are dear, for functions that speak of shapes;
    beartype's alone for others."""
    shapes = jaxtyped(typechecker=typechecker)

    def decorate(target):
        if inspect.isfunction(target) and "jaxtyping." not in str(target.__annotations__):
            return beartype(target)
        return shapes(target)

    return decorate


jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("alignax", "beartype.beartype")

from alignax import bound, types  # noqa: E402
from alignax.sampling import options, stops  # noqa: E402
from alignax.train import state  # noqa: E402


def _check_fields(cls):
    """Checks a record's shapes where the package builds it from arrays, and a plan's wherever the package builds it.

    Not where JAX rebuilds one from its leaves: these may be specs, shapes or None, and under vmap, or cut into
    microbatches, they have one axis more.
    """
    of_arrays = issubclass(cls, types.Record)
    plain = inspect.unwrap(cls.__init__)  # without the check that the import hook put around it
    checked = jaxtyped(plain, typechecker=beartype)

    def init(self, **fields):
        leaves, caller = jax.tree.leaves(fields), sys._getframe(1).f_globals.get("__name__", "")
        known = not of_arrays or (leaves and all(isinstance(leaf, jax.Array) for leaf in leaves))
        (checked if known and caller.startswith(("alignax", "dataclasses")) else plain)(self, **fields)

    cls.__init__ = init


def _plan_record(cls, make=bound.plan_record):
    made = make(cls)
    _check_fields(made)
    return made


bound.plan_record = _plan_record  # before the modules whose plans it makes are imported
for _module in (types, state, options, stops):
    for _, _cls in inspect.getmembers(_module, dataclasses.is_dataclass):
        if _cls.__module__ == _module.__name__:
            _check_fields(_cls)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for all processes of a run of the tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def compiled(shared):
    """The folder of compiled programs: that of JAX_COMPILATION_CACHE_DIR, or a new one for all processes of a run.

    What one process has compiled the others read: the second run of a program is cheap, and has the same bits.
    """
    folder = Path(jax.config.jax_compilation_cache_dir or shared / "compiled")
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    return folder


_left_out: set[str] = set()  # files whose tests are slow, or ask for a package that is not there


def pytest_deselected(items):
    _left_out.update(item.path.name for item in items)


def pytest_collectreport(report):
    if report.skipped:
        _left_out.add(Path(report.nodeid).name)


def pytest_collection_modifyitems(items):
    """What waits for programs of its own comes first, not last: nobody would have anything else to do meanwhile."""
    items.sort(key=lambda item: item.path.name not in ("test_processes.py", "test_notebooks.py"))


def pytest_collection_finish(session):
    """CI fails when a test file yields no test (a whole-suite run only: a selection may leave files out)."""
    chosen = session.config.option
    whole = session.config.args == session.config.getini("testpaths") and not chosen.keyword
    if not whole or chosen.markexpr != "not slow":
        return
    files = {path.name for path in (session.config.rootpath / "tests").rglob("test_*.py")}
    empty = files - _left_out - {item.path.name for item in session.items}
    if empty:
        raise pytest.UsageError(f"these test files yield no test: {sorted(empty)}")
