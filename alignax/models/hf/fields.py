"""config.json <-> ModelConfig, field by field: each entry of a family's list reads and writes the same keys."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from alignax.models.config import ModelConfig

ACTIVATIONS = {
    "silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu",
}  # fmt: skip
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


class Field(NamedTuple):
    """Some keys of a config.json and the fields of a ModelConfig that they are."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict]  # their values -> our fields; raises ValueError for what we lack
    write: Callable[[ModelConfig], dict]
    group: tuple[str, ...] = ()  # of rotary parameters: keys within the group beyond those of its type (`ROPES`)


def same(hf_key: str, field: str) -> Field:
    """One value under two names."""
    return Field((hf_key,), lambda t: {field: t[hf_key]}, lambda c: {hf_key: getattr(c, field)})


def positive(group: Mapping[str, Any], key: str, *, where: str = "", whole: bool = False) -> Any:
    """A number above 0, as it is. Raises ValueError for anything else, KeyError for a key that is not there."""
    if key not in group:
        raise KeyError(where + key)
    value = group[key]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}{key} = {value!r}: expected a {'whole ' if whole else ''}number above 0")
    return value


def number(hf_key: str, field: str) -> Field:
    """One number under two names, of which `hf_key`'s may be an integer, and 0 in `field` may mean something else."""
    return Field((hf_key,), lambda t: {field: float(positive(t, hf_key))}, lambda c: {hf_key: getattr(c, field)})


def count(hf_key: str, field: str) -> Field:
    """One number of things under two names, where 0 in `field` means something else."""
    return Field((hf_key,), lambda t: {field: positive(t, hf_key, whole=True)}, lambda c: {hf_key: getattr(c, field)})


def optional(hf_key: str, field: str) -> Field:
    """One number under two names, where null is 0 in `field`; a 0 under `hf_key` would be no number but a fault."""

    def read(t):
        return {field: 0.0 if t.get(hf_key) is None else float(positive(t, hf_key))}

    return Field((hf_key,), read, lambda c: {hf_key: getattr(c, field) or None})


def unused(hf_key: str) -> Field:
    """A key that the code reads and makes nothing of."""
    return Field((hf_key,), lambda t: {}, lambda c: {})


def only(hf_key: str, *values: Any) -> Field:
    """A key that changes the model and of which only these values are supported; the first one is written."""

    def read(t):
        if hf_key in t and t[hf_key] not in values:
            raise ValueError(f"{hf_key} = {t[hf_key]!r}: supported is {' or '.join(map(repr, values))}")
        return {}

    return Field((hf_key,), read, lambda c: {hf_key: values[0]})


def activation(key: str) -> Field:
    """The activation of the feed-forward layer."""

    def read(t):
        if t[key] not in ACTIVATIONS:
            raise ValueError(f"{key} = {t[key]!r}: supported are {', '.join(ACTIVATIONS)}")
        return {"activation": ACTIVATIONS[t[key]]}

    return Field((key,), read, lambda c: {key: next(k for k, v in ACTIVATIONS.items() if v == c.activation)})


