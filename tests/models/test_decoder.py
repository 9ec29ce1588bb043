"""The decoder: its tree, what it sees, and the agreement of its ways to compute the same hidden states."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import VOCAB, close, demo_batch, leaves_by_path, one_more, prompt_batch, tiny

from alignax import forward
from alignax.models import presets
from alignax.models.attention import layout, positions_of, visible
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder, param_count
from alignax.stages.parents import init_params

# V 50 padded to 64, D 16, L 2, N 4, K 2, H 8, F 32
TREE = {
    "decoder/embed": (64, 16),
    "decoder/layers/attn_norm/scale": (2, 16),
    "decoder/layers/down/kernel": (2, 32, 16),
    "decoder/layers/gate/kernel": (2, 16, 32),
    "decoder/layers/k/kernel": (2, 16, 16),
    "decoder/layers/mlp_norm/scale": (2, 16),
    "decoder/layers/o/kernel": (2, 32, 16),
    "decoder/layers/q/kernel": (2, 16, 32),
    "decoder/layers/up/kernel": (2, 16, 32),
    "decoder/layers/v/kernel": (2, 16, 16),
    "decoder/norm/scale": (16,),
}
HEAD = {"scalar/bias": (), "scalar/kernel": (16,)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scalar", [True, False])
def test_picture_of_the_parameter_tree(tied, scalar):
    model, _ = tiny(tie_embeddings=tied)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), scalar=scalar))
    want = TREE | ({} if tied else {"decoder/unembed": (16, 64)}) | (HEAD if scalar else {})
    assert {name: leaf.shape for name, leaf in leaves_by_path(params).items()} == want
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_picture_of_what_a_gpt_oss_has_besides_and_an_olmo_lacks():
    model, _ = tiny(experts=3, experts_per_token=2, mlp_bias=True, sinks=True, norm="layer_nonparametric")
    tree = jax.eval_shape(model.init, jax.random.key(0))["decoder"]
    got = {name: leaf.shape for name, leaf in leaves_by_path(tree).items() if "kernel" not in name}
    experts = {"router": (16, 3), "gate": (3, 16, 32), "up": (3, 16, 32), "down": (3, 32, 16)}
    biases = {"router": (3,), "gate": (3, 32), "up": (3, 32), "down": (3, 16)}
    want = {f"layers/experts/{name}": (2, *shape) for name, shape in experts.items()}
    want |= {f"layers/experts/{name}_bias": (2, *shape) for name, shape in biases.items()}
    assert got == want | {"embed": (64, 16), "layers/sinks/logit": (2, 4)}


def test_param_count():
    shapes = jax.eval_shape(tiny()[0].init, jax.random.key(0))
    # embed 64*16 + 2 layers of (q 512 + k 256 + v 256 + o 512 + gate, up, down 3*512 + norms 32) + norm 16
    assert param_count(shapes) == 1024 + 2 * 3104 + 16


@pytest.mark.parametrize("preset", ["harbor", "llama"])
def test_presets_have_the_size_that_their_docstrings_say(preset):
    says = float(re.search(r"[Aa]bout ([\d.]+)M parameters", getattr(presets, preset).__doc__)[1])
    shapes = jax.eval_shape(decoder(getattr(presets, preset)(vocab_size=512)).init, jax.random.key(0))
    beside = param_count(shapes) - (shapes["decoder"]["embed"].size if preset == "llama" else 0)
    np.testing.assert_allclose(beside / 1e6, says, rtol=0.08)


def test_same_key_same_parameters_and_another_key_others():
    init = jax.jit(tiny()[0].init)
    first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    close(again, first, atol=0)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first["decoder"], other["decoder"])
    names = {name for name, differs in leaves_by_path(changed).items() if not differs}
    assert names == {"layers/attn_norm/scale", "layers/mlp_norm/scale", "norm/scale"}  # ones at the start
    kernels = {name: leaf for name, leaf in leaves_by_path(first).items() if leaf.ndim == 3}
    assert all((leaf[0] != leaf[1]).any() for leaf in kernels.values())  # each layer has its own noise
    # what reads the residual has variance 1/fan_in; what writes to it 1/(2 L fan_in): sd 16^-0.5 and (4 * 32)^-0.5
    np.testing.assert_allclose(kernels["decoder/layers/gate/kernel"].std(), 16**-0.5, rtol=0.1)
    np.testing.assert_allclose(kernels["decoder/layers/down/kernel"].std(), 128**-0.5, rtol=0.1)


def test_causality_by_gradient_and_rows_do_not_mix():
    model, params = tiny()
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)  # all different: a token's embedding row is its input
    probe_D = jax.random.normal(jax.random.key(3), (16,))

    def outputs(embed):
        tree = {"decoder": params["decoder"] | {"embed": embed}}
        return model.apply(tree, tokens, jnp.ones((2, 6), bool)) @ probe_D

    grad_BTVD = jax.jit(jax.jacrev(outputs))(params["decoder"]["embed"])
    seen_BTS = np.abs(grad_BTVD[:, :, :12]).max(-1).reshape(12, 12) > 0  # output x input, both in order row, position
    lower = np.tril(np.ones((6, 6), bool))
    np.testing.assert_array_equal(seen_BTS, np.kron(np.eye(2, dtype=bool), lower))


@pytest.mark.parametrize("left, right", [(0, 3), (3, 0), (2, 5)])
def test_padding_side_and_amount_leave_hidden_states_and_score_unchanged(left, right):
    model, params = tiny(scalar=True)
    tokens, valid = demo_batch(B=4, T=6)["tokens"], jnp.ones((4, 6), bool)
    run = jax.jit(lambda t, v: (model.apply(params, t, v), forward.score(model, params, t, v)))
    hidden, score = run(tokens, valid)
    wide = ((0, 0), (left, right))
    padded, padded_score = run(jnp.pad(tokens, wide, constant_values=7), jnp.pad(valid, wide))
    np.testing.assert_allclose(padded[:, left : left + 6], hidden, atol=1e-5)
    np.testing.assert_allclose(padded_score, score, atol=1e-5)
    assert np.abs(np.diff(score)).min() > 1e-3  # a constant would pass too


def test_a_row_of_padding_only_stays_finite_in_value_and_gradient():
    model, params = tiny(scalar=True)
    valid = jnp.zeros((2, 4), bool).at[0].set(True)
    run = lambda p: forward.score(model, p, jnp.full((2, 4), 3), valid).sum()  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(run))(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kv_heads, tied", [(4, True), (2, False), (1, True)])
def test_prefill_and_decode_equal_the_full_forward(kv_heads, tied):
    model, params = tiny(kv_heads=kv_heads, tie_embeddings=tied)
    prompts, P, T = prompt_batch(B=3, P=4), 4, 9
    more = np.random.default_rng(5).integers(0, VOCAB, (3, T - P)).astype(np.int32)
    tokens = jnp.concatenate([prompts["tokens"], more], axis=1)
    valid = jnp.concatenate([prompts["valid"], jnp.ones_like(more, bool)], axis=1)

    def incremental(params):
        hidden_BPD, cache = model.prefill(params, tokens[:, :P], valid[:, :P], model.init_cache(3, T))
        layers = model.unstack(params)
        step = lambda cache, token_B: one_more(model, layers, token_B, cache)  # noqa: E731
        _, rest_TBD = jax.lax.scan(step, cache, tokens[:, P:].T)
        return jnp.concatenate([hidden_BPD, rest_TBD.swapaxes(0, 1)], axis=1)

    full, steps = jax.jit(model.apply)(params, tokens, valid), jax.jit(incremental)(params)
    real = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(steps)[real], np.asarray(full)[real], atol=1e-5)
    logits = [np.asarray(x @ model.unembed(params))[real] for x in (steps, full)]
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)


def test_unstack_lists_the_layers_and_leaves_the_rest():
    model, params = tiny(scalar=True, tie_embeddings=False)
    flat = model.unstack(params)
    for i in range(2):
        close(
            flat["decoder"]["layers"][i]["params"],
            jax.tree.map(lambda leaf, i=i: leaf[i], params["decoder"]["layers"]),
            atol=0,
        )
    rest = lambda p: {"scalar": p["scalar"]} | {k: v for k, v in p["decoder"].items() if k != "layers"}  # noqa: E731
    close(rest(flat), rest(params), atol=0)


def _loss_of(model, batch):
    def loss(params):
        stats = forward.token_statistics(model, params, batch["tokens"], batch["valid"])
        return -jnp.sum(stats.logp, where=batch["mask"])

    return loss


REMAT = ("none", "dots", "attention", "offload", "full")


def test_remat_policies_change_neither_value_nor_gradient():
    _, params = tiny()
    batch, results = demo_batch(B=2, T=8), {}
    for remat in REMAT:
        results[remat] = jax.jit(jax.value_and_grad(_loss_of(tiny(remat=remat)[0], batch)))(params)
    for remat in REMAT[1:]:
        np.testing.assert_allclose(results[remat][0], results["none"][0], rtol=1e-6)
        close(results[remat][1], results["none"][1], rtol=1e-5, atol=1e-5)


def test_remat_policies_keep_what_the_config_says():
    _, params = tiny()
    batch, kept, program = demo_batch(B=2, T=8), {}, {}
    for remat in REMAT:
        loss = _loss_of(tiny(remat=remat)[0], batch)
        residuals = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        program[remat] = str(jax.make_jaxpr(jax.grad(loss))(params))
    # of 2 layers: what attention gives [B T N H]; besides, the products q, k, v, o, gate, up (no gradient reads down)
    heads, others = 2 * 8 * 32, 2 * 8 * (32 + 2 * 16 + 16 + 2 * 32)
    assert kept["none"] > kept["dots"] == kept["attention"] + 2 * others
    assert kept["attention"] == kept["full"] + 2 * heads
    assert kept["offload"] == kept["full"]
    assert [remat for remat in REMAT if "f32<host>[2,2,8,16]" in program[remat]] == ["offload"]  # the layers' inputs


def test_bfloat16_keeps_float32_parameters_gradients_and_log_probs():
    exact, params = tiny()
    half, _ = tiny(dtype="bfloat16")
    batch = demo_batch(B=4)
    assert jax.eval_shape(half.apply, params, batch["tokens"], batch["valid"]).dtype == jnp.bfloat16
    run = jax.jit(lambda m, tokens, valid: forward.token_statistics(m, params, tokens, valid), static_argnums=0)
    logp = {m: run(m, batch["tokens"], batch["valid"]).logp for m in (exact, half)}
    assert logp[half].dtype == jnp.float32
    # some 20 roundings of relative size 2^-9 on the way to a hidden state of norm 4 leave an error of norm
    # 4 * 20^0.5 * 2^-9 = 0.035, of which a unit row of the output layer sees 0.035 / 16^0.5 = 0.009; twice that allowed
    error = np.square(logp[half] - logp[exact])[batch["mask"]].mean() ** 0.5
    assert 0 < error < 0.018
    # each distribution adds up to 1, which one normalised in bfloat16 (steps of 2^-6 at log-probs of 4) would not
    every = jnp.stack([jnp.full(VOCAB, 3), jnp.arange(VOCAB)], axis=1)
    logp_V = run(half, every, jnp.ones_like(every, bool)).logp[:, 1]
    np.testing.assert_allclose(np.exp(logp_V).sum(), 1.0, atol=1e-5)
    grads = jax.jit(jax.grad(_loss_of(half, batch)))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    want = jax.jit(jax.grad(_loss_of(exact, batch)))(params)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (grads, want)]
    assert np.linalg.norm(flat[0] - flat[1]) < 0.05 * np.linalg.norm(flat[1])


def test_padded_vocabulary_gets_no_probability():
    model, params = tiny()
    embed = params["decoder"]["embed"].at[VOCAB:].set(100.0)  # the padding would win by far
    params = {"decoder": params["decoder"] | {"embed": embed}}
    tokens = jnp.stack([jnp.full(VOCAB, 3), jnp.arange(VOCAB)], axis=1)  # every token after the same context
    stats = jax.jit(lambda p: forward.token_statistics(model, p, tokens, jnp.ones_like(tokens, bool)))(params)
    np.testing.assert_allclose(jnp.exp(stats.logp[:, 1]).sum(), 1.0, rtol=1e-5)
    assert stats.correct[:, 1].sum() == 1


def _equations(jaxpr):
    """Every equation, those of programs within the program included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(sub):
                yield from _equations(getattr(sub, "jaxpr", sub))


