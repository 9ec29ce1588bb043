"""Facts stand on the functions that have them, and no other name is taken for one."""

import importlib
import inspect
from functools import partial

import pytest
from errors import refuses

from alignax.config import names_of
from alignax.ops import kl
from alignax.ops.checks import FACTS, declares, fact
from alignax.sampling import opponents
from alignax.train import advantages

LOSSES = {name: getattr(importlib.import_module(f"alignax.losses.{name}"), name) for name in names_of("alignax.losses")}
ADVANTAGES = {name: getattr(advantages, name) for name in names_of("alignax.train.advantages")}
OPPONENTS = {name: getattr(opponents, name) for name in names_of("alignax.sampling.opponents")}
CONTROLLERS = {name: getattr(kl, name) for name in names_of("alignax.ops.kl")}


def declared(functions):
    """{function: {fact: value}} of those that are not the default."""
    found = {key: {name: fact(fn, name) for name in FACTS} for key, fn in functions.items()}
    told = {
        key: {name: value for name, value in facts.items() if value != FACTS[name].default}
        for key, facts in found.items()
    }
    return {key: facts for key, facts in told.items() if facts}


def test_what_every_loss_declares():
    whole = ("aot", "aot_unpaired", "bco", "clip_cov", "kl_cov", "kto")
    assert declared(LOSSES) == {name: {"whole_batch": True} for name in whole} | {
        "nash_md": {"online_needs_advantage": "win_probability", "own_kl": True},
        "wpo": {"offline_only": True},
        "xpo": {"online_only": True, "online_needs_opponent": "reference"},
    }


def test_what_every_advantage_declares():
    alone, free = {"opponents": ("none",)}, {"critic": False}
    assert declared(ADVANTAGES) == {
        "gae": alone | {"critic": True},
        "group_baseline": alone | free | {"compares": True},
        "gdpo": alone | free | {"compares": True, "reads_parts": True},
        "reinforce_plus_plus": alone | free,
        "winners": alone | free | {"compares": True, "chosen_only": True},
        "best_and_worst": free
        | {"opponents": ("none", "reference"), "compares": True, "chosen_only": True, "pairs": True},
        "remax": free | {"opponents": ("greedy",), "compares": True},
        "win_probability": free | {"opponents": ("mixture", "reference", "greedy"), "compares": True},
        "vbon": free | {"opponents": ("reference",), "compares": True},
    }


def test_what_every_opponent_declares():
    assert declared(OPPONENTS) == {"greedy": {"deterministic": True}}


def test_what_every_controller_declares():
    assert declared(CONTROLLERS) == {name: {"multiplies": True} for name in ("adaptive_kl", "pid_kl")}


def test_what_a_fact_names_is_there():
    for loss in LOSSES.values():
        assert fact(loss, "online_needs_advantage") in ("", *ADVANTAGES)
        assert fact(loss, "online_needs_opponent") in ("", *OPPONENTS)
    for advantage in ADVANTAGES.values():
        assert set(fact(advantage, "opponents")) <= {"none", *OPPONENTS}


def test_a_function_is_returned_as_it_is():
    def own(record, *, beta=0.1):
        """Doc."""

    before = inspect.signature(own)
    assert declares(critic=False, opponents=("none",))(own) is own
    assert inspect.signature(own) == before and own.__doc__ == "Doc."
    assert fact(own, "critic") is False and own.opponents == ("none",)


def test_bound_arguments_hide_no_fact():
    assert fact(partial(partial(LOSSES["xpo"], beta=0.2), alpha=0.1), "online_only")


def test_a_function_from_outside_has_the_defaults():
    assert all(fact(lambda record: record, name) == FACTS[name].default for name in FACTS)
    assert fact(len, "critic") is None and fact(len, "opponents") is None and fact(len, "compares") is False


@pytest.mark.parametrize(
    "facts, word",
    [
        ({"whole_bach": True}, "whole_batch"),
        ({"opponents": "greedy"}, "tuple"),  # a comma is missing: each letter would be an opponent
        ({"whole_batch": 1}, "bool"),
    ],
)
def test_a_misspelt_fact_is_refused_where_it_is_declared(facts, word):
    with refuses(ValueError, f"declares: {next(iter(facts))}", word):
        declares(**facts)


def test_a_misspelt_fact_cannot_be_asked_for():
    with pytest.raises(KeyError, match="whole_bach"):
        fact(LOSSES["kto"], "whole_bach")


def test_every_fact_has_a_meaning_and_a_holder():
    told = [
        facts for functions in (LOSSES, ADVANTAGES, OPPONENTS, CONTROLLERS) for facts in declared(functions).values()
    ]
    held = {name for facts in told for name in facts}
    assert held == set(FACTS)
    assert all(one.meaning for one in FACTS.values())
