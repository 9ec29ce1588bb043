"""A folder of whole weights -> what its config and tokenizer say, before any weight is loaded."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from alignax.config import ConfigError
from alignax.data.tokenizer import leave_beyond, left_beyond, load_tokenizer, vocabulary
from alignax.interop.classifier import BIAS, check_pad, labels_of
from alignax.interop.ends import set_stops
from alignax.log import console
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import Family
from alignax.models.hf.headers import read_headers


class Whole(NamedTuple):
    """What a folder of whole weights says about them."""

    family: Family
    theirs: dict[str, Any]  # config.json; of a model of text and images, that of its text part
    tokenizer: Any
    config: ModelConfig
    labels: list[str] | None  # of a scalar head; None: a language model

    @property
    def attributes(self) -> list[str]:
        """The labels of a head with several scores; [] of any other."""
        return self.labels if self.labels and len(self.labels) > 1 else []

    @property
    def prefix(self) -> str:
        """What the names of the decoder's tensors begin with."""
        return self.family.rows(self.config)[0].theirs.split(".")[0] + "."


def read_whole(folder: Path, tokenizer: str = "") -> Whole:
    """Reads config and tokenizer, the one beside the weights unless another is named.

    The vocabulary is the tokenizer's. Raises ValueError with all that the config says and alignax cannot hold.
    """
    family, raw_config = hf_config.read_config(folder)
    loaded = load_tokenizer(tokenizer or str(folder))
    leave_beyond(loaded, raw_config["vocab_size"])
    set_stops(loaded, folder, raw_config)
    config = hf_config.from_hf(family, raw_config, tokens=vocabulary(loaded))
    labels = labels_of(raw_config) if hf_config.check_class(family, raw_config) else None
    if labels is not None:  # those classes have no output layer of their own
        config = dataclasses.replace(config, tie_embeddings=True)
    return Whole(family, raw_config, loaded, config, labels)


def check_use(folder: Path, found: Whole) -> None:
    """Says what of config and tokenizer counts for nothing; raises ConfigError for a bias without a scalar head."""
    if spare := hf_config.unread(folder, found.family, found.theirs):
        console.print(
            f"config.json: the code of {found.family.name} in transformers reads nothing of {', '.join(spare)}; kept "
            "for the export",
            soft_wrap=True,
        )
    if beyond := left_beyond(found.tokenizer):
        console.print(
            f"tokenizer: {', '.join(beyond)} beyond the embedding's {found.theirs['vocab_size']} rows: no text may "
            "hold it",
            soft_wrap=True,
        )
    if found.labels is not None:
        check_pad(found.tokenizer, found.theirs)
    elif found.theirs.get(BIAS) is not None:
        raise ConfigError(f"config.json has {BIAS}, of a scalar head, but names the class {found.family.causal}")


def say_left(folder: Path, workdir: Path) -> None:
    """Says which tensors of a model of text and images were not read."""
    if left := read_headers(folder).left:
        parts = sorted({name.removeprefix("model.").split(".")[0] for name in left})
        console.print(f"{workdir}: the text part alone; not read: {', '.join(parts)} ({len(left)} tensors)")
