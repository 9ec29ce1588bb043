"""What every stage does around its own work: check the config, open the folder, train, write the end."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from alignax import sharding
from alignax.checkpoint import Steps, content_hash, save_params
from alignax.config import ConfigError, Reader, bind, plain, resolve
from alignax.data import packing
from alignax.data.loader import Arrange, Loader, eval_batches
from alignax.data.tokenizer import template_hash, tokenizer_hash
from alignax.log import Log
from alignax.manifest import parent_record, read_manifest, start, why_stale, write_manifest
from alignax.models.config import ModelConfig
from alignax.models.flops import batch_flops, ideal_seconds
from alignax.ops.masked import metric_ratios, metric_sums
from alignax.stages.context import check_context, longest_of, longest_text
from alignax.stages.precheck import bind_term, precheck, weights_of
from alignax.train.loop import fit, resume
from alignax.train.optimizer import Optimizer
from alignax.types import Model, Params

console = Console(stderr=True, highlight=False)


class Stage(NamedTuple):
    """An open stage."""

    kind: str
    workdir: Path
    config: dict  # as written, "@step" references included: what the manifest records
    cfg: Reader
    parents: dict[str, Path]
    records: dict[str, dict]  # role -> path and content hash, for the manifest
    begun: float


def shared_config(stage: str) -> ConfigDict:
    """The keys that every stage has, with their defaults and units."""
    c = ConfigDict()
    c.stage = stage
    c.seed = 0
    c.init_from = ""  # folder of the finished stage to start from, "@name" for a step of the pipeline
    # mesh axes: rows are split over both, parameters over fsdp; -1 is the devices that the other leaves
    c.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # dtype of activations (parameters stay float32); what layers keep for the backward pass: none (means all), dots,
    # attention, offload, full; the kernel of attention: auto, xla, cudnn, splash (alignax.models.config says more)
    c.compute = ConfigDict({"dtype": "float32", "remat": "none", "attention": "auto"})
    return c


def training_config(stage: str) -> ConfigDict:
    """The keys of a stage that trains on a data set."""
    c = shared_config(stage)
    c.template = "chat"  # "chat": the tokenizer's chat template; "plain": prompt, completion, end of sequence
    c.source = "jsonl"  # function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_length = 1024  # tokens of prompt and completion; longer rows are dropped and counted
    c.loss = stage  # function of alignax.losses, or module:function
    c.loss_args = ConfigDict()
    c.optimizer = "adamw"  # function of alignax.train.optimizer, or module:function
    c.optimizer_args = ConfigDict()
    # an adapter on a frozen decoder, of alignax.lora.init: dict(rank=16); empty: all parameters are trained
    c.lora_args = ConfigDict()
    # how texts stand in the rows of a batch (alignax.data.packing): "off", padded to the longest; "bucketed", cut to a
    # few lengths; "packed", several in a row; "shared", the same, and what the texts of one pair or ranking have in
    # common once, in rows as long as all of them: for XLA's attention, which has T x T logits (compute.attention)
    c.packing = "off"
    c.batch_size = 32  # rows of the global batch
    c.microbatches = 1  # per step: same result, less memory
    c.total_steps = 1000  # updates
    c.eval_every_steps = 100  # 0: never
    c.save_every_steps = 100
    c.keep_checkpoints = 2
    c.tensorboard = False
    return c


def locate(path: str, root: Path | None, *, key: str) -> Path:
    """A folder named in a config; '@sft' is the step `sft` of the pipeline that this stage runs in."""
    if not path.startswith("@"):
        return Path(path).expanduser()
    if root is None:
        raise ConfigError(f"config.{key} = {path!r}: '@' names a step of a pipeline; a stage alone takes a folder")
    return root / path[1:]


def open_stage(
    kind: str, config: Any, workdir: str | Path, root: Path | None, roles: Mapping[str, str]
) -> Stage | None:
    """Checks the config, finds the parents (`roles` maps a role to the config key of its folder), opens the folder.

    None if the stage is finished with this config and these parents: there is nothing to do.
    """
    config = plain(config)
    if config.get("stage") != kind:
        raise ConfigError(f"config.stage = {config.get('stage')!r}: this is the {kind!r} stage")
    precheck(config)
    cfg, workdir = Reader(config), Path(workdir)
    _ = cfg.stage
    roles = dict(roles) | data_roles(config) | data_roles(config.get("probe", {}), "probe.")
    named = {role: _get(cfg, key) for role, key in roles.items()}
    found = {role: locate(path, root, key=roles[role]) for role, path in named.items() if path}
    # data may come from a step that made it, which is then a parent, or from a file or the hub, which is none
    maybe = {role for role in roles if role.startswith(("data", "probe.data"))}
    parents = {role: path for role, path in found.items() if role not in maybe or is_step(named[role])}
    records = {role: parent_record(workdir, path) for role, path in parents.items()}
    for role, path in parents.items():
        if architecture := read_manifest(path)["architecture"]:
            check_context(ModelConfig(**architecture), config, role)
    if why_stale(workdir, config, records) is None:
        console.print(f"[green]{workdir}[/]: finished before, with the same config and parents")
        return None
    cleared = start(workdir, config, records)
    if cleared:
        console.print(f"[yellow]{workdir}[/]: running again ({cleared})")
    return Stage(kind, workdir, config, cfg, parents, records, time.perf_counter())


def _get(cfg: Any, key: str) -> str:
    for name in key.split("."):
        cfg = cfg.get(name, "") if isinstance(cfg, dict) else getattr(cfg, name)
    return cfg


def is_step(path: str) -> bool:
    """Whether a path is the folder of a stage, finished or not, and no data file."""
    return path.startswith("@") or any((Path(path) / name).is_file() for name in ("manifest.json", "started.json"))


def data_roles(config: dict, prefix: str = "") -> dict[str, str]:
    """The data of a stage, or the parts of a mixture, as parents: role -> config key, for those that may be steps."""
    if not config.get("source"):
        return {}
    parts = config["data"].get("parts", {}) if config["source"] == "mixture" else {}
    found = {f"{prefix}data.{name}": f"{prefix}data.parts.{name}.path" for name in parts}
    return found or {f"{prefix}data": f"{prefix}data.path"}


def get_optimizer(name: str, args: dict, total_steps: int, *, key: str = "optimizer") -> Optimizer:
    """The optimizer that a config names; the length of its schedule is the stage's own."""
    function = resolve(name, "alignax.train.optimizer", key=key)
    return function(total_steps=total_steps, **bind(function, args, key=f"{key}_args", given=("total_steps",)))


