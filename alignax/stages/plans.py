"""What plans share: what a stage declares, the keys that several stages have, a trial of a step on shapes."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alignax import host, lora
from alignax.bound import RAISED, Args, Bound, Terms, bound, of_config, plan_record, static
from alignax.config import ConfigError, Reader, check, plain, record_of, typed
from alignax.data.templates import TEMPLATES
from alignax.models.config import ModelConfig
from alignax.models.kernels import kernel_of
from alignax.ops.checks import between, fact
from alignax.sharding import make_mesh, row_shards, rows_of_several
from alignax.stages.alarms import planned
from alignax.types import Layout

POLICY, REWARD, FILES = "policy", "reward", "files"  # what a stage makes
# the least that a whole number of any stage may be
LEAST = {
    "total_steps": 1, "save_every_steps": 1, "keep_checkpoints": 1, "eval_every_steps": 0, "seed": 0, "max_length": 1,
    "max_prompt_length": 1, "length_buckets": 1,
}  # fmt: skip


class Parent(NamedTuple):
    """A finished stage that another one reads."""

    key: str  # of the config: its folder. "*" is every name of a group: "policies.*"
    makes: str | tuple[str, ...] = POLICY  # what it has to be
    # groups of the config whose texts it reads: the stage's own, the probe's, the golden set's, those learnt beside
    reads: tuple[str, ...] = ("", "probe.", "golden.", "data_loss.")


class Declaration(NamedTuple):
    """What a stage is to the others, `STAGE` of its file."""

    name: str  # `config.stage`: the name of a file of alignax.stages, or the dotted path of a module
    makes: str
    reads: Mapping[str, Parent]  # by role; "*" as in their keys
    fresh: tuple[str, ...] | None = None  # keys that say what to make where `init_from` is empty; None: it must not be


def module_of(config: Mapping[str, Any], prefix: str = "") -> Any:
    """The module of a config's stage, ours or any that is importable.

    It has STAGE, `get_config()`, `plan(config, prefix)` and `run(config, workdir, root, made)`, and, if it reads
    data, its plans have `readings()`. Raises ConfigError if there is none.
    """
    name = str(config.get("stage"))
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
        raise ConfigError(f"config.{prefix}stage = {config.get('stage')!r}: there is no such stage")
    ours = f"alignax.stages.{name}"
    path = ours if "." not in name and importlib.util.find_spec(ours) else name
    try:
        module = importlib.import_module(path)
    except (ModuleNotFoundError, ValueError) as error:
        missing = getattr(error, "name", None) or ""
        if missing and not f"{path}.".startswith(f"{missing}."):
            raise  # the module is there, but something that it imports is not
        module = None
    if module is None:
        raise ConfigError(f"config.{prefix}stage = {config.get('stage')!r}: there is no such stage")
    lacks = [name for name in ("STAGE", "get_config", "plan", "run") if not hasattr(module, name)]
    if lacks or not isinstance(module.STAGE, Declaration):
        what = f"it has no {', '.join(lacks)}" if lacks else "its STAGE is no plans.Declaration"
        raise ConfigError(f"config.{prefix}stage = {config.get('stage')!r}: the module {path} is no stage: {what}")
    return module


def made(config: Mapping[str, Any], prefix: str = "") -> Any:
    """The plan of a config, by the stage that it names."""
    return module_of(config, prefix).plan(config, prefix)


def parents_of(declared: Declaration, config: Mapping[str, Any]) -> dict[str, Parent]:
    """Role -> parent, for every folder that a config names; of a list of folders, "role.0", "role.1", ..."""
    found = {}
    for role, parent in declared.reads.items():
        group, _, rest = parent.key.partition(".*")
        names = sorted(config.get(group, {})) if "*" in parent.key else [""]
        for name in names:
            one, key = role.replace("*", name), f"{group}.{name}{rest}" if name else parent.key
            value = value_at(config, key)
            several = [f".{i}" for i in range(len(value))] if isinstance(value, (list, tuple)) else [""]
            found |= {f"{one}{i}": parent._replace(key=f"{key}{i}") for i in several}
    return found


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, of which a number is a place in a list; "" where there is none."""
    value: Any = config
    for name in key.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(name)]
        else:
            value = value.get(name, "") if isinstance(value, Mapping) else ""
    return value


