"""A checkpoint's config.json as a ModelConfig, and back."""

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignax.models.config import ModelConfig
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.headers import raise_all
from alignax.models.hf.reads import keys_read, unread_rope

# Read by the code of transformers, and of no consequence for what a language model computes: of training (alignax
# trains without dropout), of how weights are stored and outputs are wrapped, of a classifier's loss.
IGNORED = {
    "vocab_size", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout",
    "summary_last_dropout", "classifier_dropout", "hidden_dropout", "initializer_range", "init_std",
    "initializer_factor", "gradient_checkpointing", "use_cache", "output_router_logits", "router_aux_loss_coef",
    "router_jitter_noise", "reorder_and_upcast_attn", "summary_activation", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "name_or_path", "torch_dtype",
    "tie_last_hidden_states", "num_labels", "_attn_implementation", "_attn_implementation_internal",
    # of which transformers has made others by now: layer_types, and a part of rope_parameters
    "_sliding_window_pattern", "sliding_window_pattern", "original_max_position_embeddings",
    "score_bias",  # of an export of ours
}  # fmt: skip
# Supported at these values, in a family whose table does not have them: they are then off.
OFF = {"is_encoder_decoder": False, "quantization_config": None, "is_causal": True, "sliding_window": None}
RENAMED = {"su": "longrope"}  # a rope_type that transformers knows by another name now
ROPE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")  # beside rope_parameters or in it


