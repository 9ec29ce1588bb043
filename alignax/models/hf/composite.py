"""Models of text and images: their text part alone, which is a language model of a family of ours."""

from collections.abc import Iterable, Mapping
from typing import Any

COMPOSITES = ("mistral3", "gemma3")  # model_type
TEXT = "language_model."  # tensors of the text part, after "model." or before it
IMAGES = ("vision_tower.", "multi_modal_projector.")  # the others
OUTPUT = "lm_head.weight"
# keys of config.json about images, and about the text part, which has its own
APART = {
    "text_config", "vision_config", "image_token_index", "image_token_id", "boi_token_index", "boi_token_id",
    "eoi_token_index", "eoi_token_id", "mm_tokens_per_image", "multimodal_projector_bias", "projector_hidden_act",
    "spatial_merge_size", "vision_feature_layer", "initializer_range", "tie_word_embeddings", "torch_dtype",
}  # fmt: skip
TOLD = ("dtype", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")  # of the whole, where it says


def text_config(config: Any, text: Mapping[str, Any], names: Iterable[str] | None) -> dict[str, Any]:
    """The config.json of a composite's text part, of which the composite says `text`.

    The output layer is the embedding where the whole says so, as it does by default, and its files hold no other one,
    as transformers has it; `names` are those of its tensors, None where they are not known yet.
    """
    whole = config.to_dict()
    tied = bool(whole.get("tie_word_embeddings"))
    if names is None:
        tied = tied and bool(text.get("tie_word_embeddings"))
    else:
        tied = tied and OUTPUT not in text_names(names)
    classes = [name for name in whole.get("architectures") or () if not name.endswith("ForConditionalGeneration")]
    shared = {key: whole[key] for key in TOLD if whole.get(key) is not None}
    return dict(text) | shared | {"tie_word_embeddings": tied, "architectures": classes or None}


def beside(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a composite's config.json says beside its parts, and that is about neither, as far as is known."""
    from transformers import PretrainedConfig

    known = APART | set(TOLD) | set(PretrainedConfig().to_dict())
    return {key: value for key, value in config.items() if key not in known}


def text_names(names: Iterable[str]) -> dict[str, str]:
    """{name in a language model: name here} of the tensors of a file, without those of images in a composite's."""
    names = list(names)
    inner = lambda name: name.removeprefix("model.")  # noqa: E731
    if not any(inner(name).startswith(TEXT) for name in names):
        return {name: name for name in names}
    return {name.replace(TEXT, "", 1): name for name in names if not inner(name).startswith(IMAGES)}
