"""Rotary positions of a config.json <-> ModelConfig: one group of parameters, or one for each kind of layer."""

import math
from collections.abc import Mapping
from typing import Any

from alignax.models.config import ModelConfig
from alignax.models.hf.fields import Field, positive

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


_SHARE = ("partial_rotary_factor",)  # in the group; from beside it transformers has put it there
PARTIAL_ROPE = Field(
    ("rope_parameters", *_SHARE),
    read=lambda t: _read_rope(t, t["rope_parameters"], partial=True),
    write=_write_partial_rope,
    group=_SHARE,
)
ROPE_WITH_SHARE = (
    PARTIAL_ROPE._replace(  # always: transformers has one below 1 where a file of these families says none
        write=lambda c: {"rope_parameters": {"partial_rotary_factor": c.rope_fraction} | _write_rope(c)}
    )
)
_GROWTH = ("llama_4_scaling_beta", "original_max_position_embeddings")


def _read_growing_rope(t: Mapping[str, Any]) -> dict:
    """Ministral 3's: queries grow from the original length on, whether the rotation is stretched or not."""
    rope, where = t["rope_parameters"], "rope_parameters."
    number = lambda key, **as_: positive(rope, key, where=where, **as_)  # noqa: E731
    beta = 0.0 if rope.get(_GROWTH[0]) == 0 else float(number(_GROWTH[0]))  # 0: they do not grow
    return _read_rope(t, rope) | {"query_growth": beta, "rope_original": number(_GROWTH[1], whole=True)}


ROPE_WITH_GROWTH = Field(
    ("rope_parameters",),
    _read_growing_rope,
    lambda c: {"rope_parameters": _write_rope(c) | dict(zip(_GROWTH, (c.query_growth, c.rope_original), strict=True))},
    group=(*_GROWTH, "max_position_embeddings"),  # the last one a second time: declared there, and read by nothing
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
