"""config.json <-> ModelConfig, field by field: each entry of a family's list reads and writes the same keys."""

import math
from collections.abc import Callable, Mapping
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


def same(theirs: str, ours: str) -> Field:
    """One value under two names."""
    return Field((theirs,), lambda t: {ours: t[theirs]}, lambda c: {theirs: getattr(c, ours)})


def number(theirs: str, ours: str) -> Field:
    """One number under two names, of which theirs may be an integer."""
    return Field((theirs,), lambda t: {ours: float(t[theirs])}, lambda c: {theirs: getattr(c, ours)})


def unread(*theirs: str) -> Field:
    """Keys that say nothing about the model."""
    return Field(theirs, lambda t: {}, lambda c: {})


def optional(theirs: str, ours: str) -> Field:
    """One number under two names, where 0 is written as null."""
    return Field((theirs,), lambda t: {ours: float(t.get(theirs) or 0)}, lambda c: {theirs: getattr(c, ours) or None})


def only(theirs: str, *values: Any) -> Field:
    """A key that changes the model and of which only these values are supported; the first one is written."""

    def read(t):
        if theirs in t and t[theirs] not in values:
            raise ValueError(f"{theirs} = {t[theirs]!r}: supported is {' or '.join(map(repr, values))}")
        return {}

    return Field((theirs,), read, lambda c: {theirs: values[0]})


def activation(key: str) -> Field:
    """The activation of the feed-forward layer."""

    def read(t):
        if t[key] not in ACTIVATIONS:
            raise ValueError(f"{key} = {t[key]!r}: supported are {', '.join(ACTIVATIONS)}")
        return {"activation": ACTIVATIONS[t[key]]}

    return Field((key,), read, lambda c: {key: next(k for k, v in ACTIVATIONS.items() if v == c.activation)})


HEAD_DIM = Field(
    ("head_dim",),
    lambda t: {"head_dim": t.get("head_dim") or t["hidden_size"] // t["num_attention_heads"]},
    lambda c: {"head_dim": c.head_dim},
)
QUERY_SCALE = Field(
    ("query_pre_attn_scalar",),
    lambda t: {"query_scale_dim": float(t["query_pre_attn_scalar"])},
    lambda c: {"query_pre_attn_scalar": int(c.query_scale_dim) if c.query_scale_dim % 1 == 0 else c.query_scale_dim},
)


def _write_multiplier(c: ModelConfig) -> dict:
    """The shortest number that `ATTENTION_MULTIPLIER` reads as this scale."""
    exact = c.query_scale
    found = (x for x in (round(exact, n) for n in range(17)) if x and x**-2 == (c.query_scale_dim or c.head_dim))
    return {"attention_multiplier": next(found, exact)}


ATTENTION_MULTIPLIER = Field(
    ("attention_multiplier",), lambda t: {"query_scale_dim": float(t["attention_multiplier"]) ** -2}, _write_multiplier
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


# ---- rotary positions

_ROPES = {  # rope_type -> the keys that it may have
    "default": (),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "beta_slow", "beta_fast", "original_max_position_embeddings", "truncate", "attention_factor",
        "mscale", "mscale_all_dim",
    ),
    "longrope": ("factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor"),
}  # fmt: skip


def _read_rope(t: Mapping[str, Any], rope: Mapping[str, Any], *, partial: bool = False) -> dict:
    """The fields of one group of rotary parameters, of a config.json `t`."""
    kind = rope.get("rope_type", "default")
    if kind not in _ROPES:
        raise ValueError(f"rope_parameters.rope_type = {kind!r}: supported are {', '.join(_ROPES)}")
    # "type" is an old name of rope_type, which transformers has read by now
    known = {"type", "rope_type", "rope_theta", *_ROPES[kind]} | ({"partial_rotary_factor"} if partial else set())
    extra = set(rope) - known
    if extra:
        raise ValueError(f"rope_parameters.{', '.join(sorted(extra))}: not supported beside {kind!r} in this family")
    fields = {"rope_theta": float(rope["rope_theta"]), "rope_type": kind}
    if (fraction := rope.get("partial_rotary_factor")) is not None:
        fields["rope_fraction"] = float(fraction)
    if kind in ("dynamic", "linear", "llama3"):
        fields["rope_factor"] = float(rope["factor"])
    if kind == "llama3":
        fields |= {"rope_low": float(rope["low_freq_factor"]), "rope_high": float(rope["high_freq_factor"])}
    if "original_max_position_embeddings" in _ROPES[kind]:
        fields["rope_original"] = int(rope["original_max_position_embeddings"])
    if kind in ("yarn", "longrope"):
        factor = float(rope.get("factor") or t["max_position_embeddings"] / fields["rope_original"])
        fields["rope_magnitude"] = _magnitude(rope, factor, fields["rope_original"])
    if kind == "yarn":
        slow, fast = float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32)
        fields |= {"rope_factor": factor, "rope_low": slow, "rope_high": fast}
        fields["rope_truncate"] = bool(rope.get("truncate", True))
    if kind == "longrope":
        fields |= {"rope_factors": tuple(rope["short_factor"]), "rope_long_factors": tuple(rope["long_factor"])}
    return fields


