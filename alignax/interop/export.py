"""A finished checkpoint -> a folder that transformers loads. `alignax export CHECKPOINT OUT`.

With `--adapter`, an adapter alone -> a folder that peft loads.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignax import host, sharding
from alignax.config import ConfigError
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import ROWS, STOPS, load_tokenizer, tokenizer_hash
from alignax.interop.classifier import class_keys, is_classifier, scoring_pad
from alignax.interop.ends import ends_of, generation_ends
from alignax.interop.origin import ORIGIN, family_of, origin_of, stored_of
from alignax.log import console, replace_file
from alignax.manifest import read_manifest
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import Family
from alignax.models.hf.peft_out import save_adapter
from alignax.models.hf.weights import save_weights
from alignax.stages import parents
from alignax.stages.lengths import longest_text
from alignax.types import Params

DTYPES = ("float32", "bfloat16", "float16")


def export(
    checkpoint: str | Path, out: str | Path, *, dtype: str = "", family: str = "", shard_bytes: int = 5 * 10**9,
    params: Params | None = None, untied: bool = False,
) -> Path:  # fmt: skip
    """Writes config.json, safetensors, tokenizer with its chat template, and generation config; returns `out`.

    A checkpoint that descends from an imported one keeps that one's config and, unless `dtype` says another, the dtypes
    of its tensors, so that an import followed by an export changes no bit; any other gets the first family that can
    express it, and float32. `params` takes the place of its parameters: those of a policy that learns from there, say.
    `untied` writes the output layer too where it is the embedding, for an engine that keeps the two apart. The folder
    appears when it is complete. Raises ConfigError for a folder that is there, an unknown dtype or family, a stage
    without parameters; ValueError for an architecture that the family cannot express.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    manifest, origin = _checked(checkpoint, out), origin_of(checkpoint)
    config = ModelConfig(**manifest["architecture"])
    found = family_of(config, origin, family)
    stated = origin.get("dtype") or origin.get("torch_dtype")
    main, others = (_dtype(dtype), {}) if dtype else stored_of(checkpoint)
    main, stated = main or _dtype(stated or "float32"), dtype or stated
    # a family that was asked for and a model without an origin are told by the table; else the origin's words stay
    kept = bool(origin) and found.name == origin["model_type"]
    if not config.max_positions:  # trained here from random parameters, by a preset that says no number
        config = dataclasses.replace(config, max_positions=longest_text(manifest))
    tree: Any = parents.whole(checkpoint, manifest)[1] if params is None else params
    base = origin if kept else hf_config.to_hf(config, found)
    if untied and config.tie_embeddings and "scalar" not in tree:  # a head stands in its place
        config, tree, base = _untied(config, tree, base)
    spelled = [key for key in ("dtype", "torch_dtype") if key in base] or ["dtype"]
    rated = parents.rated_attributes(manifest)
    keys = base | dict.fromkeys(spelled, stated or main) | class_keys(found, tree, rated, origin)
    if "scalar" in tree:
        keys.pop("num_labels", None)  # the labels' names are their number
    with _appearing(out) as folder:
        save_weights(folder, found, config, tree, dtype=main, others=others, shard_bytes=shard_bytes)
        pads = is_classifier(keys) and not (kept and is_classifier(origin))  # else the origin's pad token has said it
        _write_configs(folder, checkpoint, found, keys, manifest=manifest, own_ids=not kept, pads=pads)
    return out


