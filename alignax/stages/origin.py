"""Where an imported checkpoint came from: the files that it brought, and what they say of its family."""

import hashlib
import json
from pathlib import Path
from typing import Any

from alignax.config import ConfigError
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.peft_in import CONFIG

STORED = "stored.json"  # in that folder: the dtypes in which the tensors came
ORIGIN = "hf"  # folder of config.json and generation_config.json, which every later stage hands on


def origin_of(workdir: Path) -> dict[str, Any]:
    """The config.json that a checkpoint descends from; {} if it was trained from random parameters."""
    file = workdir / ORIGIN / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def stored_of(workdir: Path) -> tuple[str, dict[str, str]]:
    """The dtype of most tensors that a checkpoint descends from, "" if there are none, and those of the others."""
    file = workdir / ORIGIN / STORED
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"dtype": "", "others": {}}
    return told["dtype"], told["others"]


def family_of(config: ModelConfig, origin: dict[str, Any], asked: str = "") -> Family:
    """The family that was asked for, else that of the origin, else the first that can express the model."""
    name = asked or origin.get("model_type", "")
    if not name:
        return hf_config.family_of(config)
    if name not in FAMILIES:
        raise ConfigError(f"family = {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def identity(folder: Path) -> str:
    """sha256 over the config and the names and sizes and times of the weight files: which folder was imported.

    Not over the weights themselves, which may be large: theirs is the manifest's own content hash.
    """
    files = sorted(folder.glob("*.safetensors"))
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    configs = [folder / name for name in ("config.json", CONFIG)]
    config = b"".join(file.read_bytes() for file in configs if file.is_file())
    return hashlib.sha256(config + json.dumps(stats).encode()).hexdigest()