def make_loader(cfg: Reader, arrays: Any, batch_size: int, arrange: Arrange | None = None) -> Loader:
    """This process's share of every batch, the parts of a mixture by their weights."""
    weights = weights_of(cfg.data) if cfg.source == "mixture" else None
    index, count = jax.process_index(), jax.process_count()
    return Loader(
        arrays, batch_size, cfg.seed, weights=weights, arrange=arrange, process_index=index, process_count=count
    )


def arrangement(
    cfg: Reader, arrays: dict, mesh: Mesh, *, reads: str, microbatches: int = 1, draws: Iterable | None = None
) -> Arrange:
    """How the config lays out batches of these arrays: see `alignax.data.packing.arrangement`."""
    options = {"batch_size": cfg.batch_size, "shards": mesh.size, "parts": microbatches, "draws": draws}
    return packing.arrangement(arrays, cfg.packing, reads=reads, **options)


def evaluator(
    metrics_fn: Callable, arrays: Any, batch_size: int, mesh: Mesh, arrange: Arrange | None = None
) -> Callable[..., dict[str, float]]:
    """A function of `metrics_fn`'s leading arguments that reduces its metrics over a whole held-out set.

    `metrics_fn(*args, batch)` returns {name: (values, weights)}; sums over batches, not means of batch means.
    """
    sums_of = jax.jit(lambda *args: metric_sums(metrics_fn(*args)))
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def run(*args: Any) -> dict[str, float]:
        batches = eval_batches(arrays, batch_size, arrange=arrange, **processes)
        sums = [sums_of(*args, sharding.put_batch(batch, mesh)) for batch in batches]
        totals = metric_ratios(jax.tree.map(lambda *leaves: sum(leaves), *sums))
        return {f"eval/{name}": float(value) for name, value in jax.device_get(totals).items()}

    return run


def get_terms(cfg: Reader) -> dict[str, tuple[float, Callable]]:
    """{name: (coefficient, record -> Loss)}: the config's loss, called "loss" where it is alone, and its `terms`."""
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    bound = partial(loss, **bind(loss, cfg.loss_args, key="loss_args"))
    return {loss.__name__ if cfg.terms else "loss": (1.0, bound)} | {
        name: bind_term(name, args, key=f"terms.{name}") for name, args in cfg.terms.items()
    }


def evaluate_terms(terms: Mapping[str, tuple[float, Callable]], record: Any) -> dict:
    """Every metric of the terms, and each term's own value, as (values, weights)."""
    out = {}
    for name, (_, term) in terms.items():
        found = term(record)
        out |= found.metrics | {name: (found.value, found.weight)}
    return out


