"""PPO whose policy, reference, critic and reward model stand on one frozen decoder, from SFT to export."""

import gc
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny

from alignax.checkpoint import Steps, load_params
from alignax.config import ConfigError, plain
from alignax.interop.export import export
from alignax.manifest import CheckpointError
from alignax.stages import evaluate, folder, offline, online, probe, programs, reward, roles

NAMES = {"policy": "init_from", "reward": "reward_from", "proxy": "probe.reward_from"}


def config(run, step, **values):
    c = plain(tiny()[step]) | dict(total_steps=2, eval_every_steps=0, save_every_steps=1, lora_args={"rank": 2})
    c["init_from"] = str(run / "sft")
    if step != "ppo":
        c["data"] = c["data"] | {"path": str(run / "collect")}
    return c | values


def ppo(run, judge, **values):
    """PPO by adapters, probed with the same reward model."""
    probed = plain(tiny().ppo.probe) | {"reward_from": str(judge)}
    return config(run, "ppo", reward_from=str(judge), probe=probed, eval_every_steps=2) | values


@pytest.fixture(scope="module")
def judge(run, tmp_path_factory):
    """A reward model: an adapter and a head on the SFT policy."""
    return reward.run(config(run, "reward"), tmp_path_factory.mktemp("judge") / "reward")


@pytest.fixture(scope="module")
def aligned(run, judge, tmp_path_factory):
    """The finished run: its folder; what its program was built from; what lived then that had not before."""
    seen, build, jit_step, live = SimpleNamespace(), programs.one_program, programs.sharding.jit_step, _shapes()

    def watched(algorithm, actors, score, frozen, state):
        seen.frozen, seen.state, seen.live = frozen, state, _shapes() - live
        return build(algorithm, actors, score, frozen, state)

    def kept(*args):
        seen.program = jit_step(*args)
        return seen.program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "one_program", watched)
        patch.setattr(programs.sharding, "jit_step", kept)
        seen.folder = online.run(ppo(run, judge), tmp_path_factory.mktemp("aligned") / "ppo")
    return seen


def _shapes():
    """How many buffers there are of each shape; two arrays may be views of one."""
    gc.collect()
    return Counter(shape for shape, _ in {(x.shape, _address(x)) for x in jax.live_arrays()})


def _address(x, device=0):
    return x.addressable_data(device).unsafe_buffer_pointer()


@pytest.mark.slow
def test_four_roles_have_one_decoder_in_memory(aligned):
    frozen = aligned.frozen
    trees = [frozen["reference"], frozen["reward"]["reward"], frozen["base"]["policy"], frozen["base"]["critic"]]
    for leaves in zip(*(jax.tree.leaves(tree["decoder"]) for tree in trees), strict=True):
        for device in range(jax.device_count()):
            assert len({_address(x, device) for x in leaves}) == 1
    one = Counter(x.shape for x in jax.tree.leaves(frozen["reference"]["decoder"]) if x.ndim > 2 or x.shape[0] > 100)
    assert {shape: aligned.live[shape] for shape in one} == one  # and no other copy
    assert not {x.shape for x in jax.tree.leaves(aligned.state)} & set(one)
    assert aligned.program._cache_size() == 1


def test_the_first_iteration_is_the_references_and_later_ones_are_not(aligned):
    first, second = metrics(aligned.folder)
    assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)
    assert abs(first["objective/kl"]) < 1e-5 < abs(second["objective/kl"])
    assert all(np.isfinite(value) for row in (first, second) for value in row.values() if isinstance(value, float))
    before, after = metrics(aligned.folder, "eval")
    assert abs(before["eval/kl"]) < 1e-6 < after["eval/kl"] and np.isfinite(after["eval/proxy_reward"])


def test_what_is_saved_is_what_learns_and_its_base_by_content(run, aligned):
    params, manifest = load_params(aligned.folder / "params"), read(aligned.folder / "manifest.json")
    assert set(params) == {"lora"} and manifest["architecture"]["layers"] == 2
    assert min(np.abs(one["b"]).max() for one in params["lora"]["layers"].values()) > 0
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]
    saved = load_params(aligned.folder / "steps/2/default")
    assert set(saved["policy"]["params"]) == {"lora"} and set(saved["critic"]["params"]) == {"lora", "scalar"}
    assert "decoder" not in str(jax.tree.structure(saved))  # nor in what the optimizers remember


