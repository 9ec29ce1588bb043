"""A checkpoint's config.json as a ModelConfig, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignax.models.config import ModelConfig
from alignax.models.hf.composite import COMPOSITES, text_config
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.headers import tensor_names

# Of training, of generation, of the file, or of another program: they do not change what a language model computes.
# Dropout is among them: alignax trains without. `pad_token_id` says where a *ForSequenceClassification reads its score:
# see `stages.export`. `max_window_layers` is what transformers made `layer_types` of, `n_ctx` is `n_positions`, and
# `auto_map` names code beside the weights, which counts only for a class that `check_class` refuses.
IGNORED = {
    "vocab_size", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout",
    "classifier_dropout", "initializer_range", "use_cache", "pretraining_tp", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "reorder_and_upcast_attn", "summary_activation",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "original_max_position_embeddings",
    "_sliding_window_pattern", "sliding_window_pattern", "cache_implementation", "bos_token_id", "eos_token_id",
    "pad_token_id", "torch_dtype", "dtype", "model_type", "transformers_version", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "attn_implementation",
    "score_bias", "is_llama_config", "task_specific_params", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "max_sequence_length", "max_window_layers", "n_ctx", "auto_map",
}  # fmt: skip
# Supported at these values, in a family whose table does not have them: they are then off.
OFF = {
    "is_encoder_decoder": False, "add_cross_attention": False, "quantization_config": None, "use_mrope": False,
    "rope_interleaved": False, "attention_bias": False, "mlp_bias": False, "lm_head_bias": False,
    "sliding_window": None, "use_sliding_window": False, "interpolate_factor": 1, "full_attn_mod": 1,
}  # fmt: skip
FIX = {  # what to do about one of them
    "quantization_config": ": take a folder in bfloat16, or load the model with transformers, which dequantises it, and"
    " save it (MXFP4: Mxfp4Config(dequantize=True))"
}


def read_config(folder: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint and its config, old spellings brought up to date by transformers.

    Of a model of text and images they are those of its text part. Raises ValueError for a model_type that is not in
    FAMILIES, or that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # of many kinds: each config class checks its fields in its own way
        raise ValueError(f"{folder}: config.json cannot be read: {_first_line(error)}") from error
    composite = config.model_type in COMPOSITES
    theirs = text_config(config, tensor_names(Path(folder))) if composite else config.to_dict()
    if theirs["model_type"] not in FAMILIES:
        raise ValueError(
            f"{folder}: architecture {theirs['model_type']!r} is not supported: expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[theirs["model_type"]], theirs


def from_hf(family: Family, theirs: Mapping[str, Any], *, tokens: int | None = None) -> ModelConfig:
    """The ModelConfig of a config.json. `tokens` is the size of the tokenizer: rows beyond it get no probability.

    Raises ValueError with every field that is not supported, by name and value, and for a tokenizer larger than the
    embedding.
    """
    wrong, ours = _unknown(family, theirs), dict(family.fixed)
    for field in family.fields:
        try:
            ours |= field.read(theirs)
        except KeyError as error:
            wrong.append(f"{error.args[0]} is missing")
        except ValueError as error:
            wrong.append(str(error))
        except (TypeError, ArithmeticError, AttributeError) as error:  # a value of another type, or of no meaning
            wrong.append(f"{', '.join(f'{key} = {theirs.get(key)!r}' for key in field.keys)}: {error}")
    rows = theirs["vocab_size"]
    if tokens is not None and tokens > rows:
        wrong.append(f"the tokenizer has {tokens} tokens, the embedding {rows} rows: expected no more tokens than rows")
    if not wrong:
        try:
            return ModelConfig(vocab_size=tokens or rows, vocab_rows=rows, **ours)
        except (ValueError, TypeError) as error:
            wrong.append(str(error))
    raise ValueError(f"a {family.name} config that alignax cannot compute:" + "".join(f"\n  {line}" for line in wrong))


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


def _unknown(family: Family, theirs: Mapping[str, Any]) -> list[str]:
    """Fields that neither the family's table nor the base class of all configs knows: they may change the model."""
    from transformers import PretrainedConfig

    own = {key for field in family.fields for key in field.keys}
    known = own | IGNORED | set(PretrainedConfig().to_dict()) | set(OFF)
    wrong = [f"{key} = {theirs[key]!r} is not supported" for key in sorted(set(theirs) - known)]
    return wrong + [
        f"{key} = {theirs[key]!r}: supported is {value!r}{FIX.get(key, '')}"
        for key, value in OFF.items()
        if key not in own and theirs.get(key, value) not in (value, None)
    ]


def check_class(family: Family, theirs: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's class has a scalar head. Raises ValueError for a class that is none of the family's.

    The language model, the classifier, the bare decoder, and a config that names no class are all that is known to
    compute what the table says.
    """
    bare = (family.classifier or family.causal).replace("ForSequenceClassification", "Model")
    classes = [name for name in (family.causal, family.classifier, bare.replace("ForCausalLM", "Model")) if name]
    known = {name.lower(): name == family.classifier for name in classes}
    names = theirs.get("architectures") or [family.causal]
    if unknown := [name for name in names if name.lower() not in known]:
        expected = ", ".join(classes)
        raise ValueError(f"architectures = {unknown}: not supported for {family.name}: expected one of {expected}")
    return any(known[name.lower()] for name in names)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
