"""How many slots there are where nothing is said, and what is refused."""

import pytest
from errors import refuses
from tiny import tiny

from alignax.config import ConfigError
from alignax.sampling import memory
from alignax.stages.lengths import check_slots


def test_bytes_of_a_slot_are_those_of_its_cache_and_some_logits():
    model, _ = tiny()  # L 2, K 2, H 8, V 50
    keys_and_values = 2 * 2 * 2 * 8 * 64 * 4
    assert keys_and_values < memory.cache_bytes(model, 64) < 1.1 * keys_and_values  # and where each token stands
    assert memory.row_bytes(model, 64) == memory.cache_bytes(model, 64) + 12 * 50
    windowed, _ = tiny(pattern=("sliding", "full"), window=64)  # a layer of 128 tokens and one of 640
    assert 1 < memory.cache_bytes(windowed, 640) / (2 * 2 * 8 * 768 * 4) < 1.1


@pytest.mark.parametrize("slots, want", [(0, 40), (17, 16), (3, 8), (1000, 64)])
def test_slots_are_whole_groups_that_fit(monkeypatch, slots, want):
    model = tiny()[0]
    room = 8 * memory.cache_bytes(model, 1, 32) + 47 * memory.row_bytes(model, 32, 1)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4 * room)
    # a quarter holds 47 replies of 32 tokens beside 8 prompts of one, and those are five groups of 8
    assert memory.slots_for(model, 64, 8, 1, 32, slots) == want


def test_prompts_that_replies_share_leave_room_for_more_of_them(monkeypatch):
    model = tiny()[0]
    # 8 prompts, and 45 replies of a whole tile each
    room = 8 * memory.cache_bytes(model, 512, 32) + 45 * memory.row_bytes(model, 32, 512)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4 * room)
    assert memory.slots_for(model, 64, 8, 512, 32) == 40  # 45 beside the 8 prompts
    alone = room // memory.row_bytes(model, 544)
    assert memory.slots_for(model, 64, 1, 512, 32) == alone < 13
    assert memory.slots_for(model._replace(join=None), 64, 8, 512, 32) == 8
    assert memory.slots_for(model, 256, 8, 512, 32) == 8  # most replies would wait: their prompts are not read for all


def test_more_slots_than_memory_are_refused_by_their_key():
    model = tiny()[0]
    check_slots(model, 100, 100, 1, 64, 64, key="slots")
    check_slots(model, 10**9, 100, 1, 64, 64, key="slots")  # all that there are
    with refuses(ConfigError, "config.probe.slots = 1000000000", "or 0"):
        check_slots(model, 10**9, 10**9, 1, 64, 64, key="probe.slots")
