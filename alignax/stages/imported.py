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
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import STOPS, leave_beyond, left_beyond, load_tokenizer, vocabulary
from alignax.log import replace_file
from alignax.manifest import CheckpointError, read_manifest
from alignax.models.decoder import param_count
from alignax.models.hf import config as hf_config
from alignax.models.hf.headers import INDEX, SINGLE, read_headers, stored_dtypes
from alignax.models.hf.peft_in import CONFIG
from alignax.models.hf.weights import load_weights
from alignax.stages import adapted, common, parents
from alignax.stages.origin import ORIGIN, STORED, identity

BIAS = "score_bias"  # key of config.json with the bias of a scalar head, for which transformers has no room
KEPT = ("config.json", "generation_config.json")
SMALL = ("*.json", "*.jinja", "*.model", "*.txt")  # what is fetched from the hub: these first
WEIGHTS = ("*.safetensors",)


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
    labels; the language model, or its bare decoder, a policy. The vocabulary is the tokenizer's: further rows of the
    embedding stay, without probability. With a `base`, `path` is an adapter. Raises ValueError with all that does not
    fit, what the config says before weights are fetched, and what their headers say before any is loaded.
    """
    check_path(str(config["path"]))
    adapted.check_base(str(config["base"]), bool(config["trust_base"]))
    stage = common.open_stage("imported", config, workdir, root, {"policy": "base"})
    if stage is None:
        check_unchanged(Path(str(config["path"])).expanduser(), Path(workdir))
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir
    folder, trusted = fetch(cfg.path, cfg.revision, SMALL), cfg.trust_base
    commit = folder.name  # of the hub's cache, whose folders are named so: the weights are to be of the same
    if stage.parents or (folder / CONFIG).is_file():
        folder = fetch(cfg.path, commit)
    if stage.parents:
        return adapted.import_adapter(stage, folder, trusted=trusted)
    check_alone(folder)
    family, theirs = hf_config.read_config(folder)
    tokenizer = load_tokenizer(cfg.tokenizer or str(folder))
    leave_beyond(tokenizer, theirs["vocab_size"])
    set_stops(tokenizer, folder, theirs)
    model_config = hf_config.from_hf(family, theirs, tokens=vocabulary(tokenizer))
    labels = labels_of(theirs) if hf_config.check_class(family, theirs) else None
    if labels is not None:  # those classes have no output layer of their own
        model_config = dataclasses.replace(model_config, tie_embeddings=True)
    mesh = parents.get_mesh(cfg)
    cfg.finish()
    if spare := hf_config.unread(folder, family, theirs):
        common.console.print(
            f"config.json: the code of {family.name} in transformers reads nothing of {', '.join(spare)}; kept for the "
            "export",
            soft_wrap=True,
        )
    if beyond := left_beyond(tokenizer):
        common.console.print(
            f"tokenizer: {', '.join(beyond)} beyond the embedding's {theirs['vocab_size']} rows: no text may hold it",
            soft_wrap=True,
        )
    if labels is not None:
        check_pad(tokenizer, theirs)
    elif theirs.get(BIAS) is not None:
        raise ConfigError(f"config.json has {BIAS}, of a scalar head, but names the class {family.causal}")
    folder = fetch(cfg.path, commit)
    model = parents.on_mesh(model_config, mesh)
    single = labels is not None and len(labels) < 2
    attributes = len(labels) if labels and not single else None
    build = lambda: parents.init_params(model, jax.random.key(0), scalar=labels is not None, attributes=attributes)  # noqa: E731
    shapes = jax.eval_shape(build)
    bar = lambda names: track(names, f"{workdir.name}: tensors", console=common.console, transient=True)  # noqa: E731
    params = load_weights(folder, family, model_config, parents.sharded_shapes(shapes, mesh), progress=bar)
    if theirs.get(BIAS) is not None:  # of an export of ours
        params["scalar"]["bias"] = parents.place(lambda: jnp.asarray(theirs[BIAS], jnp.float32), mesh=mesh)
    if jax.process_index() == 0:
        prefix = family.rows(model_config)[0].theirs.split(".")[0] + "."
        keep_origin(folder, workdir / ORIGIN, theirs, prefix=prefix)
    common.console.print(f"{workdir}: {family.name}, {param_count(shapes) / 1e6:.1f}M parameters")
    if left := read_headers(folder).left:
        parts = sorted({name.removeprefix("model.").split(".")[0] for name in left})
        common.console.print(f"{workdir}: the text part alone; not read: {', '.join(parts)} ({len(left)} tensors)")
    kind = stage if labels is None else stage._replace(kind="reward")
    # a folder of the hub's cache is named after its commit
    data = {"fingerprint": identity(folder), "counts": {}, "source": folder.name} | (
        {} if single or labels is None else {"attributes": labels}
    )
    common.finish(kind, params=params, step=0, model=model, tokenizer=tokenizer, data=data)
    return workdir


def keep_origin(folder: Path, out: Path, theirs: dict[str, Any], *, prefix: str) -> None:
    """Writes what the way out needs: the configs, and the dtypes of the tensors, which config.json need not have.

    Of a model of text and images the config is `theirs`, that of its text part, since no more goes out.
    """
    out.mkdir(exist_ok=True)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"] != theirs["model_type"]:
        replace_file(out / "config.json", json.dumps(theirs, indent=2) + "\n")
    main, others = stored_dtypes(folder, prefix)
    replace_file(out / STORED, json.dumps({"dtype": main, "others": others}, indent=2) + "\n")


def check_path(path: str) -> None:
    """Raises ConfigError for what is no folder here and can be no name on the hub."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1):
        raise ConfigError(
            f"config.path = {path!r}: no such folder; expected a checkpoint folder or OWNER/NAME on the hub"
        )


