"""The average of finished checkpoints: its arithmetic, its lineage, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import read, tiny

from alignax import lora
from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.lineage import lineage
from alignax.manifest import CheckpointError
from alignax.stages import average, offline, parents, probe, reward


def config(*members, **values):
    return plain(average.get_config()) | {"members": [str(one) for one in members]} | values


def test_policies_by_their_weights_make_a_policy_with_all_as_parents(run, tmp_path):
    folders = [run / name for name in ("sft", "ppo", "dpo")]
    made = average.run(config(*folders, weights=[1.0, 2.0, 1.0]), tmp_path / "soup")
    a, b, c = (load_params(folder / "params") for folder in folders)
    want = jax.tree.map(lambda x, y, z: 0.25 * x + 0.5 * y + 0.25 * z, a, b, c)
    jax.tree.map(lambda got, x: np.testing.assert_allclose(got, x, atol=1e-6), load_params(made / "params"), want)
    manifest = read(made / "manifest.json")
    assert manifest["makes"] == "policy" and set(manifest["parents"]) == {"member.0", "member.1", "member.2"}
    assert [one["content_hash"] for one in manifest["parents"].values()] == [
        read(folder / "manifest.json")["content_hash"] for folder in folders
    ]
    assert all(str(folder.name) in lineage(made) for folder in folders)
    assert manifest["longest_text"] == read(run / "sft/manifest.json")["longest_text"]
    # it starts what a policy starts
    c = plain(tiny()["dpo"]) | {"init_from": str(made), "total_steps": 1, "eval_every_steps": 0}
    c |= {"probe": plain(probe.get_config()), "data": c["data"] | {"path": str(run / "collect")}}
    offline.run(c, tmp_path / "dpo")


def test_reward_models_make_one_and_heads_may_share_their_start(run, tmp_path):
    c = plain(tiny()["reward"]) | {"init_from": str(run / "sft"), "total_steps": 1, "eval_every_steps": 0}
    c |= {"data": c["data"] | {"path": str(run / "collect")}, "head_seed": 5, "optimizer_args": {"learning_rate": 1e-6}}
    members = [reward.run(c | {"seed": seed}, tmp_path / str(seed)) for seed in (1, 2)]
    heads = [load_params(folder / "params")["scalar"]["kernel"] for folder in members]
    np.testing.assert_allclose(heads[0], heads[1], atol=1e-4)  # one start, and a learning rate next to 0
    made = average.run(config(*members), tmp_path / "warm")
    assert read(made / "manifest.json")["makes"] == "reward"
    np.testing.assert_allclose(load_params(made / "params")["scalar"]["kernel"], (heads[0] + heads[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("layers", 9, "architecture.layers: 2 and 9"),
        ("tokenizer_hash", "0" * 64, "tokenizer_hash"),
        ("template_hash", "1" * 64, "template_hash"),
    ],
)
def test_members_that_are_not_alike_are_refused(run, tmp_path, field, value, word):
    other = shutil.copytree(run / "ppo", tmp_path / "other")
    manifest = read(other / "manifest.json")
    (manifest["architecture"] if field == "layers" else manifest)[field] = value
    (other / "manifest.json").write_text(json.dumps(manifest))
    with refuses(CheckpointError, "config.members", str(run / "sft"), str(other), word):
        average.run(config(run / "sft", other), tmp_path / "soup")
    with refuses(CheckpointError, "config.members", "makes"):
        average.run(config(run / "sft", run / "reward"), tmp_path / "mixed")


@pytest.mark.slow
def test_adapters_on_one_base_are_averaged_as_the_weights_that_they_make(run, tmp_path):
    c = plain(tiny()["dpo"]) | {"init_from": str(run / "sft"), "total_steps": 1, "eval_every_steps": 0}
    c |= {"probe": plain(probe.get_config()), "data": c["data"] | {"path": str(run / "collect")}}
    c |= {"lora_args": {"rank": 2}, "optimizer_args": {"learning_rate": 1e-2}}
    members = [offline.run(c | {"seed": seed}, tmp_path / str(seed)) for seed in (1, 2)]
    made = average.run(config(*members), tmp_path / "soup")
    whole = [parents.whole(folder, read(folder / "manifest.json"))[1] for folder in members]
    want = jax.tree.map(lambda x, y: (np.asarray(x) + np.asarray(y)) / 2, *whole)
    got = load_params(made / "params")
    assert "lora" not in got and read(made / "manifest.json")["base"] is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    assert lora.merge(got) is got
    with refuses(CheckpointError, "config.members", "adapter on", "whole parameters"):
        average.run(config(members[0], run / "sft"), tmp_path / "mixed")


@pytest.mark.parametrize(
    "values, key, word",
    [
        ({"members": []}, "config.members", "2 checkpoints"),
        ({"members": ["a"]}, "config.members", "2 checkpoints"),
        ({"members": ["a", 3]}, "config.members", "folders"),
        ({"members": ["a", "b"], "weights": [1.0]}, "config.weights", "2 members"),
        ({"members": ["a", "b"], "weights": [1.0, -1.0]}, "config.weights", "above 0"),
        ({"members": ["a", "b"], "weights": [1.0, float("inf")]}, "config.weights", "finite"),
    ],
)
def test_averages_that_no_config_can_hold(values, key, word):
    with refuses(ConfigError, key, word):
        average.plan(plain(average.get_config()) | values)
