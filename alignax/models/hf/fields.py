"""config.json <-> ModelConfig, field by field: each entry of a family's list reads and writes the same keys."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from alignax.models.config import ModelConfig

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


class Field(NamedTuple):
    """Some keys of a config.json and the fields of a ModelConfig that they are."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict]  # their values -> our fields; raises ValueError for what we lack
    write: Callable[[ModelConfig], dict]


def same(theirs: str, ours: str) -> Field:
    """One value under two names."""
    return Field((theirs,), lambda t: {ours: t[theirs]}, lambda c: {theirs: getattr(c, ours)})


def positive(group: Mapping[str, Any], key: str, *, where: str = "", whole: bool = False) -> Any:
    """A number above 0, as it is. Raises ValueError for anything else, KeyError for a key that is not there."""
    if key not in group:
        raise KeyError(where + key)
    value = group[key]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}{key} = {value!r}: expected a {'whole ' if whole else ''}number above 0")
    return value


def count(theirs: str, ours: str) -> Field:
    """One number of things under two names, where 0 of ours means something else."""
    return Field((theirs,), lambda t: {ours: positive(t, theirs, whole=True)}, lambda c: {theirs: getattr(c, ours)})


def optional(theirs: str, ours: str) -> Field:
    """One number under two names, where null is 0 of ours; a 0 of theirs would be no number but a fault."""

    def read(t):
        return {ours: 0.0 if t.get(theirs) is None else float(positive(t, theirs))}

    return Field((theirs,), read, lambda c: {theirs: getattr(c, ours) or None})


def unused(theirs: str) -> Field:
    """A key that the code reads and makes nothing of."""
    return Field((theirs,), lambda t: {}, lambda c: {})


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


# ---- rotary positions

ROPES = {  # rope_type -> the keys that its function reads, beside rope_theta and partial_rotary_factor
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


def _read_rope(
    t: Mapping[str, Any], rope: Mapping[str, Any], *, partial: bool = False, where: str = "rope_parameters."
) -> dict:
    """The fields of one group of rotary parameters, of a config.json `t`, which calls it `where`.

    What the function of its type does not read is not looked at: see `reads.unread_rope`.
    """
    kind = rope.get("rope_type", "default")
    if kind not in tuple(ROPES):  # a list of JSON has no hash
        raise ValueError(f"{where}rope_type = {kind!r}: supported are {', '.join(ROPES)}")
    if groups := [key for key, value in rope.items() if isinstance(value, Mapping)]:
        raise ValueError(f"{where}{', '.join(groups)}: kinds of layers share one group in this family")
    number = lambda key, **as_: positive(rope, key, where=where, **as_)  # noqa: E731
    maybe = lambda key: number(key) if rope.get(key) is not None else None  # noqa: E731
    fields = {"rope_theta": float(number("rope_theta")), "rope_type": kind}
    if (partial or kind != "default") and (fraction := maybe("partial_rotary_factor")) is not None:
        if not partial and fraction != 1:
            raise ValueError(f"{where}partial_rotary_factor = {fraction}: supported is 1 in this family")
        fields["rope_fraction"] = float(fraction)
    if kind in ("dynamic", "linear", "llama3"):
        fields["rope_factor"] = float(number("factor"))
    if kind == "llama3":
        fields |= {"rope_low": float(number("low_freq_factor")), "rope_high": float(number("high_freq_factor"))}
    if "original_max_position_embeddings" in ROPES[kind]:
        fields["rope_original"] = int(number("original_max_position_embeddings", whole=True))
    if kind in ("yarn", "longrope"):
        factor = float(maybe("factor") or t["max_position_embeddings"] / fields["rope_original"])
        scales = {key: number(key) for key in ("mscale", "mscale_all_dim") if rope.get(key)}
        scales["attention_factor"] = maybe("attention_factor")
        fields["rope_magnitude"] = _magnitude(kind, scales, factor, fields["rope_original"])
    if kind == "yarn":
        slow, fast = (float(number(key) if rope.get(key) else x) for key, x in (("beta_slow", 1), ("beta_fast", 32)))
        fields |= {"rope_factor": factor, "rope_low": slow, "rope_high": fast}
        fields["rope_truncate"] = bool(t["rope_parameters"].get("truncate", True))  # beside groups, where there are two
    if kind == "longrope":
        fields |= {"rope_factors": tuple(rope["short_factor"]), "rope_long_factors": tuple(rope["long_factor"])}
    return fields


def _magnitude(kind: str, scales: Mapping[str, Any], factor: float, original: int) -> float:
    """What the rotated numbers are multiplied with: as given, or by the rule of YaRN or LongRoPE."""
    if scales["attention_factor"] is not None:
        return float(scales["attention_factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    grown = lambda scale: 0.1 * scale * math.log(factor) + 1  # noqa: E731
    over, under = scales.get("mscale"), scales.get("mscale_all_dim")
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
    if "original_max_position_embeddings" in ROPES[c.rope_type]:
        rope["original_max_position_embeddings"] = c.rope_original
    if "attention_factor" in ROPES[c.rope_type]:
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


def _read_two_ropes(t: Mapping[str, Any]) -> dict:
    rope = t["rope_parameters"]
    local = _read_rope(t, rope["sliding_attention"], where="rope_parameters.sliding_attention.")
    if local["rope_type"] != "default":
        raise ValueError(
            f"rope_parameters.sliding_attention.rope_type = {local['rope_type']!r}: supported is 'default'"
        )
    full = _read_rope(t, rope["full_attention"], where="rope_parameters.full_attention.")
    return full | {"rope_theta_sliding": local["rope_theta"]}


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
