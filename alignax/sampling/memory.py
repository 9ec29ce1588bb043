"""How many replies are written at once: what their caches take, and what a machine has."""

import os
from typing import Any

import jax
import jax.numpy as jnp

TILE = 64  # tokens: a cache is whole tiles, and a layer with a window has one beside it
SHARE = 4  # a quarter of the memory is for caches, where nothing is said


def row_bytes(config: Any, length: int, beside: int = 0) -> int:
    """Bytes of one slot: its cache of `length` tokens, and a few rows of logits."""
    return cache_bytes(config, length, beside) + 3 * 4 * config.vocab_size


def cache_bytes(config: Any, length: int, beside: int = 0) -> int:
    """Bytes of the keys and values of a row of `length` tokens: whole tiles, and of a layer with a window its ring.
    `beside`: tokens of another cache, with the same tiles."""
    width = max(min(TILE, max(length, beside)), 1)
    room = {"full": length, "sliding": min(length, config.window + TILE)}
    slots = sum(-(-room[span] // width) * width for span in config.spans)
    return 2 * config.kv_heads * config.head_dim * slots * jnp.dtype(config.dtype).itemsize


def machine_bytes() -> int:
    """Memory of all devices of this process; of a CPU, whose devices share it, that of the machine."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return sum(limits) if all(limits) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sharing(prompts: int, replies: int, slots: int) -> bool:
    """Whether prompts stand in the cache once for all their replies. Each token reads all of them, those too of which
    no reply is being written: worth it where most replies are, and are many more than the prompts."""
    return 2 * prompts <= slots and replies <= 2 * slots


def fitting(config: Any, room: int, replies: int, group: int, prompt: int, reply: int, *, shares: bool = True) -> int:
    """Slots that `room` bytes hold; `prompt`, `reply`: tokens of each. `shares`: of a model that can share prompts."""
    prompts = replies // group
    if shares:
        slots = (room - prompts * cache_bytes(config, prompt, reply)) // row_bytes(config, reply, prompt)
        if sharing(prompts, replies, min(slots, replies)):
            return slots
    return room // row_bytes(config, prompt + reply)


def slots_for(
    config: Any, replies: int, group: int, prompt: int, reply: int, slots: int = 0, *, shares: bool = True
) -> int:
    """Slots for so many replies, in whole groups, at most all of them; see `fitting`.

    `slots`: about how many; 0: all, or what a quarter of the memory holds. Any number gives the same replies.
    """
    room = machine_bytes() * jax.process_count() // SHARE
    wanted = slots or fitting(config, room, replies, group, prompt, reply, shares=shares)
    return min(max(wanted // group, 1) * group, replies)
