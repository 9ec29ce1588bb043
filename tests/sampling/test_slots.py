"""A reply is the same in all slots at once, in few that are filled again, alone, and on many devices."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import EOS, PAD, prompt_batch, tiny

from alignax import sharding
from alignax.forward import token_statistics
from alignax.models import decoder as decoders
from alignax.models.config import ModelConfig
from alignax.sampling import slots as slot
from alignax.sampling.memory import sharing
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample

CAPACITY = 12
OPTIONS = Options(temperature=1.2)
ENDS = jnp.array([EOS, *range(2, 10)])  # 9 of 50 tokens end a reply: lengths differ


def draw(model, params, prompts, *, group=1, capacity=CAPACITY, options=OPTIONS, ends=ENDS, **more):
    keys = row_keys(jax.random.key(5), jnp.arange(group * len(prompts["row"])))
    fixed = dict(capacity=capacity, eos_ids=ends, pad_id=PAD, options=options, group=group)
    run = jax.jit(lambda params: sample(model, params, prompts["tokens"], prompts["valid"], keys, **fixed, **more))
    return run(params)


def same(got, want):
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.reason, want.reason)
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=1e-5)


@pytest.fixture(scope="module")
def plain():
    model, params = tiny()
    return draw(model, params, prompt_batch(B=12), group=2)


@pytest.mark.parametrize("slots", [2, 6, 8, 22])  # portions of 2 rows; 22 leaves a last portion of 2 among 24
def test_refilled_slots_give_what_all_at_once_give(plain, slots):
    model, params = tiny()
    lengths = np.asarray(plain.mask).sum(1)
    assert lengths.min() < 3 and lengths.max() == CAPACITY
    same(draw(model, params, prompt_batch(B=12), group=2, slots=slots), plain)


def test_refilled_slots_with_shared_prompts_give_what_repeated_ones_give(monkeypatch):
    """33 prompts of 3 replies: 22 begin, the others come two at a time, and there are fewer slots at the end."""
    model, params = tiny(layers=1)
    monkeypatch.setattr(slot, "LEAST", 4)
    assert sharing(33, 99, 66) and not sharing(40, 120, 48)
    got = draw(model, params, prompt_batch(B=33), group=3, slots=66)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), prompt_batch(B=33))
    same(got, draw(model, params, repeated))


def test_a_shared_prompt_gives_what_a_repeated_one_gives(plain):
    model, params = tiny()
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), prompt_batch(B=12))
    same(draw(model, params, repeated), plain)


def test_fewer_slots_at_the_end_give_what_all_give(plain, monkeypatch):
    model, params = tiny()
    monkeypatch.setattr(slot, "LEAST", 2)
    assert slot.halves(24, CAPACITY) == (12, 6, 3)
    same(draw(model, params, prompt_batch(B=12), group=2), plain)


@pytest.mark.parametrize("changes", [{}, {"pattern": ("sliding", "full"), "window": 20}], ids=["full", "sliding"])
def test_a_cache_in_blocks_gives_what_a_whole_one_gives(changes, monkeypatch):
    model, params = tiny(**changes)
    prompts, never = prompt_batch(), jnp.array([99])
    runs = {}
    for blocks in (1, 3):
        monkeypatch.setattr(decoders, "BLOCKS", blocks)
        assert len(model.init_cache(1, 165)["k"][-1]) == blocks  # 165 slots are 3 tiles of 64
        runs[blocks] = draw(model, params, prompts, capacity=160, ends=never)
    assert np.asarray(runs[1].mask).sum(1).max() > 128
    same(runs[3], runs[1])


@pytest.mark.parametrize("pattern", [("sliding", "full"), ("sliding",)], ids=["mixed", "sliding alone"])
@pytest.mark.parametrize("group", [1, 3], ids=["own prompts", "shared prompts, then joined ones"])
def test_a_ring_writes_what_the_whole_text_says(pattern, group, monkeypatch):
    """A window of 20 tokens has a ring of two tiles: prompts longer than it, replies that go round in it."""
    monkeypatch.setattr(slot, "LEAST", 2)
    model, params = tiny(pattern=pattern, window=20)
    prompts = prompt_batch(B=4, P=150)
    capacity, limit = 140, jnp.array([140, 20, 133, 139, 2, 70, 9, 136, 2, 2, 2, 2])[: 4 * group]
    assert group == 1 or min(slot.halves(12, 140)) < 4  # fewer slots than prompts
    assert model.init_cache(1, 290)["at"]["sliding"].shape == (1, 128)
    options, never = Options(max_new_tokens=limit), jnp.array([99])
    got = draw(model, params, prompts, capacity=capacity, group=group, ends=never, options=options)
    np.testing.assert_array_equal(got.mask.sum(1), limit)
    forced = jax.jit(lambda r: token_statistics(model, params, r.tokens, r.valid, start=150).logp)(got)
    np.testing.assert_allclose(got.old_logp, np.where(got.mask, forced, 0), atol=2e-5)


def test_extend_by_many_tokens_is_extend_by_one_after_another():
    """Rows of unequal numbers of new tokens, padded on the right: what follows stands where the padding was."""
    model, params = tiny()
    prompts, more = prompt_batch(B=3, P=4), jnp.arange(9, dtype=jnp.int32).reshape(3, 3) + 20
    count = jnp.array([3, 1, 2])
    valid = jnp.arange(3)[None] < count[:, None]

    @jax.jit
    def both(params):
        layers, tokens = model.unstack(params), prompts["tokens"]
        _, cache = model.prefill(params, tokens, prompts["valid"], model.init_cache(3, 12))
        _, at_once = model.extend(layers, more, valid, cache)
        for i in range(3):
            _, cache = model.extend(layers, more[:, i : i + 1], valid[:, i : i + 1], cache)
        next_token, there = jnp.array([[7], [8], [9]]), jnp.ones((3, 1), bool)
        return [model.extend(layers, next_token, there, one) for one in (at_once, cache)]

    (got, got_cache), (want, want_cache) = both(params)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for name in ("index", "position"):
        np.testing.assert_array_equal(got_cache[name], want_cache[name])
    np.testing.assert_array_equal(got_cache["index"], 4 + count + 1)
    whole = jnp.concatenate([prompts["tokens"], more[:, :1], jnp.array([[7], [8], [9]])], axis=1)
    there = jnp.concatenate([prompts["valid"], jnp.ones((3, 2), bool)], axis=1)
    np.testing.assert_allclose(got[1, 0], model.apply(params, whole, there)[1, -1], atol=1e-5)  # row 1 had one token


def test_a_group_that_does_not_fit_is_refused():
    model, params = tiny(layers=1)
    with refuses(ValueError, "slots = 3", "multiple of group = 2"):
        draw(model, params, prompt_batch(), group=2, slots=3)
    with refuses(ValueError, "slots = 99", "up to 8"):
        draw(model, params, prompt_batch(), slots=99)


def test_changing_prompts_lengths_and_options_compile_once():
    model, params = tiny(layers=1)

    @jax.jit
    @chex.assert_max_traces(1)
    def run(params, prompts, key, options):
        keys = row_keys(key, jnp.repeat(prompts["row"], 2))
        fixed = dict(capacity=6, eos_ids=ENDS, pad_id=PAD, group=2, slots=8)
        return sample(model, params, prompts["tokens"], prompts["valid"], keys, options=options, **fixed)

    seen = set()
    for i in range(50):
        options = Options(
            temperature=jnp.float32(0.5 + i / 20), top_k=jnp.int32(i % 4), top_p=jnp.linspace(0.5, 1, 16),
            max_new_tokens=jnp.arange(16) % (i % 5 + 2), repetition_penalty=jnp.float32(1 + i / 50),
        )  # fmt: skip
        seen.add(np.asarray(run(params, prompt_batch(seed=i), jax.random.key(i), options).tokens).tobytes())
    assert run._cache_size() == 1 and len(seen) == 50


# ---- devices


@pytest.fixture(scope="module")
def spread(plain):
    """(the program of eight devices as text, its rollout)."""
    del plain
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    config = tiny()[0].config
    model = decoders.decoder(config, sharding.rows(mesh), by_rows=sharding.by_rows(mesh), device=jax.devices()[0])
    params = jax.device_put(tiny()[1], sharding.shardings(tiny()[1], mesh))
    prompts = sharding.put_batch(jax.tree.map(np.asarray, prompt_batch(B=16)), mesh)

    def run(params, prompts):
        keys = row_keys(jax.random.key(5), jnp.arange(64))
        # of each device two prompts of four replies, which share them
        fixed = dict(capacity=CAPACITY, eos_ids=ENDS, pad_id=PAD, options=OPTIONS, group=4, slots=64)
        return sample(model, params, prompts["tokens"], prompts["valid"], keys, **fixed)

    program = jax.jit(run).lower(params, prompts).compile()
    return program.as_text(), program(params, prompts)


def test_eight_devices_give_what_one_gives(spread):
    model, params = tiny()
    same(jax.device_get(spread[1]), draw(model, params, prompt_batch(B=16), group=4))


def test_devices_have_nothing_to_say_to_each_other_while_they_write(spread):
    text = spread[0]
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert "all-gather" in text  # the weights, once
    for body in re.findall(r"^%?\S*(?:body|region)\S* .*?^}", text, re.DOTALL | re.MULTILINE):
        inside = [word for word in words if re.search(rf" {word}(-start)?\(", body)]
        assert not inside, body[:200]


def test_weights_that_are_cast_once_say_what_they_say_cast_in_each_use(monkeypatch):
    model, params = tiny(dtype="bfloat16", tie_embeddings=False, gated=True)
    small = model.cast(params)
    assert small["decoder"]["layers"]["q"]["kernel"].dtype == small["decoder"]["unembed"].dtype == jnp.bfloat16
    assert small["decoder"]["norm"]["scale"].dtype == jnp.float32
    got = draw(model, params, prompt_batch(B=4))
    want = draw(model._replace(cast=lambda params: params), params, prompt_batch(B=4))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("attention", ["xla", pytest.param("splash", marks=pytest.mark.slow)])
def test_devices_that_share_the_width_of_layers_write_together(plain, attention):
    """Weights stay cut over tensor while rows are written: what no device could hold whole is sampled from."""
    del plain
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = dataclasses.replace(tiny()[0].config, attention=attention)
    cut = {"by_device": sharding.by_device(mesh), "by_rows": sharding.by_rows(mesh)}
    model = decoders.decoder(config, sharding.rows(mesh), **cut, device=jax.devices()[0])
    params = jax.device_put(tiny()[1], sharding.shardings(tiny()[1], mesh))
    prompts = sharding.put_batch(jax.tree.map(np.asarray, prompt_batch(B=16)), mesh)
    keys = row_keys(jax.random.key(5), jnp.arange(64))
    fixed = dict(capacity=CAPACITY, eos_ids=ENDS, pad_id=PAD, options=OPTIONS, group=4, slots=64)
    run = jax.jit(lambda params, p: sample(model, params, p["tokens"], p["valid"], keys, **fixed))
    program = run.lower(params, prompts).compile()
    same(jax.device_get(program(params, prompts)), draw(*tiny(), prompt_batch(B=16), group=4))
    text = program.as_text()
    assert "f32[16,16]" in text and not re.search(r"f32\[(2,)?16,32\]", text)  # half of each (gate) kernel, never all
    loops = [x for x in re.findall(r"^%?\S*region\S* .*?^}", text, re.DOTALL | re.MULTILINE) if "all-reduce(" in x]
    # pairs of devices go round as often as their rows need; a permutation would wait for all of them
    assert loops and not any(" collective-permute" in x for x in loops)
    gathered = [shape for x in loops for shape in re.findall(r"= \S*\[([\d,]+)\]\S* all-gather\(", x)]
    assert attention == "splash" or set(gathered) <= {"16,64"}, gathered  # logits: no weight


def test_parameters_of_a_config_have_no_part_in_the_cache_layout():
    """A context shorter than a tile has one tile of its own width, and no row attends to more."""
    model = decoders.decoder(ModelConfig(vocab_size=50, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16))
    keys, values = (model.init_cache(3, 20)[name][0][0] for name in ("k", "v"))
    assert keys.shape == (3, 1, 1, 8, 20) and values.shape == (3, 1, 1, 20, 8)
