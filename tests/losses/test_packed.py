"""Packed = unpacked, in values and in gradients, for every loss on data: they never know how the model was fed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_inputs import NAMES, fill_masked, is_float, loss, record_type, value_and_grad
from tiny import EOS, PAD, VOCAB, tiny

from alignax import forward
from alignax.data.packing import arrangement
from alignax.train.step import cut, gradients
from alignax.types import Demo, Pair, Ranked, Rated, Scored, Stepwise, Unpaired
from tests.marks import quick

B, T, K, A = 8, 24, 3, 2
# a window shorter than the texts, so that distances must be those of the text and not of the row
WINDOW = dict(pattern=("sliding", "full"), window=6)


def texts(rng, count: int, prompts: np.ndarray | None = None) -> dict:
    """{tokens, valid, mask} [count T]: prompts, or those that are given, with replies that often begin alike."""
    rows = {"tokens": np.full((count, T), PAD, np.int32), "valid": np.zeros((count, T), bool)}
    rows["mask"] = np.zeros((count, T), bool)
    for i in range(count):
        prompt = prompts[i] if prompts is not None else rng.integers(2, VOCAB, rng.integers(1, 8))
        reply = np.r_[np.full(rng.integers(0, 3), 7), rng.integers(2, VOCAB, rng.integers(1, 12)), EOS]
        n = len(prompt) + len(reply)
        rows["tokens"][i, :n], rows["valid"][i, :n], rows["mask"][i, len(prompt) : n] = np.r_[prompt, reply], True, True
    return rows


def batch_of(record) -> dict:
    """A batch as the encoders make it, of every record that a loss on data takes."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, VOCAB, rng.integers(1, 8)) for _ in range(B)]
    row = {"row": np.arange(B, dtype=np.int32)}
    if record in (Pair, Scored):
        said = {"margin": rng.exponential(size=B).astype(np.float32), "tie": np.arange(B) % 4 == 3}
        return {"chosen": texts(rng, B, prompts), "rejected": texts(rng, B, prompts)} | said | row
    if record is Demo:
        return texts(rng, B) | row
    if record is Unpaired:
        return {"side": texts(rng, B), "mismatched": texts(rng, B), "desirable": np.arange(B) % 2 == 0} | row
    if record is Ranked:
        replies = texts(rng, B * K, [prompt for prompt in prompts for _ in range(K)])
        replies["mask"][5] = replies["mask"][8] = False  # fillers of shorter rankings: a prompt without a reply
        return {"replies": {name: x.reshape(B, K, T) for name, x in replies.items()}} | row
    reply = texts(rng, B)
    if record is Rated:
        given = rng.random((B, A)) < 0.8
        return {"reply": reply, "target": rng.integers(0, 5, (B, A)).astype(np.float32), "given": given} | row
    ends = reply["mask"] & (rng.random((B, T)) < 0.4)
    return {"reply": reply, "target": rng.integers(0, 2, (B, T)).astype(np.float32) * ends, "step_end": ends} | row


MODEL, PARAMS = tiny(scalar=True, **WINDOW)
REFERENCE = tiny(seed=1, **WINDOW)[1]
VIEWS = {
    Demo: forward.demo,
    Pair: lambda model, params, batch: forward.pair(model, params, REFERENCE, batch).replace(
        reference_is_chosen=batch["row"] % 3 == 1
    ),
    Unpaired: lambda model, params, batch: forward.unpaired(model, params, REFERENCE, batch),
    Scored: forward.scored,
    Ranked: forward.ranked,
    Rated: forward.rated,
    Stepwise: forward.stepwise,
}
READS = {Scored: "ends", Ranked: "ends", Rated: "ends", Stepwise: "steps"}


def params_of(record):
    if record is not Rated:
        return PARAMS
    head = {"kernel": jnp.tile(PARAMS["scalar"]["kernel"][:, None], (1, A)), "bias": jnp.arange(A, dtype=jnp.float32)}
    return PARAMS | {"scalar": head}


def arranged(record, mode, **groups):
    batch = batch_of(record)
    return arrangement(batch, mode, reads=READS.get(record, "tokens"), batch_size=B, **groups)(batch)


def floats(record):
    return [leaf for leaf in jax.tree.leaves(record) if is_float(leaf)]


@functools.cache
def through(record, mode):
    """(record of the batch under the model, cotangents of its floats -> gradient of the parameters)."""
    batch = jax.tree.map(jnp.asarray, arranged(record, mode, shards=2))
    view = lambda params, batch: VIEWS[record](MODEL, params, batch)  # noqa: E731
    seen = jax.jit(view)(params_of(record), batch)
    pull = jax.jit(lambda cts: jax.vjp(lambda params: floats(view(params, batch)), params_of(record))[1](cts)[0])
    return seen, pull


ON_DATA = [name for name in NAMES if record_type(name) in VIEWS]


ONE_EACH = {record_type(name): name for name in ON_DATA}.values()  # no loss knows of packing: one for each record


@pytest.mark.parametrize("name", quick(ON_DATA, *ONE_EACH))
def test_a_loss_of_packed_rows_with_shared_beginnings_is_that_of_padded_ones(name):
    record = record_type(name)
    results = []
    for mode in ("off", "shared"):
        seen, pull = through(record, mode)
        value, grads = jax.jit(functools.partial(value_and_grad, loss(name)))(seen)
        cotangents = [g for g, leaf in zip(grads, jax.tree.leaves(seen), strict=True) if is_float(leaf)]
        results.append((value, pull(cotangents)))
    (plain, plain_grad), (packed, packed_grad) = results
    np.testing.assert_allclose(packed, plain, rtol=1e-5, atol=1e-6)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain_grad))
    assert size > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size), packed_grad, plain_grad)


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
@pytest.mark.parametrize("record", VIEWS, ids=lambda record: record.__name__)
def test_records_are_equal_where_their_masks_are(record, mode):
    zero = lambda record: fill_masked(record, 0.0)  # noqa: E731
    plain, packed = through(record, "off")[0], through(record, mode)[0]
    if mode == "bucketed":  # shorter rows: padded again to compare
        wide = lambda x, like: jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, like.shape, strict=True)])  # noqa: E731
        packed = jax.tree.map(wide, packed, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), zero(packed), zero(plain))


def test_microbatches_and_shards_of_packed_rows_give_the_same_gradient():
    objective = lambda params, batch: {"loss": (1.0, loss("dpo")(VIEWS[Pair](MODEL, params, batch)))}  # noqa: E731
    run = jax.jit(lambda batch, n: gradients(objective, PARAMS, batch, microbatches=n), static_argnums=1)
    whole, metrics = run(jax.tree.map(jnp.asarray, arranged(Pair, "off")), 1)
    parted = arranged(Pair, "shared", shards=2, parts=2)
    assert {len(leaf) % 4 for leaf in jax.tree.leaves(parted)} == {0}
    grads, parted_metrics = run(jax.tree.map(jnp.asarray, parted), 2)
    for name, value in metrics.items():
        np.testing.assert_allclose(parted_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, whole)
    # each microbatch stands by itself: its slots point into its own groups
    parts = jax.tree.map(np.asarray, cut(jax.tree.map(jnp.asarray, parted), 2))
    groups, reads = parts["packed"]["read"].shape[1:]
    assert parts["chosen"]["slot"].max() < groups * reads
