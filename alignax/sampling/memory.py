"""How many replies are written at once: what their caches take, and what a machine has."""

import os

import jax

from alignax import host
from alignax.types import Model

SHARE = 4  # a quarter of the memory is for caches, where nothing is said


def row_bytes(model: Model, *lengths: int) -> int:
    """Bytes of one slot: `cache_bytes`, and a few rows of logits."""
    return cache_bytes(model, *lengths) + 3 * 4 * model.config.vocab_size


def cache_bytes(model: Model, *lengths: int) -> int:
    """Bytes of one row of the cache that `model.init_cache` makes for these lengths."""
    shapes = jax.eval_shape(lambda: model.init_cache(1, *lengths))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def machine_bytes() -> int:
    """Memory of all devices of this process; of a CPU, whose devices share it, that of the machine."""
    if found := host.planned():
        return found.memory * len(found.devices)
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return sum(limits) if all(limits) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sharing(prompts: int, replies: int, slots: int) -> bool:
    """Whether prompts stand in the cache once for all their replies. Each token reads all of them, those too of which
    no reply is being written: worth it where most replies are, and are many more than the prompts."""
    return 2 * prompts <= slots and replies <= 2 * slots


def fitting(model: Model, room: int, replies: int, group: int, prompt: int, reply: int) -> int:
    """Slots that `room` bytes hold; `prompt`, `reply`: tokens of each."""
    prompts = replies // group
    if model.join is not None:
        slots = (room - prompts * cache_bytes(model, prompt, reply)) // row_bytes(model, reply, prompt)
        if sharing(prompts, replies, min(slots, replies)):
            return slots
    return room // row_bytes(model, prompt + reply)


def slots_for(model: Model, replies: int, group: int, prompt: int, reply: int, slots: int = 0) -> int:
    """Slots for so many replies, in whole groups, at most all of them; see `fitting`.

    `slots`: about how many; 0: all, or what a quarter of the memory holds. Any number gives the same replies.
    """
    room = machine_bytes() * jax.process_count() // SHARE
    wanted = slots or fitting(model, room, replies, group, prompt, reply)
    return min(max(wanted // group, 1) * group, replies)
