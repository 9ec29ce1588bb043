"""Encoded data on disk: a hit needs no tokenizer and is the same, anything that matters misses, damage is not used."""

import functools
import os

import jax
import numpy as np
import pytest
from errors import refuses

from alignax.data import cache
from alignax.data.counts import Counts
from alignax.data.encode import demo_rows, pair_rows
from alignax.data.judged import rating_rows

ROWS = [{"prompt": "hi", "completion": "fine"}, {"prompt": "hi there", "completion": "thanks"}, {"prompt": "you"}]
PAIRS = [{"prompt": "hi", "chosen": "fine", "rejected": "thanks", "margin": 0.5, "tie": False}]
RATED = [{"prompt": "hi", "completion": "fine", "ratings": {"a": 1.0, "b": None}}]
OPTIONS = {"template": "plain", "max_length": 8}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_ROWS", 1)
    return tmp_path / "cache"


def encoded(encode, rows, tokenizer, **options):
    return cache.encoded(encode, rows, tokenizer, **{"counts": Counts(len(rows))} | OPTIONS | options)


def never(*_, **__):
    pytest.fail("the tokenizer was called")


def same(one, other):
    assert jax.tree.structure(one[0]) == jax.tree.structure(other[0]) and list(one[0]) == list(other[0])
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0])))
    assert one[1] == other[1] and isinstance(other[1], Counts) and str(one[1]) == str(other[1])


@pytest.mark.parametrize(
    ("encode", "rows"),
    [(demo_rows, ROWS), (pair_rows, PAIRS), (functools.partial(rating_rows, attributes=("a", "b")), RATED)],
)
def test_a_hit_is_the_same_without_the_tokenizer(encode, rows, words, folder, monkeypatch):
    fresh = encode(rows, words, counts=Counts(len(rows)), **OPTIONS)
    same(fresh, encoded(encode, rows, words))
    assert len(list(folder.rglob("*.npz"))) == 1 and not list(folder.rglob("*.part"))
    monkeypatch.setattr(type(words), "__call__", never)
    same(fresh, encoded(encode, rows, words))


def test_the_counts_of_a_hit_can_go_on(words):
    for _ in range(2):
        _, counts = encoded(demo_rows, ROWS, words)
        assert counts == {"rows": 3, "kept": 2, "dropped_missing_field": 1}
        counts.drop("too_long")
        assert counts["kept"] == 1


def test_whatever_the_arrays_depend_on_is_in_the_key(words, letters, monkeypatch):
    def key(encode=demo_rows, rows=ROWS, tokenizer=words, counts=None, **options):
        return cache.key(encode, rows, tokenizer, counts or Counts(3), OPTIONS | options)

    keys = [
        key(),
        key(max_length=9),
        key(template="chat"),
        key(pad_to=16),
        key(rows=ROWS[::-1]),
        key(rows=[*ROWS[:2], ROWS[2] | {"prompt": "your"}]),
        key(rows=[*ROWS[:2], ROWS[2] | {"tools": [{"name": "f"}]}]),
        key(rows=[dict(reversed(row.items())) for row in ROWS]),
        key(encode=pair_rows),
        key(encode=functools.partial(rating_rows, attributes=("a", "b"))),
        key(encode=functools.partial(rating_rows, attributes=("b", "a"))),
        key(tokenizer=letters),
        key(counts=Counts.of(3, {"too_long": 1})),
    ]
    monkeypatch.setattr(cache, "_code", lambda module: b"another version of the encoders")
    keys.append(key())
    words.chat_template += " "
    keys.append(key(template="chat"))
    assert len(set(keys)) == len(keys)


def test_a_damaged_file_is_not_used_but_written_again(words, folder):
    fresh = encoded(demo_rows, ROWS, words)
    (file,) = folder.rglob("*.npz")
    whole, found = file.read_bytes(), 0
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, len(whole), 60).tolist(), None]:
        cut = whole[: len(whole) // 2] if at is None else whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        file.write_bytes(cut)
        loaded = cache.load(file)
        if loaded is None:
            found += 1
            same(fresh, encoded(demo_rows, ROWS, words))
            assert cache.load(file) is not None
        else:
            same(fresh, loaded)  # a byte that says nothing: a date in the archive
    assert found > 30


def test_a_write_that_is_interrupted_leaves_nothing(words, folder, monkeypatch):
    def killed(stream, **arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        encoded(demo_rows, ROWS, words)
    assert not list(folder.rglob("*.npz"))


def test_a_disk_that_cannot_be_written_to_only_costs_time(words, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ALIGNAX_CACHE", str(tmp_path / "file"))
    same(demo_rows(ROWS, words, counts=Counts(3), **OPTIONS), encoded(demo_rows, ROWS, words))


def test_it_can_be_switched_off_and_leaves_small_data_alone(words, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_ROWS", 4)
    encoded(demo_rows, ROWS, words)
    monkeypatch.setattr(cache, "MIN_ROWS", 3)
    monkeypatch.setenv("ALIGNAX_CACHE", "off")
    encoded(demo_rows, ROWS, words)
    assert not folder.exists()
    monkeypatch.delenv("ALIGNAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    encoded(demo_rows, ROWS, words)
    assert len(list((tmp_path / "home/.cache/alignax").rglob("*.npz"))) == 1
    assert os.environ["HOME"] == str(tmp_path / "home")


def test_an_error_is_not_kept(words, folder):
    with refuses(ValueError, "demonstration", "left"):
        encoded(demo_rows, [{"prompt": "hi", "completion": 5}], words)
    assert not folder.exists()