def _is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_softcap": 30.0, "logit_softcap": 30.0, "qk_norm": "head"},
        {"norm": "rms_plus_one", "norm_at": "both", "experts": 2, "experts_per_token": 1},
        {"norm": "layer", "positions": "learned", "max_positions": 16},
        {"norm": "layer_nonparametric", "sinks": True, "query_growth": 0.1, "residual_multiplier": 0.22},
        {"attention": "splash", "attention_softcap": 30.0},
    ],
)
def test_bfloat16_takes_exponentials_roots_sums_and_soft_caps_in_float32(changes):
    (model, params), batch = tiny(dtype="bfloat16", **changes), demo_batch(B=2, T=8)
    whole = jax.make_jaxpr(lambda p: forward.token_statistics(model, p, batch["tokens"], batch["valid"]))(params)
    one = jax.make_jaxpr(lambda p: one_more(model, model.unstack(p), batch["tokens"][:, 0], model.init_cache(2, 8)))(
        params
    )
    exact = {"exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "tanh", "reduce_sum", "reduce_max", "cumsum", "sin", "cos"}
    taken = [
        (eqn.primitive.name, str(eqn.invars[0].aval.dtype))
        for program in (whole, one)
        for eqn in _equations(program.jaxpr)
        if eqn.primitive.name in exact
    ]
    assert {"exp", "log", "rsqrt"} <= {name for name, _ in taken}  # softmax, log-probabilities, norms
    assert not [use for use in taken if use[1] in ("bfloat16", "float16")]
    assert "bfloat16" in str(whole)


def test_program_size_does_not_grow_with_depth():
    batch = demo_batch(B=2)

    def size(layers):
        model = decoder(ModelConfig(vocab_size=VOCAB, dim=16, layers=layers, heads=2, kv_heads=2, head_dim=8, ffn=32))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return sum(1 for _ in _equations(jax.make_jaxpr(jax.grad(_loss_of(model, batch)))(shapes).jaxpr))

    assert size(2) == size(7) > 100  # of the forward and the backward pass


def test_positions_and_causal_mask_count_real_tokens_only():
    valid = jnp.array([[False, True, True, True], [True, True, False, False]])
    np.testing.assert_array_equal(positions_of(valid), [[0, 0, 1, 2], [0, 1, 1, 1]])
    want = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    np.testing.assert_array_equal(visible(layout(valid))[0], np.array(want, bool))


@pytest.mark.parametrize(
    "change, key, word",
    [
        ({"kv_heads": 3}, "heads = 4", "multiple of kv_heads = 3"),
        ({"head_dim": 7}, "head_dim = 7", "even"),
        ({"remat": "some"}, "remat = 'some'", "'none', 'dots', 'attention', 'offload', 'full'"),
        ({"layers": 0}, "layers = 0:", "1"),
        ({"norm_eps": float("nan")}, "norm_eps = nan:", "small"),
        ({"norm_eps": -1e-5}, "norm_eps = -1e-05:", "small"),
        ({"vocab_size": -1}, "vocab_size = -1:", "1"),
        ({"heads": 0, "kv_heads": 1}, "heads = 0:", "1"),
        ({"kv_heads": 0}, "kv_heads = 0:", "1"),
        ({"head_dim": 0}, "head_dim = 0:", "1"),
        ({"dtype": "float31"}, "dtype = 'float31'", "'float32', 'bfloat16', 'float16'"),
    ],
)
def test_config_that_cannot_be_built_says_why(change, key, word):
    with refuses(ValueError, key, word):
        ModelConfig(**dict(vocab_size=50, heads=4) | change)


def test_padded_vocabulary_is_the_next_multiple_and_architecture_leaves_out_how_to_compute():
    assert [ModelConfig(vocab_size=v).padded_vocab for v in (1, 64, 65)] == [64, 64, 128]
    a, b = ModelConfig(vocab_size=50), ModelConfig(vocab_size=50, dtype="bfloat16", remat="full")
    assert a.architecture() == b.architecture() != ModelConfig(vocab_size=51).architecture()
