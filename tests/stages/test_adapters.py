"""Stages that train an adapter on a frozen decoder, and what reads one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stage_runs import metrics, read, tiny

from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.lora import merge
from alignax.manifest import CheckpointError
from alignax.stages import offline, parents, probe, reward, sft
from alignax.stages.export import export
from alignax.stages.precheck import precheck

RANK = 2


def config(run, step, **values):
    c = plain(tiny()[step]) | dict(total_steps=2, eval_every_steps=0, save_every_steps=1)
    c |= dict(init_from=str(run / "sft"), lora_args={"rank": RANK}) | values
    if step == "sft":
        c |= dict(model="", model_args={}, tokenizer="")
    else:
        c["data"] = c["data"] | {"path": str(run / "collect")}
    return c | (dict(probe=plain(probe.get_config())) if "probe" in c else {})


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """SFT by an adapter on the finished SFT policy."""
    return sft.run(config(run, "sft"), tmp_path_factory.mktemp("adapters") / "sft")


def test_a_checkpoint_holds_the_adapter_and_knows_its_base(run, tuned):
    params, manifest = load_params(tuned / "params"), read(tuned / "manifest.json")
    assert set(params) == {"lora"} and params["lora"]["layers"]["q"]["a"].shape[-1] == RANK
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]
    moved = [np.abs(one["b"]).max() for one in params["lora"]["layers"].values()]
    assert min(moved) > 0  # every adapter was trained from zero
    assert all((one["scale"] == 2.0).all() for one in params["lora"]["layers"].values())
    assert all(np.isfinite(row["loss"]) for row in metrics(tuned))


def test_the_first_loss_is_that_of_the_base_whatever_is_trained(run, tuned, tmp_path):
    whole = sft.run(config(run, "sft", lora_args={}), tmp_path / "whole")
    first = [metrics(folder)[0]["loss"] for folder in (tuned, whole)]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_preferences_start_at_the_adapted_policy_as_the_reference(tuned, run, tmp_path):
    folder = offline.run(config(run, "dpo", init_from=str(tuned)), tmp_path / "dpo")
    assert metrics(folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    manifest = read(folder / "manifest.json")
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]  # not the adapter's
    one, other = (load_params(x / "params")["lora"]["layers"]["q"] for x in (tuned, folder))
    assert np.abs(one["a"] - other["a"]).max() > 0  # it went on from the same adapter
    assert np.abs(one["a"] - other["a"]).max() < 0.1 * np.abs(one["a"]).max()


def test_a_reward_model_is_an_adapter_and_a_head(run, tmp_path):
    folder = reward.run(config(run, "reward"), tmp_path / "reward")
    assert set(load_params(folder / "params")) == {"lora", "scalar"}
    manifest = read(folder / "manifest.json")
    _, params = parents.whole(folder, manifest)
    assert set(params) == {"decoder", "scalar"} and np.isfinite(manifest["calibration"]["sd"])


def test_an_export_has_the_adapter_worked_in(run, tuned, tmp_path):
    from safetensors.numpy import load_file

    tensors = load_file(export(tuned, tmp_path / "out") / "model.safetensors")
    base = load_params(run / "sft/params") | load_params(tuned / "params")
    want = jax.device_get(merge(jax.tree.map(jnp.asarray, base)))["decoder"]["layers"]["q"]["kernel"]
    np.testing.assert_allclose(tensors["model.layers.0.self_attn.q_proj.weight"].T, want[0], atol=1e-6)


def test_all_parameters_may_be_trained_from_an_adapter(run, tuned, tmp_path):
    folder = sft.run(config(run, "sft", init_from=str(tuned), lora_args={}), tmp_path / "whole")
    assert set(load_params(folder / "params")) == {"decoder"} and read(folder / "manifest.json")["base"] is None


def test_an_adapter_for_another_base_is_refused(copy, tmp_path):
    folder = sft.run(config(copy, "sft"), tmp_path / "sft")
    file = copy / "sft/manifest.json"
    file.write_text(json.dumps(read(file) | {"content_hash": "0" * 64}))
    with pytest.raises(CheckpointError, match="is an adapter on the content .*: bring back the base"):
        parents.whole(folder, read(folder / "manifest.json"))


def test_an_adapter_of_another_shape_is_refused(run, tuned, tmp_path):
    with pytest.raises(ConfigError, match="the parent is an adapter of another shape"):
        sft.run(config(run, "sft", init_from=str(tuned), lora_args={"rank": RANK + 1}), tmp_path / "sft")


@pytest.mark.parametrize(
    "step, values, message",
    [
        ("sft", {"init_from": "", "model": "harbor", "tokenizer": "a:b"}, "lora_args is set, but config.init_from is"),
        ("sft", {"lora_args": {"rnk": 4}}, "config.lora_args.rnk: init takes no such argument; did you mean 'rank'"),
        ("dpo", {"reference_args": {"every": 2}}, "a mixture of two adapters is no mixture of the models"),
    ],
)
def test_settings_that_cannot_be(run, step, values, message):
    with pytest.raises(ConfigError, match=message):
        precheck(config(run, step) | values)