def export_adapter(
    checkpoint: str | Path, out: str | Path, *, dtype: str = "float32", family: str = "", base_name: str = ""
) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors of a checkpoint that is an adapter; returns `out`.

    `base_name` is what the config calls the base, "" the name that the base was imported by. Raises ConfigError as
    `export` does, and for a checkpoint that is no adapter.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    manifest = _checked(checkpoint, out)
    if manifest["base"] is None:
        raise ConfigError(f"{checkpoint} holds whole parameters and no adapter: export it without --adapter")
    config, dtype = ModelConfig(**manifest["architecture"]), _dtype(dtype)
    found = family_of(config, origin_of(checkpoint), family)
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1})
    params = parents.load_tree(checkpoint, manifest, parents.on_mesh(config, mesh), mesh)
    hf_config.to_hf(config, found)  # the base can be one of this family
    beneath = read_manifest((checkpoint / manifest["base"]["path"]).resolve())["config"]
    name = base_name or beneath.get("path", "")
    if not name:
        console.print("adapter_config.json does not name its base: --base-name=NAME would")
    args = manifest["config"].get("lora_args") or manifest["data"]["lora_args"]
    rated = parents.rated_attributes(manifest)
    note = {"base": manifest["base"]["content_hash"]} | ({"attributes": rated} if rated else {})
    revision = (not base_name and beneath.get("revision")) or None
    keys = {"base_model_name_or_path": name or None, "revision": revision}
    with _appearing(out) as folder:
        save_adapter(folder, found, config, params, rslora=args.get("rslora", False), dtype=dtype, note=note, said=keys)
    return out


def _untied(config: ModelConfig, params: Any, base: dict[str, Any]) -> tuple[ModelConfig, Any, dict[str, Any]]:
    """The model with an output layer of its own, which is the transposed embedding."""
    decoder = params["decoder"] | {"unembed": params["decoder"]["embed"].T}
    config = dataclasses.replace(config, tie_embeddings=False)
    return config, params | {"decoder": decoder}, base | {"tie_word_embeddings": False}


def _checked(checkpoint: Path, out: Path) -> dict[str, Any]:
    """The manifest of a checkpoint with parameters, to be written to a new folder."""
    manifest = read_manifest(checkpoint)
    if manifest["architecture"] is None:
        raise ConfigError(f"{checkpoint} is of the stage {manifest['stage']!r}, which has no parameters to export")
    if out.exists():
        raise ConfigError(f"{out} is there already: name a new folder")
    return manifest


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}: expected one of {', '.join(DTYPES)}")
    return name


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when it is complete; of several processes, the first one's does."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as part:
        folder = Path(part) / "checkpoint"
        folder.mkdir()
        yield folder
        if host.is_first():
            folder.rename(out)


def _write_configs(
    folder: Path, checkpoint: Path, family: Family, keys: dict[str, Any], *, manifest: dict, own_ids: bool, pads: bool
) -> None:
    """config.json, the generation config of the origin, and the tokenizer, whose ids go into a config of our own.

    An origin's config.json keeps its spelling, and what no modelling code reads: settings of generation, for one.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = load_tokenizer(str(checkpoint / "tokenizer"))
    stops = sorted(stop_ids(tokenizer, parents.template_of(manifest, tokenizer)))
    for key in (STOPS, ROWS):  # the former are in generation_config.json again
        tokenizer.init_kwargs.pop(key, None)
    names = ("bos_token_id", "eos_token_id", "pad_token_id") if own_ids else ()
    ids = {name: getattr(tokenizer, name) for name in names}
    if pads:
        ids["pad_token_id"] = scoring_pad(tokenizer, stops)
    if own_ids:
        AutoConfig.for_model(**keys | ids | {"model_type": family.name}).save_pretrained(folder)
    else:
        replace_file(folder / "config.json", json.dumps(keys | ids, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer_hash(reloaded) != tokenizer_hash(tokenizer):  # see load_tokenizer
        console.print(
            f"[yellow]AutoTokenizer makes another tokenizer ({type(reloaded).__name__}) of this folder, as config.json "
            f"says {family.name}: load it with PreTrainedTokenizerFast[/]"
        )
    file = checkpoint / ORIGIN / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = generation_ends(file.parent, ends_of((keys | ids).get("eos_token_id"), "config.json"))
    if not set(stops) <= set(known):  # what ends a reply in training has to end one in `generate`
        generation["eos_token_id"] = sorted({*known, *stops} - {None})
        replace_file(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    elif file.is_file():
        shutil.copyfile(file, folder / "generation_config.json")