def _magnitude(rope: Mapping[str, Any], factor: float, original: int) -> float:
    """What the rotated numbers are multiplied with: as given, or by the rule of YaRN or LongRoPE."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if factor <= 1:
        return 1.0
    if rope["rope_type"] == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    grown = lambda scale: 0.1 * scale * math.log(factor) + 1  # noqa: E731
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    return grown(over) / grown(under) if over and under else grown(1)


def _write_rope(c: ModelConfig) -> dict:
    rope: dict[str, Any] = {"rope_type": c.rope_type, "rope_theta": c.rope_theta}
    rope |= {} if c.rope_fraction == 1 else {"partial_rotary_factor": c.rope_fraction}
    rope |= {} if c.rope_type in ("default", "longrope") else {"factor": c.rope_factor}
    if c.rope_type == "llama3":
        rope |= {"low_freq_factor": c.rope_low, "high_freq_factor": c.rope_high}
    if c.rope_type == "yarn":
        rope |= {"beta_slow": c.rope_low, "beta_fast": c.rope_high, "truncate": c.rope_truncate}
    if c.rope_type == "longrope":
        rope |= {"short_factor": list(c.rope_factors), "long_factor": list(c.rope_long_factors)}
    if "original_max_position_embeddings" in _ROPES[c.rope_type]:
        rope["original_max_position_embeddings"] = c.rope_original
    if "attention_factor" in _ROPES[c.rope_type]:
        rope["attention_factor"] = c.rope_magnitude
    return rope


ROPE = Field(
    ("rope_parameters",), lambda t: _read_rope(t, t["rope_parameters"]), lambda c: {"rope_parameters": _write_rope(c)}
)


def _write_partial_rope(c: ModelConfig) -> dict:
    """Phi-3 has the original length beside the group, where transformers prefers it, and its group always a share."""
    rope = {"partial_rotary_factor": c.rope_fraction} | _write_rope(c)
    name = "original_max_position_embeddings"
    return {"rope_parameters": rope} | {key: rope[key] for key in (name,) if key in rope}


PARTIAL_ROPE = Field(
    ("rope_parameters", "partial_rotary_factor"),  # which transformers has put into the group
    read=lambda t: _read_rope(t, t["rope_parameters"], partial=True),
    write=_write_partial_rope,
)


ROPE_WITH_SHARE = Field(  # always: transformers has a share below 1 where a file of these families says none
    ("rope_parameters", "partial_rotary_factor"),
    read=lambda t: _read_rope(t, t["rope_parameters"], partial=True),
    write=lambda c: {"rope_parameters": {"partial_rotary_factor": c.rope_fraction} | _write_rope(c)},
)
_GROWTH = ("llama_4_scaling_beta", "original_max_position_embeddings")


def _read_growing_rope(t: Mapping[str, Any]) -> dict:
    """Ministral 3's: queries grow from the original length on, whether the rotation is stretched or not."""
    beta, original = (t["rope_parameters"][name] for name in _GROWTH)
    kept = _ROPES.get(t["rope_parameters"].get("rope_type", "default"), ())
    # "max_position_embeddings" stands in the group a second time
    spare = {"max_position_embeddings", *_GROWTH} - set(kept)
    rope = {key: value for key, value in t["rope_parameters"].items() if key not in spare}
    return _read_rope(t, rope) | {"query_growth": float(beta), "rope_original": int(original)}


ROPE_WITH_GROWTH = Field(
    ("rope_parameters",),
    _read_growing_rope,
    lambda c: {"rope_parameters": _write_rope(c) | dict(zip(_GROWTH, (c.query_growth, c.rope_original), strict=True))},
)


def _read_two_ropes(t: Mapping[str, Any]) -> dict:
    rope = t["rope_parameters"]
    local = _read_rope(t, rope["sliding_attention"])
    if local["rope_type"] != "default":
        raise ValueError(
            f"rope_parameters.sliding_attention.rope_type = {local['rope_type']!r}: supported is 'default'"
        )
    return _read_rope(t, rope["full_attention"]) | {"rope_theta_sliding": local["rope_theta"]}


TWO_ROPES = Field(
    ("rope_parameters",),
    _read_two_ropes,
    lambda c: {
        "rope_parameters": {
            "full_attention": _write_rope(c),
            "sliding_attention": {"rope_type": "default", "rope_theta": c.rope_theta_sliding},
        }
    },
)


# ---- sliding windows


ALL_SLIDING = Field(  # every layer has the window, or none
    ("sliding_window",),
    lambda t: {"pattern": ("sliding",), "window": t["sliding_window"]} if t.get("sliding_window") else {},
    lambda c: {"sliding_window": c.window if "sliding" in c.pattern else None},
)


def _read_kinds(t: Mapping[str, Any]) -> dict:
    types = t["layer_types"]
    unknown = sorted(set(types) - set(KINDS))
    if unknown:
        raise ValueError(f"layer_types with {', '.join(unknown)}: supported are {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in types]
    rotated = t.get("no_rope_layers") or [1] * len(kinds)
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
