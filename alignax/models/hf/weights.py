"""safetensors <-> our parameter tree, tensor by tensor, so that the host holds one at a time (when saving, one file).

Layers are stacked in our tree: every tensor of a layer goes into its slot of an array that already lies on its devices,
with the sharding of the whole; each device is sent the part of the tensor that it keeps.
"""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignax.models.config import ModelConfig
from alignax.models.hf.families import Family, Row

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HEAD = "score.weight"  # of the classes *ForSequenceClassification
VOCABULARY = {"embed": 0, "unembed": 1}  # leaf -> the axis that is padded
# buffers that old files carry, and the output layer where it is the embedding
LEFT_OUT = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Tensor(NamedTuple):
    """One tensor of a checkpoint and where it goes."""

    row: Row
    slot: tuple[int, ...]  # leading indices in each of our leaves: (layer,), (layer, expert) or ()
    sizes: tuple[int, ...]  # along the output axis, of each of our leaves
    shape: tuple[int, ...]  # theirs


def plan(family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """{name: Tensor} of a whole checkpoint; `shapes` are our leaves', by path below "decoder/"."""
    out, rows = {}, config.vocab_rows or config.vocab_size
    for row in family.rows(config):
        layers = range(config.layers) if "{i}" in row.theirs else (None,)
        experts = range(config.experts) if "{e}" in row.theirs else (None,)
        for i in layers:
            for e in experts:
                slot = tuple(x for x in (i, e) if x is not None)
                own = [shapes[path][len(slot) :] for path in row.ours]
                if row.ours[0] in VOCABULARY:
                    own = [tuple(rows if a == VOCABULARY[row.ours[0]] else n for a, n in enumerate(own[0]))]
                joined = (*own[0][:-1], sum(shape[-1] for shape in own))
                name = row.theirs.format(i=i, e=e)
                sizes = tuple(shape[-1] for shape in own)
                out[name] = Tensor(row, slot, sizes, joined[::-1] if row.turned else joined)
    return out


# ---- in


def load_weights(
    folder: str | Path, family: Family, config: ModelConfig, targets: Any, *, progress: Callable = iter
) -> dict:
    """The parameter tree of a checkpoint, float32, on the shardings of `targets` (jax.ShapeDtypeStructs).

    `targets` has the tree {"decoder": ...}, and "scalar" for a model with a scalar head, whose bias is 0, since their
    classes have none. `progress` wraps the names of the tensors as they are read, for a bar. Raises
    ValueError with every tensor that is missing, left over or of another shape, before anything is loaded.
    """
    where, found = _headers(Path(folder))
    leaves: Any = flatten_dict(targets["decoder"], sep="/")
    wanted = plan(family, config, {path: leaf.shape for path, leaf in leaves.items()})
    named = _names(wanted, found)
    head = targets.get("scalar")
    check(folder, named, found, config, head)
    arrays = {path: _zeros(leaf) for path, leaf in leaves.items()}
    from safetensors import safe_open

    files = set(where.values())  # each is opened once
    with contextlib.ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(str(Path(folder) / file), "numpy")) for file in files}
        for name in progress(sorted(named, key=lambda name: (where[name], name))):
            _put(arrays, named[name], opened[where[name]].get_tensor(name))
    out = {"decoder": unflatten_dict(arrays, sep="/")}
    if head is not None:
        with safe_open(str(Path(folder) / where[HEAD]), framework="numpy") as opened:
            kernel = opened.get_tensor(HEAD).astype(np.float32).T.reshape(head["kernel"].shape)
        bias = np.zeros(head["bias"].shape, np.float32)
        out["scalar"] = jax.tree.map(_place, {"kernel": kernel, "bias": bias}, head)
    return out


def _headers(folder: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """{tensor: file} and {tensor: shape} of a folder."""
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        raise ValueError(
            f"{folder}: no {SINGLE} and no {INDEX}; files of pickled tensors are not read: load the model once with "
            "transformers and save it with save_pretrained"
        )
    lost = [file for file in files if not (folder / file).is_file()]
    if lost:
        raise ValueError(f"{folder}: {INDEX} names files that are not there: {', '.join(lost)}: fetch them")
    where, shapes = {}, {}
    for file in files:
        found, _ = read_header(folder / file)
        where |= dict.fromkeys(found, file)
        shapes |= found
    return where, shapes


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """{tensor: shape} of a safetensors file, and its metadata. Raises ValueError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return shapes, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from error


def stored_dtype(folder: Path) -> str:
    """The dtype of the first tensor of a folder, as config.json would say it."""
    from safetensors import safe_open

    where, _ = _headers(folder)
    name, file = next(iter(where.items()))
    with safe_open(str(folder / file), framework="numpy") as opened:
        kind = opened.get_slice(name).get_dtype()
    return {"BF16": "bfloat16", "F16": "float16"}.get(kind, "float32")


def _names(wanted: dict[str, Tensor], found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The plan under the names of this checkpoint: one of a bare decoder lacks the prefix of the language model."""
    prefix = next(iter(wanted)).split(".")[0] + "."
    if any(name.startswith(prefix) for name in found):
        return wanted
    return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}


