"""Several reward models, and several heads of one, as the members of an ensemble in a run."""

import json
import shutil

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny
from tiny import pair_batch
from tiny import tiny as small

from alignax import forward
from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.losses.bradley_terry import bradley_terry
from alignax.manifest import CheckpointError
from alignax.ops.masked import reduce
from alignax.stages import online, probe, reward

STD = "alignax.rewards.combine:mean_less_std"


def reward_config(run, **values):
    c = plain(tiny()["reward"])
    own = {"init_from": str(run / "sft"), "total_steps": 2, "eval_every_steps": 0, "save_every_steps": 2}
    return c | own | {"data": c["data"] | {"path": str(run / "collect")}} | values


def ppo(run, **rewards):
    c = plain(tiny()["ppo"])
    own = {"init_from": str(run / "sft"), "reward_from": "", "critic_init": "policy", "rewards": rewards}
    return c | own | {"probe": plain(probe.get_config()), "total_steps": 2, "eval_every_steps": 0}


@pytest.fixture(scope="module")
def heads(run, tmp_path_factory):
    """A reward model with three heads, each of half of the pairs."""
    config = reward_config(run, heads=3, bootstrap=0.5)
    return reward.run(config, tmp_path_factory.mktemp("heads") / "reward")


def test_heads_are_trained_on_one_trunk_each_from_its_own_start(heads):
    manifest, head = read(heads / "manifest.json"), load_params(heads / "params")["scalar"]
    assert manifest["data"]["heads"] == 3 and manifest["data"]["attributes"] == ["head_0", "head_1", "head_2"]
    kernel = np.asarray(head["kernel"])
    assert kernel.shape[1] == 3 and np.abs(np.corrcoef(kernel.T)[np.triu_indices(3, 1)]).max() < 0.9
    assert 0 <= manifest["metrics"]["heldout_accuracy"] <= 1 and manifest["calibration"]["sd"] > 0


def test_the_loss_of_heads_is_the_mean_of_theirs_and_bootstrap_leaves_rows_out_for_good():
    c = plain(reward.get_config()) | {"init_from": "x", "source": "jsonl", "data": {"path": "x"}, "heads": 3}
    (model, params), batch = small(layers=1, scalar=True), pair_batch(B=16)
    tree = params | {"scalar": model.init_scalar(jax.random.key(1), 3)}
    whole = reward.view_of_heads(reward.plan(c), model, tree, {}, batch)
    alone = [forward.scored(model, tree | {"scalar": jax.tree.map(lambda x, i=i: x[..., i], tree["scalar"])}, batch)
             for i in range(3)]  # fmt: skip
    mean = np.mean([reduce(bradley_terry(one)) for one in alone])
    np.testing.assert_allclose(reduce(bradley_terry(whole)), mean, rtol=1e-5)
    np.testing.assert_allclose(whole.chosen.reshape(16, 3).T, [x.chosen for x in alone], rtol=1e-5, atol=1e-6)
    half = reward.view_of_heads(reward.plan(c | {"bootstrap": 0.5}), model, tree, {}, batch)
    masks = np.asarray(half.mask).reshape(16, 3)
    assert 0 < masks.sum() < 48 and len({tuple(column) for column in masks.T}) == 3
    order = np.arange(16)[::-1]
    turned = jax.tree.map(lambda x: x[order], batch)
    again = reward.view_of_heads(reward.plan(c | {"bootstrap": 0.5}), model, tree, {}, turned)
    np.testing.assert_array_equal(np.asarray(again.mask).reshape(16, 3), masks[order])


