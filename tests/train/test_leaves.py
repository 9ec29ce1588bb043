"""Numbers are leaves: what is annotated `Scalar` may be traced, in every optimizer, advantage and KL controller.

Each such number is mapped over three values, its default and two others, in one jitted program, and the runs must be
those of the numbers one by one, given as Python floats. Losses are put through it in their battery
(losses/test_loss_battery.py). Functions and numbers are found by their signatures: a new one is covered by itself.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax.catalogue import names
from alignax.config import names_of
from alignax.ops.checks import Scalar
from alignax.ops.kl import PidMemory
from alignax.train.optimizer import Optimizer, adamw
from alignax.types import Rollout

MODULES = (
    "ops.kl", "ops.entropy", "ops.advantages", "ops.returns", "train.advantages", "train.optimizer", "train.reference",
)  # fmt: skip
# numbers that are fixed when the program is built, though they are no counts: why
STATIC = {"warmup_percent": "decides, rounded, how many updates the warm-up has"}
ARRAYS = {"steps_BT": "rewards at their tokens, a further input"}
FAR = {"adaptive_entropy": ("least", "most")}  # bounds that the inputs do not reach
KINDS = (Scalar, Mapping[str, Scalar], bool, int, str)


def public(module):
    """The functions of a module of the package, or of all files of losses/."""
    if module == "losses":
        return [getattr(importlib.import_module(f"alignax.losses.{name}"), name) for name in names()]
    return [getattr(importlib.import_module(f"alignax.{module}"), name) for name in names_of(f"alignax.{module}")]


def keywords(function):
    """{keyword-only parameter: (annotation, default)}."""
    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def scalars(function):
    """{keyword-only parameter that may be traced: default}; one without has that of INPUTS."""
    found = {name: default for name, (hint, default) in keywords(function).items() if hint == Scalar}
    return {name: given(name) if default is inspect.Parameter.empty else default for name, default in found.items()}


def label(function):
    return f"{function.__module__.removeprefix('alignax.')}.{function.__name__}"


@pytest.mark.parametrize("module", ["losses", *MODULES])
def test_a_number_is_a_leaf_or_fixed_for_a_reason(module):
    for function in public(module):
        for name, (hint, default) in keywords(function).items():
            assert hint in KINDS or (hint is float and name in STATIC) or name in ARRAYS, (
                f"{label(function)}: {name} is annotated {hint}: a number that only enters arithmetic is a Scalar; for "
                "another give the reason in STATIC"
            )
            if hint == Scalar:
                assert isinstance(default, float) or default is inspect.Parameter.empty, (label(function), name)


def three(default):
    """The default, and two values within the bounds of every number here."""
    return [default, 0.5 * default + 0.01, 0.25 * default + 0.02]


def mapped_is_one_by_one(run, numbers, *, unread=()):
    """`run(**numbers)`, every number traced, mapped over a table of them, against runs of Python floats.

    A row of the table has one number changed. Each number must change something, but for the `unread`.
    """
    rows = [dict(numbers)] + [numbers | {name: value} for name in numbers for value in three(numbers[name])[1:]]
    table = {name: jnp.float32([row[name] for row in rows]) for name in numbers}
    got = jax.device_get(jax.jit(jax.vmap(lambda row: jax.tree.leaves(run(**row))))(table))
    alone = [jax.device_get(jax.tree.leaves(run(**row))) for row in rows]
    for leaf, wanted in zip(got, zip(*alone), strict=True):
        np.testing.assert_allclose(leaf, np.stack(wanted), rtol=1e-6, atol=1e-6)
    for at, name in enumerate(numbers):
        moved = max(np.max(np.abs(leaf[1 + 2 * at] - leaf[0]), initial=0) for leaf in got if leaf.dtype.kind == "f")
        assert (moved > 1e-5) == (name not in unread), f"{name} moves the result by {moved}"


# ---- optimizers ---------------------------------------------------------------------------------------------------

WEIGHT, SCALE = np.random.default_rng(0).normal(size=(2, 3)), np.random.default_rng(1).normal(size=3)
PARAMS = {"layers": {"kernel": jnp.float32(WEIGHT)}, "norm": {"scale": jnp.float32(SCALE)}}
GRADS = jax.tree.map(lambda x: 0.7 * x + 0.1, PARAMS)  # of norm 1.5: a clip at 1 bites
MAKERS = [fn for fn in public("train.optimizer") if typing.get_type_hints(fn).get("return") is Optimizer]
VARIANTS = [(make, {}) for make in MAKERS] + [(adamw, {"epsilon_hat": True}), (adamw, {"schedule": "constant"})]


def updated(make, options, **numbers):
    """Parameters, optimizer state and learning rates of a warm-up, a peak and a step of the decay."""
    warmup = {"warmup_percent": 25.0} if "warmup_percent" in keywords(make) else {}
    optimizer = make(total_steps=4, **warmup, **options, **numbers)
    params, state, rates = PARAMS, optimizer.transform.init(PARAMS), []
    for step in range(3):
        rates.append(jnp.float32(optimizer.learning_rate(step)))
        grads = jax.tree.map(lambda g, step=step: (step + 1) * g, GRADS)
        updates, state = optimizer.transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, rates


@pytest.mark.parametrize("make, options", VARIANTS)
def test_numbers_of_an_optimizer_are_leaves(make, options):
    unread = ("end_percent",) if options.get("schedule") == "constant" else ()
    mapped_is_one_by_one(functools.partial(updated, make, options), scalars(make), unread=unread)


# ---- advantages, controllers, the reference -----------------------------------------------------------------------

RNG, B, T = np.random.default_rng(0), 8, 5
MASK = jnp.asarray(np.arange(T)[None] < RNG.integers(1, T + 1, (B, 1)))
normal = lambda *shape: jnp.float32(RNG.normal(size=shape or (B, T)))  # noqa: E731
ROLLOUT = Rollout(
    tokens=jnp.zeros((B, T), jnp.int32), valid=jnp.ones((B, T), bool), mask=MASK, old_logp=normal(), ref_logp=normal(),
    old_value=normal(),
)  # fmt: skip
# what the parameters of these functions are called, and what they are given
INPUTS = {name: normal() for name in ("kl_BT", "rewards_BT", "values_BT", "old_logp_BT", "sampler_logp_BT", "x_BT")}
INPUTS |= {"rollout": ROLLOUT, "mask_BT": MASK, "score_B": normal(B), "group": 2, "kl_in_reward": True}
INPUTS |= {"kl_coef": jnp.float32(0.1), "coef": jnp.float32(0.1), "batch_size": 8}
# an error of 0.16, inside the clips of the controllers and outside where these are halved; two iterations before it
INPUTS |= {"kl": jnp.float32(0.58), "target": 0.5, "horizon": 100.0, "memory": PidMemory(-0.1, 0.05, 2.0)}
INPUTS |= {"entropy": jnp.float32(0.4), "rewards_KB": normal(2, B), "weights_K": jnp.float32([1.0, 0.5])}
INPUTS |= {"reference": PARAMS, "params": GRADS, "step": 512}


def given(name):
    assert name in INPUTS, f"add an input of the name {name} to INPUTS"
    return INPUTS[name]


TRACED = [fn for module in MODULES for fn in public(module) if fn not in MAKERS and scalars(fn)]


@pytest.mark.parametrize("function", TRACED, ids=label)
def test_other_numbers_are_leaves(function):
    numbers = scalars(function)
    parameters = inspect.signature(function).parameters.values()
    wanted = {p.name for p in parameters if p.default is p.empty or p.name in INPUTS} - {*numbers}
    run = functools.partial(function, **{name: given(name) for name in wanted})
    mapped_is_one_by_one(run, numbers, unread=FAR.get(function.__name__, ()))
