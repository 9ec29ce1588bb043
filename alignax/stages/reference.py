"""The reference's log-probabilities of a whole data set: computed once, kept in the run folder, fed in the batch.

A reference that stands still says the same of a row in every epoch. With its log-probabilities in the batch
(`forward.side` takes them from there) it is not run again, and its parameters can be freed. The file carries a key of
everything that the numbers depend on, and is refused if any of it is different now.
"""

import json
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import alignax
from alignax import forward, host, sharding
from alignax.checkpoint import content_hash, fetched
from alignax.data.arrays import fingerprint
from alignax.data.loader import Arrange, eval_batches
from alignax.data.tokenizer import template_hash, tokenizer_hash
from alignax.log import progress
from alignax.manifest import CheckpointError
from alignax.stages.folder import Stage
from alignax.types import Model, Params

FILE = "reference.npz"


def with_logp(
    stage: Stage, data: dict[str, Any], arrange: Callable[[dict], Arrange], model: Model, reference: Params,
    tokenizer: Any, mesh: Mesh,
) -> dict[str, Any]:  # fmt: skip
    """`data`, {split: arrays}, with `ref_logp` beside the tokens of every side, from the folder or computed now.

    `arrange(arrays)` says how batches of them are laid out. Raises CheckpointError if the folder's file was made from
    anything else, or cannot be read.
    """
    plan, path = stage.plan, stage.workdir / FILE
    key = {
        "alignax": alignax.__version__,
        "parameters": content_hash(reference),
        "architecture": model.config.architecture(),
        **computation(model.config, mesh),
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template_hash(tokenizer, plan.template),
        "max_length": plan.max_length,
        "data": fingerprint(data),
    }
    logp = read(path, key)
    if logp is None:
        logp = {}
        for split, arrays in data.items():
            logp |= computed(split, arrays, arrange(arrays), model, reference, plan.batch_size, mesh)
        whole = logp
        host.in_first(lambda: write(path, key, whole))
    return {split: _fill(arrays, split, logp) for split, arrays in data.items()}


def computation(config: Any, mesh: Mesh) -> dict[str, str]:
    """How the numbers are computed: the policy's are compared with them, and both should err alike."""
    device = mesh.devices.flat[0]
    return {
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind}",
        "dtype": config.dtype,
        "attention": config.attention,
        "matmul_precision": str(jax.config.jax_default_matmul_precision),  # pyright: ignore[reportAttributeAccessIssue]
    }


def computed(
    split: str, arrays: dict, arrange: Arrange, model: Model, reference: Params, batch_size: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """{split/side: log-probabilities of the tokens in the side's mask, row after row}, in batches with a bar."""
    run = jax.jit(partial(forward.reference_logp, model))
    rows = len(arrays["row"])
    batches = eval_batches(arrays, batch_size, arrange=arrange, **host.share())
    title, total = f"reference log-probabilities, {split}", -(-rows // batch_size)
    found = [
        jax.tree.map(fetched, run(reference, sharding.put_batch(batch, mesh)))
        for batch in progress(batches, title, total=total)
    ]
    wide = lambda x, like: np.pad(x, ((0, 0), (0, like.shape[1] - x.shape[1])))  # batches may be cut: packing  # noqa: E731
    whole = {
        side: np.concatenate([wide(part[side], arrays[side]["mask"]) for part in found])[:rows] for side in found[0]
    }
    return {f"{split}/{side}": logp_NT[arrays[side]["mask"]] for side, logp_NT in whole.items()}


def write(path: Path, key: dict, arrays: dict[str, Any]) -> None:
    """Writes key and arrays so that a kill at any moment leaves the whole file or none. Raises CheckpointError."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial_path.open("wb") as file:
            np.savez(file, key=np.array(json.dumps(key)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_path, path)
    except OSError as error:
        partial_path.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: was not written: {error}. Remove the cause, then run again") from error


def read(path: Path, key: dict, *, what: str = "log-probabilities") -> dict[str, np.ndarray] | None:
    """What `write` wrote under the same key; None if there is no file. Raises CheckpointError for any other file."""
    if not path.is_file():
        return None
    again = f"delete it, and the {what} are computed again"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        was = json.loads(str(arrays.pop("key")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {again}") from error
    now = json.loads(json.dumps(key))
    wrong = [
        f"{name}: was {was.get(name)}, now {now.get(name)}" for name in now | was if was.get(name) != now.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{path} belongs to another reference or other data ({'; '.join(wrong)}); {again}")
    return arrays


def _fill(arrays: dict, split: str, logp: dict[str, np.ndarray]) -> dict:
    """`arrays` with the log-probabilities at their places in each side; 0 outside of its mask."""

    def side(name, one):
        ref_logp_NT = np.zeros(one["mask"].shape, np.float32)
        ref_logp_NT[one["mask"]] = logp[f"{split}/{name}"]
        return one | {"ref_logp": ref_logp_NT}

    return {name: side(name, one) if isinstance(one, dict) else one for name, one in arrays.items()}