def read_config(folder: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint and its config as transformers' modelling code will see it, old spellings renewed.

    Raises ValueError for a file that transformers cannot read, with the keys at fault; for a model_type that is not in
    FAMILIES; and for what is said twice with two values, of which one would silently win.
    """
    from transformers import AutoConfig

    file = Path(folder) / "config.json"
    try:
        config = AutoConfig.from_pretrained(str(folder))
        if hasattr(config, "rope_parameters"):
            config.standardize_rope_params()  # as each rotary function does: some keys beside the group go into it
        theirs = config.to_dict()
    except Exception as error:  # of many kinds: each config class checks its fields in its own way
        fault = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} cannot be read: {fault}{_at_fault(file)}") from error
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{folder}: architecture {config.model_type!r} is not supported: expected one of {', '.join(FAMILIES)}"
        )
    said = json.loads(file.read_text(encoding="utf-8"))
    raise_all(
        _clashes(said, theirs, config.attribute_map), f"{file}: values that do not count, delete or correct them:"
    )
    return FAMILIES[config.model_type], theirs


def from_hf(family: Family, theirs: Mapping[str, Any], *, tokens: int | None = None) -> ModelConfig:
    """The ModelConfig of a config.json. `tokens` is the size of the tokenizer: rows beyond it get no probability.

    Raises ValueError with every field that is not supported, by name and value, and for a tokenizer larger than the
    embedding.
    """
    wrong, ours, source = _unsupported(family, theirs), dict(family.fixed), {}
    for field in family.fields:
        try:
            found = field.read(theirs)
            ours |= found
            source |= dict.fromkeys(found, ", ".join(field.keys))
        except KeyError as error:
            wrong.append(f"{error.args[0]} is missing")
        except ValueError as error:
            wrong.append(str(error))
        except (TypeError, ArithmeticError, AttributeError) as error:  # a value of another type, or of no meaning
            wrong.append(f"{', '.join(f'{key} = {theirs.get(key)!r}' for key in field.keys)}: {error}")
    rows, pad = theirs["vocab_size"], theirs.get("pad_token_id")
    if tokens is not None and tokens > rows:
        wrong.append(f"the tokenizer has {tokens} tokens, the embedding {rows} rows: expected no more tokens than rows")
    if pad is not None and not -rows <= pad < rows:  # torch counts a negative one from the end
        wrong.append(f"pad_token_id = {pad}: the embedding has vocab_size = {rows} rows, expected one of them or null")
    if not wrong:
        try:
            return ModelConfig(vocab_size=tokens or rows, vocab_rows=rows, **ours)
        except (ValueError, TypeError) as error:
            keys = {keys for name, keys in source.items() if re.search(rf"\b{name}\b", str(error))}
            wrong.append(f"{error} ({'; '.join(sorted(keys)) or 'vocab_size'})")
    raise ValueError(
        f"config.json of a {family.name} model that alignax cannot compute:" + "".join(f"\n  {line}" for line in wrong)
    )


def unread(folder: str | Path, family: Family, theirs: Mapping[str, Any]) -> list[str]:
    """What a config.json says and no modelling code reads: it changes no number, at whatever value.

    Settings of generation are among it; `generate` takes them from here where there is no generation_config.json.
    """
    from transformers import GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    said = set(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
    declared = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family.name])}
    spare = {key for key in _undecided(family, theirs) & said - declared if not key.startswith("_")}
    spare = spare - keys_read(family.name) if spare else spare
    settings = said & set(GenerationConfig().to_dict()) - set(theirs)
    return [*sorted(spare | settings), *unread_rope(family.fields, theirs)]


def to_hf(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys of a config.json that this ModelConfig decides.

    Raises ValueError if the family cannot express it, with the fields that would come back otherwise.
    """
    out: dict[str, Any] = {"vocab_size": config.vocab_rows or config.vocab_size}
    for field in family.fields:
        out |= field.write(config)
    try:
        back = from_hf(family, out, tokens=config.vocab_size)
    except ValueError as error:
        raise ValueError(f"no {family.name} model: {error}") from error
    lost = [
        f"{name} = {getattr(config, name)!r} would become {getattr(back, name)!r}"
        for name in config.architecture()
        if getattr(config, name) != getattr(back, name) and name not in ("vocab_rows", "vocab_multiple")
    ]
    if lost:
        raise ValueError(f"no {family.name} model: " + "; ".join(lost))
    return out


def family_of(config: ModelConfig) -> Family:
    """The first family that can express a ModelConfig. Raises ValueError with the reasons if none can."""
    reasons = []
    for family in FAMILIES.values():
        try:
            to_hf(config, family)
        except (ValueError, StopIteration) as error:
            reasons.append(str(error))
        else:
            return family
    raise ValueError("no family of transformers has this architecture:\n  " + "\n  ".join(reasons))


def _unsupported(family: Family, theirs: Mapping[str, Any]) -> list[str]:
    """A line for every key that transformers reads for this family and we do not compute, at a value that counts."""
    own, spare = _own(family), _undecided(family, theirs)
    read = sorted(spare & keys_read(family.name)) if spare else []
    off = OFF | {"layer_types": ["full_attention"] * len(theirs.get("layer_types") or [])}
    return [
        f"{key} = {theirs[key]!r}: transformers reads it, alignax does not: not supported"
        for key in read
        if key not in off
    ] + [
        f"{key} = {theirs[key]!r}: supported is {value!r}"
        for key, value in off.items()
        if key not in own and theirs.get(key, value) not in (value, None)
    ]


def _own(family: Family) -> set[str]:
    """The keys that the family's table has."""
    return {key for field in family.fields for key in field.keys}


def _undecided(family: Family, theirs: Mapping[str, Any]) -> set[str]:
    """The keys of a config of which neither a table of ours nor the base class of all configs says anything."""
    from transformers import PretrainedConfig

    return set(theirs) - _own(family) - IGNORED - set(OFF) - set(PretrainedConfig().to_dict())


def _at_fault(file: Path) -> str:
    """Without which of its keys transformers could read a config.json: '; without rope_scaling = {...} it can'."""
    from transformers import AutoConfig

    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = []
    for key in [key for key in said if key != "model_type"] if isinstance(said, dict) else []:
        with contextlib.suppress(Exception):  # of many kinds, as above
            AutoConfig.for_model(**copy.deepcopy({other: x for other, x in said.items() if other != key}))
            found.append(f"{key} = {said[key]!r}")
    return f"; without {' or '.join(found)} it can" if found else ""


def _clashes(said: Mapping[str, Any], theirs: Mapping[str, Any], aliases: Mapping[str, str]) -> list[str]:
    """A line for each thing of which config.json says another value than counts: `theirs` are those that do.

    Of rotary positions a group says the same as keys beside it, and an old name of the group the same as the new one;
    `aliases` are the config class's second names of keys.
    """
    claims: dict[str, tuple[Any, dict[str, Any]]] = {}  # a place in theirs: what counts there, and what is said of it

    def claim(name: str, value: Any, group: Mapping[str, Any], place: str, key: str) -> None:
        key = "rope_type" if key == "type" else key
        if value is not None and (key, RENAMED.get(str(value))) != ("rope_type", group.get(key)):
            claims.setdefault(place + key, (group.get(key), {}))[1][name] = value

    for alias, name in aliases.items():
        for key in (alias, name) if {alias, name} <= set(said) else ():
            claim(key, said[key], {name: theirs.get(name, theirs.get(alias))}, "", name)
    rope = theirs.get("rope_parameters") or {}
    kinds = {kind: group for kind, group in rope.items() if isinstance(group, Mapping)}  # of layers, or none
    main, place = kinds.get("full_attention", rope), f"rope_parameters.{'full_attention.' if kinds else ''}"
    for key in ROPE:
        if key in said and key in main:
            claim(key, said[key], main, place, key)
    if "rope_local_base_freq" in said and "sliding_attention" in kinds:
        local = kinds["sliding_attention"], "rope_parameters.sliding_attention.", "rope_theta"
        claim("rope_local_base_freq", said["rope_local_base_freq"], *local)
    for name in ("rope_scaling", "rope_parameters") if rope else ():
        for key, value in (said.get(name) or {}).items():
            for inner, x in value.items() if isinstance(value, Mapping) else ():
                claim(f"{name}.{key}.{inner}", x, kinds.get(key, {}), f"rope_parameters.{key}.", inner)
            if not isinstance(value, Mapping):
                claim(f"{name}.{key}", value, main if key in main else rope, place, key)
    return [
        f"{' and '.join(f'{name} = {value!r}' for name, value in found.items())}: transformers takes {counted!r}"
        for counted, found in claims.values()
        if any(value != counted for value in found.values())
    ]


def check_class(family: Family, theirs: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's class has a scalar head. Raises ValueError for a class that is none of the family's.

    The language model, the classifier, the bare decoder, and a config that names no class are all that is known to
    compute what the table says.
    """
    bare = family.classifier.replace("ForSequenceClassification", "Model")
    known = {name.lower(): name == family.classifier for name in (family.causal, bare, family.classifier)}
    names = theirs.get("architectures") or [family.causal]
    names = names if isinstance(names, list) else [names]
    if unknown := [name for name in names if str(name).lower() not in known]:
        expected = ", ".join((family.causal, family.classifier, bare))
        raise ValueError(f"architectures = {unknown}: not supported for {family.name}: expected one of {expected}")
    return any(known[name.lower()] for name in names)
