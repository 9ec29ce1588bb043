"""Adapters of peft's format -> ours: adapter_config.json and adapter_model.safetensors.

The table of the family (`families.py`) says which of our projections are a linear layer of theirs: one, or several
joined along the output (GPT-2's c_attn). Each part of a joined one gets all of A and its own rows of B, unless the
header of the file says, as exports of alignax do (`peft_out.py`), that the parts have ranks of their own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignax.models.config import ModelConfig
from alignax.models.hf.families import Family
from alignax.models.hf.headers import Header, check_finite, differences, raise_all, read_header, wrong_dtypes
from alignax.models.hf.rows import split
from alignax.models.hf.weights import HEAD

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor
OFF = (None, False, "", [], {})  # values by which a field that alignax does not know says nothing
READ = {
    "peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "use_rslora", "use_dora", "bias", "init_lora_weights", "modules_to_save", "base_model_name_or_path",
}  # fmt: skip
# of training, of the file, or of a setting that is off: they do not change what the adapter computes
IGNORED = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out", "layers_pattern",
    "megatron_core", "qalora_group_size", "eva_config", "ensure_weight_tying", "runtime_config",
}  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # of init_lora_weights, those that leave the base as it is


class Adapter(NamedTuple):
    """What an adapter folder says, before its tensors are read."""

    config: dict[str, Any]
    header: Header
    note: dict[str, Any]  # what an export of alignax said about itself; {} of any other

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors."""
        return self.header.shapes


class Linear(NamedTuple):
    """A linear layer of theirs that adapters of ours reach; `{i}` stands for the layer."""

    path: str
    names: tuple[str, ...]  # our projections
    turned: bool  # theirs is [out, in]
    block: int  # of `rows.Row`


def linears(family: Family, config: ModelConfig) -> list[Linear]:
    """Those with a kernel of ours: not the experts', which have none, nor embedding and output layer."""
    rows = [row for row in family.rows(config) if row.ours[0].endswith("/kernel")]
    names = lambda row: tuple(path.split("/")[1] for path in row.ours)  # noqa: E731
    return [Linear(row.theirs.removesuffix(".weight"), names(row), row.turned, row.block) for row in rows]