def read(config: Any, declared: Declaration, defaults: Any, prefix: str = "") -> Reader:
    """A reader of the config of a stage. Raises ConfigError for unknown and missing keys and for wrong types."""
    config = plain(config)
    if config.get("stage") != declared.name:
        raise ConfigError(f"config.{prefix}stage = {config.get('stage')!r}: this is the {declared.name!r} stage")
    check(config, plain(defaults), prefix=prefix)
    r = Reader(config, prefix)
    for name in ("stage", *(parent.key for parent in declared.reads.values() if "." not in parent.key)):
        getattr(r, name)  # whoever opens the stage finds the folders
    for name, least in LEAST.items():
        r.require(name not in r or getattr(r, name) >= least, name, f"expected a whole number of {least} or more")
    if "template" in r:
        r.one_of("template", TEMPLATES)
    origin(r, declared)
    return r


def origin(r: Reader, declared: Declaration) -> None:
    """A stage starts from a finished one; some may also start from nothing, and must then say what to make."""
    if "init_from" not in r:
        return
    if "lora_args" in r and r.lora_args and not r.init_from:
        raise ConfigError(
            f"config.{r.key('lora_args')} is set, but config.{r.key('init_from')} is empty: an adapter stands on a "
            "finished checkpoint"
        )
    if r.init_from:
        return
    if declared.fresh is None:
        raise ConfigError(
            f"config.{r.key('init_from')} is empty: this stage starts from the folder of a finished policy"
        )
    for name in declared.fresh:
        if not getattr(r, name):
            raise ConfigError(f"config.{r.key(name)} is empty, and so is config.{r.key('init_from')}: set one of them")


# ---- keys that several stages have


@plan_record
class Shared:
    """Every stage's. A field without a comment is the key of that name: see the `get_config` of the stages."""

    seed: int = static()
    init_from: str = static()
    mesh: Args = static()
    compute: Args = static()


@plan_record
class Source:
    """Where rows come from; of a mixture its parts, whose weights say how often they are drawn."""

    function: Bound
    parts: dict[str, "Source"]
    weights: Args = static(default=Args())  # part -> share of the draws, of any unit
    key: str = static()  # of the config: its arguments


@plan_record
class Reading(Shared):
    """Of a stage that reads data."""

    template: str = static()
    source: Source


@plan_record
class Learning(Reading):
    """Of a stage that trains."""

    batch_size: int = static()
    total_steps: int = static()
    eval_every_steps: int = static()
    save_every_steps: int = static()
    keep_checkpoints: int = static()
    tensorboard: bool = static()
    alarms: Args = static(default=Args())

    def draws(self, form: str) -> int:
        """How many rows of this form a run reads: a batch per step."""
        del form
        return self.total_steps * self.batch_size


def shared(r: Reader, *, batches: Mapping[str, int] | None = None, sides: int = 1) -> dict[str, Any]:
    """The fields of `Shared`; batches of these sizes, by their keys, have to divide over the devices.

    `sides`: texts of one row of data, whose beginning they may share in a row of the model.
    """
    check_compute(r, sides)
    parts = row_parts(r)
    for name, size in (batches or {}).items():
        divides(r, name, size, parts, "devices")
    watched = {"alarms": planned(r)} if "alarms" in r else {}
    return {"mesh": Args(r.mesh.items()), "compute": Args(r.compute.items())} | watched


def unset(r: Reader, defaults: Mapping[str, Any], switch: str) -> None:
    """Raises ConfigError for a key that is not at its default, while `switch` is empty: nothing reads it."""
    for name, default in defaults.items():
        if getattr(r, name) != default:
            raise ConfigError(f"config.{r.key(name)} is set, but config.{r.key(switch)} is empty: nothing reads it")


