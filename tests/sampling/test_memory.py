"""How many slots there are where nothing is said, and what is refused."""

import pytest
from errors import refuses
from tiny import tiny

from alignax.config import ConfigError
from alignax.sampling import memory
from alignax.stages.lengths import check_slots


def test_bytes_of_a_slot_are_those_of_its_cache_and_some_logits():
    model, _ = tiny()  # L 2, K 2, H 8, V 50
    bytes_of = lambda model, length: sum(  # noqa: E731
        x.nbytes for name in ("k", "v") for layer in model.init_cache(1, length)[name] for x in layer
    )
    assert memory.row_bytes(model.config, 64) == bytes_of(model, 64) + 12 * 50
    assert bytes_of(model, 64) == 2 * 2 * 2 * 8 * 64 * 4
    windowed, _ = tiny(pattern=("sliding", "full"), window=64)  # a layer of 128 tokens and one of 640
    assert memory.row_bytes(windowed.config, 640) == bytes_of(windowed, 640) + 12 * 50 == 2 * 2 * 8 * 768 * 4 + 600


@pytest.mark.parametrize("slots, want", [(0, 40), (17, 16), (3, 8), (1000, 64)])
def test_slots_are_whole_groups_that_fit(monkeypatch, slots, want):
    config = tiny()[0].config
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4 * 47 * memory.row_bytes(config, 32))
    # a quarter holds 47 of 32 tokens, which is five groups of 8; prompts that are almost nothing beside the replies
    assert memory.slots_for(config, 64, 8, 0, 32, slots) == want


def test_prompts_that_replies_share_leave_room_for_more_of_them(monkeypatch):
    config = tiny()[0].config
    room = 8 * memory.cache_bytes(config, 512) + 45 * memory.row_bytes(config, 64)  # a tile is the least of a reply
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4 * room)
    assert memory.slots_for(config, 64, 8, 512, 32) == 40  # 45 beside the 8 prompts
    alone = room // memory.row_bytes(config, 544)
    assert memory.slots_for(config, 64, 1, 512, 32) == alone < 13
    assert memory.slots_for(config, 64, 8, 512, 32, shares=False) == 8
    assert memory.slots_for(config, 256, 8, 512, 32) == 8  # most replies would wait: their prompts are not read for all


def test_more_slots_than_memory_are_refused_by_their_key():
    config = tiny()[0].config
    check_slots(config, 100, 100, 1, 64, 64, key="slots")
    check_slots(config, 10**9, 100, 1, 64, 64, key="slots")  # all that there are
    with refuses(ConfigError, "config.probe.slots = 1000000000", "or 0"):
        check_slots(config, 10**9, 10**9, 1, 64, 64, key="probe.slots")
