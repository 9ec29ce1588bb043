"""Where an imported checkpoint came from: the files that it brought, and what they say of its family."""

import json
import shutil
from pathlib import Path
from typing import Any

from alignax.config import ConfigError
from alignax.log import replace_file
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.headers import stored_dtypes

STORED = "stored.json"  # in that folder: the dtypes in which the tensors came
ORIGIN = "hf"  # folder of config.json and generation_config.json, which every later stage hands on
KEPT = ("config.json", "generation_config.json")


def keep_origin(folder: Path, out: Path, config: dict[str, Any], *, prefix: str) -> None:
    """Writes what the way out needs: the configs, and the dtypes of the tensors, which config.json need not have.

    `config` is what goes out: of a model of text and images that of its text part.
    """
    out.mkdir(exist_ok=True)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"] != config["model_type"]:
        replace_file(out / "config.json", json.dumps(config, indent=2) + "\n")
    main, others = stored_dtypes(folder, prefix)
    replace_file(out / STORED, json.dumps({"dtype": main, "others": others}, indent=2) + "\n")


def origin_of(workdir: Path) -> dict[str, Any]:
    """The config.json that a checkpoint descends from; {} if it was trained from random parameters."""
    file = workdir / ORIGIN / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def stored_of(workdir: Path) -> tuple[str, dict[str, str]]:
    """The dtype of most tensors that a checkpoint descends from, "" if there are none, and those of the others."""
    file = workdir / ORIGIN / STORED
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"dtype": "", "others": {}}
    return stored["dtype"], stored["others"]


def family_of(config: ModelConfig, origin: dict[str, Any], asked: str = "") -> Family:
    """The family that was asked for, else that of the origin, else the first that can express the model."""
    name = asked or origin.get("model_type", "")
    if not name:
        return hf_config.family_of(config)
    if name not in FAMILIES:
        raise ConfigError(f"family = {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
