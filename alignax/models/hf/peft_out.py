"""Our adapters -> peft's format: the table of the family that serves `peft_in.py`, in the other direction.

Where a linear layer of theirs is several projections of ours, the parts' A are stacked and their B stand on a diagonal,
which is the same product; a part without an adapter has zeros. Parts that share one A, out of such a layer, share it.
What peft has no room for travels in the header of the safetensors file, which peft does not read.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignax.models.config import ModelConfig
from alignax.models.hf.families import Family
from alignax.models.hf.peft_in import CONFIG, PREFIX, TENSORS, Linear, linears
from alignax.models.hf.rows import join
from alignax.models.hf.weights import HEAD


def save_adapter(
    folder: str | Path, family: Family, config: ModelConfig, params: Any, *, rslora: bool, dtype: str, note: dict,
    said: Mapping[str, Any],
) -> None:  # fmt: skip
    """Writes the adapter, and the scalar head, of a tree {"decoder", "lora"} as peft would.

    `said` are keys of adapter_config.json that the tree does not know, such as the name of the base; `note` is kept in
    the header. The scale s becomes lora_alpha = s * rank, or s * sqrt(rank) with `rslora`, of the joined rank.
    """
    from safetensors.numpy import save_file

    adapters, every = params["lora"]["layers"], linears(family, config)
    adapted = [one for one in every if any(name in adapters for name in one.names)]
    tensors: dict[str, np.ndarray] = {}
    settings: dict[str, tuple[int, int | float]] = {}  # path -> (rank, alpha)
    for one in adapted:
        parts = {n: {k: np.asarray(x) for k, x in adapters[n].items()} for n in one.names if n in adapters}
        alike = _alike(one, parts)
        for i in range(config.layers):
            path, part = one.path.format(i=i), {n: {k: x[i] for k, x in leaves.items()} for n, leaves in parts.items()}
            kernels = {n: params["decoder"]["layers"][n]["kernel"][i] for n in one.names}
            layer = _joined(part, kernels, alike, one.block)
            R = len(layer["lora_A.weight"])
            settings[path] = R, _alpha(next(iter(part.values()))["scale"], R**0.5 if rslora else R)
            tensors |= {f"{PREFIX}{path}.{key}": np.ascontiguousarray(x.astype(dtype)) for key, x in layer.items()}
        if not alike:
            ranks = {n: leaves["a"].shape[-1] for n, leaves in parts.items()}
            note = note | {"blocks": note.get("blocks", {}) | {one.path: ranks}}
    keys = {"task_type": "CAUSAL_LM", "use_rslora": rslora, "use_dora": any("m" in x for x in adapters.values())}
    if "scalar" in params:
        kernel = np.asarray(params["scalar"]["kernel"])
        tensors[PREFIX + HEAD] = np.ascontiguousarray(kernel.reshape(len(kernel), -1).T.astype(dtype))
        note = note | {"score_bias": np.asarray(params["scalar"]["bias"]).tolist()}
        keys |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    keys |= {
        "peft_type": "LORA",
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    keys |= _settings(adapted, every, settings) | dict(said)
    save_file(tensors, Path(folder) / TENSORS, metadata={"format": "pt", "alignax": json.dumps(note)})
    (Path(folder) / CONFIG).write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _alike(one: Linear, parts: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Whether all parts of a linear layer have one A and scale, as those that came out of one have."""
    first = next(iter(parts.values()))
    same = (np.array_equal(x[key], first[key]) for x in parts.values() for key in ("a", "scale"))
    return len(parts) == len(one.names) and all(same)


def _joined(
    parts: Mapping[str, Mapping[str, Any]], kernels: Mapping[str, Any], alike: bool, block: int
) -> dict[str, np.ndarray]:
    """A, B and with DoRA the lengths of one layer; `kernels` [D F] are those of all parts, adapted or not, in order."""
    scale = next(iter(parts.values()))["scale"]
    a_RD = np.concatenate([part["a"].T for part in parts.values()][: 1 if alike else None])
    b_RF, column = [], 0
    for name, kernel in kernels.items():
        rows = np.zeros((kernel.shape[-1], len(a_RD)), np.float32)
        if name in parts:  # the ratio is 1 but for parts of different scales, since one scale is that of all
            b = parts[name]["b"].T * (parts[name]["scale"] / scale)
            rows[:, column : column + b.shape[1]] = b
            column += 0 if alike else b.shape[1]
        b_RF.append(rows.T)
    out = {"lora_A.weight": a_RD, "lora_B.weight": join(b_RF, block).T}
    if not any("m" in part for part in parts.values()):
        return out
    # a part without an adapter keeps its columns by their own lengths
    lengths = [parts[n]["m"] if n in parts else np.asarray(jnp.linalg.norm(x, axis=0)) for n, x in kernels.items()]
    return out | {"lora_magnitude_vector": join(lengths, block)}


def _alpha(scale: np.floating, unit: int | float) -> int | float:
    """scale * unit, as the round number that gives this scale, if there is one."""
    exact = float(scale) * unit
    near = next((x for x in (round(exact, n) for n in range(6)) if np.float32(x / unit) == scale), exact)
    return int(near) if near == int(near) else near


def _settings(
    adapted: list[Linear], every: list[Linear], found: Mapping[str, tuple[int, int | float]]
) -> dict[str, Any]:
    """r, lora_alpha and what differs from them; target_modules; fan_in_fan_out."""
    rank, alpha = Counter(found.values()).most_common(1)[0][0]
    patterns: dict[str, dict] = {"rank_pattern": {}, "alpha_pattern": {}}
    for one in adapted:
        by_path = {path: pair for path, pair in found.items() if re.fullmatch(one.path.replace("{i}", r"\d+"), path)}
        if len(set(by_path.values())) == 1:
            by_path = {one.path.split("{i}.")[1]: next(iter(by_path.values()))}
        patterns["rank_pattern"] |= {re.escape(path): R for path, (R, _) in by_path.items() if rank != R}
        patterns["alpha_pattern"] |= {re.escape(path): a for path, (_, a) in by_path.items() if alpha != a}
    ends = Counter(one.path.rpartition(".")[2] for one in adapted)
    whole = {end for end in ends if ends[end] == sum(one.path.endswith(f".{end}") for one in every)}
    targets = {end if (end := one.path.rpartition(".")[2]) in whole else one.path.split("{i}.")[1] for one in adapted}
    return patterns | {
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(targets), "fan_in_fan_out": not adapted[0].turned
    }  # fmt: skip
