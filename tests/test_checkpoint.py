"""Arrays on disk: exact, on any mesh, and never half of a step, whatever happens during a save."""

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from errors import names, refuses
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignax import checkpoint
from alignax.checkpoint import CheckpointError, Steps, content_hash, load_params, save_params, verify
from alignax.manifest import files_hash, write_manifest
from alignax.types import record


@record
class State:
    params: dict
    opt: object
    step: jax.Array
    key: jax.Array  # raw
    stream: jax.Array  # typed
    cursor: np.ndarray
    nothing: None


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    layers = [{"w": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)} for _ in range(2)]
    return {"layers": layers, "bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16), "scale": jnp.float32(-0.0)}


def make_state(seed=0):
    params = make_params(seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(
        params=params,
        opt=optimizer.init(params),
        step=jnp.int32(3),
        key=jax.random.key_data(jax.random.key(seed)),
        stream=jax.random.split(jax.random.key(seed + 1), 2),
        cursor=np.int64([2**40 + seed]),
        nothing=None,
    )


def bits(tree):
    """dtype, shape and bytes of every leaf."""
    leaves = jax.tree.leaves(tree)
    leaves = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [(x.dtype.name, x.shape, np.asarray(x).tobytes()) for x in leaves]


def test_a_state_comes_back_bit_for_bit_though_it_is_donated_at_once(tmp_path):
    @jax.jit
    def rows(x):
        return jnp.cos(jnp.arange(2_000_000.0) + x)

    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Steps(tmp_path / "steps") as steps:
        state = {"state": make_state(), "big": rows(0.0)}
        expected = bits(state)
        assert steps.save(1, state)
        for _ in range(5):
            state["big"] = bump(state["big"])  # writes over the buffer, if nothing keeps it for the save
        state["state"].cursor[0] = 0
        step, restored = steps.restore_latest({"state": make_state(1), "big": rows(1.0)})
    assert step == 1
    assert bits(restored) == expected
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert type(restored["state"].cursor) is np.ndarray


def test_another_mesh_than_at_the_save(tmp_path):
    w = jnp.arange(128.0).reshape(16, 8)
    meshes = [jax.make_mesh((8, 1), ("a", "b")), jax.make_mesh((2, 4), ("a", "b"))]
    first, second = (NamedSharding(mesh, spec) for mesh, spec in zip(meshes, (P("a"), P("b", "a"))))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    with Steps(tmp_path / "steps") as steps:
        steps.save(1, {"w": jax.device_put(w, first)})
        for sharding in (first, second, one):
            _, state = steps.restore_latest({"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)})
            assert state["w"].sharding == sharding
            np.testing.assert_array_equal(state["w"], w)
        _, state = steps.restore_latest(jax.eval_shape(lambda: {"w": w}))
        assert state["w"].devices() == {jax.devices()[0]}


def test_the_last_steps_are_kept_and_no_step_is_written_twice(tmp_path):
    with Steps(tmp_path / "steps", keep=2) as steps:
        assert steps.latest() is None and steps.restore_latest({"x": jnp.zeros(2)}) is None
        for step in (1, 2, 5):
            assert steps.save(step, {"x": jnp.full(2, step)})
        assert not steps.save(5, {"x": jnp.full(2, 5)})
    assert sorted(int(path.name) for path in (tmp_path / "steps").iterdir()) == [2, 5]
    with Steps(tmp_path / "steps") as steps:
        with refuses(CheckpointError, "step 5", "step 5", "another run"):
            steps.save(5, {"x": jnp.zeros(2)})
        assert steps.restore_latest({"x": jnp.zeros(2, int)})[0] == 5
        assert not steps.save(5, {"x": jnp.full(2, 5)})
        assert steps.save(6, {"x": jnp.full(2, 6)})
    with pytest.raises(CheckpointError, match="keep = 0"):
        Steps(tmp_path, keep=0)


def test_leftovers_of_a_killed_save_and_of_a_killed_removal_are_no_steps(tmp_path):
    with Steps(tmp_path / "steps") as steps:
        for step in (1, 2):
            steps.save(step, {"x": jnp.full(2, step)})
    (tmp_path / "steps/7.orbax-checkpoint-tmp/default").mkdir(parents=True)
    for path in sorted((tmp_path / "steps/1").rglob("*"), reverse=True)[:-2]:  # half removed
        path.rmdir() if path.is_dir() else path.unlink()
    with Steps(tmp_path / "steps") as steps:
        step, state = steps.restore_latest({"x": jnp.zeros(2, int)})
        assert (step, state["x"].tolist()) == (2, [2, 2])
        steps.save(3, {"x": jnp.full(2, 3)})
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["2", "3"]


def test_another_structure_shape_or_dtype_is_named(tmp_path):
    with Steps(tmp_path / "steps") as steps:
        steps.save(4, make_state())
        other = make_state()
        other.params["layers"][1]["w"] = jnp.zeros((16, 9))
        other.params["scale"] = jnp.zeros((), jnp.bfloat16)
        other.params["head"] = jnp.zeros(8)
        del other.params["bias"]
        with refuses(CheckpointError, "steps/4", "4") as error:
            steps.restore_latest(other)
    for key, saved, wanted in (
        ("params/layers/1/w:", "float32[16, 8]", "float32[16, 9]"),
        ("params/scale:", "float32[]", "bfloat16[]"),
        ("params/head:", "nothing", "float32[8]"),
        ("params/bias:", "bfloat16[8]", "nothing"),
    ):
        names(str(error.value), key, saved, wanted)


def damage(folder, how):
    """Makes the arrays of a step unreadable; how many files that were."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    for path in files:
        content = bytearray(path.read_bytes())
        if how == "a bit":
            content[len(content) // 2] ^= 1
        path.write_bytes(b"" if how == "empty" else bytes(content))
        if how == "gone":
            path.unlink()
    return len(files)


@pytest.mark.parametrize("how", ["empty", "a bit", "gone"])
def test_a_damaged_step_is_set_aside_with_a_warning_for_the_one_before(how, tmp_path, capsys):
    noise = lambda step: np.random.default_rng(step).normal(size=20_000)  # noqa: E731  # it does not shrink
    with Steps(tmp_path / "steps") as steps:
        for step in (1, 2):
            steps.save(step, {"x": noise(step)})
    assert damage(tmp_path / "steps/2", how)
    with Steps(tmp_path / "steps") as steps:
        step, state = steps.restore_latest({"x": np.zeros(20_000)})
        np.testing.assert_array_equal(state["x"], noise(1))
        assert step == steps.latest() == 1 and (tmp_path / "steps/2.damaged").is_dir()
        names("".join(capsys.readouterr()), "steps/2", "cannot be read", "2.damaged", "step 1 is read")
        assert steps.save(2, {"x": noise(3)})  # the run goes on
    with Steps(tmp_path / "steps") as steps:
        np.testing.assert_array_equal(steps.restore_latest({"x": np.zeros(20_000)})[1]["x"], noise(3))


def test_where_no_step_can_be_read_all_stay_and_it_is_said(tmp_path):
    with Steps(tmp_path / "steps") as steps:
        steps.save(1, {"x": jnp.full(2000, 1)})
    assert damage(tmp_path / "steps/1", "empty")
    with Steps(tmp_path / "steps") as steps, refuses(CheckpointError, "steps/1", "read", "none: from the start"):
        steps.restore_latest({"x": jnp.zeros(2000, int)})
    assert (tmp_path / "steps/1").is_dir()


SAVE_IN_A_LOOP = """
import sys, jax.numpy as jnp
from alignax.checkpoint import Steps
with Steps(sys.argv[1]) as steps:
    found = steps.restore_latest({"step": jnp.int32(0), "x": jnp.zeros(100_000), "y": jnp.zeros(3, jnp.bfloat16)})
    step = found[0] if found else 0
    while True:
        step += 1
        x = jnp.cos(jnp.arange(100_000.0) + step)
        steps.save(step, {"step": jnp.int32(step), "x": x, "y": jnp.full(3, step, jnp.bfloat16)})
        print(step, flush=True)  # so the step before is complete
"""


def test_kill_nine_during_saves_leaves_a_complete_step(tmp_path):
    rng, before = np.random.default_rng(), 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_IN_A_LOOP, str(tmp_path / "steps")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        while int(child.stdout.readline()) < before + 3:
            pass
        time.sleep(rng.uniform(0, 0.2))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert child.returncode == -9
        like = {"step": jnp.int32(0), "x": jnp.zeros(100_000), "y": jnp.zeros(3, jnp.bfloat16)}
        with Steps(tmp_path / "steps") as steps:
            step, state = steps.restore_latest(like)
        assert step >= before + 2 and int(state["step"]) == step
        np.testing.assert_array_equal(state["x"], jnp.cos(jnp.arange(100_000.0) + step))
        np.testing.assert_array_equal(state["y"], jnp.full(3, step, jnp.bfloat16))
        before = step


FILL_THE_DISK = """
import resource, signal, sys, numpy as np, jax.numpy as jnp
from alignax.checkpoint import CheckpointError, Steps, save_params
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = jnp.asarray(np.random.default_rng(0).normal(size=500_000), jnp.float32)
with Steps(sys.argv[1] + "/steps") as steps:
    steps.save(10, {"x": noise})
    steps.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for name, act in (
        ("wait", lambda: (steps.save(20, {"x": noise + 1}), steps.wait())),
        ("next save", lambda: (steps.save(30, {"x": noise + 2}), steps.save(40, {"x": noise}))),
        ("params", lambda: save_params(sys.argv[1] + "/params", {"x": noise})),
    ):
        try:
            act()
            print(f"{name}: no error")
        except CheckpointError as error:
            print(f"{name}: {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert steps.restore_latest({"x": noise})[0] == 10
    steps.save(50, {"x": noise + 3})
try:
    with Steps(sys.argv[1] + "/steps") as steps:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        steps.restore_latest({"x": noise})
        steps.save(60, {"x": noise + 4})
        raise ZeroDivisionError("the loop failed")
except ZeroDivisionError as error:
    print("note:", *error.__notes__)
"""


def test_a_write_that_fails_in_the_background_names_step_cause_fix_and_the_last_good_step(tmp_path):
    child = subprocess.run([sys.executable, "-c", FILL_THE_DISK, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    assert "Save Finalize thread" not in child.stderr
    lines = child.stdout.splitlines()
    for line, name, step, last in zip(lines, ("wait", "next save"), (20, 30), (10, 10)):
        assert line.startswith(f"{name}: {tmp_path}/steps: step {step} was not saved: "), line
        assert "File too large" in line and "Raise the limit on the size of files" in line
        assert line.endswith(f"goes on from step {last}.") and f"The last good step, {last}, is kept" in line
    assert lines[2].startswith(f"params: {tmp_path}/params: the parameters were not saved: ")
    assert lines[3].startswith(f"note: {tmp_path}/steps: step 60 was not saved: ")
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["10", "50"]
    assert [path.name for path in tmp_path.iterdir()] == ["steps"]


def test_a_disk_without_room_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with Steps(tmp_path / "steps") as steps:
        steps.save(1, {"x": jnp.zeros(1000)})
        steps.wait()
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 3999, 3999))
        with refuses(CheckpointError, "step 2 ", "No space left", "0.0 MB", "step, 1,", "kept"):
            steps.save(2, {"x": jnp.zeros(1000)})
        monkeypatch.undo()
        assert steps.save(2, {"x": jnp.zeros(1000)})


def test_params_come_back_and_replace_what_was_there(tmp_path):
    params = make_params()
    save_params(tmp_path / "params", make_params(1))
    save_params(tmp_path / "params", params)
    assert bits(load_params(tmp_path / "params", params)) == bits(params)
    raw = load_params(tmp_path / "params")
    assert content_hash(raw) == content_hash(params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(raw))
    with refuses(CheckpointError, "absent", "no parameters"):
        load_params(tmp_path / "absent", params)
    with refuses(CheckpointError, "layers/0/w", "float32[16, 8]", "float32[16, 4]"):
        load_params(tmp_path / "params", params | {"layers": [{"w": jnp.zeros((16, 4))}, params["layers"][1]]})


@record
class Disordered:
    w: jax.Array
    b: jax.Array


def test_the_content_hash_knows_values_not_placement():
    params = make_params()
    sharding = NamedSharding(jax.make_mesh((8,), ("a",)), P("a"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, sharding) if x.ndim else x, params)
    numpy = jax.tree.map(np.asarray, dict(reversed(params.items())))
    assert content_hash(params) == content_hash(sharded) == content_hash(numpy)
    w, b = params["layers"][0]["w"], params["bias"]
    assert content_hash(Disordered(w=w, b=b)) == content_hash({"w": w, "b": b})
    others = [
        params | {"scale": jnp.float32(0.0)},  # differs in the sign of zero
        params | {"bias": params["bias"].astype(jnp.float32)},
        params | {"bias": params["bias"][:, None]},
        {("offset" if name == "bias" else name): leaf for name, leaf in params.items()},
        params | {"layers": params["layers"][::-1]},
    ]
    assert len({content_hash(other) for other in [params, *others]}) == 6


def test_the_content_hash_is_the_documented_one():
    import hashlib

    tree = {"b": np.float32([1.0]), "a": {"c": np.int32(7)}}
    expected = hashlib.sha256(b"a/c int32 ()\n" + b"\x07\0\0\0" + b"b float32 (1,)\n" + b"\0\0\x80\x3f").hexdigest()
    assert content_hash(tree) == expected


def test_verify_hashes_what_is_on_disk(tmp_path):
    params = make_params()
    save_params(tmp_path / "sft/params", params)
    fields = {"name": "x", "config": {}, "parents": {}, "step": 1}
    write_manifest(tmp_path / "sft", stage="sft", makes="policy", content_hash=content_hash(params), **fields)
    assert verify(tmp_path / "sft")["stage"] == "sft"
    save_params(tmp_path / "sft/params", make_params(1))
    with pytest.raises(CheckpointError, match="content has changed"):
        verify(tmp_path / "sft")

    (tmp_path / "collect").mkdir()
    (tmp_path / "collect/pairs.jsonl").write_text("{}\n")
    digest = files_hash(tmp_path / "collect", ["pairs.jsonl"])
    fields |= {"stage": "collect", "makes": "files", "files": ["pairs.jsonl"]}
    write_manifest(tmp_path / "collect", content_hash=digest, **fields)
    assert verify(tmp_path / "collect")["files"] == ["pairs.jsonl"]
    (tmp_path / "collect/pairs.jsonl").write_text("[]\n")
    with pytest.raises(CheckpointError, match="content has changed"):
        verify(tmp_path / "collect")
