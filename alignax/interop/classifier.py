"""The classes of transformers with a scalar head (*ForSequenceClassification): their labels, bias and padding."""

from typing import Any

import numpy as np

from alignax.config import ConfigError
from alignax.data.templates import stop_ids
from alignax.log import console
from alignax.models.hf.families import Family

BIAS = "score_bias"  # key of config.json with the bias of a scalar head, for which transformers has no room


def is_classifier(keys: dict[str, Any]) -> bool:
    """Whether a config.json is of a class with a scalar head."""
    return any("SequenceClassification" in name for name in keys.get("architectures") or ())


def labels_of(config: dict[str, Any]) -> list[str]:
    """The labels of a scalar head, in order."""
    return [str(name) for _, name in sorted((config.get("id2label") or {0: "score"}).items())]


def check_pad(tokenizer: Any, config: dict[str, Any]) -> None:
    """Says so where a classifier of transformers reads its score before the token that ends a text, and not at it."""
    pad, stops = config.get("pad_token_id"), stop_ids(tokenizer, "chat" if tokenizer.chat_template else "plain")
    if pad in stops:
        console.print(
            f"[yellow]pad_token_id = {pad} also ends texts: transformers reads the score of a text that ends in it one "
            "token earlier than alignax, which reads it at the last token[/]"
        )


def class_keys(family: Family, params: Any, rated: list[str], origin: dict[str, Any]) -> dict[str, Any]:
    """The class to load it with, and the labels of a scalar head."""
    if "scalar" not in params:
        return {"architectures": [family.causal]}
    if not family.classifier:
        raise ConfigError(
            f"transformers has no class of {family.name} with a scalar head: a reward model of this family stays a "
            "checkpoint of alignax, which every stage reads, or goes out as an adapter (--adapter)"
        )
    bias = np.asarray(params["scalar"]["bias"])
    origin_labels = list(origin.get("id2label", {}).values()) if is_classifier(origin) else []
    labels = rated or (origin_labels if len(origin_labels) == bias.size else ["score"])
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if bias.any():
        console.print(f"scores of the export are lower by {bias}: {family.classifier} has no bias, {BIAS} keeps it")
    return {"architectures": [family.classifier], **names} | ({BIAS: bias.tolist()} if bias.any() else {})


def scoring_pad(tokenizer: Any, stops: list[int]) -> int | None:
    """What a config has to call padding, so that transformers reads a score where alignax does, at the last token.

    It reads it at the last token that is none of padding. None, if the tokenizer pads with nothing, or with what also
    ends its texts: then it takes single texts only, and refuses several, where it would score each one token too early.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
        return tokenizer.pad_token_id
    console.print(
        f"[yellow]the tokenizer's pad token is {tokenizer.pad_token!r}, which marks no padding: in transformers the "
        "export scores one text at a time; give the tokenizer a pad token that ends no text, to score several[/]"
    )
    return None