def row_parts(r: Reader) -> int:
    """How many parts the mesh splits the rows of a batch into. Raises ConfigError for a mesh that cannot be."""
    try:
        mesh = make_mesh(dict(r.mesh.items()), learners(r))
    except ValueError as error:
        raise ConfigError(f"config.{r.key('mesh')}: {error}") from None
    if rows_of_several(mesh):
        raise ConfigError(
            f"config.{r.key('mesh')}: devices of several processes would share rows, of which each process makes its "
            "own; let tensor be at most the devices of one process"
        )
    return row_shards(mesh)


def learners(r: Reader) -> list[Any]:
    """The devices that learn: all but the first ones, where those sample alone."""
    alone = r.sampler_devices if "sampler_devices" in r else 0
    there = host.devices()
    r.require(0 <= alone < len(there), "sampler_devices", f"expected fewer than {len(there)} devices")
    return there[alone:]


def check_compute(r: Reader, sides: int = 1) -> None:
    """How a model is computed must be a choice that there is, and a kernel one for this device, dtype and rows."""
    shared = "share_prompts" in r and r.share_prompts
    packing = r.packing if "packing" in r else "off"
    place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    branch = place if shared or (packing == "shared" and sides > 1) else None
    rows = Layout(place, branch, place) if shared or packing in ("packed", "shared") else None  # pyright: ignore[reportArgumentType]
    try:
        kernel_of(ModelConfig(vocab_size=1, **dict(r.compute.items())), host.devices()[0], rows)
    except ValueError as error:
        raise ConfigError(f"config.{r.key('compute')}.{error}") from None


def divides(r: Reader, name: str, size: int, parts: int, what: str) -> None:
    """Raises ConfigError unless `size` rows can be cut into so many parts."""
    if parts < 1 or size < 1 or size % parts:
        raise ConfigError(f"config.{r.key(name)}: {size} rows do not divide over {parts} {what}")


def add_prompts(c: ConfigDict, source: str) -> None:
    """The keys that say which prompts are answered and how, with their defaults and units."""
    c.source = source  # prompts: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.slots = 0  # replies that are written at once; 0: all, or what a quarter of the memory holds
    c.temperature = 1.0  # of sampling; in the stage online, and so of every log-probability


def sampling(r: Reader) -> None:
    """Raises ConfigError for what cannot be sampled so: of a stage, or of its probe."""
    r.require(between(0.0)(r.temperature), "temperature", "expected a temperature of 0 (greedy) or more")
    r.require(r.max_new_tokens >= 1, "max_new_tokens", "expected 1 token or more")
    if "slots" in r:
        r.require(r.slots >= 0, "slots", "expected a number of replies to write at once, or 0 for what fits")


def source(r: Reader, *, drawn: bool = True, required: bool = True) -> Source | None:
    """The source of a config; None where it names none, if it need not.

    `drawn`: rows are drawn by weight, as a mixture asks.
    """
    function = of_config(r, "source", "alignax.data.sources", given=("split", "template"), args="data")
    if function is None:
        r.require(not required, "source", "expected a function of alignax.data.sources, or module:function")
        return None
    key, parts, weights = r.key("data"), {}, {}
    if r.source == "mixture":
        if not drawn:
            raise ConfigError(
                f"config.{r.key('source')} = 'mixture': rows are not drawn by weight here, each is read once; name one "
                "source"
            )
        if not r.data["parts"]:
            raise ConfigError(f"config.{key}.parts is empty: expected name = dict(source=..., weight=..., ...)")
        for name, part in r.data["parts"].items():
            parts[name], weights[name] = part_of(part, f"{key}.parts.{name}")
    return Source(function=function, parts=parts, weights=Args(weights), key=key)


def part_of(part: Any, key: str) -> tuple[Source, float]:
    """One part of a mixture and its weight. Raises ConfigError."""
    if not isinstance(part, dict) or not isinstance(part.get("source"), str):
        raise ConfigError(f"config.{key} = {part!r}: expected dict(source=..., weight=..., ...)")
    weight = typed(part.get("weight"), float, key=f"{key}.weight")
    if not 0 < weight < float("inf"):
        raise ConfigError(f"config.{key}.weight = {weight}: expected a share above 0, of any unit")
    if part["source"] == "mixture":
        raise ConfigError(f"config.{key}.source = 'mixture': name its parts here, with their weights multiplied")
    args = {name: value for name, value in part.items() if name not in ("source", "weight")}
    given = {"args_key": key, "given": ("split", "template")}
    return Source(
        function=bound(part["source"], args, "alignax.data.sources", key=f"{key}.source", **given), parts={}, key=key
    ), weight


