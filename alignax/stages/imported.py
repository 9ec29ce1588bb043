"""A checkpoint of Hugging Face's format -> policy or reward model. `alignax import FOLDER_OR_NAME OUT`.

An adapter of peft's format, with `--base CHECKPOINT`, -> an adapter on that checkpoint.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.progress import track

from alignax import host
from alignax.bound import Args, fill, plan_record, static
from alignax.config import ConfigError
from alignax.data.tokenizer import load_tokenizer
from alignax.interop import adapter_in
from alignax.interop.checkpoint_in import check_use, read_whole, say_left
from alignax.interop.classifier import BIAS
from alignax.interop.folders import SMALL, check_alone, check_path, check_unchanged, fetch, identity
from alignax.interop.origin import ORIGIN, keep_origin
from alignax.log import console
from alignax.manifest import check_parent, read_manifest
from alignax.models.config import ModelConfig
from alignax.models.decoder import param_count
from alignax.models.hf.peft_in import CONFIG, read_adapter
from alignax.models.hf.weights import load_weights
from alignax.stages import folder as folders
from alignax.stages import parents, plans
from alignax.stages.plans import Declaration, Parent

STAGE = Declaration("imported", plans.POLICY, {"policy": Parent("base", makes=(plans.POLICY, plans.REWARD), reads=())})


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = ConfigDict()
    c.stage = "imported"
    c.path = ""  # folder of config.json and *.safetensors, or a name on the hub
    c.revision = ""  # branch, tag or commit on the hub
    c.tokenizer = ""  # folder or hub name; "" takes the one beside the weights, for an adapter its base's
    c.base = ""  # of an adapter: folder of the finished stage that it stands on, of whole parameters
    c.trust_base = False  # an adapter whose own name for its base is not that of `base`: shapes alone are compared
    c.mesh = ConfigDict({"data": 1, "fsdp": -1})  # see fitting.shared_config
    return c


@plan_record
class Plan:
    """What a run does."""

    path: str = static()
    revision: str = static()
    tokenizer: str = static()
    trust_base: bool = static()
    mesh: Args = static()


def plan(config: Any, prefix: str = "") -> Plan:
    """The config, checked. Raises ConfigError for a path or a base that cannot be."""
    r = plans.read(config, STAGE, get_config(), prefix)
    if not r.path:
        raise ConfigError(
            f"config.{r.key('path')} is empty: expected a folder with config.json and safetensors, or OWNER/NAME"
        )
    check_path(r.path)
    adapter_in.check_base(r.base, r.trust_base, is_step=folders.is_step(r.base))
    made = fill(Plan, r)
    r.finish()
    return made


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Imports weights, tokenizer and config; returns the folder of the finished stage.

    A class with a scalar head (*ForSequenceClassification) becomes a reward model, of as many attributes as it has
    labels; the language model, or its bare decoder, a policy. The vocabulary is the tokenizer's: further rows of the
    embedding stay, without probability. With a `base`, `path` is an adapter. Raises ValueError with all that does not
    fit, what the config says before weights are fetched, and what their headers say before any is loaded.
    """
    stage = folders.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        check_unchanged(Path(str(config["path"])).expanduser(), Path(workdir))
        return Path(workdir)
    p: Plan = stage.plan
    workdir, folder = stage.workdir, fetch(p.path, p.revision, SMALL)
    commit = folder.name  # of the hub's cache, whose folders are named so: the weights are to be of the same
    if stage.parents or (folder / CONFIG).is_file():
        folder = fetch(p.path, commit)
    if stage.parents:
        return _run_adapter(stage, folder)
    check_alone(folder)

    # ---- what the folder says
    found = read_whole(folder, p.tokenizer)
    mesh = parents.get_mesh(p.mesh)
    check_use(folder, found)

    # ---- weights
    folder, scalar = fetch(p.path, commit), found.labels is not None
    model = parents.on_mesh(found.config, mesh)
    heads = {"scalar": scalar, "attributes": len(found.attributes) or None}
    shapes = jax.eval_shape(lambda: parents.init_params(model, jax.random.key(0), **heads))
    bar = lambda names: track(names, f"{workdir.name}: tensors", console=console, transient=True)  # noqa: E731
    params = load_weights(folder, found.family, found.config, parents.sharded_shapes(shapes, mesh), progress=bar)
    if (bias := found.theirs.get(BIAS)) is not None:  # of an export of ours
        params["scalar"]["bias"] = parents.place(lambda: jnp.asarray(bias, jnp.float32), mesh=mesh)
    if host.is_first():
        keep_origin(folder, workdir / ORIGIN, found.theirs, prefix=found.prefix)
    folders.say(f"{workdir}: {found.family.name}, {param_count(shapes) / 1e6:.1f}M parameters")
    say_left(folder, workdir)

    # ---- end
    makes = plans.REWARD if scalar else plans.POLICY
    # a folder of the hub's cache is named after its commit
    data = {"fingerprint": identity(folder), "counts": {}, "source": folder.name}
    data |= {"attributes": found.attributes} if found.attributes else {}
    return folders.finish(stage, params=params, step=0, model=model, tokenizer=found.tokenizer, data=data, makes=makes)


def _run_adapter(stage: folders.Stage, folder: Path) -> Path:
    """The second half of `run` for an adapter on the stage's base; a SEQ_CLS one makes a reward model.

    Raises ConfigError for a base that the adapter does not name, unless it is trusted, and a tokenizer of another size;
    CheckpointError for a base that is no policy; ValueError with all that does not fit.
    """
    p, workdir, base = stage.plan, stage.workdir, stage.parents["policy"]
    found, manifest = read_adapter(folder), read_manifest(base)
    scalar = found.config.get("task_type") == "SEQ_CLS"
    check_parent(manifest, role="base", makes=(plans.POLICY, *([plans.REWARD] if scalar else [])))
    if manifest["base"] is not None:
        raise ConfigError(f"config.base = {str(base)!r} is an adapter itself: name the checkpoint that it stands on")
    if not p.trust_base:
        adapter_in.check_named(found, base, manifest)
    tokenizer, mesh = load_tokenizer(p.tokenizer or str(base / "tokenizer")), parents.get_mesh(p.mesh)
    model = parents.on_mesh(ModelConfig(**manifest["architecture"]), mesh)
    adapter_in.say_own(folder, tokenizer)
    adapter_in.check_tokens(tokenizer, model.config.vocab_size)
    params = adapter_in.load_onto(base, model, folder, found)
    args = adapter_in.settings_of(found, params)
    folders.say(f"{workdir}: to go on with this adapter, --config.lora_args={args}", soft_wrap=True)
    data = {"fingerprint": identity(folder), "counts": {}, "source": folder.name, "lora_args": args}
    data |= adapter_in.attributes_of(found, params)
    makes = plans.REWARD if scalar else plans.POLICY
    return folders.finish(stage, params=params, step=0, model=model, tokenizer=tokenizer, data=data, makes=makes)
