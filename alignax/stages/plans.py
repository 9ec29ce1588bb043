"""What plans share: what a stage declares, the keys that several stages have, a trial of a step on shapes."""

import dataclasses
import importlib
import importlib.util
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignax import lora
from alignax.bound import Args, Bound, bound, fill, of_config, plan_record, static
from alignax.config import ConfigError, Reader, check, plain, record_of, typed
from alignax.data.packing import MODES
from alignax.models.config import ModelConfig
from alignax.models.kernels import kernel_of
from alignax.ops.checks import Scalar
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Layout, Loss

POLICY, REWARD, FILES = "policy", "reward", "files"  # what a stage makes
Terms = dict[str, tuple[Scalar, Bound]]  # name -> (coefficient, record -> Loss)


class Parent(NamedTuple):
    """A finished stage that another one reads."""

    key: str  # of the config: its folder. "*" is every name of a group: "policies.*"
    makes: str | tuple[str, ...] = POLICY  # what it has to be
    reads: tuple[str, ...] = (
        "",
        "probe.",
    )  # the groups of the config whose texts it reads: the stage's own, the probe's


class Declaration(NamedTuple):
    """What a stage is to the others, `STAGE` of its file."""

    name: str  # `config.stage`: the name of a file of alignax.stages, or the dotted path of a module
    makes: str
    reads: Mapping[str, Parent]  # by role; "*" as in their keys
    fresh: tuple[str, ...] | None = None  # keys that say what to make where `init_from` is empty; None: it must not be


def module_of(config: Mapping[str, Any], prefix: str = "") -> Any:
    """The module of a config's stage, ours or any that is importable.

    It has STAGE, `get_config()`, `plan(config, prefix)` and `run(config, workdir, root, made)`, and, if it reads data,
    `readings(plan)`. Raises ConfigError if there is none.
    """
    name = str(config.get("stage"))
    ours = f"alignax.stages.{name}"
    path = ours if "." not in name and importlib.util.find_spec(ours) else name
    try:
        module = importlib.import_module(path)
    except (ModuleNotFoundError, ValueError) as error:
        missing = getattr(error, "name", None) or ""
        if missing and not f"{path}.".startswith(f"{missing}."):
            raise  # the module is there, but something that it imports is not
        module = None
    if not isinstance(getattr(module, "STAGE", None), Declaration):
        raise ConfigError(f"config.{prefix}stage = {name!r}: there is no such stage")
    return module


def made(config: Mapping[str, Any], prefix: str = "") -> Any:
    """The plan of a config, by the stage that it names."""
    return module_of(config, prefix).plan(config, prefix)


def parents_of(declared: Declaration, config: Mapping[str, Any]) -> dict[str, Parent]:
    """Role -> parent, for every folder that a config names, those of its data too where they may be steps."""
    found = {}
    for role, parent in declared.reads.items():
        group, _, rest = parent.key.partition(".*")
        names = sorted(config.get(group, {})) if "*" in parent.key else [""]
        for name in names:
            found[role.replace("*", name)] = parent._replace(key=f"{group}.{name}{rest}" if name else parent.key)
    return found


def read(config: Any, declared: Declaration, defaults: Any, prefix: str = "") -> Reader:
    """A reader of the config of a stage. Raises ConfigError for unknown and missing keys and for wrong types."""
    config = plain(config)
    if config.get("stage") != declared.name:
        raise ConfigError(f"config.{prefix}stage = {config.get('stage')!r}: this is the {declared.name!r} stage")
    check(config, plain(defaults), prefix=prefix)
    r = Reader(config, prefix)
    for name in ("stage", *(parent.key for parent in declared.reads.values() if "." not in parent.key)):
        getattr(r, name)  # whoever opens the stage finds the folders
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

    def draws(self, form: str) -> int:
        """How many rows of this form a run reads: a batch per step."""
        del form
        return self.total_steps * self.batch_size

    batch_size: int = static()
    total_steps: int = static()
    eval_every_steps: int = static()
    save_every_steps: int = static()
    keep_checkpoints: int = static()
    tensorboard: bool = static()
    optimizer: Bound  # () -> Optimizer


@plan_record
class Supervised(Learning):
    """Of a stage that learns from the rows of its data."""

    terms: Terms  # the config's loss, called "loss" where it is alone, and its further terms
    record: type = static()  # what they take
    max_length: int = static()
    microbatches: int = static()
    packing: str = static(default="off")
    can_pack: bool = static(default=False)  # several texts may stand in a row, if asked
    lora_args: Args = static(default=Args())