def read_adapter(folder: str | Path) -> Adapter:
    """Config and shapes of an adapter folder.

    Raises ValueError with every field of the config that alignax cannot hold, by name and value; for a file that is
    absent or damaged.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read ({error}): fetch it again") from error
    wrong = [f"{k} = {v!r} is not supported" for k, v in config.items() if k not in READ | IGNORED and v not in OFF]
    supported = {
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
        "bias": ("none",),
        "use_rslora": (True, False),
        "use_dora": (True, False),
    }
    for key, values in supported.items():
        if config.get(key, values[-1]) not in values:
            wrong.append(f"{key} = {config[key]!r}: supported is {' or '.join(map(repr, values))}")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        wrong.append(
            f"init_lora_weights = {start!r} changes the weights of the base: save the adapter with peft's "
            "path_initial_model_for_weight_conversion, which makes a plain one of it"
        )
    head = {"score", "classifier"} if config.get("task_type") == "SEQ_CLS" else set()
    if spare := set(config.get("modules_to_save") or ()) - head:
        wrong.append(f"modules_to_save = {sorted(spare)}: only the scalar head of a SEQ_CLS adapter comes along")
    patterns = {key: config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    raise_all(
        [f"{key} = {value!r}: expected an object" for key, value in patterns.items() if not isinstance(value, dict)],
        f"{folder}: an adapter that alignax cannot hold:",
    )
    ranks = {"r": config.get("r", 8)} | {f"rank_pattern.{k}": v for k, v in patterns["rank_pattern"].items()}
    wrong += [f"{k} = {v!r}: expected at least 1" for k, v in ranks.items() if not isinstance(v, int) or v < 1]
    alphas = {f"alpha_pattern.{k}": v for k, v in patterns["alpha_pattern"].items()}
    alphas |= {"lora_alpha": config.get("lora_alpha", 8)}
    wrong += [f"{k} = {v!r}: expected a number" for k, v in alphas.items() if not isinstance(v, int | float)]
    wrong += [line for key in ("target_modules", "exclude_modules") for line in _bad_rule(key, config.get(key))]
    raise_all(wrong, f"{folder}: an adapter that alignax cannot hold:")
    if not (folder / TENSORS).is_file():
        raise ValueError(
            f"{folder}: no {TENSORS}; a file of pickled tensors is not read: load it with peft and save it"
        )
    header = read_header(folder / TENSORS)
    return Adapter(config, header, json.loads(header.metadata.get("alignax", "{}")))


def _bad_rule(key: str, rule: Any) -> list[str]:
    """A line if a rule for modules is no regular expression."""
    try:
        re.compile(rule if isinstance(rule, str) else "")
    except re.error as error:
        return [f"{key} = {rule!r}: no regular expression ({error})"]
    return []


def load_adapter(
    folder: str | Path, adapter: Adapter, family: Family, config: ModelConfig, kernels: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The tree {"lora": ...}, and "scalar" of a SEQ_CLS adapter, in float32 on the host; `kernels` are [L D F].

    Where ranks differ (`rank_pattern`), smaller ones are filled up with zeros, which stay zero in training. Raises
    ValueError with every tensor that is missing, left over or of another shape, and every projection that is adapted in
    some layers only.
    """
    from safetensors.numpy import load_file

    every, peft_config = linears(family, config), adapter.config
    layers = {one: [i for i in range(config.layers) if _targeted(peft_config, one.path.format(i=i))] for one in every}
    wrong = [
        f"{one.path} is adapted in layers {', '.join(map(str, adapted))} alone: alignax adapts all layers or none"
        for one, adapted in layers.items()
        if 0 < len(adapted) < config.layers
    ]
    wanted: dict[str, tuple] = {}
    for one, i in [(one, i) for one, adapted in layers.items() for i in adapted]:
        wanted |= _shapes(one, i, peft_config, kernels)
    if peft_config.get("task_type") == "SEQ_CLS":
        wanted[PREFIX + HEAD] = ((*adapter.shapes.get(PREFIX + HEAD, ()), 1)[0], config.dim)
    why = "experts, embedding, norms and output layer have no adapters in alignax"
    wrong += wrong_dtypes(adapter.header, adapter.shapes)
    wrong += differences(wanted, adapter.shapes, unknown=f"no projection that target_modules names; {why}")
    if not any(layers.values()):
        known = ", ".join(one.path.split("{i}.")[1] for one in every)
        wrong.append(f"target_modules = {peft_config.get('target_modules')!r}: finds none of the projections {known}")
    raise_all(wrong, f"{folder}: the adapter does not fit the base:")
    tensors = {name: x.astype(np.float32) for name, x in load_file(Path(folder) / TENSORS).items()}
    for name, value in tensors.items():
        check_finite(name, value, Path(folder) / TENSORS)
    out: dict[str, dict[str, list]] = {}
    for one in (one for one, adapted in layers.items() if adapted):
        blocks = adapter.note.get("blocks", {}).get(one.path, {})
        for i in range(config.layers):
            for name, part in _parts(tensors, one, i, peft_config, kernels, blocks).items():
                for key, value in part.items():
                    out.setdefault(name, {}).setdefault(key, []).append(value)
    R = max(a.shape[-1] for leaves in out.values() for a in leaves["a"])
    tree: dict[str, Any] = {"lora": {"layers": {name: _stacked(leaves, R) for name, leaves in out.items()}}}
    if peft_config.get("task_type") == "SEQ_CLS":
        tree["scalar"] = _head(tensors[PREFIX + HEAD], adapter.note.get("score_bias"))
    return tree


def _targeted(peft_config: Mapping[str, Any], path: str) -> bool:
    """Whether an adapter config names a module, by peft's rules: a regular expression, or ends of its path."""

    def named(rule: Any) -> bool:
        if isinstance(rule, str):
            return rule == "all-linear" or bool(re.fullmatch(rule, path))
        return any(path == end or path.endswith(f".{end}") for end in rule or ())

    return named(peft_config.get("target_modules")) and not named(peft_config.get("exclude_modules"))