def fetch(path: str, revision: str = "", patterns: tuple[str, ...] = (*SMALL, *WEIGHTS)) -> Path:
    """The local folder of a checkpoint, fetched from the hub unless it is one. Raises ConfigError if it is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"config.path = {path!r}: not a folder here, and the hub did not give it: {first}") from error


def check_alone(folder: Path) -> None:
    """Raises ConfigError for an adapter, of which nobody said the base, and for one in a folder of whole weights."""
    if not (folder / CONFIG).is_file():
        return
    if any((folder / name).is_file() for name in (INDEX, SINGLE)):
        raise ConfigError(
            f"{folder} holds whole weights and {CONFIG}: transformers would put the adapter on them; move its files "
            "to a folder of their own, import the weights, and then the adapter with --base"
        )
    raise ConfigError(f"{folder} is an adapter: name the checkpoint that it stands on (--base=CHECKPOINT)")


def check_unchanged(folder: Path, workdir: Path) -> None:
    """Raises CheckpointError if a folder is not the one any more that was imported into `workdir`."""
    if folder.is_dir() and read_manifest(workdir)["data"]["fingerprint"] != identity(folder):
        raise CheckpointError(f"{folder} has changed since {workdir} was made of it: delete {workdir}, or name another")


def set_stops(tokenizer: Any, folder: Path, theirs: dict[str, Any]) -> None:
    """Notes the ids that end a text, beside the tokenizer's own, in its settings, which every later stage reads.

    Those of generation_config.json, and where it names none of config.json. Says which of them count for nothing.
    """
    own, size = ends_of(theirs.get("eos_token_id"), "config.json"), vocabulary(tokenizer)
    ends = generation_ends(folder, own) or own
    if lost := sorted(set(own) - set(ends)):
        common.console.print(f"eos_token_id: {lost} of config.json are not in generation_config.json, which counts")
    if lost := sorted(end for end in ends if not 0 <= end < size):
        common.console.print(f"[yellow]eos_token_id: {lost} are no tokens of the tokenizer, nothing ends there[/]")
    if stops := [end for end in ends if 0 <= end < size and end != tokenizer.eos_token_id]:
        tokenizer.init_kwargs[STOPS] = stops


def generation_ends(folder: Path, own: list[int]) -> list[int]:
    """The ids at which `generate` of transformers stops: of generation_config.json, without one `own`, of config.json.

    Raises ValueError for a damaged file and for what are no ids.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return own
    try:
        return ends_of(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"), str(file))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again, or delete it") from error


def ends_of(told: Any, file: str) -> list[int]:
    """A key of one token id, several, or none, as a list. Raises ValueError for anything else."""
    ends = [] if told is None else told if isinstance(told, list) else [told]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"{file}: eos_token_id = {told!r}: expected the id of a token, or a list of them")
    return ends


def labels_of(theirs: dict[str, Any]) -> list[str]:
    """The labels of a scalar head, in order."""
    return [str(name) for _, name in sorted((theirs.get("id2label") or {0: "score"}).items())]


def check_pad(tokenizer: Any, theirs: dict[str, Any]) -> None:
    """Says so where a classifier of transformers reads its score before the token that ends a text, and not at it."""
    pad, stops = theirs.get("pad_token_id"), stop_ids(tokenizer, "chat" if tokenizer.chat_template else "plain")
    if pad in stops:
        common.console.print(
            f"[yellow]pad_token_id = {pad} also ends texts: transformers reads the score of a text that ends in it one "
            "token earlier than alignax, which reads it at the last token[/]"
        )
