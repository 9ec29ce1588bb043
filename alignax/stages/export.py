"""A finished checkpoint -> a folder that transformers loads. `alignax export CHECKPOINT OUT`."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from alignax.config import ConfigError
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import load_tokenizer, tokenizer_hash
from alignax.log import replace_file
from alignax.manifest import read_manifest
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES, Family
from alignax.models.hf.weights import save_weights
from alignax.stages import common, parents
from alignax.stages.imported import BIAS, ORIGIN, origin_of

DTYPES = ("float32", "bfloat16", "float16")


def export(
    checkpoint: str | Path, out: str | Path, *, dtype: str = "", family: str = "", shard_bytes: int = 5 * 10**9
) -> Path:
    """Writes config.json, safetensors, tokenizer with its chat template, and generation config; returns `out`.

    A checkpoint that descends from an imported one keeps that one's config and dtype, so that an import followed by an
    export changes no bit; another gets the first family that can express it, and float32. The folder appears when it is
    complete. Raises ConfigError for a folder that is there, an unknown dtype or family, a stage without parameters;
    ValueError for an architecture that the family cannot express.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    manifest = read_manifest(checkpoint)
    if manifest["architecture"] is None:
        raise ConfigError(f"{checkpoint} is of the stage {manifest['stage']!r}, which has no parameters to export")
    if out.exists():
        raise ConfigError(f"{out} is there already: name a new folder")
    config, origin = ModelConfig(**manifest["architecture"]), origin_of(checkpoint)
    found = _family(config, origin, family)
    dtype = dtype or origin.get("dtype") or origin.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: expected one of {', '.join(DTYPES)}")
    _, params = parents.whole(checkpoint, manifest)
    # a family that was asked for and a model without an origin are told by the table; else the origin's words stay
    base = origin if origin and found.name == origin["model_type"] else hf_config.to_hf(config, found)
    keys = base | {"dtype": dtype, **_classes(found, params, manifest)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as part:
        folder = Path(part) / "checkpoint"
        folder.mkdir()
        save_weights(folder, found, config, params, dtype=dtype, shard_bytes=shard_bytes)
        _write_configs(folder, checkpoint, found, keys, manifest=manifest, own_ids=not origin)
        folder.rename(out)
    return out


def _family(config: ModelConfig, origin: dict[str, Any], asked: str) -> Family:
    name = asked or origin.get("model_type", "")
    if not name:
        return hf_config.family_of(config)
    if name not in FAMILIES:
        raise ConfigError(f"family = {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _classes(family: Family, params: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """The class to load it with, and the labels of a scalar head."""
    if "scalar" not in params:
        return {"architectures": [family.causal]}
    labels = parents.rated_attributes(manifest) or ["score"]
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    bias = np.asarray(params["scalar"]["bias"])
    if bias.any():
        common.console.print(
            f"scores of the export are lower by {bias}: {family.classifier} has no bias, {BIAS} keeps it"
        )
    return {"architectures": [family.classifier], **names} | ({BIAS: bias.tolist()} if bias.any() else {})


def _write_configs(
    folder: Path, checkpoint: Path, family: Family, keys: dict[str, Any], *, manifest: dict, own_ids: bool
) -> None:
    """config.json, the generation config of the origin, and the tokenizer, whose ids go into a config of our own."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = load_tokenizer(str(checkpoint / "tokenizer"))
    names = ("bos_token_id", "eos_token_id", "pad_token_id") if own_ids else ()
    ids = {name: getattr(tokenizer, name) for name in names}
    AutoConfig.for_model(**keys | ids | {"model_type": family.name}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer_hash(theirs) != tokenizer_hash(tokenizer):  # see load_tokenizer
        common.console.print(
            f"[yellow]AutoTokenizer makes another tokenizer ({type(theirs).__name__}) of this folder, as config.json "
            f"says {family.name}: load it with PreTrainedTokenizerFast[/]"
        )
    file = checkpoint / ORIGIN / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = told.get("eos_token_id", tokenizer.eos_token_id)
    known = known if isinstance(known, list) else [known]
    stops = sorted(stop_ids(tokenizer, parents.template_of(manifest, tokenizer)))
    if not set(stops) <= set(known):  # what ends a reply in training has to end one in `generate`
        told["eos_token_id"] = sorted({*known, *stops} - {None})
        replace_file(folder / "generation_config.json", json.dumps(told, indent=2) + "\n")
    elif file.is_file():
        shutil.copyfile(file, folder / "generation_config.json")