def _read_head_dim(t: Mapping[str, Any], *, null: bool = False) -> dict:
    if "head_dim" not in t or (null and t["head_dim"] is None):
        return {"head_dim": t["hidden_size"] // t["num_attention_heads"]}
    return {"head_dim": positive(t, "head_dim", whole=True)}


HEAD_DIM = Field(("head_dim",), _read_head_dim, lambda c: {"head_dim": c.head_dim})
NULL_HEAD_DIM = HEAD_DIM._replace(read=partial(_read_head_dim, null=True))  # null is as if the key were not there
OWN_HEAD_DIM = HEAD_DIM._replace(  # a key that published configs lack; the code takes it where it is
    write=lambda c: {} if c.head_dim == c.dim // c.heads else {"head_dim": c.head_dim}
)
QUERY_SCALE = Field(
    ("query_pre_attn_scalar",),
    lambda t: {"query_scale_dim": float(positive(t, "query_pre_attn_scalar"))},
    lambda c: {"query_pre_attn_scalar": int(c.query_scale_dim) if c.query_scale_dim % 1 == 0 else c.query_scale_dim},
)


def _write_multiplier(c: ModelConfig) -> dict:
    """The shortest number that `ATTENTION_MULTIPLIER` reads as this scale."""
    exact = c.query_scale
    found = (x for x in (round(exact, n) for n in range(17)) if x and x**-2 == (c.query_scale_dim or c.head_dim))
    return {"attention_multiplier": next(found, exact)}


ATTENTION_MULTIPLIER = Field(
    ("attention_multiplier",),
    lambda t: {"query_scale_dim": float(positive(t, "attention_multiplier")) ** -2},
    _write_multiplier,
)
ATTENTION_BIAS = Field(
    ("attention_bias",),
    lambda t: {"qkv_bias": bool(t.get("attention_bias")), "out_bias": bool(t.get("attention_bias"))},
    lambda c: {"attention_bias": c.out_bias},
)
SHAPE = (
    same("hidden_size", "dim"),
    same("num_hidden_layers", "layers"),
    same("num_attention_heads", "heads"),
    same("num_key_value_heads", "kv_heads"),
    same("intermediate_size", "ffn"),
    same("rms_norm_eps", "norm_eps"),
    same("max_position_embeddings", "max_positions"),
    same("tie_word_embeddings", "tie_embeddings"),
)


def without(*keys: str) -> tuple[Field, ...]:
    """SHAPE without these keys."""
    return tuple(field for field in SHAPE if not set(field.keys) & set(keys))


# ---- sliding windows

ALL_SLIDING = Field(  # every layer has the window, or none
    ("sliding_window",),
    lambda t: {} if t.get("sliding_window") is None else {"pattern": ("sliding",), "window": t["sliding_window"]},
    lambda c: {"sliding_window": c.window if "sliding" in c.pattern else None},
)


def _read_kinds(t: Mapping[str, Any]) -> dict:
    types = t["layer_types"]
    unknown = sorted(set(types) - set(KINDS))
    if unknown:
        raise ValueError(f"layer_types with {', '.join(unknown)}: supported are {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in types]
    rotated = t.get("no_rope_layers", [1] * len(kinds))[: len(kinds)]  # more are left over, as in transformers
    if len(rotated) < len(kinds):
        raise ValueError(f"no_rope_layers has {len(rotated)} entries: expected {len(kinds)}, one for each layer")
    if any(kind == "sliding" and not turns for kind, turns in zip(kinds, rotated)):
        raise ValueError("no_rope_layers: a sliding layer without rotary positions is not supported")
    kinds = [kind if turns else "nope" for kind, turns in zip(kinds, rotated)]
    return {"pattern": tuple(kinds), "window": (t.get("sliding_window") or 0) if "sliding" in kinds else 0}


def _write_kinds(c: ModelConfig) -> dict:
    types = ["sliding_attention" if kind == "sliding" else "full_attention" for kind in c.kinds]
    return {"layer_types": types, "sliding_window": c.window or None}


BY_LAYER = Field(("layer_types", "sliding_window"), _read_kinds, _write_kinds)
SOMETIMES_SLIDING = Field(  # layer_types says all; the other keys are where it came from
    ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    _read_kinds,
    lambda c: _write_kinds(c) | {"use_sliding_window": "sliding" in c.pattern},
)
SOMETIMES_ROTATED = Field(
    ("layer_types", "sliding_window", "use_sliding_window", "no_rope_layers", "no_rope_layer_interval"),
    _read_kinds,
    lambda c: (
        _write_kinds(c)
        | {"use_sliding_window": "sliding" in c.pattern, "no_rope_layers": [int(kind != "nope") for kind in c.kinds]}
    ),
)
