"""Mixtures: shares that hold, an order that needs no state, parts that run out, and configs that are refused early."""

import json

import datasets
import jax
import numpy as np
import pytest
from errors import refuses

from alignax.config import ConfigError, plain
from alignax.data.counts import Counts, DataError
from alignax.data.loader import Loader
from alignax.data.mixture import epochs
from alignax.data.sources.mixture import mixture
from alignax.stages import collect, distill, inputs, online, plans, sft

WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}
SIZES = {"a": 60, "b": 30, "c": 400}


def arrays(sizes=SIZES):
    """A tree in which every leaf tells its row, and `part` the part."""
    part = np.concatenate([np.full(n, i, np.int32) for i, n in enumerate(sizes.values())])
    row = np.arange(len(part), dtype=np.int32)
    return {"side": {"tokens": row[:, None] * 10 + np.arange(3)}, "row": row, "part": part}


def mixed(batch_size=8, seed=0, **options):
    return Loader(arrays(), batch_size, seed, weights=WEIGHTS, **options)


def test_every_part_gets_its_share_whatever_its_size():
    """To within 1% of the smallest weight in the long run and, since parts take turns, in every hundred rows."""
    loader = mixed()
    drawn = np.concatenate([loader.batch(step)["part"] for step in range(150)])
    np.testing.assert_allclose(np.bincount(drawn) / 1200, list(WEIGHTS.values()), atol=0.001 + 1 / 1200)
    for start in range(0, 1100, 50):
        np.testing.assert_allclose(np.bincount(drawn[start : start + 100], minlength=3), [60, 30, 10], atol=2)


def test_weights_have_no_unit():
    one, other = (Loader(arrays(), 8, 0, weights={n: k * w for n, w in WEIGHTS.items()}) for k in (1, 20))
    assert [one.indices(i).tolist() for i in range(20)] == [other.indices(i).tolist() for i in range(20)]


def test_the_rows_of_a_part_come_once_before_any_comes_again_in_a_new_order():
    loader = mixed()
    order = np.concatenate([loader.indices(step) for step in range(150)])
    part = arrays()["part"]
    for i, size in enumerate((60, 30)):
        own = order[part[order] == i]
        rounds = [own[k : k + size].tolist() for k in range(0, len(own) - size + 1, size)]
        assert len(rounds) == 12 and all(sorted(turn) == sorted(rounds[0]) for turn in rounds)
        assert len({tuple(turn) for turn in rounds}) == 12
    assert len(set(order[part[order] == 2].tolist())) == np.sum(part[order] == 2) == 120  # of 400 rows, none twice