@pytest.mark.slow
def test_an_ensemble_of_folders_and_one_of_heads(run, heads, tmp_path):
    """The same batch, so the parts of one run are those of the others."""
    other = reward.run(reward_config(run, seed=1), tmp_path / "other")
    folders = [str(run / "reward"), str(other)]
    alone = ppo(run, a={"from": folders[0]}, b={"from": folders[1]})
    want = metrics(online.run(alone, tmp_path / "alone"))[0]
    ensembles = ppo(
        run, both={"from": folders, "function": "alignax.rewards.combine:mean", "weight": 2.0},
        heads={"from": str(heads), "function": STD, "coef": 0.5, "weight": 1.0}, whole={"from": str(heads)},
    )  # fmt: skip
    got = metrics(online.run(ensembles, tmp_path / "ensembles"))[0]
    mean = (want["rewards/a/mean"] + want["rewards/b/mean"]) / 2
    assert got["rewards/both/mean"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert got["rewards/both/disagreement/mean"] > 0
    # without a function the heads are one score, their mean
    less = got["rewards/whole/mean"] - 0.5 * got["rewards/heads/disagreement/mean"]
    assert got["rewards/heads/mean"] == pytest.approx(less, rel=1e-4, abs=1e-5)
    total = 2 * got["rewards/both/mean"] + got["rewards/heads/mean"] + got["rewards/whole/mean"]
    assert got["objective/scores"] == pytest.approx(total, rel=1e-4, abs=1e-5)
    parents = read(tmp_path / "ensembles/manifest.json")["parents"]
    assert set(parents) == {"policy", "reward.both.0", "reward.both.1", "reward.heads", "reward.whole"}


def test_members_that_are_not_alike_are_refused_before_they_are_loaded(run, tmp_path, monkeypatch):
    other = shutil.copytree(run / "reward", tmp_path / "other")
    manifest = read(other / "manifest.json")
    manifest["architecture"]["layers"], manifest["template_hash"] = 7, "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("alignax.stages.parents.load_reward", lambda *_, **__: pytest.fail("loaded"))
    config = ppo(run, ens={"from": [str(run / "reward"), str(other)], "function": STD})
    with refuses(CheckpointError, "config.rewards.ens.from", str(run / "reward"), str(other), "architecture.layers: 2"):
        online.run(config, tmp_path / "ppo")


def test_one_with_a_single_score_has_no_members(run, tmp_path):
    with refuses(ConfigError, "config.rewards.ens.function", "single score", "heads"):
        online.run(ppo(run, ens={"from": str(run / "reward"), "function": STD}), tmp_path / "ppo")


@pytest.mark.parametrize(
    "ens, key, word",
    [
        ({"from": ["a", "b"]}, "config.rewards.ens", "function"),
        ({"from": ["a"], "function": STD}, "config.rewards.ens.from", "2 reward models"),
        ({"from": ["a", "a"], "function": STD}, "config.rewards.ens.from", "different"),
        ({"from": ["a", 5], "function": STD}, "config.rewards.ens.from", "folders"),
        ({"from": ["a", "b"], "function": STD, "coeff": 1.0}, "config.rewards.ens.coeff", "'coef'"),
        ({"from": ["a", "b"], "function": "alignax.worlds.gold:gold"}, "config.rewards.ens", "K B"),
    ],
)
def test_ensembles_that_no_config_can_hold(ens, key, word):
    c = plain(online.get_config()) | {
        "init_from": "x",
        "source": "alignax.worlds.sources:prompts",
        "rewards": {"ens": ens},
    }
    with refuses(ConfigError, key, word):
        online.plan(c | {"critic_init": "policy"})


@pytest.mark.parametrize(
    "values, key",
    [({"heads": 0}, "heads"), ({"bootstrap": 0.5}, "bootstrap"), ({"heads": 2, "bootstrap": 1.5}, "bootstrap"),
     ({"heads": 2, "loss": "regression"}, "heads")],
)  # fmt: skip
def test_heads_that_no_config_can_hold(values, key):
    c = plain(reward.get_config()) | {"init_from": "x", "source": "jsonl", "data": {"path": "x"}}
    with refuses(ConfigError, f"config.{key} = "):
        reward.plan(c | values)
