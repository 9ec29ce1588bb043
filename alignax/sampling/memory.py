"""How many replies are written at once: what their caches take, and what a machine has."""

import os
from typing import Any

import jax
import jax.numpy as jnp

TILE = 64  # tokens that a layer with a window has room for beside it
SHARE = 4  # a quarter of the memory is for caches, where nothing is said


def row_bytes(config: Any, length: int) -> int:
    """Bytes of one slot: keys and values of `length` tokens in every layer, and a few rows of logits."""
    tokens = sum(min(length, config.window + TILE) if kind == "sliding" else length for kind in config.kinds)
    cache = 2 * config.kv_heads * config.head_dim * tokens * jnp.dtype(config.dtype).itemsize
    return cache + 3 * 4 * config.vocab_size


def machine_bytes() -> int:
    """Memory of all devices of this process; of a CPU, whose devices share it, that of the machine."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return sum(limits) if all(limits) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def slots_for(config: Any, replies: int, group: int, prompt: int, reply: int, slots: int = 0) -> int:
    """Slots for so many replies, in whole groups, at most all of them; `prompt`, `reply`: tokens of each.

    `slots`: about how many; 0: all, or what a quarter of the memory holds. Any number gives the same replies.
    """
    room, prompts = machine_bytes() * jax.process_count() // SHARE, replies // group
    shared = (room - prompts * row_bytes(config, prompt)) // row_bytes(config, reply)  # a group's prompt stands once
    wanted = slots or max(shared if shared > prompts else 0, room // row_bytes(config, prompt + reply))
    return min(max(wanted // group, 1) * group, replies)
