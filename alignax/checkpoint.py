"""Arrays on disk, through Orbax: the train state every so many steps, and the final parameters of a stage.

A save runs in the background and is atomic: it writes beside its final place and is renamed when complete, so a kill at
any moment leaves the last complete step. What belongs to which run is recorded by `manifest.py`.
"""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from rich.markup import escape

from alignax import host
from alignax.log import console
from alignax.manifest import CheckpointError, files_hash, read_manifest

_PARTIAL = ".orbax-checkpoint-tmp"  # what the name of an unfinished save ends in
ASIDE = ".damaged"  # and that of a step that could not be read
_WRITE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)  # as which the write errors of the stack arrive
_FIXES = {
    "No space left": "Free some disk space",
    "Disk quota": "Free some of the disk quota",
    "File too large": "Raise the limit on the size of files (ulimit -f)",
    "Permission denied": "Make the folder writable",
    "Read-only file system": "Choose a workdir on a disk that can be written",
}


def _not_an_echo(entry: logging.LogRecord) -> bool:
    """Orbax logs one failed write many times, each with its traceback; `Steps` raises it once, with what to do."""
    if entry.name == "asyncio":  # the other arrays of the same write, whose errors nobody asked for
        return not ("never retrieved" in entry.getMessage() and "/orbax/" in entry.getMessage())
    return not (entry.exc_info and entry.levelno == logging.ERROR and "orbax" in entry.pathname)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_not_an_echo)


class Damaged(CheckpointError):
    """Arrays on disk that cannot be read."""


class Steps:
    """The train states of one stage in `<workdir>/steps`, saved in the background; the last `keep` of them stay.

    A state is a pytree of arrays: registered dataclasses, optax states, raw and typed PRNG keys, None. Leftovers of a
    save that was killed are removed on opening. Use as a context manager, or call `close`.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        if keep < 1:
            raise CheckpointError(f"keep = {keep}: expected at least 1, or there is nothing to resume from")
        self.directory = Path(directory).resolve()
        self._last = self._saving = None  # the step that memory agrees with, and the one on its way to disk
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
        )
        with self._reported(None):
            handler = ocp.StandardCheckpointHandler()  # given here, so that a folder can be read before it is written
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handler)

    def latest(self) -> int | None:
        """The last complete step on disk."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> bool:
        """Starts to save `state`; returns once the arrays are safe, so that the caller may donate them at once.

        Waits for the save before it. False if `step` is the one that was restored or saved last: it is there already.
        Raises CheckpointError if this save cannot start or the one before it failed, with the last good step.
        """
        self.wait()
        if step == self._last:
            return False
        latest = self.latest()
        if latest is not None and step <= latest:
            raise CheckpointError(
                f"{self.directory}: step {step} comes after step {latest}, which is there from another run; "
                f"restore that one first, or delete the folder to start again"
            )
        with self._reported(step):
            self._check_room(state)
            self._manager.save(step, args=ocp.args.StandardSave(state))
        self._last = self._saving = step
        return True

    def wait(self) -> None:
        """Returns when the save on its way is complete. Raises CheckpointError if it failed."""
        step, self._saving = self._saving, None
        if step is not None:
            with self._reported(step):
                self._manager.wait_until_finished()

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """(step, state) of the last complete step, bit for bit, or None if there is none.

        `abstract_state` gives structure, shapes, dtypes and shardings: arrays or `jax.ShapeDtypeStruct`s (without a
        sharding: on the first device). The mesh may differ from the one at the save. One that cannot be read is set
        aside as STEP.damaged, with a warning, for the step before it; in a run of several processes, and where there is
        none before it, it is refused. Raises CheckpointError then, and if the saved state has another structure, shape
        or dtype, naming each.
        """
        self.wait()
        while (step := self.latest()) is not None:
            folder, before = self.directory / str(step), self._before(step)
            try:
                with _readable(folder, f"delete it, and the run goes on from the step before ({before})"):
                    _check_fit(folder, self._manager.item_metadata(step), abstract_state)
                    state = self._manager.restore(step, args=ocp.args.StandardRestore(_targets(abstract_state)))
            except Damaged as error:
                if host.count() > 1 or isinstance(before, str):
                    raise
                aside = folder.with_name(f"{step}{ASIDE}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self._manager.reload()
                console.print(f"[yellow]{escape(str(error))}: it is {aside.name} now, and step {before} is read[/]")
                continue
            self._last = step
            return step, state
        return None

    def close(self) -> None:
        """Waits, then ends the background threads. Raises CheckpointError if the last save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the error that ended the run stays the one that is shown

    def _before(self, step: int) -> int | str:
        return max((other for other in self._manager.all_steps() if other < step), default="none: from the start")

    def _check_room(self, state: Any) -> None:
        """Refuses before a byte is written: a disk that fills up in the middle leaves nothing for the other files."""
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if host.count() == 1)
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(f"No space left: the state takes {need / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")

    @contextlib.contextmanager
    def _reported(self, step: int | None) -> Iterator[None]:
        """Turns a write error into a CheckpointError: the folder, the step, the cause, the fix, the last good step."""
        try:
            yield
        except _WRITE_ERRORS as error:
            cause, fix = _cause_and_fix(error)
            if step is None:
                raise CheckpointError(f"{self.directory}: cannot be opened for saving: {cause}. {fix}.") from error
            for partial in self.directory.glob("*" + _PARTIAL):
                shutil.rmtree(partial, ignore_errors=True)
            self._last, latest = None, self.latest()
            kept = "No step was complete" if latest is None else f"The last good step, {latest}, is kept"
            again = f"{fix}, then run the same command again: it goes on from step {latest or 0}."
            raise CheckpointError(f"{self.directory}: step {step} was not saved: {cause}. {kept}. {again}") from error


def save_params(path: str | Path, params: Any) -> None:
    """Saves a tree of arrays as the folder `path`, atomically, in place of what was there. Raises CheckpointError."""
    path = Path(path).resolve()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, params, force=True)
    except _WRITE_ERRORS as error:
        shutil.rmtree(path.with_name(path.name + _PARTIAL), ignore_errors=True)  # a full disk needs the room
        cause, fix = _cause_and_fix(error)
        raise CheckpointError(f"{path}: the parameters were not saved: {cause}. {fix}, then run again.") from error


def load_params(path: str | Path, abstract: Any = None) -> Any:
    """The tree at `path`, on the shardings of `abstract` (see `restore_latest`); without it, as nested numpy dicts.

    Raises CheckpointError if there is nothing, if it cannot be read, or if structure, shapes or dtypes differ.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no parameters there; expected the params/ folder of a finished stage")
    with _readable(path, "make it again with the stage that wrote it"), ocp.PyTreeCheckpointer() as checkpointer:
        saved = _tree(checkpointer.metadata(path))
        if not jax.tree.leaves(saved):
            raise ValueError("its metadata is damaged")
        if abstract is None:
            numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=numpy))
        _check_fit(path, saved, abstract)
        with ocp.StandardCheckpointer() as standard:
            return standard.restore(path, _targets(abstract))


