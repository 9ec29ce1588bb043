"""What differs between the processes of a run: which one this is, its own rows, and what all of them have to agree on.

Nothing else asks JAX for the index or the number of processes.
"""

import contextlib
import contextvars
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

TIMEOUT_S = 300  # for all processes to come
RETRY = 75  # exit status of a run that was asked to stop: the same command goes on from there (sysexits' EX_TEMPFAIL)
T = TypeVar("T")


def start(*, coordinator: str = "", process_count: int = 0, process_id: int = -1) -> str:
    """Joins the processes of one job; to be called before anything else of JAX. Returns a line about who is there.

    On a Cloud TPU, under Slurm and under Open MPI, JAX finds all by itself; elsewhere `coordinator` is HOST:PORT of the
    first process, and each says how many there are and which one it is. Raises ValueError for flags that do not fit.
    """
    given = bool(coordinator), process_count > 0, process_id >= 0
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator=HOST:PORT, --process_count and --process_id go together: expected all three, or none where "
            "Cloud TPU, Slurm or Open MPI say them"
        )
    if all(given) and not 0 <= process_id < process_count:
        raise ValueError(f"--process_id={process_id}: expected 0 to {process_count - 1} (--process_count)")
    if all(given):
        jax.distributed.initialize(coordinator, process_count, process_id, initialization_timeout=TIMEOUT_S)
    elif detected():
        jax.distributed.initialize(initialization_timeout=TIMEOUT_S)
    else:
        return ""  # without asking JAX, which would start its devices: a config may still say how many
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    return f"process {jax.process_index()} of {jax.process_count()}, {devices}"


def detected() -> bool:
    """Whether this process was started as one of several, by a launcher that JAX knows.

    JAX's own table is asked, which is no public name of it: a copy of its rules would differ from what
    `jax.distributed.initialize` then does.
    """
    try:
        from jax._src.clusters import ClusterEnv

        known = [env for env in ClusterEnv._cluster_types if not env.opt_in_only_method]
    except (ImportError, AttributeError):  # another release: the flags say it
        return False
    env = next((env for env in known if env.is_env_present()), None)
    return env is not None and env.get_process_count() > 1


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process writes what one alone may write."""
    return jax.process_index() == 0


class Planned(NamedTuple):
    """Devices that need not be there."""

    devices: list[Any]
    memory: int  # bytes of each


_planned: contextvars.ContextVar[Planned | None] = contextvars.ContextVar("planned", default=None)


@contextlib.contextmanager
def as_if(devices: Sequence[Any], memory: int) -> Iterator[None]:
    """Within it a config is planned for these devices, of so many bytes each, and for no other."""
    token = _planned.set(Planned(list(devices), memory))
    try:
        yield
    finally:
        _planned.reset(token)


def planned() -> Planned | None:
    """What is planned for, if that is not this machine."""
    return _planned.get()


def devices() -> list[Any]:
    """All devices of the run."""
    found = planned()
    return found.devices if found else jax.devices()


class Stopped(SystemExit):
    """The run was asked to stop. `code` is the status to exit with, `said` what there is to say."""

    def __init__(self, said: str):
        super().__init__(RETRY)
        self.said = said


class _Stops:
    """What was heard of a stop."""

    asked = saving = False
    looked = 0  # how often `asked_to_stop` was called: the same in all processes


@contextlib.contextmanager
def heeding_stops() -> Iterator[None]:
    """Within it SIGTERM, which launchers send before they take a machine away, ends the run with `Stopped`.

    Within `saving` once the step is saved; a second one, and elsewhere the first, at once. For a run of one process, in
    its main thread: of several JAX's own service hears it, and all stop after the same step.
    """

    def asked(signum: int, frame: Any) -> None:
        again, _Stops.asked = _Stops.asked, True
        if again or not _Stops.saving:
            raise Stopped("stopped by SIGTERM; the same command goes on from the last checkpoint")

    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _Stops.asked = False


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Within it, who looks at `asked_to_stop` after each step saves before it stops. Raises Stopped at its end, if one
    was asked for meanwhile."""
    _Stops.saving = True
    try:
        yield
    finally:
        _Stops.saving = False
    if _Stops.asked:
        raise Stopped("stopped by SIGTERM: the step is saved; the same command goes on from there")


def asked_to_stop() -> bool:
    """Whether the run is to stop after this step; all processes hear the same."""
    if jax.process_count() > 1 and not _Stops.asked:
        _Stops.looked += 1
        with contextlib.suppress(RuntimeError):  # JAX's service is off: nothing is heard
            _Stops.asked = multihost_utils.reached_preemption_sync_point(_Stops.looked)
    return _Stops.asked


class Elsewhere(RuntimeError):
    """Another process of the run has stopped, and says why."""


def together(act: Callable[[], T]) -> T:
    """What `act` returns, in every process, once all have done it. What one raises stops the others too.

    Without it they would wait for ever in their next collective for one that is gone. Raises what `act` raised here,
    Elsewhere where it was another process.
    """
    if jax.process_count() == 1:
        return act()
    found = failure = None
    try:
        found = act()
    except Exception as error:
        failure = error
    failed = multihost_utils.process_allgather(np.bool_(failure is not None))
    if failure is not None:
        raise failure
    if failed.any():
        raise Elsewhere(f"stopped with process {int(np.argmax(failed))}, which says why")
    return found  # pyright: ignore[reportReturnType]


def in_first(act: Callable[[], Any]) -> None:
    """Does it in the first process alone; the others wait, and stop if it fails."""
    together(lambda: act() if is_first() else None)


def of_first(act: Callable[[], T]) -> T:
    """What `act` returns in the first process, made there alone and sent to the others, which stop if it fails.

    For what is said of texts: a judge is asked once and not by every process, and all of them hear the same.
    """
    if jax.process_count() == 1:
        return act()
    made = together(lambda: pickle.dumps(act()) if is_first() else b"")
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(made))))
    sent = np.frombuffer(made, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return pickle.loads(bytes(multihost_utils.broadcast_one_to_all(sent)))


def own_rows(x: Any) -> np.ndarray:
    """This process's rows of an array that is split along its first axis: of each, one copy, in order."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    found = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(found[start]) for start in sorted(found)])


def rows_like(own: np.ndarray, like: jax.Array) -> jax.Array:
    """The global array of which `own` are this process's rows, laid out as `like` is."""
    return jax.make_array_from_process_local_data(like.sharding, own, like.shape)


def everywhere(x: Any) -> Any:
    """A tree of arrays as NumPy's, whole, in every process."""
    return jax.device_get(x) if jax.process_count() == 1 else multihost_utils.process_allgather(x, tiled=True)


def agreed(x: bool) -> bool:
    """What the first process says, in all of them."""
    return x if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.bool_(x)))


def share() -> dict[str, Any]:
    """This process's share of the rows, as `data.loader` takes it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