@pytest.mark.slow  # stopped runs of every stage: test_kill_resume
def test_a_run_that_was_stopped_goes_on_bit_for_bit(run, judge, aligned, tmp_path, monkeypatch):
    save = Steps.save

    def stopped(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            online.run(ppo(run, judge), tmp_path / "ppo")
    assert not (tmp_path / "ppo/manifest.json").exists() and (tmp_path / "ppo/steps/1").is_dir()
    folder = online.run(ppo(run, judge), tmp_path / "ppo")
    manifests = [read(x / "manifest.json") for x in (folder, aligned.folder)]
    assert manifests[0]["content_hash"] == manifests[1]["content_hash"]
    assert manifests[0]["metrics"] == manifests[1]["metrics"]
    same = lambda rows: [{k: v for k, v in row.items() if k[:5] != "time/"} for row in rows]  # noqa: E731
    assert same(metrics(folder)) == same(metrics(aligned.folder))


def test_evaluation_export_and_further_stages_take_it(run, aligned, tmp_path):
    c = plain(tiny().evaluate) | dict(init_from=str(run / "sft"), policies={"ppo": str(aligned.folder)})
    c["probe"] = c["probe"] | {"reward_from": ""}
    folder = evaluate.run(c, tmp_path / "evaluate")
    found = read(folder / "eval.json")["policies"]["ppo"]
    # the same prompts and noise as the probe's at the end of the run, here with the adapter worked in: to rounding
    kl = read(aligned.folder / "manifest.json")["metrics"]["eval/kl"]
    assert kl > 1e-4 and found["kl"] == pytest.approx(kl, abs=1e-5)
    assert (export(aligned.folder, tmp_path / "out") / "model.safetensors").is_file()
    further = config(run, "dpo", init_from=str(aligned.folder), probe=plain(probe.get_config()))
    folder = offline.run(further, tmp_path / "dpo")
    assert metrics(folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the aligned policy is its reference
    assert read(folder / "manifest.json")["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]


def loaded(capsys, c, workdir):
    """The roles of a config, and the line about them."""
    capsys.readouterr()
    stage = folder.open_stage(online.STAGE, online.plan, c, workdir, None)
    tokenizer = roles.parents.get_tokenizer(stage)
    found = roles.load(stage, tokenizer, roles.parents.get_mesh(stage.plan.mesh))
    return found, " ".join(capsys.readouterr().err.split())


def test_an_adapted_policy_goes_on_from_its_adapter_which_stays_the_reference(run, judge, aligned, tmp_path, capsys):
    found, line = loaded(capsys, ppo(run, judge, init_from=str(aligned.folder)), tmp_path / "ppo")
    assert found.policy["lora"] is found.reference["lora"]  # the state gets a copy
    assert np.abs(found.policy["lora"]["layers"]["q"]["b"]).max() > 0
    assert (
        found.critic["lora"] is found.rewards["reward"][1]["lora"]
        and found.critic["scalar"] is found.rewards["reward"][1]["scalar"]
    )
    assert "one base for policy, reference, critic, reward: " in line and "; learning: policy " in line
    assert len(found.bases) == 1


@pytest.mark.parametrize("critic", ["reward", "policy"])
def test_a_whole_reward_model_has_a_decoder_of_its_own(run, tmp_path, capsys, critic):
    found, line = loaded(capsys, ppo(run, run / "reward", critic_init=critic), tmp_path / "ppo")
    ours, theirs = (["policy", "reference"], ["critic", "reward"]) if critic == "reward" else (
        ["policy", "reference", "critic"], ["reward"])  # fmt: skip
    assert f"one base for {', '.join(ours)}: " in line and f"one base for {', '.join(theirs)}: " in line
    below = found.rewards["reward"][1] if critic == "reward" else found.reference
    assert found.base["critic"]["decoder"] is below["decoder"] and set(found.critic) == {"lora", "scalar"}
    one, other = (x["lora"]["layers"]["q"]["a"] for x in (found.policy, found.critic))
    assert np.abs(one - other).max() > 0  # two fresh adapters, of a key each


def test_without_adapters_every_role_is_whole(run, judge, tmp_path, capsys):
    found, line = loaded(capsys, ppo(run, judge, lora_args={}), tmp_path / "ppo")
    assert line == "" and found.bases is None and set(found.frozen()) == {"reference", "reward"}
    trees = found.policy, found.critic, found.reference, found.rewards["reward"][1]
    assert [set(tree) - {"scalar"} for tree in trees] == [{"decoder"}] * 4


@pytest.mark.parametrize("key", ["init_from", "reward_from"])
def test_an_adapter_for_another_base_is_refused_before_anything_is_compiled(run, judge, aligned, tmp_path, key, caplog):
    folder = shutil.copytree({"init_from": aligned.folder, "reward_from": judge}[key], tmp_path / "adapter")
    manifest = read(folder / "manifest.json")
    manifest["base"] |= {"content_hash": "0" * 64, "path": str(run / "sft")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    c = ppo(run, judge, probe=plain(probe.get_config())) | {key: str(folder)}
    with jax.log_compiles(), refuses(CheckpointError, "content", "bring back"):
        online.run(c, tmp_path / "ppo")
    assert "Finished XLA compilation" not in caplog.text and not (tmp_path / "ppo/steps").exists()


def test_a_critic_of_another_shape_than_its_start_is_refused(run, judge, tmp_path):
    with refuses(ConfigError, "lora_args = {'rank': 3}", "critic_init", "shape"):
        online.run(ppo(run, judge, lora_args={"rank": 3}), tmp_path / "ppo")