def _by_pattern(peft_config: Mapping[str, Any], key: str, patterns: str, path: str) -> Any:
    """The first of the patterns that fits the end of a path, else the value for all."""
    found = (v for k, v in (peft_config.get(patterns) or {}).items() if re.match(rf"(.*\.)?({k})$", path))
    return next(found, peft_config.get(key, 8))  # 8: peft's default of both


def _shapes(
    one: Linear, i: int, peft_config: Mapping[str, Any], kernels: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple]:
    """{tensor: shape} of one layer of a linear layer."""
    path, D = one.path.format(i=i), kernels[one.names[0]][1]
    F, R = sum(kernels[name][2] for name in one.names), _by_pattern(peft_config, "r", "rank_pattern", path)
    plain = {f"{PREFIX}{path}.lora_A.weight": (R, D), f"{PREFIX}{path}.lora_B.weight": (F, R)}
    return plain | ({f"{PREFIX}{path}.lora_magnitude_vector": (F,)} if peft_config.get("use_dora") else {})


def _parts(
    tensors: Mapping[str, np.ndarray], one: Linear, i: int, peft_config: Mapping[str, Any],
    kernels: Mapping[str, tuple[int, ...]], blocks: Mapping[str, int],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{our projection: a [D R], b [R F], scale, m [F]} of one layer; `blocks` are the ranks on B's diagonal."""
    path = one.path.format(i=i)
    a_DR, b_RF = (tensors[f"{PREFIX}{path}.lora_{x}.weight"].T for x in "AB")
    R, alpha = len(b_RF), _by_pattern(peft_config, "lora_alpha", "alpha_pattern", path)
    scale = np.float32(alpha / (R**0.5 if peft_config.get("use_rslora") else R))
    sizes = [kernels[name][2] for name in one.names]
    b_parts = dict(zip(one.names, split(b_RF, sizes, one.block), strict=True))
    out: dict[str, dict[str, Any]] = {name: {"a": a_DR, "b": b, "scale": scale} for name, b in b_parts.items()}
    if peft_config.get("use_dora"):
        lengths = split(tensors[f"{PREFIX}{path}.lora_magnitude_vector"], sizes, one.block)
        out = {name: part | {"m": m} for (name, part), m in zip(out.items(), lengths, strict=True)}
    return out if not blocks else _cut(out, blocks, path)


def _cut(parts: dict[str, dict[str, Any]], blocks: Mapping[str, int], path: str) -> dict[str, dict[str, Any]]:
    """The parts that B has on its diagonal, each with its own columns of A and rows of B."""
    spans, start, rest = {}, 0, {name: part["b"].copy() for name, part in parts.items()}
    for name, rank in blocks.items():
        spans[name], start = slice(start, start + rank), start + rank
        rest[name][spans[name]] = 0
    if start != len(next(iter(rest.values()))) or any(b.any() for b in rest.values()):
        raise ValueError(
            f"{path}: the header says that lora_B is a diagonal of {dict(blocks)}, and it is not: a tool that changed "
            "the tensors kept the header; save the adapter with peft"
        )
    return {name: parts[name] | {k: x[..., span] if k == "a" else x[span] for k, x in parts[name].items() if k in "ab"}
            for name, span in spans.items()}  # fmt: skip


def _stacked(leaves: dict[str, list], R: int) -> dict[str, np.ndarray]:
    """The layers' leaves stacked, ranks filled up to R."""
    axis = {"a": 1, "b": 0}

    def filled(key: str, x: Any) -> Any:
        return np.pad(x, [(0, R - n if k == axis[key] else 0) for k, n in enumerate(x.shape)]) if key in axis else x

    return {key: np.stack([filled(key, x) for x in values]) for key, values in leaves.items()}


def _head(weight: np.ndarray, bias: Any) -> dict[str, np.ndarray]:
    """A scalar head of one score [D], or of several [D A]; `bias` is None but in our own files."""
    kernel = weight.T if len(weight) > 1 or isinstance(bias, list) else weight[0]
    zeros = np.zeros(kernel.shape[1:], np.float32)
    return {"kernel": kernel, "bias": zeros if bias is None else np.asarray(bias, np.float32)}
