"""safetensors <-> our parameter tree, tensor by tensor, so that the host holds one at a time (when saving, one file).

Layers are stacked in our tree: every tensor of a layer goes into its slot of an array that already lies on its devices,
with the sharding of the whole; each device is sent the part of the tensor that it keeps.
"""

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignax import host
from alignax.models.config import ModelConfig
from alignax.models.hf.families import Family
from alignax.models.hf.headers import (
    INDEX,
    SINGLE,
    Header,
    check_finite,
    differences,
    is_bare,
    raise_all,
    read_headers,
    wrong_dtypes,
)  # fmt: skip
from alignax.models.hf.rows import Row, join, split

HEAD = "score.weight"  # of the classes *ForSequenceClassification
VOCABULARY = {"embed": 0, "unembed": 1}  # leaf -> the axis that is padded
# buffers that old files carry
LEFT_OUT = (
    ".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
)  # fmt: skip


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
                parts = [shapes[path][len(slot) :] for path in row.ours]
                if row.ours[0] in VOCABULARY:
                    parts = [tuple(rows if a == VOCABULARY[row.ours[0]] else n for a, n in enumerate(parts[0]))]
                joined = (*parts[0][:-1], sum(shape[-1] for shape in parts))
                name = row.theirs.format(i=i, e=e)
                sizes = tuple(shape[-1] for shape in parts)
                out[name] = Tensor(row, slot, sizes, joined[::-1] if row.turned else joined)
    return out


# ---- in


def load_weights(
    folder: str | Path,
    family: Family,
    config: ModelConfig,
    targets: Any,
    *,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> dict:
    """The parameter tree of a checkpoint, float32, on the shardings of `targets` (jax.ShapeDtypeStructs).

    `targets` has the tree {"decoder": ...}, and "scalar" for a model with a scalar head, whose bias is 0, since their
    classes have none. `progress` wraps the names of the tensors as they are read, for a bar. Raises
    ValueError with every tensor that is missing, left over, or of another shape or a dtype that is no float of 16 or 32
    bits, and for an output layer that is not the embedding although config.json says so, before anything is loaded; and
    for a tensor that holds inf or nan.
    """
    header = read_headers(Path(folder))
    where = header.where
    leaves: Any = flatten_dict(targets["decoder"], sep="/")
    wanted = plan(family, config, {path: leaf.shape for path, leaf in leaves.items()})
    named = _names(wanted, header.shapes)
    head = targets.get("scalar")
    check(folder, named, header, config, head, family.output)
    if config.tie_embeddings and head is None and family.output in header.shapes:
        _check_tied(header, _embedding(named), family.output)
    arrays = {path: _zeros(leaf) for path, leaf in leaves.items()}
    for name, value in _read(progress(sorted(named, key=lambda name: (where[name], name))), header):
        _put(arrays, named[name], value)
    out = {"decoder": unflatten_dict(arrays, sep="/")}
    if head is not None:
        ((_, kernel),) = _read([HEAD], header)
        kernel = kernel.astype(np.float32).T.reshape(head["kernel"].shape)
        bias = np.zeros(head["bias"].shape, np.float32)
        out["scalar"] = jax.tree.map(_place, {"kernel": kernel, "bias": bias}, head)
    return out


def _read(names: Iterable[str], header: Header) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) one by one. A file is closed before the next is opened: what is read of it stays mapped meanwhile.

    Raises ValueError for a tensor that holds inf or nan.
    """
    from safetensors import safe_open

    for file, group in itertools.groupby(names, key=lambda name: header.where[name]):
        with safe_open(str(file), framework="numpy") as opened:
            for name in group:
                value = opened.get_tensor(header.stored[name])
                check_finite(name, value, file)
                yield name, value


def _check_tied(header: Header, embedding: str, output: str) -> None:
    """Raises ValueError for an output layer of its own in a checkpoint that says it has none; transformers takes it."""
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        embed, unembed = (
            stack.enter_context(safe_open(str(header.where[name]), "numpy")).get_slice(header.stored[name])
            for name in (embedding, output)
        )
        rows = header.shapes[embedding][0]  # a part at a time: they are the largest tensors
        parts = (slice(i, min(i + 4096, rows)) for i in range(0, rows, 4096))
        if all(np.array_equal(embed[part], unembed[part]) for part in parts):
            return
    raise ValueError(
        f"{header.where[output]}: {output} differs from {embedding}, although config.json has tie_word_embeddings = "
        "True: set that to false to keep both, or delete the tensor to keep the embedding"
    )


def _embedding(wanted: Mapping[str, Tensor]) -> str:
    """The name of the embedding."""
    return next(name for name, tensor in wanted.items() if tensor.row.ours == ("embed",))


def _names(wanted: dict[str, Tensor], found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The plan under the names of this checkpoint: one of a bare decoder lacks the prefix of the language model."""
    prefix = next(iter(wanted)).split(".")[0] + "."
    if is_bare(found, prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}
    return wanted


