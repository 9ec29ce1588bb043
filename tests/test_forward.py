"""forward.py: the one place that shifts. Its records against prefixes read one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from errors import refuses
from tiny import demo_batch, pair_batch, rollout_batch, tiny

from alignax import forward
from alignax.losses.dpo import dpo
from alignax.losses.reverse_kl import reverse_kl
from alignax.losses.sft import sft
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.heads import weighted
from alignax.ops.masked import reduce, reduce_metrics
from alignax.train.optimizer import sgd
from alignax.train.state import new_state
from alignax.train.step import make_step


@pytest.fixture(scope="module")
def log_probs():
    """log p(. | the first t tokens) for every row and t, [B, T, V]: each prefix is read alone, the rest wiped out."""
    model, params = tiny()
    batch = demo_batch()
    T = batch["tokens"].shape[1]

    @jax.jit
    def after(t):
        keep = (jnp.arange(T) < t)[None, :]
        hidden = model.apply(params, jnp.where(keep, batch["tokens"], 9), keep & batch["valid"])
        last = jax.lax.dynamic_index_in_dim(hidden, t - 1, axis=1, keepdims=False)
        return jax.nn.log_softmax((last @ model.unembed(params))[:, : model.config.vocab_size], axis=-1)

    return np.stack([np.full_like(after(1), np.nan)] + [np.asarray(after(t)) for t in range(1, T)], axis=1)


@pytest.fixture(scope="module")
def demo():
    model, params = tiny()
    return jax.jit(lambda p, b: forward.demo(model, p, b))(params, demo_batch())


def test_logp_over_the_mask_is_that_of_the_completion_and_its_end_of_sequence(demo, log_probs):
    # trap 8: the sum over the mask, against the tokens of each completion picked by hand from prefix distributions
    batch = jax.tree.map(np.asarray, demo_batch())
    for row in range(8):
        end, start = batch["valid"][row].sum(), batch["mask"][row].argmax()
        assert batch["tokens"][row, end - 1] == 1 and batch["mask"][row].sum() == end - start  # 1 is the end token
        want = sum(log_probs[row, t, batch["tokens"][row, t]] for t in range(start, end))
        got = np.asarray(demo.logp)[row][batch["mask"][row]].sum()
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_every_token_has_its_own_logp_entropy_and_correctness(demo, log_probs):
    batch = jax.tree.map(np.asarray, demo_batch())
    real = batch["valid"] & (np.arange(12) > 0)
    logp_BT = np.take_along_axis(log_probs, batch["tokens"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.asarray(demo.logp)[real], logp_BT[real], atol=1e-5)
    entropy_BT = -(np.exp(log_probs) * log_probs).sum(-1)
    np.testing.assert_allclose(np.asarray(demo.entropy)[real], entropy_BT[real], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(demo.correct)[real], (log_probs.argmax(-1) == batch["tokens"])[real])
    np.testing.assert_array_equal(demo.logp[:, 0], 0.0)  # position 0 has no context
    np.testing.assert_array_equal(demo.mask, batch["mask"])


def test_logits_of_student_and_teacher_are_about_the_token_at_their_place(log_probs):
    model, params = tiny()
    teacher_model, teacher = tiny(seed=1, layers=1, ffn=16)
    batch = demo_batch()
    batch["mask"] = batch["mask"].at[:, 0].set(True)
    got = jax.jit(lambda p, t: forward.distill(model, p, teacher_model, t, batch))(params, teacher)
    assert got.logits.shape == got.teacher_logits.shape == (8, 12, model.config.vocab_size)  # no padded columns
    real = np.asarray(batch["valid"]) & (np.arange(12) > 0)
    np.testing.assert_allclose(jax.nn.log_softmax(got.logits)[real], log_probs[real], atol=1e-5)
    logp_BT = forward.token_statistics(teacher_model, teacher, batch["tokens"], batch["valid"]).logp
    chosen_BT1 = jnp.take_along_axis(jax.nn.log_softmax(got.teacher_logits), batch["tokens"][..., None], axis=-1)
    np.testing.assert_allclose(chosen_BT1[..., 0][real], logp_BT[real], atol=1e-5)
    np.testing.assert_array_equal(
        got.mask, np.asarray(batch["mask"]) & (np.arange(12) > 0)
    )  # position 0 has no context


def test_a_teacher_gets_no_gradient_and_a_student_of_its_own_has_nothing_to_learn():
    model, params = tiny()

    def loss(student, teacher):
        record = forward.distill(model, student, model, teacher, demo_batch())
        constant = jnp.sum(record.teacher_logits)  # the losses stop the gradient too: this sees whether the record does
        return reduce(reverse_kl(record)) + constant - jax.lax.stop_gradient(constant)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (grads, of_teacher) = run(params, tiny(seed=1)[1])
    assert value > 0.1 and optax.global_norm(grads) > 0.1 and optax.global_norm(of_teacher) == 0
    value, (grads, _) = run(params, params)
    assert abs(value) < 1e-6 and optax.global_norm(grads) < 1e-6


def test_a_teacher_with_another_vocabulary_is_refused():
    model, params = tiny()
    other, teacher = tiny(vocab_size=51)
    with refuses(ValueError, "50", "51", "vocabulary"):
        forward.distill(model, params, other, teacher, demo_batch())


def test_start_spares_positions_and_changes_nothing_else():
    model, params = tiny()
    batch = demo_batch()
    run = jax.jit(
        lambda p, start: forward.token_statistics(model, p, batch["tokens"], batch["valid"], start=start),
        static_argnums=1,
    )
    whole, late = run(params, 1), run(params, 7)
    for a, b in zip(late, whole):
        np.testing.assert_allclose(a[:, 7:], b[:, 7:], atol=1e-6)
        assert not a[:, :7].any()
    shapes = str(jax.make_jaxpr(lambda p: run(p, 7))(params))
    assert "f32[8,5,64]" in shapes and "f32[8,11,64]" not in shapes  # 12 - 7 positions reach the padded output layer


def test_temperature_divides_the_logits():
    model, params = tiny()
    batch = demo_batch()
    run = jax.jit(lambda p, t: forward.token_statistics(model, p, batch["tokens"], batch["valid"], temperature=t).logp)
    scaled = {"decoder": params["decoder"] | {"norm": jax.tree.map(lambda x: x / 0.7, params["decoder"]["norm"])}}
    np.testing.assert_allclose(run(params, 0.7), run(scaled, 1.0), atol=1e-5)


@pytest.fixture(scope="module")
def sides():
    """(pair, scored) of the pair batch as a function of policy, reference and batch."""
    model, _ = tiny(scalar=True)
    return jax.jit(lambda p, ref, b: (forward.pair(model, p, ref, b), forward.scored(model, p, b)))


def test_pair_and_scored_keep_each_side_in_its_place(sides):
    model, params = tiny(scalar=True)
    reference, batch = tiny(seed=1, scalar=True)[1], pair_batch()
    pair, scored = sides(params, reference, batch)
    alone = jax.jit(lambda p, s: (forward.token_statistics(model, p, s["tokens"], s["valid"]).logp,
                                  forward.score(model, p, s["tokens"], s["valid"])))  # fmt: skip
    for name in ("chosen", "rejected"):
        side, mask = getattr(pair, name), np.asarray(batch[name]["mask"])
        logp, score = alone(params, batch[name])
        np.testing.assert_allclose(side.logp[mask], logp[mask], atol=1e-5)
        np.testing.assert_allclose(side.ref_logp[mask], alone(reference, batch[name])[0][mask], atol=1e-5)
        np.testing.assert_array_equal(side.mask, mask)
        np.testing.assert_allclose(getattr(scored, name), score, atol=1e-5)
    assert scored.mask.all() and np.abs(scored.chosen - scored.rejected).min() > 1e-4


def test_unpaired_keeps_replies_and_mismatched_ones_apart(sides):
    model, params = tiny(scalar=True)
    reference, batch = tiny(seed=1, scalar=True)[1], pair_batch()
    single = {"side": batch["chosen"], "mismatched": batch["rejected"], "desirable": jnp.arange(8) % 2 == 0}
    got = jax.jit(lambda p, ref, b: forward.unpaired(model, p, ref, b))(params, reference, single)
    pair = sides(params, reference, batch)[0]
    for mine, theirs in ((got.side, pair.chosen), (got.mismatched, pair.rejected)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mine, theirs)
    np.testing.assert_array_equal(got.desirable, single["desirable"])


def test_a_batch_that_brings_the_reference_needs_none(sides):
    """Trap 29: what is brought is what the loss gets, and no parameters of a reference are read."""
    model, params = tiny(scalar=True)
    reference, batch = tiny(seed=1, scalar=True)[1], pair_batch()
    single = {"side": batch["chosen"], "mismatched": batch["rejected"], "desirable": jnp.arange(8) % 2 == 0}
    for view, rows in ((forward.pair, batch), (forward.unpaired, single)):
        run = jax.jit(lambda p, ref, b, view=view: (view(model, p, ref, b), forward.reference_logp(model, ref, b)))
        want, logp = run(params, reference, rows)
        brought = rows | {name: rows[name] | {"ref_logp": x} for name, x in logp.items()}
        got = jax.jit(lambda p, b, view=view: view(model, p, None, b))(params, brought)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    moved = sides(params, reference, brought_by(batch, 1.0))[0]
    assert (moved.chosen.ref_logp == 1.0).all() and (moved.rejected.ref_logp == 1.0).all()


def brought_by(batch, value):
    """The pair batch with one reference log-probability everywhere."""
    full = lambda side: side | {"ref_logp": jnp.full(side["tokens"].shape, value)}  # noqa: E731
    return batch | {name: full(batch[name]) for name in ("chosen", "rejected")}


def test_scored_rows_without_a_response_do_not_count(sides):
    batch = pair_batch()
    batch["chosen"]["mask"] = batch["chosen"]["mask"].at[2].set(False)
    scored = sides(*[tiny(scalar=True)[1]] * 2, batch)[1]
    np.testing.assert_array_equal(scored.mask, np.arange(8) != 2)


def test_dpo_starts_at_log_2_with_no_margin_when_the_policy_is_the_reference(sides):
    params = tiny(scalar=True)[1]
    loss = dpo(sides(params, params, pair_batch())[0])
    assert reduce(loss) == np.float32(np.log(2))  # trap 29: exactly
    metrics = reduce_metrics(loss.metrics)
    assert metrics["rewards/margins"] == metrics["rewards/accuracies"] == 0  # a tie is no success


def test_value_of_a_token_is_the_head_one_position_earlier():
    model, params = tiny(scalar=True)
    rollout = rollout_batch()
    values = forward.values(model, params, rollout.tokens, rollout.valid)
    hidden = model.apply(params, rollout.tokens, rollout.valid)
    np.testing.assert_array_equal(values[:, 0], 0.0)
    np.testing.assert_allclose(values[:, 1:], model.scalar(params, hidden)[:, :-1], atol=1e-6)


def test_score_is_read_at_the_last_real_token():
    model, params = tiny(scalar=True)
    rollout = rollout_batch()
    heads = model.scalar(params, model.apply(params, rollout.tokens, rollout.valid))
    last = np.asarray(rollout.valid).sum(1) - 1  # padding is on the right here
    score = forward.score(model, params, rollout.tokens, rollout.valid)
    np.testing.assert_allclose(score, heads[np.arange(8), last], atol=1e-6)


def test_a_ranking_scores_every_reply_and_masks_what_fills_it_up():
    model, params = tiny(scalar=True)
    one = {name: leaf for name, leaf in demo_batch(B=6).items() if name != "row"}
    batch = {"replies": {name: leaf.reshape(2, 3, 12) for name, leaf in one.items()}}
    batch["replies"]["mask"] = batch["replies"]["mask"].at[1, 2].set(False)
    got = jax.jit(lambda p, b: forward.ranked(model, p, b))(params, batch)
    score = forward.score(model, params, one["tokens"], one["valid"])
    np.testing.assert_allclose(got.score, score.reshape(2, 3), atol=1e-6)
    np.testing.assert_array_equal(got.mask, [[True, True, True], [True, True, False]])


def test_ratings_are_scored_by_a_head_of_attributes_that_folds_into_one():
    model, params = tiny(scalar=True)
    batch, rng = demo_batch(), np.random.default_rng(3)
    head = {"kernel": jnp.asarray(rng.normal(size=(16, 3)), "float32"), "bias": jnp.array([0.5, -1.0, 2.0])}
    given_BA = jnp.asarray(rng.uniform(size=(8, 3)) < 0.5)
    judged = {"reply": batch, "target": jnp.ones((8, 3)), "given": given_BA}
    got = forward.rated(model, params | {"scalar": head}, judged)
    np.testing.assert_array_equal(got.mask, given_BA)
    for a in range(3):  # column a is what a head of that column alone gives
        single = params | {"scalar": jax.tree.map(lambda x, a=a: x[..., a], head)}
        np.testing.assert_allclose(
            got.score[:, a], forward.score(model, single, batch["tokens"], batch["valid"]), atol=1e-6
        )
    weights = jnp.array([2.0, 0.0, -0.5])
    folded = params | {"scalar": weighted(head, weights)}
    np.testing.assert_allclose(
        forward.score(model, folded, batch["tokens"], batch["valid"]), got.score @ weights, atol=1e-5
    )


def test_a_verdict_reads_the_last_token_of_its_step_and_nothing_after():
    model, params = tiny(scalar=True)
    batch = demo_batch()
    last = batch["valid"].sum(1) - 1
    place = jnp.arange(12)[None]
    ends = (place == last[:, None]) | (place == 4)
    run = jax.jit(lambda p, tokens: forward.stepwise(model, p, {
        "reply": batch | {"tokens": tokens}, "target": 0.5 * ends, "step_end": ends}))  # fmt: skip
    got = run(params, batch["tokens"])
    np.testing.assert_array_equal(got.mask, ends)
    score = forward.score(model, params, batch["tokens"], batch["valid"])  # of a whole reply: the last verdict
    np.testing.assert_allclose(got.logit[jnp.arange(8), last], score, atol=1e-6)
    changed = lambda t: run(params, batch["tokens"].at[:, t].add(1)).logit[:, 4]  # noqa: E731
    assert np.abs(changed(4) - got.logit[:, 4]).min() > 1e-4  # the step's own last token is seen
    np.testing.assert_array_equal(changed(5), got.logit[:, 4])  # the next step is not


def test_memory_of_the_compiled_step_does_not_grow_with_rows_times_vocabulary():
    # trap J11: logits of 8192 columns exist at once. A step over V = 65536 may hold more per column (the embedding and
    # its gradient, 65536 * 8 floats each), never B * T * V floats: 8 * 32 * 65536 * 4 bytes = 67 MB
    def temporary(B, V):
        config = ModelConfig(
            vocab_size=V, dim=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn=8, tie_embeddings=False
        )
        model = decoder(config)
        objective = lambda p, _, b: {"loss": (1.0, sft(forward.demo(model, p, b)))}  # noqa: E731
        optimizer = sgd(total_steps=1)
        state = jax.eval_shape(lambda: new_state(model.init(jax.random.key(0)), optimizer))
        batch = jax.eval_shape(lambda: demo_batch_shapes(B, 32))
        step = jax.jit(make_step(objective, optimizer), donate_argnums=0)
        return step.lower(state, batch, ()).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(8, 65_536), temporary(32, 65_536)
    chunk = 24 * 32 * 8192 * 4  # 24 more rows: one chunk of their logits, 25 MB; all of them would be 201 MB
    assert many - few < 4 * chunk


def demo_batch_shapes(B, T):
    flags = jnp.zeros((B, T), bool)
    return {"tokens": jnp.zeros((B, T), jnp.int32), "valid": flags, "mask": flags, "row": jnp.zeros(B, jnp.int32)}


GROWING = dict(pattern=("sliding", "full"), window=4, sinks=True, query_growth=0.5, rope_original=3)


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="full", marks=pytest.mark.slow), pytest.param(GROWING, id="sliding, sinks, growing queries")],
)
def test_replies_to_one_prompt_share_a_row(changes):
    """Log-probs, entropies, values and scores of a group, and their gradients, as if each reply had its own row."""
    model, params = tiny(scalar=True, **changes)
    rng, P, C, group = np.random.default_rng(4), 5, 8, 3
    prompts = np.repeat(rng.integers(2, 50, (2, P)), group, axis=0)
    length = np.repeat([[2], [P]], group, axis=0)
    tokens = jnp.asarray(np.concatenate([prompts, rng.integers(2, 50, (2 * group, C))], axis=1), jnp.int32)
    said = np.array([[0], [6], [4], [6], [0], [6]])  # 10 and 12 tokens in a group, and replies of none
    valid = np.concatenate([np.arange(P)[None] >= P - length, np.arange(C)[None] < said], axis=1)
    valid = jnp.asarray(valid)

    def read(params, group, room):
        options = {"start": P, "group": group, "room": room}
        stats = forward.token_statistics(model, params, tokens, valid, temperature=0.8, **options)
        values = forward.values(model, params, tokens, valid, **options)
        real = valid & (jnp.arange(P + C) >= P)[None]
        kept = [jnp.where(real, x, 0.0) for x in (stats.logp, stats.entropy, values)]
        return [*kept, forward.score(model, params, tokens, valid, **options)]

    cotangents = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in read(params, 1, 0)]
    total = lambda params, *rows: sum(jnp.sum(x * c) for x, c in zip(read(params, *rows), cotangents))  # noqa: E731
    run = jax.jit(lambda *rows: (read(params, *rows), jax.grad(total)(params, *rows)), static_argnums=(0, 1))
    want = run(1, 0)
    assert all(float(jnp.abs(x).max()) > 0 for x in want[0])
    for rows in ((group, 0), (group, 12), (1, 6)):  # the whole room, and no more than there has to be
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run(*rows), want)
