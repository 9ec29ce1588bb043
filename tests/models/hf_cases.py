"""Small checkpoints of every family: configs as transformers has them, weights and inputs by a rule.

Used by the test against PyTorch (tests/parity), by the script that writes tests/goldens/families.npz, and by the tests
that read those.
"""

import json
import zlib

import numpy as np

V, T, B = 50, 12, 3
_BASE = dict(
    vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
_YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)
_GEMMA = _BASE | dict(head_dim=8, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
_NEOX = {key: value for key, value in _BASE.items() if key != "num_key_value_heads"} | dict(hidden_size=32)
_KINDS = {"s": "sliding_attention", "f": "full_attention"}


def _layers(kinds: str, window: int) -> dict:
    return dict(num_hidden_layers=len(kinds), layer_types=[_KINDS[k] for k in kinds], sliding_window=window)


CASES = {
    "gpt2": dict(
        model_type="gpt2", vocab_size=V, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
    "llama": dict(model_type="llama", **_BASE),
    "llama3_scaled": dict(model_type="llama", **_BASE, head_dim=8, rope_parameters=_LLAMA3),
    "llama_linear_tied_biased": dict(
        model_type="llama", **_BASE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
    ),
    "llama_dynamic": dict(
        model_type="llama", **_BASE, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)
    ),
    "smollm_one_kv_head": dict(
        model_type="llama", **_BASE | dict(num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-5)
    ),
    "mistral_short_window": dict(model_type="mistral", **_BASE, sliding_window=4),
    "mistral_long_window": dict(model_type="mistral", **_BASE, sliding_window=40),
    "qwen2": dict(model_type="qwen2", **_BASE, tie_word_embeddings=True),
    "qwen2_windows": dict(
        model_type="qwen2", **_BASE | _layers("fss", 4), use_sliding_window=True, max_window_layers=1
    ),
    "qwen2_yarn": dict(model_type="qwen2", **_BASE | dict(hidden_size=64), rope_parameters=_YARN),
    "qwen3_yarn_in_parts": dict(
        model_type="qwen3", **_BASE, head_dim=16, tie_word_embeddings=True,
        rope_parameters=_YARN | dict(truncate=False, mscale=0.7, mscale_all_dim=0.4, beta_fast=2.0, beta_slow=0.2),
    ),
    "qwen3": dict(model_type="qwen3", **_BASE, head_dim=8, tie_word_embeddings=True),
    "gemma": dict(model_type="gemma", **_BASE, head_dim=8),
    "gemma2": dict(model_type="gemma2", **_GEMMA | _layers("sfs", 4)),
    "gemma3": dict(
        model_type="gemma3_text", **_GEMMA | dict(attn_logit_softcapping=None, final_logit_softcapping=None)
        | _layers("ssf", 4),
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=1e4),
        ),
    ),
    "phi3": dict(
        model_type="phi3", **_BASE | dict(hidden_size=32), sliding_window=4,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
    ),
    "phi3_longrope": dict(
        model_type="phi3", **_BASE | dict(hidden_size=32), original_max_position_embeddings=16,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.75,
            short_factor=[1.0, 1.5, 2.0], long_factor=[1.0, 3.0, 9.0],
        ),
    ),
    "olmo2": dict(model_type="olmo2", **_BASE),
    "smollm3": dict(
        model_type="smollm3", **_BASE | dict(num_hidden_layers=3), no_rope_layers=[1, 0, 1], tie_word_embeddings=True
    ),
    "mixtral": dict(model_type="mixtral", **_BASE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(
        model_type="qwen3_moe", **_BASE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        norm_topk_prob=True,
    ),
    "qwen3_moe_unnormed": dict(
        model_type="qwen3_moe", **_BASE, head_dim=8, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=16
    ),
    "gpt_neox": dict(model_type="gpt_neox", **_NEOX),  # a quarter of each head is rotated
    "gpt_neox_in_series": dict(
        model_type="gpt_neox", **_NEOX, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
        hidden_act="gelu_fast", rope_parameters=dict(rope_type="linear", factor=2.0, partial_rotary_factor=1.0),
    ),
    "olmo": dict(model_type="olmo", **_BASE, tie_word_embeddings=True),
    "olmo_clipped": dict(model_type="olmo", **_BASE, clip_qkv=0.5),
    "olmo3": dict(
        model_type="olmo3", **_BASE | _layers("ssf", 4),
        rope_parameters=dict(full_attention=_YARN, sliding_attention=dict(rope_type="default", rope_theta=500.0)),
    ),
    "granite": dict(
        model_type="granite", **_BASE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        embedding_multiplier=12.0, attention_multiplier=2.3, residual_multiplier=0.22, logits_scaling=3,
    ),
    "ministral": dict(model_type="ministral", **_BASE | _layers("fs", 4), head_dim=8),
    "ministral3": dict(  # 12 tokens: queries grow at the 4th and the 8th
        model_type="ministral3", **_BASE, head_dim=8, tie_word_embeddings=True,
        rope_parameters=_YARN | dict(
            original_max_position_embeddings=4, max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0,
            llama_4_scaling_beta=0.5,
        ),
    ),
    "ministral3_unstretched": dict(
        model_type="ministral3", **_BASE, head_dim=8, sliding_window=5,
        rope_parameters=dict(rope_theta=500.0, original_max_position_embeddings=4, llama_4_scaling_beta=0.5),
    ),
    "glm": dict(
        model_type="glm", **_BASE, head_dim=8, attention_bias=False,
        rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=1.0),
    ),
    "glm4": dict(model_type="glm4", **_BASE, head_dim=8),  # half of each head is rotated
    "gpt_oss": dict(  # narrow limits: half of the numbers are bounded
        model_type="gpt_oss", **_BASE | _layers("sf", 4), head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        swiglu_limit=0.5,
        rope_parameters=_YARN | dict(truncate=False, beta_fast=2.0, beta_slow=0.2),
    ),
}  # fmt: skip


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one tensor, of its name alone: matrices keep the variance, norms are near 1, biases near 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
    centre = 1.0 if "norm" in name or ".ln_" in name else 0.0
    values = rng.normal(0, scale, shape) + (centre if name.endswith("weight") and len(shape) == 1 else 0)
    return values.astype(np.float32)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """tokens, valid [B T]: a full row, one padded on the left and one on the right."""
    tokens = np.random.default_rng(0).integers(3, V, (B, T))
    valid = np.ones((B, T), bool)
    valid[1, :3], valid[2, 8:] = False, False
    return np.where(valid, tokens, 0).astype(np.int32), valid


def write(folder, name: str, shapes: dict[str, tuple[int, ...]], *, dtype=np.float32) -> None:
    """A checkpoint folder as transformers would save it: config.json and model.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CASES[name]), encoding="utf-8")
    tensors = {n: weights(n, s).astype(dtype) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
