"""The reference's log-probabilities from disk: equal to running it, refused where anything differs, freed for good."""

import json
import os
import shutil
import weakref

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import metrics, read, tiny

from alignax.checkpoint import load_params
from alignax.config import ConfigError
from alignax.manifest import CheckpointError, start
from alignax.models.config import ModelConfig
from alignax.sharding import make_mesh
from alignax.stages import fitting, folder, offline, parents, probe, reference

# products of the same shapes have the same bits, but not where XLA's older emitters fuse what is around them
SAME_BITS = "use_fusion_emitters=false" not in os.environ["XLA_FLAGS"]


def config(run, **values):
    c = tiny().dpo
    c.init_from, c.data.path, c.probe = str(run / "sft"), str(run / "collect"), probe.get_config()
    c.total_steps, c.eval_every_steps, c.save_every_steps = 2, 0, 1
    for name, value in values.items():
        c[name] = value
    return c


def numbers(folder, split="train"):
    """The rows of the log without the times."""
    return [{k: v for k, v in row.items() if k != "split" and k[:5] != "time/"} for row in metrics(folder, split)]


# kto: single replies, whose mismatched ones need the reference too; batches of 16 do not divide the rows of either
@pytest.mark.parametrize("loss", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_cached_equals_online(run, tmp_path, loss):
    online, cached = (
        offline.run(config(run, loss=loss, loss_args={}, reference=how), tmp_path / how) for how in ("online", "cached")
    )
    manifests = [read(folder / "manifest.json") for folder in (online, cached)]
    fields = ("data", "parents", "tokenizer_hash")
    assert [manifests[0][field] for field in fields] == [manifests[1][field] for field in fields]
    if loss == "dpo" and SAME_BITS:
        assert [numbers(online, s) for s in ("train", "eval")] == [numbers(cached, s) for s in ("train", "eval")]
        assert manifests[0]["content_hash"] == manifests[1]["content_hash"]
    if loss == "dpo":
        assert numbers(cached)[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)  # trap 29
    for one, other in zip(numbers(online), numbers(cached), strict=True):
        # other metrics are differences of the log-probabilities of whole replies, and round as these do
        sums = max(abs(value) for name, value in other.items() if name.startswith("logps/"))
        assert one == pytest.approx(other, rel=1e-5, abs=2.4e-7 * sums)
    trees = [load_params(folder / "params") for folder in (online, cached)]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trees[0], load_params(run / "sft/params"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2 * max(jax.tree.leaves(moved))), *trees)


@pytest.fixture(scope="module")
def cached(run, tmp_path_factory):
    """A finished run with a cached reference, for reading only."""
    return offline.run(config(run, reference="cached"), tmp_path_factory.mktemp("cached") / "dpo")


def test_the_reference_is_freed_before_the_first_step(run, tmp_path, monkeypatch):
    seen, load, train = [], parents.new_or_loaded, fitting.train

    def loaded(*args, **options):
        model, params = load(*args, **options)
        seen.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(params))
        return model, params

    def trained(*args, **options):
        assert seen and not [leaf for leaf in seen if leaf() is not None]
        return train(*args, **options)

    monkeypatch.setattr(parents, "new_or_loaded", loaded)
    monkeypatch.setattr(fitting, "train", trained)
    offline.run(config(run, reference="cached"), tmp_path / "dpo")
    assert seen


@pytest.mark.slow  # that it reads: test_what_is_in_the_file
def test_a_run_that_goes_on_reads_the_file_and_ends_the_same(run, cached, tmp_path, monkeypatch):
    out = tmp_path / "dpo"
    monkeypatch.setattr(folder, "finish", _killed)
    with pytest.raises(KeyboardInterrupt):
        offline.run(config(run, reference="cached"), out)
    monkeypatch.undo()
    monkeypatch.setattr(reference, "computed", _killed)
    offline.run(config(run, reference="cached"), out)
    assert numbers(out) == numbers(cached)
    assert read(out / "manifest.json")["content_hash"] == read(cached / "manifest.json")["content_hash"]


