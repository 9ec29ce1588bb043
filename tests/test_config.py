"""Config that cannot lie."""

import importlib
import linecache
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from errors import refuses

from alignax import config as C
from alignax.ops.checks import Scalar


def fn(record, *, beta: float = 0.1, steps: int, name: str | None = None, flag: bool = False):
    return record, beta, steps, name, flag


def test_bind_fills_defaults_and_accepts_int_for_float():
    assert C.bind(fn, {"steps": 3, "beta": 1}, key="a") == {"beta": 1.0, "steps": 3, "name": None, "flag": False}


@pytest.mark.parametrize(
    "args, key, word",
    [
        ({"steps": 1, "bta": 0.2}, "config.loss_args.bta", "'beta'"),
        ({}, "config.loss_args.steps", "missing"),
        ({"steps": 1.5}, "config.loss_args.steps = 1.5", "int"),
        ({"steps": True}, "config.loss_args.steps = True", "int"),
        ({"steps": 1, "beta": "0.1"}, "config.loss_args.beta = '0.1'", "float"),
        ({"steps": 1, "name": 3}, "config.loss_args.name = 3", "str or NoneType"),
        ({"steps": 1, "flag": 1}, "config.loss_args.flag = 1", "bool"),
    ],
)
def test_bind_refuses(args, key, word):
    with refuses(C.ConfigError, key, word):
        C.bind(fn, args, key="loss_args")


@pytest.mark.parametrize("hint", [float, Scalar, float | None])
def test_a_number_may_be_an_array_of_rank_0(hint):
    for value in (np.float32(0.5), np.float64(0.5), np.array(0.5)):
        assert type(C.typed(value, hint, key="a")) is float  # fixed: nothing is left of NumPy
    for value in (jnp.float32(0.5), jnp.bfloat16(0.5)):
        assert C.typed(value, hint, key="a") is value
    assert jax.vmap(lambda x: 2 * C.typed(x, hint, key="a"))(jnp.float32([1.0, jnp.nan]))[0] == 2
    assert type(C.typed(1, hint, key="a")) is float


@pytest.mark.parametrize("hint", [float, Scalar])
@pytest.mark.parametrize(
    "value, word",
    [
        (jnp.float32("nan"), "nan"),
        (np.float32("nan"), "nan"),
        (jnp.ones(2), "float"),  # several numbers
        (jnp.int32(1), "float"),
        (np.int64(1), "float"),
        (jnp.bool_(True), "float"),
        ("0.1", "float"),
    ],
)
def test_other_arrays_are_no_numbers(hint, value, word):
    with refuses(C.ConfigError, "config.a = ", word):
        C.typed(value, hint, key="a")


def test_a_count_is_no_array():
    with pytest.raises(C.ConfigError, match="expected int"):
        C.typed(jnp.float32(2.0), int, key="a")


def test_resolve():
    assert C.resolve("math:cos", "alignax.losses", key="loss")(0.0) == 1.0
    assert C.resolve("resolve", "alignax.config", key="x") is C.resolve
    with pytest.raises(C.ConfigError, match="no module"):
        C.resolve("no.such.module:f", "alignax.losses", key="loss")
    with refuses(C.ConfigError, "config.loss = 'math:nope'", "'nope'"):
        C.resolve("math:nope", "alignax.losses", key="loss")
    with refuses(C.ConfigError, "config.loss = 'typs'", "'types'"):
        C.resolve("typs", "alignax", key="loss")


def test_check_names_the_key():
    defaults = {"total_steps": 10, "mesh": {"fsdp": 1}, "loss_args": {}}
    C.check({"total_steps": 5, "mesh": {"fsdp": 2}, "loss_args": {"beta": 2}}, defaults)
    with refuses(C.ConfigError, "config.total_step ", "'total_steps'"):
        C.check({"total_step": 5}, defaults)
    with refuses(C.ConfigError, "config.mesh.fsdp = 'x'", "int"):
        C.check({"total_steps": 5, "mesh": {"fsdp": "x"}, "loss_args": {}}, defaults)
    with refuses(C.ConfigError, "config.loss_args", "missing"):
        C.check({"total_steps": 5, "mesh": {"fsdp": 2}}, defaults)


def test_reader_remembers():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": 2, "d": 3}, "e_args": {"x": 1}})
    reader = C.Reader(C.plain(config))
    assert reader.a == 1 and reader.b.c == 2 and reader.e_args == {"x": 1}
    with refuses(C.ConfigError, "reads", "config.b.d"):
        reader.finish()
    assert reader.b.d == 3
    reader.finish()
    with refuses(C.ConfigError, "config.aa", "'a'"):
        reader.aa  # noqa: B018


def test_the_code_of_functions_that_are_not_ours_is_told_by_hash(tmp_path, monkeypatch):
    """Named or held, at any depth; what a function closes over counts; of alignax's own there is none."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "parts_of_mine.py"

    def of(text):
        path.write_text(text)
        sys.modules.pop("parts_of_mine", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        found = importlib.import_module("parts_of_mine").score
        return C.code_of({"rewards": [{"function": "parts_of_mine:score"}]}), C.code_of({"reward": found})

    first, other = of("def score(row):\n    return 1\n"), of("def score(row):\n    return -1  # turned\n")
    assert list(first[0]) == ["rewards.0.function"] and list(first[1]) == ["reward"]
    assert [*first[0].values()] == [*first[1].values()] != [*other[0].values()]

    def make(sign, further=None):
        return lambda row: sign if further is None else further(row)

    one, same, turned = (C.code_of({"reward": make(x)}) for x in (1.0, 1.0, -1.0))
    assert one == same != turned
    assert C.code_of({"r": make(1.0, make(2.0))}) != C.code_of({"r": make(1.0, make(3.0))})
    assert C.code_of({"loss": "alignax.losses.dpo:dpo", "text": "who: me", "time": "a:b", "n": 3}) == {}
    assert C.code_of({"loss": C.plain}) == {}


def test_a_name_that_no_module_can_have_is_refused():
    for path in (":dpo", ".losses:dpo", "a b:c", "a:b:c"):
        with refuses(C.ConfigError, f"config.loss = {path!r}", "module:function"):
            C.resolve(path, "alignax.losses", key="loss")