def test_equal_parts_are_not_shuffled_alike():
    loader = Loader(arrays({"a": 40, "b": 40}), 2, 0, weights={"a": 1.0, "b": 1.0})
    order = np.concatenate([loader.indices(step) for step in range(40)])
    first, second = (order[order // 40 == i] % 40 for i in (0, 1))
    assert np.sum(first == second) < 10  # one is expected of two random orders


def test_the_order_is_a_function_of_seed_and_step():
    loader = mixed(seed=9)
    whole = [loader.batch(step) for step in range(30)]
    for k in (29, 0, 17):
        jax.tree.map(np.testing.assert_array_equal, mixed(seed=9).batch(k), whole[k])
    assert [batch["row"].tolist() for batch in whole] != [mixed(seed=8).batch(k)["row"].tolist() for k in range(30)]
    for batch in whole:  # leaves stay together
        np.testing.assert_array_equal(batch["side"]["tokens"][:, 0], batch["row"] * 10)
        np.testing.assert_array_equal(batch["part"], arrays()["part"][batch["row"]])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_order_does_not_depend_on_the_number_of_processes(processes):
    many = [mixed(process_index=p, process_count=processes) for p in range(processes)]
    for step in range(6):
        parts = np.concatenate([loader.batch(step)["row"] for loader in many])
        np.testing.assert_array_equal(parts, mixed().batch(step)["row"])


def test_epochs_of_each_part_and_one_that_is_exhausted():
    part = arrays()["part"]
    assert epochs(part, WEIGHTS, 4000) == {"a": 40.0, "b": 40.0, "c": 1.0}  # 0.6 * 4000 / 60, ...
    assert epochs(part, {"a": 6.0, "b": 3.0, "c": 1.0}, 4000, max_repeats=40.0)["a"] == 40.0
    with refuses(DataError, "part 'a'", "60 rows", "40.0"):
        epochs(part, WEIGHTS, 4000, max_repeats=39.0)
    with refuses(DataError, "part 'd'", "left"):
        epochs(part, WEIGHTS | {"d": 0.1}, 4000)


def test_how_many_rows_a_run_draws_is_for_its_stage_to_say():
    def plan(stage, **values):
        data = {"data": {"path": "x.jsonl"}, "init_from": "x", "total_steps": 10, "batch_size": 8}
        return plans.made(plain(stage.get_config()) | data | values)

    assert plan(sft, model="harbor", tokenizer="nowhere").draws("prompt_completion") == 80
    sampled = {"reward_from": "y", "oversample": 3, "samples_per_prompt": 2, "advantage": "group_baseline"}
    assert plan(online, critic_init="none", **sampled).draws("prompt_only") == 240
    both = plan(distill, teacher_from="y", on_policy=0.25)
    assert [both.draws(form) for form in ("prompt_only", "prompt_completion")] == [20, 60]


def test_rows_know_their_part_and_counts_add_up():
    lost = Counts.of(1, {"too_long": 2})
    rows, counts = mixture(parts={"b": ([{"prompt": "y", "part": "?"}], lost), "a": ([{"prompt": "x"}], Counts(1))})
    assert rows == [{"prompt": "x", "part": "a"}, {"prompt": "y", "part": "b"}]
    assert counts == {"rows": 4, "kept": 2, "dropped_too_long": 2}
    with refuses(DataError, "part 'b'", "heldout"):
        mixture(parts={"b": ([], Counts())}, split="heldout")


# ---- from a config


def config(parts, **values):
    c = sft.get_config()
    c.source, c.model, c.tokenizer = "mixture", "harbor", "nowhere"
    c.data = {"parts": parts}
    for name, value in values.items():
        c[name] = value
    return plain(c)


PART = {"source": "jsonl", "weight": 1.0, "path": "x.jsonl"}
WRONG = {
    "no weight": ({"a": {"source": "jsonl", "path": "x"}}, "config.data.parts.a.weight = None", "float"),
    "weight": ({"a": PART | {"weight": 0}}, "config.data.parts.a.weight = 0.0", "above"),
    "type": ({"a": PART | {"weight": "7"}}, "config.data.parts.a.weight = '7'", "float"),
    "argument": ({"a": PART | {"pth": "x"}}, "config.data.parts.a.pth", "'path'"),
    "handed on": ({"a": PART | {"max_rows": "9"}}, "config.data.parts.a.max_rows = '9'", "int"),
    "missing": ({"a": {"source": "jsonl", "weight": 1.0}}, "config.data.parts.a.path", "missing"),
    "source": ({"a": PART | {"source": "jsnl"}}, "config.data.parts.a.source = 'jsnl'", "'jsonl'"),
    "nested": ({"a": PART | {"source": "mixture"}}, "config.data.parts.a.source = 'mixture'", "here"),
    "no dict": ({"a": "jsonl"}, "config.data.parts.a = 'jsonl'", "dict(source"),
    "empty": ({}, "config.data.parts", "empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_refused_before_anything_is_read(name):
    parts, key, word = WRONG[name]
    with refuses(ConfigError, key, word):
        plans.made(config(parts))


def test_a_stage_that_reads_each_row_once_takes_no_weights():
    c = collect.get_config()
    c.source, c.data, c.init_from = "mixture", {"parts": {"a": PART}}, "x"
    with refuses(ConfigError, "config.source = 'mixture'", "one"):
        plans.made(plain(c) | {"reward": lambda row, completion, *, finished: 0.0})


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_parts_of_several_forms_are_loaded_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    demos = [{"prompt": f"p{i}", "completion": "c"} for i in range(60)]
    pairs = [{"chosen": f"q{i} yes", "rejected": f"q{i} no"} for i in range(60)]
    paths = [write_rows(tmp_path / name, rows) for name, rows in (("a.jsonl", demos), ("b.jsonl", pairs))]
    parts = {
        name: {"source": "jsonl", "weight": 1.0, "path": path, "heldout_percent": percent}
        for name, path, percent in zip(("demos", "pairs"), paths, (20.0, 50.0))
    }
    load = lambda split: inputs.load_rows(plans.made(config(parts)).source, split, form="prompt_completion")  # noqa: E731
    (train, counts), (held, _) = load("train"), load("heldout")
    assert len(train) + len(held) == 120 and counts["kept"] == len(train)
    assert {row["part"] for row in train} == {row["part"] for row in held} == {"demos", "pairs"}
    assert all(row["completion"] == (" yes" if row["part"] == "pairs" else "c") for row in train + held)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    parts["pairs"] |= {"path": str(tmp_path / "none.jsonl")}
    with refuses(DataError, "part 'pairs'", "file"):
        load("train")