def optimizer(r: Reader, name: str, steps: int) -> Bound:
    """The optimizer that a config names, which knows how many updates are to come. Raises ConfigError."""
    found = of_config(r, name, "alignax.train.optimizer", given=("total_steps",))
    if found is None:
        raise r.error(name, "expected a function of alignax.train.optimizer, or module:function")
    found = found.given(total_steps=steps)
    try:
        found()  # it says what it does not take when it is made
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{found.key}: {error}") from None
    return found


def terms(r: Reader, records: tuple[type, ...], *, microbatches: int = 1) -> tuple[Terms, type]:
    """(the loss of a config and its further terms, the record that they take).

    Raises ConfigError for one that is not there, that takes another record than the stage makes or than the loss, and
    for one that cannot be cut into microbatches.
    """
    loss = of_config(r, "loss", "alignax.losses")
    if loss is None:
        raise r.error("loss", "expected a function of alignax.losses, or module:function")
    record = record_of(loss.function, records, key=r.key("loss"))
    more: Terms = {}
    further = r.terms if "terms" in r else {}
    for name, args in further.items():
        key = f"terms.{name}"
        if not isinstance(args, dict):
            raise ConfigError(f"config.{r.key(key)} = {args!r}: expected a group such as dict(coefficient=0.5)")
        own = {name: value for name, value in args.items() if name != "coefficient"}
        term = bound(name, own, "alignax.losses", key=r.key(key), args_key=r.key(key))
        if term.function is loss.function:
            raise ConfigError(f"config.{r.key(key)} is config.loss itself: a term is added to it")
        kind = record_of(term.function, records, key=r.key(key))
        if kind is not record:
            raise ConfigError(
                f"config.{r.key(key)} takes a {kind.__name__}, config.{r.key('loss')} a {record.__name__}: terms are "
                "added up on one record"
            )
        more[name] = typed(args.get("coefficient", 1.0), float, key=f"{r.key(key)}.coefficient"), term
    found = {loss.name if more else "loss": (1.0, loss)} | more
    for key, term in keyed(found).items():
        if microbatches > 1 and fact(term.function, "whole_batch"):
            raise ConfigError(
                f"config.{r.key(key)} = {term.name!r} compares the rows of a batch with each other: it is not the sum "
                f"of {microbatches} microbatches; set microbatches to 1"
            )
    return found, record


def keyed(terms: Terms) -> dict[str, Bound]:
    """The terms by their keys in the config: the loss, which is the first, and `terms.name`."""
    return {f"terms.{name}" if i else "loss": term for i, (name, (_, term)) in enumerate(terms.items())}


class Readings(NamedTuple):
    """What makes arrays of a plan's rows, its options bound, and of which splits. `Plan.readings` lists them."""

    encode: partial
    splits: tuple[str, ...]


def check_lora(r: Reader) -> None:
    """The arguments of an adapter. Raises ConfigError."""
    bound(lora.init, r.lora_args, key=r.key("lora_args"), args_key=r.key("lora_args"))
    if (rank := r.lora_args.get("rank", 1)) < 1:
        raise ConfigError(f"config.{r.key('lora_args')}.rank = {rank}: expected 1 or more, such as 16")


def tried(function: Callable, *args: Any) -> Any:
    """The shapes that `function` makes of shapes, or the exception that it raised: shapes that are guessed may be why.

    Raises ConfigError for what no shape would mend: a name that is not there, and None, where a field is, say.
    """
    try:
        return jax.eval_shape(function, *args)
    except ConfigError:
        raise
    except Exception as error:
        mendable = not isinstance(error, (AttributeError, NameError, TypeError)) or "shape" in str(error)
        by = [note for note in getattr(error, "__notes__", ()) if note.startswith(RAISED)]
        if mendable or not by:
            return error
        raise ConfigError(f"{type(error).__name__}: {error}, {by[0]}") from error