def _killed(*args, **options):
    raise KeyboardInterrupt


def test_what_is_in_the_file_is_what_the_loss_sees(run, cached, tmp_path, monkeypatch):
    """Trap 29, computed and then ignored: a reference that finds the chosen replies likelier makes margins fall."""
    computed = reference.computed
    shifted = lambda logp: {name: x + ("chosen" in name) for name, x in logp.items()}  # noqa: E731
    monkeypatch.setattr(reference, "computed", lambda *args: shifted(computed(*args)))
    rows = numbers(offline.run(config(run, reference="cached"), tmp_path / "dpo"))
    assert rows[0]["rewards/margins"] < numbers(cached)[0]["rewards/margins"] - 0.1


def key_of(folder):
    with np.load(folder / reference.FILE) as file:
        return json.loads(str(file["key"]))


@pytest.mark.parametrize(
    "name",
    [
        "alignax",
        "parameters",
        "architecture",
        "jax",
        "device",
        "dtype",
        "attention",
        "matmul_precision",
        "tokenizer",
        "template",
        "max_length",
        "data",
    ],
)
def test_a_file_of_anything_else_is_refused(cached, name):
    key, path = key_of(cached), cached / reference.FILE
    assert reference.read(path, key).keys() == {
        f"{s}/{x}" for s in ("train", "heldout") for x in ("chosen", "rejected")
    }
    with refuses(CheckpointError, f"({name}: was", "now other", "delete"):
        reference.read(path, key | {name: "other"})
    with refuses(CheckpointError, "further", "None", "1"):
        reference.read(path, key | {"further": 1})


def test_the_key_says_how_the_numbers_are_computed(monkeypatch):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    key = lambda **fields: reference.computation(ModelConfig(vocab_size=8, **fields), mesh)  # noqa: E731
    keys = [key(), key(attention="xla"), key(dtype="bfloat16")]
    with jax.default_matmul_precision("float32"):
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        keys.append(key())
    assert len({tuple(one.values()) for one in keys}) == len(keys) and key() == keys[0]
    assert keys[0]["device"].startswith("cpu ")


def test_a_damaged_file_is_refused_and_a_failed_write_leaves_none(tmp_path, monkeypatch):
    path, key, arrays = tmp_path / "reference.npz", {"data": "a"}, {"train/chosen": np.arange(3.0)}
    assert reference.read(path, key) is None
    with monkeypatch.context() as broken:
        broken.setattr(reference.os, "fsync", _full)
        with refuses(CheckpointError, "reference.npz", "No space left"):
            reference.write(path, key, arrays)
    assert list(tmp_path.iterdir()) == []
    reference.write(path, key, arrays)
    np.testing.assert_array_equal(reference.read(path, key)["train/chosen"], arrays["train/chosen"])
    path.write_bytes(path.read_bytes()[:-40])
    with refuses(CheckpointError, "reference.npz", "delete"):
        reference.read(path, key)


def _full(*args):
    raise OSError(28, "No space left on device")


def test_another_config_clears_the_file(cached, tmp_path):
    folder = shutil.copytree(cached, tmp_path / "dpo")
    assert (folder / reference.FILE).is_file()
    start(folder, {"stage": "offline"}, {})
    assert not (folder / reference.FILE).exists()


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(reference="cachd"), "config.reference = 'cachd'", "'cached'"),
        (dict(reference="cached", reference_args=dict(alpha=0.6)), "reference_args", "moves"),
        (dict(reference="cached", loss="simpo", loss_args={}), "config.reference = 'cached'", "'simpo'"),
    ],
)
def test_what_cannot_be_cached_is_refused(run, tmp_path, values, key, word):
    with refuses(ConfigError, key, word):
        offline.run(config(run, **values), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_probe_needs_the_reference_itself(run, tmp_path):
    values = tiny().dpo
    values.init_from, values.data.path, values.reference = str(run / "sft"), str(run / "collect"), "cached"
    with refuses(ConfigError, "probe", "reference", "freed"):
        offline.run(values, tmp_path / "x")
