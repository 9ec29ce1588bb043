"""A checkpoint of Hugging Face's format -> policy or reward model. `alignax import FOLDER_OR_NAME OUT`.

An adapter of peft's format, with `--base CHECKPOINT`, -> an adapter on that checkpoint.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.progress import track

from alignax.config import ConfigError
from alignax.data.tokenizer import STOPS, load_tokenizer
from alignax.log import replace_file
from alignax.manifest import CheckpointError, read_manifest
from alignax.models.decoder import param_count
from alignax.models.hf import config as hf_config
from alignax.models.hf.peft_in import CONFIG
from alignax.models.hf.weights import INDEX, SINGLE, load_weights, stored_dtype
from alignax.stages import adapted, common, parents
from alignax.stages.origin import ORIGIN, identity

BIAS = "score_bias"  # key of config.json with the bias of a scalar head, for which transformers has no room
KEPT = ("config.json", "generation_config.json")
FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # what is fetched from the hub


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = ConfigDict()
    c.stage = "imported"
    c.path = ""  # folder of config.json and *.safetensors, or a name on the hub
    c.revision = ""  # branch, tag or commit on the hub
    c.tokenizer = ""  # folder or hub name; "" takes the one beside the weights, for an adapter its base's
    c.base = ""  # of an adapter: folder of the finished stage that it stands on, of whole parameters
    c.trust_base = False  # an adapter whose own name for its base is not that of `base`: shapes alone are compared
    c.mesh = ConfigDict({"data": 1, "fsdp": -1})  # see common.shared_config
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Imports weights, tokenizer and config; returns the folder of the finished stage.

    A class with a scalar head (*ForSequenceClassification) becomes a reward model, of as many attributes as it has
    labels; any other a policy. The vocabulary is the tokenizer's: further rows of the embedding stay, without
    probability. With a `base`, `path` is an adapter. Raises ValueError with all that does not fit before any weight is
    loaded.
    """
    check_path(str(config["path"]))
    adapted.check_base(str(config["base"]), bool(config["trust_base"]))
    stage = common.open_stage("imported", config, workdir, root, {"policy": "base"})
    if stage is None:
        check_unchanged(Path(str(config["path"])).expanduser(), Path(workdir))
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir
    folder, trusted = fetch(cfg.path, cfg.revision), cfg.trust_base
    if stage.parents:
        return adapted.import_adapter(stage, folder, trusted=trusted)
    if (folder / CONFIG).is_file() and not any((folder / name).is_file() for name in (INDEX, SINGLE)):
        raise ConfigError(f"{folder} is an adapter: name the checkpoint that it stands on (--base=CHECKPOINT)")
    tokenizer = load_tokenizer(cfg.tokenizer or str(folder))
    stops = [i for i in generation_ends(folder) if i < len(tokenizer) and i != tokenizer.eos_token_id]
    if stops:  # the tokenizer's folder is what every later stage reads
        tokenizer.init_kwargs[STOPS] = stops
    family, theirs = hf_config.read_config(folder)
    model_config = hf_config.from_hf(family, theirs, tokens=len(tokenizer))
    labels = attributes_of(theirs)
    if labels is not None:  # those classes have no output layer of their own
        model_config = dataclasses.replace(model_config, tie_embeddings=True)
    mesh = parents.get_mesh(cfg)
    cfg.finish()
    model = parents.on_mesh(model_config, mesh)
    single = labels is not None and len(labels) < 2
    attributes = len(labels) if labels and not single else None
    build = lambda: parents.init_params(model, jax.random.key(0), scalar=labels is not None, attributes=attributes)  # noqa: E731
    shapes = jax.eval_shape(build)
    bar = lambda names: track(names, f"{workdir.name}: tensors", console=common.console, transient=True)  # noqa: E731
    params = load_weights(folder, family, model_config, parents.sharded_shapes(shapes, mesh), progress=bar)
    if theirs.get(BIAS) is not None:  # of an export of ours
        params["scalar"]["bias"] = parents.place(lambda: jnp.asarray(theirs[BIAS], jnp.float32), mesh=mesh)
    (workdir / ORIGIN).mkdir(exist_ok=True)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, workdir / ORIGIN / name)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not (told.get("dtype") or told.get("torch_dtype")):  # for the way out
        replace_file(
            workdir / ORIGIN / "config.json", json.dumps(told | {"dtype": stored_dtype(folder)}, indent=2) + "\n"
        )
    common.console.print(f"{workdir}: {family.name}, {param_count(shapes) / 1e6:.1f}M parameters")
    kind = stage if labels is None else stage._replace(kind="reward")
    # a folder of the hub's cache is named after its commit
    data = {"fingerprint": identity(folder), "counts": {}, "source": folder.name} | (
        {} if single or labels is None else {"attributes": labels}
    )
    common.finish(kind, params=params, step=0, model=model, tokenizer=tokenizer, data=data)
    return workdir


def check_path(path: str) -> None:
    """Raises ConfigError for what is no folder here and can be no name on the hub."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1):
        raise ConfigError(
            f"config.path = {path!r}: no such folder; expected a checkpoint folder or OWNER/NAME on the hub"
        )


def fetch(path: str, revision: str = "") -> Path:
    """The local folder of a checkpoint, fetched from the hub unless it is one. Raises ConfigError if it is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"config.path = {path!r}: not a folder here, and the hub did not give it: {first}") from error


def check_unchanged(folder: Path, workdir: Path) -> None:
    """Raises CheckpointError if a folder is not the one any more that was imported into `workdir`."""
    if folder.is_dir() and read_manifest(workdir)["data"]["fingerprint"] != identity(folder):
        raise CheckpointError(f"{folder} has changed since {workdir} was made of it: delete {workdir}, or name another")


def generation_ends(folder: Path) -> list[int]:
    """The end-of-sequence ids of generation_config.json: one, several, or none."""
    file = folder / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return [] if told is None else told if isinstance(told, list) else [told]


def attributes_of(theirs: dict[str, Any]) -> list[str] | None:
    """The labels of a class with a scalar head; None for a language model."""
    if not any("SequenceClassification" in name for name in theirs.get("architectures") or ()):
        return None
    return [str(name) for _, name in sorted((theirs.get("id2label") or {0: "score"}).items())]
