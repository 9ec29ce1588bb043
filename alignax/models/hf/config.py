"""A checkpoint's config.json as a ModelConfig, and back."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from alignax.models.config import ModelConfig
from alignax.models.hf.composite import COMPOSITES, beside, text_config
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.headers import raise_all, tensor_names
from alignax.models.hf.reads import keys_read, unread_rope
from alignax.models.hf.said import at_fault, clashes

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
FIX = {  # what to do about one of them
    "quantization_config": ": take a folder in bfloat16, or load the model with transformers, which dequantises it, and"
    " save it (MXFP4: Mxfp4Config(dequantize=True))"
}


def read_config(folder: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint and its config as transformers' modelling code will see it, old spellings renewed.

    Of a model of text and images they are those of its text part. Raises ValueError for a file that transformers cannot
    read, with the keys at fault; for a model_type that is not in FAMILIES; for what is said twice with two values, of
    which one would silently win; and for keys beside the text part that its code, or that of the whole, reads.
    """
    from transformers import AutoConfig

    file = Path(folder) / "config.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        # first, as AutoConfig would ask whether to run a stranger's code
        check_family(stated.get("model_type"), folder)
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    try:
        config = AutoConfig.from_pretrained(str(folder))
        text = config.text_config if config.model_type in COMPOSITES else config
        if hasattr(text, "rope_parameters"):
            text.standardize_rope_params()  # as each rotary function does: some keys beside the group go into it
        hf_config = text.to_dict()
    except Exception as error:  # of many kinds: each config class checks its fields in its own way
        fault = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} cannot be read: {fault}{at_fault(file)}") from error
    check_family(text.model_type, folder, {})
    named, wrong = {**stated, **(stated.get("text_config") or {})}, []
    if text is not config:
        hf_config = text_config(config, hf_config, tensor_names(Path(folder)))
        hf_config, wrong = _with_the_whole(stated, hf_config)
        stated = stated.get("text_config") or {}
    wrong += clashes(stated, hf_config, text.attribute_map)
    raise_all(wrong, f"{file}: values that do not count, delete or correct them:")
    # what is nowhere said: the config classes have ids of their own vocabulary there, which is not this one
    hf_config |= {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key not in named}
    return FAMILIES[text.model_type], hf_config


def check_family(name: Any, folder: str | Path, wholes: Collection[str] = COMPOSITES) -> None:
    """Raises ValueError for an architecture that is neither in FAMILIES nor among `wholes`."""
    if name not in [*FAMILIES, *wholes]:
        known = ", ".join([*FAMILIES, *wholes])
        raise ValueError(f"{folder}: architecture {name!r} is not supported: expected one of {known}")


def from_hf(family: Family, hf_config: Mapping[str, Any], *, tokens: int | None = None) -> ModelConfig:
    """The ModelConfig of a config.json. `tokens` is the size of the tokenizer: rows beyond it get no probability.

    Raises ValueError with every field that is not supported, by name and value, and for a tokenizer larger than the
    embedding.
    """
    wrong, values, source = _unsupported(family, hf_config), dict(family.fixed), {}
    for field in family.fields:
        try:
            found = field.read(hf_config)
            values |= found
            source |= dict.fromkeys(found, ", ".join(field.keys))
        except KeyError as error:
            wrong.append(f"{error.args[0]} is missing")
        except ValueError as error:
            wrong.append(str(error))
        except (TypeError, ArithmeticError, AttributeError) as error:  # a value of another type, or of no meaning
            wrong.append(f"{', '.join(f'{key} = {hf_config.get(key)!r}' for key in field.keys)}: {error}")
    rows, pad = hf_config["vocab_size"], hf_config.get("pad_token_id")
    if tokens is not None and tokens > rows:
        wrong.append(f"the tokenizer has {tokens} tokens, the embedding {rows} rows: expected no more tokens than rows")
    if pad is not None and not -rows <= pad < rows:  # torch counts a negative one from the end
        wrong.append(f"pad_token_id = {pad}: the embedding has vocab_size = {rows} rows, expected one of them or null")
    if not wrong:
        try:
            return ModelConfig(vocab_size=tokens or rows, vocab_rows=rows, **values)
        except (ValueError, TypeError) as error:
            keys = {keys for name, keys in source.items() if re.search(rf"\b{name}\b", str(error))}
            wrong.append(f"{error} ({'; '.join(sorted(keys)) or 'vocab_size'})")
    raise ValueError(
        f"config.json of a {family.name} model that alignax cannot compute:" + "".join(f"\n  {line}" for line in wrong)
    )