def check(
    folder: str | Path, wanted: Mapping[str, Tensor], header: Header, config: ModelConfig, head: Any, output: str
) -> None:
    """Raises ValueError with all tensors that are missing, left over, or of another shape or dtype."""
    expected = {name: tensor.shape for name, tensor in wanted.items()}
    if head is not None:
        kernel = head["kernel"].shape
        expected[HEAD] = (kernel[1] if len(kernel) == 2 else 1, kernel[0])
    elif config.tie_embeddings and output in header.shapes:
        expected[output] = expected[_embedding(wanted)]
    spare = {output} if head is not None else set()
    free = {name for name in header.shapes if name in spare or name.endswith(LEFT_OUT)} - set(expected)
    left = {name: shape for name, shape in header.shapes.items() if name not in free}
    wrong = differences(expected, left, unknown="no such tensor in this architecture")
    wrong += wrong_dtypes(header, left)
    raise_all(wrong, f"{folder}: {len(wrong)} tensors do not fit config.json:")


def _put(arrays: dict[str, jax.Array], tensor: Tensor, value: np.ndarray) -> None:
    """Writes one tensor into its slots."""
    value = value.T if tensor.row.turned else value
    for path, part in zip(tensor.row.ours, split(value, tensor.sizes, tensor.row.block), strict=True):
        leaf = arrays.pop(path)
        assert isinstance(leaf.sharding, NamedSharding)  # the rules of sharding.py name axes
        spec = (*leaf.sharding.spec, *[None] * leaf.ndim)[len(tensor.slot) : leaf.ndim]
        whole = part.shape == leaf.shape[len(tensor.slot) :]  # the unpadded vocabulary need not divide over devices
        placement = NamedSharding(leaf.sharding.mesh, P(*spec) if whole else P())
        piece = jax.make_array_from_callback(
            part.shape, placement, lambda index, part=part: np.ascontiguousarray(part[index])
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
    folder: str | Path, family: Family, config: ModelConfig, params: Any, *, dtype: str,
    others: Mapping[str, str] | None = None, shard_bytes: int = 5 * 10**9,
) -> None:  # fmt: skip
    """Writes a parameter tree as safetensors files of at most `shard_bytes`, with an index if there are several.

    `others` are the dtypes of single tensors, by name. With a "scalar" in the tree, the head takes the place of the
    output layer, without its bias, for which those classes have no room. Only the first of several processes writes.
    Raises ValueError for a number that a dtype cannot hold.
    """
    from safetensors.numpy import save_file

    folder, first = Path(folder), host.is_first()
    sizes, files = {}, []
    cast = lambda name, value: _cast(name, value, (others or {}).get(name, dtype))  # noqa: E731
    for number, part in enumerate(_shards(_tensors(family, config, params, cast), shard_bytes), 1):
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


def _cast(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """Raises ValueError for what is infinite in a dtype and not before."""
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(value.astype(np.dtype(dtype)))
    if dtype == "float16" and not np.isfinite(out).all() and np.isfinite(value).all():
        raise ValueError(f"{name} holds {np.abs(value).max():g}, float16 reaches 65504: use bfloat16 or float32")
    return out


def _tensors(
    family: Family, config: ModelConfig, params: Any, cast: Callable[[str, np.ndarray], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint, in the order of the table, layer by layer."""
    leaves: Any = flatten_dict(params["decoder"], sep="/")
    scalar = params.get("scalar")
    wanted = plan(family, config, {path: leaf.shape for path, leaf in leaves.items()})
    for name, tensor in sorted(wanted.items(), key=lambda item: (item[1].slot[:1], item[0])):
        if scalar is not None and tensor.row.ours == ("unembed",):
            continue
        parts = [_host(leaves[path], tensor.slot) for path in tensor.row.ours]
        value = join(parts, tensor.row.block) if len(parts) > 1 else parts[0]
        value = value.T if tensor.row.turned else value
        value = value[tuple(slice(size) for size in tensor.shape)]  # without the padding of the vocabulary
        yield name, cast(name, value)
    if scalar is not None:
        kernel = _host(scalar["kernel"], ())
        yield HEAD, cast(HEAD, kernel.reshape(kernel.shape[0], -1).T)


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