def check(
    folder: str | Path, wanted: Mapping[str, Tensor], found: Mapping[str, tuple], config: ModelConfig, head: Any
) -> None:
    """Raises ValueError with all tensors that are missing, left over, or of another shape."""
    expected = {name: tensor.shape for name, tensor in wanted.items()}
    if head is not None:
        kernel = head["kernel"].shape
        expected[HEAD] = (kernel[1] if len(kernel) == 2 else 1, kernel[0])
    spare = {"lm_head.weight"} if config.tie_embeddings or head is not None else set()
    free = {name for name in found if name in spare or name.endswith(LEFT_OUT)} - set(expected)
    left = {name: shape for name, shape in found.items() if name not in free}
    wrong = differences(expected, left, unknown="no such tensor in this architecture")
    raise_all(wrong, f"{folder}: {len(wrong)} tensors do not fit config.json:")


def differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, unknown: str
) -> list[str]:
    """A line for every tensor that is missing, of another shape, or left over, which is `unknown`."""
    lines = [f"{name}: missing, expected {shape}" for name, shape in expected.items() if name not in found]
    lines += [f"{n} {found[n]}: expected {shape}" for n, shape in expected.items() if found.get(n, shape) != shape]
    return lines + [f"{name} {shape}: {unknown}" for name, shape in found.items() if name not in expected]


def raise_all(wrong: list[str], what: str) -> None:
    """Raises ValueError with `what` and a line for each of `wrong`, if there are any."""
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ValueError(what + "".join(f"\n  {line}" for line in wrong[:20]) + more)


def _put(arrays: dict[str, jax.Array], tensor: Tensor, value: np.ndarray) -> None:
    """Writes one tensor into its slots."""
    value = value.T if tensor.row.turned else value
    edges = np.cumsum(tensor.sizes)[:-1]
    for path, part in zip(tensor.row.ours, np.split(value, edges, axis=-1), strict=True):
        leaf = arrays.pop(path)
        assert isinstance(leaf.sharding, NamedSharding)  # the rules of sharding.py name axes
        spec = (*leaf.sharding.spec, *[None] * leaf.ndim)[len(tensor.slot) : leaf.ndim]
        whole = part.shape == leaf.shape[len(tensor.slot) :]  # the unpadded vocabulary need not divide over devices
        own = NamedSharding(leaf.sharding.mesh, P(*spec) if whole else P())
        piece = jax.make_array_from_callback(
            part.shape, own, lambda index, part=part: np.ascontiguousarray(part[index])
        )
        # waited for: files are read faster than devices write, and what waits for them would pile up on the host
        arrays[path] = jax.block_until_ready(_writer(leaf.sharding)(leaf, piece, np.array(tensor.slot, np.int32)))


@functools.cache
def _writer(sharding: Any) -> Any:
    """A jitted, donating `leaf[slot, :n, :m] = piece`: compiled once for each shape."""

    def write(leaf, piece, slot):
        start = [*slot, *[0] * piece.ndim]
        piece = piece.astype(leaf.dtype).reshape((1,) * (leaf.ndim - piece.ndim) + piece.shape)
        return jax.lax.dynamic_update_slice(leaf, piece, start)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _zeros(target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)()


def _place(value: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(value.shape, target.sharding, lambda index: value[index])


# ---- out


def save_weights(
    folder: str | Path, family: Family, config: ModelConfig, params: Any, *, dtype: str, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a parameter tree as safetensors files of at most `shard_bytes`, with an index if there are several.

    With a "scalar" in the tree, the head takes the place of the output layer, without its bias, for which those classes
    have no room. Only the first of several processes writes.
    """
    from safetensors.numpy import save_file

    folder, first = Path(folder), jax.process_index() == 0
    sizes, files = {}, []
    for number, part in enumerate(_shards(_tensors(family, config, params, np.dtype(dtype)), shard_bytes), 1):
        files.append((f"{number}.part", list(part)))
        sizes |= {name: value.nbytes for name, value in part.items()}
        if first:
            save_file(part, folder / f"{number}.part", metadata={"format": "pt"})
    if not first:
        return
    if len(files) == 1:
        shutil.move(folder / files[0][0], folder / SINGLE)
        return
    index: dict[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {}}
    for number, (file, names) in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        shutil.move(folder / file, folder / name)
        index["weight_map"] |= dict.fromkeys(names, name)
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _tensors(family: Family, config: ModelConfig, params: Any, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint, in the order of the table, layer by layer."""
    leaves: Any = flatten_dict(params["decoder"], sep="/")
    scalar = params.get("scalar")
    wanted = plan(family, config, {path: leaf.shape for path, leaf in leaves.items()})
    for name, tensor in sorted(wanted.items(), key=lambda item: (item[1].slot[:1], item[0])):
        if scalar is not None and tensor.row.ours == ("unembed",):
            continue
        own = [_host(leaves[path], tensor.slot) for path in tensor.row.ours]
        value = np.concatenate(own, axis=-1) if len(own) > 1 else own[0]
        value = value.T if tensor.row.turned else value
        value = value[tuple(slice(size) for size in tensor.shape)]  # without the padding of the vocabulary
        yield name, np.ascontiguousarray(value.astype(dtype))
    if scalar is not None:
        kernel = _host(scalar["kernel"], ())
        yield HEAD, np.ascontiguousarray(kernel.reshape(kernel.shape[0], -1).T.astype(dtype))


def _shards(tensors: Iterator[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    part: dict[str, np.ndarray] = {}
    for name, value in tensors:
        if part and sum(x.nbytes for x in part.values()) + value.nbytes > limit:
            yield part
            part = {}
        part[name] = value
    yield part


def _host(leaf: Any, slot: tuple[int, ...]) -> np.ndarray:
    value = leaf[slot] if slot else leaf
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)