def unread(folder: str | Path, family: Family, hf_config: Mapping[str, Any]) -> list[str]:
    """What a config.json says and no modelling code reads: it changes no number, at whatever value.

    Settings of generation are among it; `generate` takes them from here where there is no generation_config.json.
    """
    from transformers import GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    stated = set(beside(stated) | (stated.get("text_config") or {}) if stated["model_type"] in COMPOSITES else stated)
    declared = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family.name])}
    spare = {key for key in _undecided(family, hf_config) & stated - declared if not key.startswith("_")}
    spare = spare - keys_read(family.name) if spare else spare
    settings = stated & set(GenerationConfig().to_dict()) - set(hf_config)
    return [*sorted(spare | settings), *unread_rope(family.fields, hf_config)]


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


def _unsupported(family: Family, hf_config: Mapping[str, Any]) -> list[str]:
    """A line for every key that transformers reads for this family and we do not compute, at a value that counts."""
    known, spare = _table_keys(family), _undecided(family, hf_config)
    read = sorted(spare & keys_read(family.name)) if spare else []
    off = OFF | {"layer_types": ["full_attention"] * len(hf_config.get("layer_types") or [])}
    return [
        f"{key} = {hf_config[key]!r}: transformers reads it, alignax does not: not supported"
        for key in read
        if key not in off
    ] + [
        f"{key} = {hf_config[key]!r}: supported is {value!r}{FIX.get(key, '')}"
        for key, value in off.items()
        if key not in known and hf_config.get(key, value) not in (value, None)
    ]


def _table_keys(family: Family) -> set[str]:
    """The keys that the family's table has."""
    return {key for field in family.fields for key in field.keys}


def _undecided(family: Family, hf_config: Mapping[str, Any]) -> set[str]:
    """The keys of a config of which neither a table of ours nor the base class of all configs says anything."""
    from transformers import PretrainedConfig

    return set(hf_config) - _table_keys(family) - IGNORED - set(OFF) - set(PretrainedConfig().to_dict())


def _with_the_whole(stated: Mapping[str, Any], hf_config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A text part's config with what the whole says beside it and nothing reads; a line for each key that is read.

    Those that the code of the part reads it reads within, and what the whole's own code makes of any other is unknown:
    at another value than the part's they are refused.
    """
    read, spare = keys_read(stated["model_type"]) | keys_read(hf_config["model_type"]), beside(stated)
    wrong = [
        f"{key} = {value!r} beside text_config, which has {hf_config.get(key)!r}"
        for key, value in spare.items()
        if key in read and value not in (None, hf_config.get(key, OFF.get(key)))
    ]
    unread = {key: value for key, value in spare.items() if key not in read}
    return unread | dict(hf_config), wrong + clashes(spare, hf_config, {})


def check_class(family: Family, hf_config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's class has a scalar head. Raises ValueError for a class that is none of the family's.

    The language model, the classifier, the bare decoder, and a config that names no class are all that is known to
    compute what the table says.
    """
    bare = (family.classifier or family.causal).replace("ForSequenceClassification", "Model")
    classes = [name for name in (family.causal, family.classifier, bare.replace("ForCausalLM", "Model")) if name]
    known = {name.lower(): name == family.classifier for name in classes}
    names = hf_config.get("architectures") or [family.causal]
    names = names if isinstance(names, list) else [names]
    if unknown := [name for name in names if str(name).lower() not in known]:
        expected = ", ".join(classes)
        raise ValueError(f"architectures = {unknown}: not supported for {family.name}: expected one of {expected}")
    return any(known[name.lower()] for name in names)