def once_per_step(evaluate: Callable[[Any], dict]) -> Callable[[Any], dict]:
    """`evaluate`, which is not run again on the state that it has just measured: the last step's, for the manifest."""
    last: dict[int, dict] = {}

    def run(state: Any) -> dict:
        step = int(state.step)
        if step not in last:
            found = evaluate(state)
            last.clear()
            last[step] = found
        return last[step]

    return run


def train(
    stage: Stage, state: Any, step_fn: Callable, arrays: dict, mesh: Mesh, evaluate: Callable, *, model: Model,
    show: tuple[str, ...], reads: str = "tokens",
) -> Any:  # fmt: skip
    """Runs a stage of `training_config` from its last checkpoint to its last step; `reads`: see `data.packing`."""
    cfg = stage.cfg
    order = make_loader(cfg, arrays, cfg.batch_size)  # a mixture's own: its batches are not like random rows
    draws = map(order.indices, range(packing.DRAWS))
    arrange = arrangement(cfg, arrays, mesh, reads=reads, microbatches=cfg.microbatches, draws=draws)
    loader = make_loader(cfg, arrays, cfg.batch_size, arrange)
    some = [loader.batch(step) for step in range(4)]
    real, places = np.sum([packing.filling(batch) for batch in some], axis=0)
    console.print(f"packing {cfg.packing!r}: {real / places:.0%} of the tokens that the model reads are real")
    of_batches = [batch_flops(model.config, batch, output=stage.kind != "reward") for batch in some]
    flops = float(np.mean(of_batches)) * jax.process_count()
    ideal = ideal_seconds(flops, mesh.devices.flat[0].device_kind, mesh.size)
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    return loop(stage, state, step_fn, loader.batch, put, evaluate, show=show, ideal=ideal)


def loop(
    stage: Stage, state: Any, step_fn: Callable, make_batch: Callable, put: Callable, evaluate: Callable | None, *,
    show: tuple[str, ...], ideal: float | None = None,
) -> Any:  # fmt: skip
    """Opens checkpoints and log, resumes, and fits. The last moment to find a key that nothing has read."""
    cfg = stage.cfg
    total, every, keep = cfg.total_steps, (cfg.save_every_steps, cfg.eval_every_steps), cfg.keep_checkpoints
    tensorboard = cfg.tensorboard
    cfg.finish()
    with Steps(stage.workdir / "steps", keep=keep) as steps:
        state = resume(steps, state)
        start, first = int(state.step), jax.process_index() == 0
        options = {"title": stage.workdir.name, "resume_step": start, "tensorboard": tensorboard, "write": first}
        if start:
            console.print(f"{stage.workdir}: going on from step {start} of {total}")
        with Log(stage.workdir, total, show=show, **options) as log:
            return fit(
                state, step_fn, make_batch, total_steps=total, steps=steps, log=log, put=put, evaluate=evaluate,
                save_every_steps=every[0], eval_every_steps=every[1], ideal_seconds=ideal,
            )  # fmt: skip


def base_of(folder: Path) -> Path:
    """The folder of the whole parameters on which a checkpoint stands: its own, unless it is an adapter."""
    base = read_manifest(folder)["base"]
    return folder if base is None else (folder / base["path"]).resolve()


def finish(
    stage: Stage, *, params: Params | None, step: int, model: Model | None = None, tokenizer: Any = None,
    template: str | None = None, files: tuple[str, ...] = (), content: str = "", **fields: Any,
) -> None:  # fmt: skip
    """Saves the final parameters and the tokenizer, then the manifest, which makes the stage complete."""
    if params is not None:
        save_params(stage.workdir / "params", params)
        content = content_hash(params)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(stage.workdir / "tokenizer"))
    origin = stage.parents["policy"] / "hf" if "policy" in stage.parents else None
    if params is not None and origin and origin.is_dir():  # what an imported checkpoint brought, for the way out
        shutil.copytree(origin, stage.workdir / "hf", dirs_exist_ok=True)
    adapted = params is not None and "lora" in params
    before = longest_text(read_manifest(stage.parents["policy"])) if "policy" in stage.parents else 0
    write_manifest(
        stage.workdir,
        base=parent_record(stage.workdir, base_of(stage.parents["policy"])) if adapted else None,
        stage=stage.kind,
        name=stage.workdir.name,
        config=stage.config,
        parents=stage.records,
        content_hash=content,
        step=step,
        architecture=model.config.architecture() if model else None,
        tokenizer_hash=tokenizer_hash(tokenizer) if tokenizer is not None else None,
        template_hash=template_hash(tokenizer, template) if template is not None else None,
        files=files,
        longest_text=max(before, longest_of(stage.config)) if params is not None else None,
        **fields,
    )
    console.print(f"[green]{stage.workdir}[/]: done in {time.perf_counter() - stage.begun:.0f} s")