def content_hash(params: Any) -> str:
    """sha256 over path, dtype, shape and bytes of every leaf, in the order of the paths.

    Depends on neither sharding nor device count nor on the kind of container (dict, dataclass, tuple).
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(_paths(params).items()):
        array = fetched(leaf)
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def verify(workdir: str | Path) -> dict[str, Any]:
    """The manifest, once the content on disk has been hashed again. Raises CheckpointError if it is not what it was."""
    workdir = Path(workdir)
    manifest = read_manifest(workdir)
    if manifest["files"]:
        found = files_hash(workdir, manifest["files"])
    else:
        found = content_hash(load_params(workdir / "params"))
    check_content(workdir, manifest, found)
    return manifest


def check_content(workdir: str | Path, manifest: dict[str, Any], found: str) -> None:
    """Raises CheckpointError if the hash of what was loaded is not the one that the manifest recorded."""
    if found != manifest["content_hash"]:
        raise CheckpointError(
            f"{workdir}: the content has changed since the manifest was written (recorded "
            f"{manifest['content_hash'][:12]}, found {found[:12]}); delete the folder and run its stage again"
        )


def _cause_and_fix(error: Exception) -> tuple[str, str]:
    """The end of the message, where the operating system speaks, and what to do about it."""
    lines = str(error).splitlines() or [repr(error)]
    fix = next((fix for sign, fix in _FIXES.items() if sign in str(error)), "Remove the cause")
    return ": ".join(lines[0].split(": ")[-2:]), fix


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def fetched(leaf: Any) -> np.ndarray:
    """An array on the host, whole in every process; a typed PRNG key as its raw words."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return np.asarray(leaf if whole else host.everywhere(leaf))


def _kind(leaf: Any) -> str:
    """'float32[2, 3]'; typed PRNG keys are stored as their raw words."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return f"{leaf.dtype}{list(leaf.shape)}"


def _paths(tree: Any) -> dict[str, Any]:
    """{'params/layers/w': leaf}: dict keys, attributes and indices look the same, as they do on disk."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _tree(metadata: Any) -> Any:
    """The plain tree inside what the releases of Orbax return as metadata."""
    metadata = getattr(metadata, "item_metadata", metadata)
    return getattr(metadata, "tree", metadata)


def _targets(abstract: Any) -> Any:
    """Shapes, dtypes and shardings to restore to; numpy arrays come back as numpy arrays."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first)

    return jax.tree.map(target, abstract)


def _check_fit(path: Path, saved: Any, abstract: Any) -> None:
    """Raises CheckpointError with every leaf that is missing, left over, or of another shape or dtype."""
    found, wanted = ({name: _kind(leaf) for name, leaf in _paths(tree).items()} for tree in (_tree(saved), abstract))
    wrong = [name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)]
    if wrong:
        pairs = [(name, found.get(name, "nothing"), wanted.get(name, "nothing")) for name in wrong[:12]]
        lines = "".join(f"\n  {name}: saved {old}, wanted {new}" for name, old, new in pairs)
        more = f"\n  and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise CheckpointError(
            f"{path} holds another architecture or optimizer; {len(wrong)} arrays differ:{lines}{more}\n"
            f"Use the config it was saved with, or another workdir."
        )


@contextlib.contextmanager
def _readable(path: Path, fix: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (*_WRITE_ERRORS, KeyError) as error:
        raise Damaged(f"{path}: cannot be read ({str(error)[:300]}); {fix}") from error
