"""What a config.json says that does not count: values that another place overrides, and those that cannot be read."""

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RENAMED = {"su": "longrope"}  # a rope_type that transformers knows by another name now
# of the group of rotary parameters, where they may stand beside it: the key there -> the key within
BESIDE = {name: name for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")}
OLD = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}  # of GPT-NeoX: others make nothing of it


def at_fault(file: Path) -> str:
    """Without which of its keys transformers could read a config.json: '; without rope_scaling = {...} it can'."""
    from transformers import AutoConfig

    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = []
    for key, value, rest in _one_less(stated) if isinstance(stated, dict) else ():
        with contextlib.suppress(Exception):  # of many kinds: each config class checks its fields in its own way
            AutoConfig.for_model(**copy.deepcopy(rest))
            found.append(f"{key} = {value!r}")
    return f"; without {' or '.join(found)} it can" if found else ""


def _one_less(stated: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(key, value, the other keys) of each key of a config, and of each key of its text part in the place of that."""
    for key, value in stated.items():
        if key == "text_config" and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", x, {**stated, key: rest}) for inner, x, rest in _one_less(value))
        elif key != "model_type":
            yield key, value, {other: x for other, x in stated.items() if other != key}


def clashes(stated: Mapping[str, Any], hf_config: Mapping[str, Any], aliases: Mapping[str, str]) -> list[str]:
    """A line for each thing of which config.json says another value than counts: `hf_config` are those that do.

    Of rotary positions a group says the same as keys beside it, and an old name of the group the same as the new one;
    `aliases` are the config class's second names of keys.
    """
    claims: dict[
        str, tuple[Any, dict[str, Any]]
    ] = {}  # a place in `hf_config`: what counts there, and what is said of it

    def claim(name: str, value: Any, group: Mapping[str, Any], place: str, key: str) -> None:
        key = "rope_type" if key == "type" else key
        if value is not None and (key, RENAMED.get(str(value))) != ("rope_type", group.get(key)):
            claims.setdefault(place + key, (group.get(key), {}))[1][name] = value

    for alias, name in aliases.items():
        for key in (alias, name) if {alias, name} <= set(stated) else ():
            claim(key, stated[key], {name: hf_config.get(name, hf_config.get(alias))}, "", name)
    rope = hf_config.get("rope_parameters") or {}
    kinds = {kind: group for kind, group in rope.items() if isinstance(group, Mapping)}  # of layers, or none
    main, place = kinds.get("full_attention", rope), f"rope_parameters.{'full_attention.' if kinds else ''}"
    # an old name that is still there was not taken over
    for name, key in {**BESIDE, **{name: key for name, key in OLD.items() if name not in hf_config}}.items():
        if name in stated and key in main:
            claim(name, stated[name], main, place, key)
    if "rope_local_base_freq" in stated and "sliding_attention" in kinds:
        local = kinds["sliding_attention"], "rope_parameters.sliding_attention.", "rope_theta"
        claim("rope_local_base_freq", stated["rope_local_base_freq"], *local)
    for name in ("rope_scaling", "rope_parameters") if rope else ():
        for key, value in (stated.get(name) or {}).items():
            for inner, x in value.items() if isinstance(value, Mapping) else ():
                claim(f"{name}.{key}.{inner}", x, kinds.get(key, {}), f"rope_parameters.{key}.", inner)
            if not isinstance(value, Mapping):
                claim(f"{name}.{key}", value, main if key in main else rope, place, key)
    return [
        f"{' and '.join(f'{name} = {value!r}' for name, value in found.items())}: transformers takes {counted!r}"
        for counted, found in claims.values()
        if any(value != counted for value in found.values())
    ]