def shared(r: Reader, *, batches: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The fields of `Shared`; batches of these sizes, by their keys, have to divide over the devices."""
    check_compute(r)
    for name, size in (batches or {}).items():
        divides(r, name, size, jax.device_count(), "devices")
    return {"mesh": Args(r.mesh.items()), "compute": Args(r.compute.items())}


def check_compute(r: Reader) -> None:
    """How a model is computed must be a choice that there is, and a kernel one for this device, dtype and rows."""
    shared = "share_prompts" in r and r.share_prompts
    packing = r.packing if "packing" in r else "off"
    place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    branch = place if shared or packing == "shared" else None
    rows = Layout(place, branch, place) if shared or packing in ("packed", "shared") else None  # pyright: ignore[reportArgumentType]
    try:
        kernel_of(ModelConfig(vocab_size=1, **dict(r.compute.items())), rows=rows)
    except ValueError as error:
        raise ConfigError(f"config.{r.key('compute')}.{error}") from None


def divides(r: Reader, name: str, size: int, parts: int, what: str) -> None:
    """Raises ConfigError unless `size` rows can be cut into so many parts."""
    if parts < 1 or size < 1 or size % parts:
        raise ConfigError(f"config.{r.key(name)}: {size} rows do not divide over {parts} {what}")


def sampling(r: Reader) -> None:
    """Raises ConfigError for what cannot be sampled so: of a stage, or of its probe."""
    r.require(r.temperature >= 0, "temperature", "expected a temperature of 0 (greedy) or more")
    r.require(r.max_new_tokens >= 1, "max_new_tokens", "expected 1 token or more")


def source(r: Reader, *, drawn: bool = True) -> Source | None:
    """The source of a config; None where it names none. `drawn`: rows are drawn by weight, as a mixture asks."""
    function = of_config(r, "source", "alignax.data.sources", given=("split", "template"), args="data")
    if function is None:
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


def learning(r: Reader) -> dict[str, Any]:
    """The fields of `Learning` that are not copied as they are."""
    return {"source": source(r), "optimizer": optimizer(r, "optimizer", r.total_steps)}


def terms(r: Reader, records: tuple[type, ...], *, microbatches: int = 1) -> tuple[Terms, type]:
    """(the loss of a config and its further terms, the record that they take).

    Raises ConfigError for one that is not there, that takes another record than the stage makes or than the loss, and
    for one that cannot be cut into microbatches.
    """
    loss = of_config(r, "loss", "alignax.losses")
    if loss is None:
        raise r.error("loss", "expected a function of alignax.losses, or module:function")
    record, more, found = record_of(loss.function, records, key=r.key("loss")), {}, {"loss": (1.0, loss)}
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
        found[key] = more[name]
    for key, (_, term) in found.items():
        if microbatches > 1 and getattr(term.function, "whole_batch", False):
            raise ConfigError(
                f"config.{r.key(key)} = {term.name!r} compares the rows of a batch with each other: it is not the sum "
                f"of {microbatches} microbatches; set microbatches to 1"
            )
    return {loss.name if more else "loss": (1.0, loss)} | more, record


class Readings(NamedTuple):
    """What makes arrays of a plan's rows, its options bound, and of which splits. `Plan.readings` lists them."""

    encode: partial
    splits: tuple[str, ...]


def supervised(cls: Any, r: Reader, records: tuple[type, ...], **fields: Any) -> Any:
    """A plan of `Supervised` keys; its step has been tried on shapes. Raises ConfigError."""
    found, record = terms(r, records, microbatches=r.microbatches)
    packing = r.one_of("packing", MODES) if "packing" in r else "off"
    if "lora_args" in r:
        check_lora(r)
    batches = {"batch_size": r.batch_size} | fields.pop("batches", {})
    fields |= shared(r, batches=batches) | learning(r) | {"terms": found, "record": record}
    fields |= {"packing": packing, "can_pack": "packing" in r}
    divides(r, "batch_size", r.batch_size, r.microbatches, "microbatches")
    plan = fill(cls, r, **fields)
    r.finish()
    trial(plan)
    return plan


def check_lora(r: Reader) -> None:
    """The arguments of an adapter. Raises ConfigError."""
    bound(lora.init, r.lora_args, key=r.key("lora_args"), args_key=r.key("lora_args"))
    if (rank := r.lora_args.get("rank", 1)) < 1:
        raise ConfigError(f"config.{r.key('lora_args')}.rank = {rank}: expected 1 or more, such as 16")


# ---- the update of a supervised plan


def evaluated(terms: Terms, record: Any) -> dict[str, tuple[Scalar, Loss]]:
    """{name: (coefficient, Loss)} of the terms, on one record."""
    return {name: (coefficient, term(record)) for name, (coefficient, term) in terms.items()}


def metrics_of(terms: Terms, record: Any) -> dict:
    """Every metric of the terms, and each term's own value, as (values, weights)."""
    out = {}
    for name, (_, found) in evaluated(terms, record).items():
        out |= found.metrics | {name: (found.value, found.weight)}
    return out


def update(plan: Supervised, view: Callable[[Any, Any, Any], Any], *, follow: Callable | None = None) -> Callable:
    """A pure `step(state, batch, frozen) -> (state, metrics)` of the plan.

    `view(params, frozen, batch)` is the record that its terms take.
    """
    objective = lambda params, frozen, batch: evaluated(plan.terms, view(params, frozen, batch))  # noqa: E731
    return make_step(objective, plan.optimizer(), microbatches=plan.microbatches, follow=follow)


# ---- a trial on shapes


SIZES = {"B": 4, "T": 3, "V": 5, "K": 2, "A": 2}


def trial(plan: Supervised, without: tuple[str, ...] = ()) -> Any:
    """The shapes that the plan's step makes of a record's, or the exception that it raised.

    Everything of the step is real but for the model, which is not there yet: the record is the batch. Raises
    ConfigError for a setting that is refused. Other errors may come of the shapes, which are guesses: a loss of a
    user's own may want larger ones.
    """
    record = shapes_of(plan.record, without, B=SIZES["B"] * plan.microbatches)
    state = jax.eval_shape(lambda: new_state({"weight": jnp.zeros(())}, plan.optimizer()))
    return tried(update(plan, lambda params, frozen, batch: batch), state, record, {})


def tried(function: Callable, *args: Any) -> Any:
    """The shapes that `function` makes of shapes, or the exception that it raised, but for a ConfigError."""
    try:
        return jax.eval_shape(function, *args)
    except ConfigError:
        raise
    except Exception as error:
        return error


def shapes_of(record: Any, without: tuple[str, ...] = (), **sizes: int) -> Any:
    """A record of shapes from its annotations, the optional fields too but for those named in `without`.

    `sizes` are of axes, where those of `SIZES` will not do.
    """
    hints = typing.get_type_hints(record)
    fields = [field.name for field in dataclasses.fields(record)]
    return record(**{name: None if name in without else _leaf(hints[name], without, sizes) for name in fields})


def _leaf(hint: Any, without: tuple[str, ...], sizes: dict[str, int]) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return shapes_of(hint, without, **sizes)
    known = (jnp.float32, jnp.bool_, jnp.int32)
    dtype = next(dtype for dtype in known if jnp.dtype(dtype).name in hint.dtypes)
    return jax.ShapeDtypeStruct(tuple((SIZES | sizes)[axis] for axis in hint.dim_str.split()), dtype)


# ---- how long texts are


READ, SAMPLED = ("max_length",), ("max_prompt_length", "max_new_tokens")  # of the data; what a policy writes, together


def longest_of(config: Mapping[str, Any]) -> int:
    """Tokens that a text of one stage may have, of its data or of its samples."""
    return max((longest for _, longest in _lengths(config)), default=0)


def longest_text(manifest: Mapping[str, Any]) -> int:
    """Tokens that a text may have had on which a checkpoint or its ancestors were trained; 0: they were not.

    Manifests of before this was recorded have their own config to say it.
    """
    return manifest.get("longest_text") or longest_of(manifest["config"])


def _lengths(group: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """(keys, their sum) of the texts that a config, or its probe, reads; a `group` without on-policy texts has none."""
    for keys in (READ,) if group.get("on_policy") == 0 else (READ, SAMPLED):
        if all(key in group for key in keys):
            yield keys, sum(group[key] for key in keys)


def check_context(model: ModelConfig, config: Mapping[str, Any], role: str, parent: Parent) -> None:
    """Raises ConfigError if the texts that a parent reads may be longer than its model can (`ModelConfig.context`)."""
    for prefix in parent.reads:
        group = config if not prefix else config.get("probe", {})
        if prefix and not group.get("source"):
            continue
        for keys, longest in _lengths(group):
            if 0 < model.context < longest:
                what = "learned positions" if model.positions == "learned" else f"rope_type {model.rope_type!r}"
                raise ConfigError(
                    f"config.{prefix}{' + '.join(keys)} = {longest}: a model with {what} ({role}) reads texts of at "
                    f"most {model.context} tokens; lower it"
                )
