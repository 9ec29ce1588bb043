"""Token log-probs: the chunked form equals the plain one in value and gradient, and never holds all the logits."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec
from jax.test_util import check_grads

from alignax.ops.logprobs import token_stats


def reference(hidden, kernel, targets, temperature=1.0, vocab_size=None, softcap=0.0):
    """The textbook form: all the logits, a log-softmax, a gather."""
    logits = jnp.matmul(hidden, kernel[:, :vocab_size], preferred_element_type=jnp.float32)
    logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits) / temperature
    logp = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    found, correct = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], jnp.argmax(logits, -1) == targets
    return found, entropy, correct, jnp.log(jnp.sum(jnp.exp(logp) ** 2, axis=-1))


def inputs(lead=(3, 5), D=8, V=37, vocab_size=None, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden, kernel = jnp.asarray(rng.normal(size=(*lead, D)), dtype), jnp.asarray(rng.normal(size=(D, V)), dtype)
    return hidden, kernel, jnp.asarray(rng.integers(0, vocab_size or V, size=lead), jnp.int32)


def weighted(stats):
    """A scalar that depends on both differentiable outputs, unevenly over the tokens."""
    ramp = jnp.linspace(-1.0, 2.0, stats[0].size).reshape(stats[0].shape)
    return jnp.sum(stats[0] * ramp) + 0.7 * jnp.sum(stats[1] * ramp[::-1])


def value_and_grads(f, hidden, kernel, temperature):
    """(stats, gradients with respect to hidden and kernel) as one compiled program."""

    def score(hidden, kernel, temperature):
        stats = tuple(f(hidden, kernel, temperature))
        return weighted(stats), stats

    (_, stats), grads = jax.jit(jax.value_and_grad(score, (0, 1), has_aux=True))(hidden, kernel, temperature)
    return stats, grads


# V, vocab_size, chunk. 37 is prime: no chunk divides it. Then chunks that do, one column at a time, one chunk, and
# vocabularies that end inside a chunk, at the end of one, and before the second.
CASES = [(37, 37, 8), (36, 36, 12), (7, 7, 1), (37, 37, 36), (37, 37, 8192)]
CASES += [(37, 30, 8), (40, 36, 12), (40, 10, 12), (40, 36, 8192)]


# `shards` changes which columns a chunk takes and nothing else; 3 does not divide 40, and so counts as 1.
CASES = [(*case, 1, 0.0) for case in CASES] + [(37, 37, 8, 1, 2.0), (40, 36, 8192, 1, 2.0), (40, 36, 16, 8, 2.0)]
CASES += [(40, 36, 12, 4, 0.0), (40, 40, 5, 8, 0.0), (40, 36, 64, 8, 0.0), (40, 37, 8, 3, 0.0)]


@pytest.mark.parametrize("V, vocab_size, chunk, shards, softcap", CASES)
def test_chunked_is_plain(V, vocab_size, chunk, shards, softcap):
    hidden, kernel, targets = inputs(V=V, vocab_size=vocab_size)
    at = 0.5 * hidden, kernel, jnp.float32(0.7)
    options = dict(vocab_size=vocab_size, chunk=chunk, shards=shards, softcap=softcap)
    got, got_grads = value_and_grads(lambda h, k, t: token_stats(h, k, targets, temperature=t, **options), *at)
    want, want_grads = value_and_grads(lambda h, k, t: reference(h, k, targets, t, vocab_size, softcap), *at)
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)
    assert [x.dtype for x in got] == [jnp.float32, jnp.float32, bool, jnp.float32]
    chex.assert_trees_all_close(got_grads, want_grads, rtol=1e-6, atol=2e-6)
    assert not np.any(got_grads[1][:, vocab_size:])


def test_a_soft_cap_by_hand():
    # products +-1e4 are far beyond c = 1: logits c tanh(z / c) = +-1, at temperature 2: +-1/2, so p = sigmoid(+-1)
    stats = token_stats(
        jnp.ones((1, 1)), jnp.array([[1e4, -1e4]]), jnp.array([0]), vocab_size=2, softcap=1.0, temperature=2.0
    )
    np.testing.assert_allclose(stats.logp, np.log(1 / (1 + np.exp(-1.0))), rtol=1e-6)


@pytest.mark.parametrize("used", [0, 1])
def test_a_statistic_that_is_not_used_gets_no_gradient_and_changes_none(used):
    hidden, kernel, targets = inputs()
    got, want = (
        jax.jit(jax.grad(lambda h, k, f=f: jnp.sum(f(h, k)[used]), (0, 1)))(hidden, kernel)
        for f in (
            lambda h, k: token_stats(h, k, targets, vocab_size=37, chunk=8),
            lambda h, k: reference(h, k, targets),
        )
    )
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_collision_gets_no_gradient():
    hidden, kernel, targets = inputs()
    grads = jax.grad(lambda h, k: jnp.sum(token_stats(h, k, targets, vocab_size=37).collision), (0, 1))(hidden, kernel)
    assert not any(np.any(g) for g in grads)


def test_uniform_by_hand():
    # Zero hidden states: four equal logits, so log p = -log 4, H = log 4, and every token is a most probable one.
    stats = token_stats(jnp.zeros((2, 3)), jnp.ones((3, 6)), jnp.array([0, 3]), vocab_size=4, chunk=4)
    np.testing.assert_allclose(stats.logp, -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(stats.entropy, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(stats.collision, np.log(4 * 0.25**2), rtol=1e-6)
    assert stats.correct.all()


def test_check_grads():
    hidden, kernel, targets = inputs(lead=(4,), V=21, vocab_size=19)
    f = lambda h, k: weighted(token_stats(h, k, targets, vocab_size=19, chunk=8))  # noqa: E731
    check_grads(jax.jit(f), (hidden * 0.3, kernel * 0.3), order=1, modes=["rev"], eps=1e-2, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("chunk", [8, 64])
def test_padding_columns_get_no_probability(chunk):
    hidden, kernel, targets = inputs(V=40, vocab_size=30)
    huge = kernel.at[:, 30:].set(1e4)
    f = jax.jit(lambda k, t: token_stats(hidden, k, t, vocab_size=30, chunk=chunk))
    same = [f(k, targets) for k in (kernel, huge, kernel[:, :30])]
    chex.assert_trees_all_close(same[0], same[1], rtol=1e-6)
    chex.assert_trees_all_close(same[0], same[2], rtol=1e-5, atol=1e-6)
    outside = f(kernel, jnp.full_like(targets, 30))
    assert (outside.logp < -1e29).all() and not outside.correct.any()


@pytest.mark.parametrize("chunk", [8, 64])
def test_extreme_logits_stay_finite(chunk):
    hidden, kernel, targets = inputs(V=20)
    f = lambda h, k, t: token_stats(h, k, targets, vocab_size=20, chunk=chunk)  # noqa: E731
    for scale in (1e3, 1e-6):
        stats, grads = value_and_grads(f, hidden * scale, kernel, 1.0)
        chex.assert_tree_all_finite((stats, grads))
        assert (stats[0] <= 0).all() and (stats[1] > -1e-5).all()


def test_entropy_survives_a_large_common_offset():
    # Logits 1000 +- 0.5: the entropy of sigmoid(+-1) is 0.582203, and must not drown in rounding of 1000.
    kernel = jnp.array([[1000.5, 999.5]])
    for chunk in (1, 2):
        stats = token_stats(jnp.ones((1, 1)), kernel, jnp.array([0]), vocab_size=2, chunk=chunk)
        np.testing.assert_allclose(stats.entropy, 0.582203, atol=1e-5)


@pytest.mark.parametrize("chunk", [8, 64])
def test_bfloat16_in_float32_out_and_gradients_in_the_input_dtypes(chunk):
    hidden, kernel, targets = inputs(D=64, V=30, dtype=jnp.bfloat16)
    f = lambda h, k, t: token_stats(h, k, targets, vocab_size=30, chunk=chunk)  # noqa: E731
    stats, grads = value_and_grads(f, hidden, kernel, 1.0)
    wide = hidden.astype(jnp.float32), kernel.astype(jnp.float32)
    exact, exact_grads = value_and_grads(lambda h, k, t: reference(h, k, targets), *wide, 1.0)
    np.testing.assert_allclose(stats[0], exact[0], rtol=1e-5, atol=1e-4)  # only the inputs are rounded
    assert [x.dtype for x in stats] == [jnp.float32, jnp.float32, bool, jnp.float32]
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
    for g, want in zip(grads, exact_grads):
        error = np.linalg.norm(np.asarray(g, np.float32) - want) / np.linalg.norm(want)
        assert error < 2**-7  # one rounding of the logits' gradient and one of the result, 2^-8 each


@pytest.mark.parametrize("chunk", [8, 64])
def test_vmap_over_models(chunk):
    hidden, kernel, targets = inputs()
    kernels = jnp.stack([kernel, 2 * kernel])
    f = lambda k: token_stats(hidden, k, targets, vocab_size=37, chunk=chunk)  # noqa: E731
    both = lambda k: (f(k), jax.grad(lambda k: weighted(f(k)))(k))  # noqa: E731
    one_by_one = jax.tree.map(lambda *x: np.stack(x), *map(jax.jit(both), kernels))
    chex.assert_trees_all_close(jax.jit(jax.vmap(both))(kernels), one_by_one, rtol=1e-5, atol=1e-5)


# The kernel whole, cut along D, and along V (as the rules cut it over fsdp), with and without a loop over chunks.
LAYOUTS = [(16, 1, Spec()), (16, 1, Spec("fsdp")), (16, 4, Spec(None, "fsdp")), (64, 4, Spec(None, "fsdp"))]


@pytest.mark.parametrize("chunk, shards, kernel_spec", LAYOUTS)
def test_sharded_inputs(chunk, shards, kernel_spec):
    hidden, kernel, targets = inputs(lead=(8, 6), V=40, vocab_size=37)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731

    @jax.jit
    def f(hidden, kernel, targets):
        stats = lambda h, k: token_stats(h, k, targets, vocab_size=37, chunk=chunk, shards=shards)  # noqa: E731
        return jax.value_and_grad(lambda h, k: weighted(stats(h, k)), (0, 1))(hidden, kernel)

    rows = Spec(("data", "fsdp"))
    sharded = f(place(hidden, rows), place(kernel, kernel_spec), place(targets, rows))
    chex.assert_trees_all_close(sharded, f(hidden, kernel, targets), rtol=1e-5, atol=1e-5)


def moved(program):
    """Elements of each array that a collective of a compiled program gives to a device."""
    for line in program.as_text().splitlines():
        if found := re.match(r".* = (.*) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", line):
            for shape in re.findall(r"\w+\[([\d,]*)\]", found[1]):
                yield int(np.prod([int(size) for size in shape.split(",") if size]))


def test_a_cut_vocabulary_moves_a_chunk_of_the_kernel_at_a_time_and_no_logits():
    """The compiled program on eight devices: neither the logits [rows, V] nor the whole kernel [D, V] is gathered."""
    tokens, D, V, chunk = 4096, 32, 4096, 512
    mesh = jax.make_mesh((1, 8), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, columns = NamedSharding(mesh, Spec("fsdp")), NamedSharding(mesh, Spec(None, "fsdp"))
    hidden = jax.ShapeDtypeStruct((tokens, D), "float32", sharding=rows)
    kernel = jax.ShapeDtypeStruct((D, V), "float32", sharding=columns)
    targets = jax.ShapeDtypeStruct((tokens,), "int32", sharding=rows)

    def compiled(shards):
        def f(hidden, kernel, targets):
            return weighted(token_stats(hidden, kernel, targets, vocab_size=V, chunk=chunk, shards=shards))

        run = jax.jit(jax.value_and_grad(f, (0, 1)), out_shardings=(None, (rows, columns)))
        return run.lower(hidden, kernel, targets).compile()

    told, untold = compiled(8), compiled(1)
    assert max(moved(told)) == D * chunk
    assert max(moved(untold)) == D * V  # what `shards` is there for: every chunk would gather the whole kernel
    tile = tokens // 8 * chunk * 4  # bytes of a device's part of one chunk's logits
    assert told.memory_analysis().temp_size_in_bytes < 4 * tile < untold.memory_analysis().temp_size_in_bytes + tile


def test_temperature_is_traced():
    hidden, kernel, targets = inputs()
    traced = chex.assert_max_traces(lambda t: token_stats(hidden, kernel, targets, temperature=t, vocab_size=37), n=1)
    f = jax.jit(traced)
    for t in (0.5, 1.0, 1.3):
        chex.assert_trees_all_close(
            tuple(f(jnp.float32(t))), reference(hidden, kernel, targets, t), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("gradient", [False, True])
def test_temporary_memory_grows_with_the_chunk_and_not_with_the_vocabulary(gradient):
    tokens, D = 512, 8

    def temporary(V, chunk):
        def f(hidden, kernel, targets):
            return weighted(token_stats(hidden, kernel, targets, vocab_size=V, chunk=chunk))

        shapes = jax.ShapeDtypeStruct((tokens, D), "float32"), jax.ShapeDtypeStruct((D, V), "float32")
        run = jax.jit(jax.value_and_grad(f, (0, 1)) if gradient else f)
        return (
            run.lower(*shapes, jax.ShapeDtypeStruct((tokens,), "int32")).compile().memory_analysis().temp_size_in_bytes
        )

    tile = tokens * 512 * 4  # bytes of one chunk's logits
    small, large, plain = temporary(2048, 512), temporary(16384, 512), temporary(16384, 16384)
    assert large - small <= 2 * D * (16384 - 2048) * 4  # a copy of the kernel and of its gradient, and no logits
    assert large < 4 * tile + 2 * D * 16384 * 4
    assert large / plain < 3 * 512 / 16384  # about chunk / V of the plain path's
    assert temporary(16384, 2048) > 2 * large


def test_refuses():
    hidden, kernel, targets = inputs()
    for vocab_size in (0, 38):
        with refuses(ValueError, f"vocab_size = {vocab_size}:", "1 to 37"):
            token_stats(hidden, kernel, targets, vocab_size=vocab_size)
    for wrong in ("chunk", "shards"):
        with refuses(ValueError, f"{wrong} = 0", "positive"):
            token_stats(hidden, kernel, targets, vocab_size=37, **{wrong: 0})
