"""Configs with the keys that published checkpoints of each family have, and old spellings of them; sizes are small.

Keys and values are those of the config.json files on the hub, written down from what is publicly known of them.
"""

_OWN = dict(
    initializer_range=0.02, torch_dtype="bfloat16", transformers_version="4.41.2", use_cache=True, vocab_size=96,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_SIZES = dict(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=4, num_key_value_heads=2,
    max_position_embeddings=4096, rms_norm_eps=1e-5, hidden_act="silu", attention_dropout=0.0,
)  # fmt: skip
_LLAMA = _OWN | _SIZES | dict(model_type="llama", architectures=["LlamaForCausalLM"], pretraining_tp=1)
_QWEN = dict(max_window_layers=2, use_sliding_window=False, rope_theta=1e6)
_GEMMA = dict(attention_bias=False, head_dim=16, pad_token_id=0, cache_implementation="hybrid")
_GEMMA |= dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=16)
_CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=1024, rope_theta=1e4)
_LONG = dict(short_factor=[1.0] * 6, long_factor=[2.0] * 6)
_NEOX = {k: v for k, v in (_OWN | _SIZES).items() if k not in ("num_key_value_heads", "rms_norm_eps")} | dict(
    model_type="gpt_neox",
    architectures=["GPTNeoXForCausalLM"],
    layer_norm_eps=1e-5,
    rotary_emb_base=10000,
    rotary_pct=0.25,
    tie_word_embeddings=False,
)
_OLMO = {k: v for k, v in (_OWN | _SIZES).items() if k != "rms_norm_eps"} | dict(
    model_type="olmo",
    architectures=["OlmoForCausalLM"],
    attention_bias=False,
    pad_token_id=1,
    rope_scaling=None,
    rope_theta=1e4,
)
_OLMO_YARN = dict(
    rope_type="yarn",
    factor=8.0,
    original_max_position_embeddings=8192,
    beta_fast=32.0,
    beta_slow=1.0,
    attention_factor=1.2079441541679836,
)
_GROWING = dict(
    rope_type="yarn",
    type="yarn",
    rope_theta=1e6,
    factor=16.0,
    original_max_position_embeddings=256,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)
_GLM = dict(attention_bias=True, head_dim=16, pad_token_id=0, partial_rotary_factor=0.5, rope_theta=1e4)
_TEXT = _SIZES | dict(head_dim=32, initializer_range=0.02, sliding_window=None, use_cache=True, vocab_size=96)
_PIXTRAL = dict(
    model_type="pixtral",
    attention_dropout=0.0,
    head_dim=16,
    hidden_act="gelu",
    hidden_size=32,
    image_size=28,
    initializer_range=0.02,
    intermediate_size=64,
    num_attention_heads=2,
    num_channels=3,
    num_hidden_layers=1,
    patch_size=14,
    rope_theta=1e4,
)
_MISTRAL_3 = dict(
    model_type="mistral3",
    architectures=["Mistral3ForConditionalGeneration"],
    dtype="bfloat16",
    image_token_index=10,
    multimodal_projector_bias=False,
    projector_hidden_act="gelu",
    spatial_merge_size=2,
    transformers_version="4.50.0",
    vision_config=_PIXTRAL,
    vision_feature_layer=-1,
)
_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}

PUBLISHED = {
    "gpt2": dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], activation_function="gelu_new", attn_pdrop=0.1,
        embd_pdrop=0.1, resid_pdrop=0.1, layer_norm_epsilon=1e-5, n_ctx=64, n_embd=32, n_head=4, n_layer=2,
        n_positions=64, summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
        summary_type="cls_index", summary_use_proj=True, vocab_size=96, bos_token_id=95, eos_token_id=95,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
    "llama-2": _LLAMA | dict(rope_scaling=None, tie_word_embeddings=False),
    "llama-3.1": _LLAMA | dict(
        attention_bias=False, mlp_bias=False, rope_theta=5e5, eos_token_id=[2, 3], rope_scaling=dict(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
    ),
    "llama, linear by its old name": _LLAMA | dict(rope_scaling={"type": "linear", "factor": 2.0}),
    "llama, dynamic by its old name": _LLAMA | dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama, after other trainers": _LLAMA | dict(
        unsloth_fixed=True, unsloth_version="2025.1", _attn_implementation_autoset=True, max_sequence_length=2048
    ),
    "smollm2": _LLAMA | {
        "is_llama_config": True, "rope_interleaved": False, "attention_bias": False, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "mistral": _OWN | _SIZES | dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=4096),
    "qwen2.5": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], sliding_window=32768, use_mrope=False
    ),
    "qwen2.5 with yarn": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], sliding_window=32768,
        rope_scaling=dict(factor=4.0, original_max_position_embeddings=1024, type="yarn"),
    ),
    "qwen3": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=32, attention_bias=False, sliding_window=None,
        rope_scaling=None,
    ),
    "qwen3-moe": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], head_dim=32, attention_bias=False,
        sliding_window=None, rope_scaling=None, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=64,
        norm_topk_prob=True, num_experts=8, num_experts_per_tok=2, output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
    "gemma": _OWN | _SIZES | dict(
        model_type="gemma", architectures=["GemmaForCausalLM"], attention_bias=False, head_dim=16, pad_token_id=0,
        hidden_act="gelu", hidden_activation=None, rope_theta=1e4, rope_scaling=None,
    ),
    "gemma-2": _OWN | _SIZES | _GEMMA | _CAPS | dict(
        model_type="gemma2", architectures=["Gemma2ForCausalLM"], hidden_act="gelu_pytorch_tanh"
    ),
    "gemma-3": {k: v for k, v in (_OWN | _SIZES | _GEMMA).items() if k != "hidden_act"} | dict(
        model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], attn_logit_softcapping=None,
        final_logit_softcapping=None, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
        sliding_window=512, sliding_window_pattern=6, eos_token_id=[1, 106],
    ),
    "phi-3": _OWN | _SIZES | dict(
        model_type="phi3", architectures=["Phi3ForCausalLM"], attention_bias=False, auto_map=_CODE, embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=4096, rope_theta=1e4, rope_scaling=None, sliding_window=2047,
        pad_token_id=0,
    ),
    "phi-4-mini": _OWN | _SIZES | dict(
        model_type="phi3", architectures=["Phi3ForCausalLM"], attention_bias=False, auto_map=_CODE, embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=1024, partial_rotary_factor=0.75, full_attn_mod=1,
        interpolate_factor=1, lm_head_bias=False, mlp_bias=False, pad_token_id=0, sliding_window=262144,
        rope_scaling={"type": "longrope"} | _LONG,
    ),
    "olmo-2": _OWN | _SIZES | dict(
        model_type="olmo2", architectures=["Olmo2ForCausalLM"], attention_bias=False, rope_scaling=None, pad_token_id=0
    ),
    "smollm3": _OWN | _SIZES | _QWEN | dict(
        model_type="smollm3", architectures=["SmolLM3ForCausalLM"], attention_bias=False, mlp_bias=False,
        layer_types=["full_attention"] * 4, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0], pretraining_tp=2,
        rope_scaling=None, sliding_window=None, pad_token_id=0,
    ),
    "mixtral": _OWN | _SIZES | dict(
        model_type="mixtral", architectures=["MixtralForCausalLM"], num_experts_per_tok=2, num_local_experts=8,
        output_router_logits=False, rope_theta=1e6, router_aux_loss_coef=0.02, sliding_window=None,
    ),
    "pythia": _NEOX | dict(hidden_act="gelu", use_parallel_residual=True, bos_token_id=0, eos_token_id=0),
    "gpt-neox-20b": _NEOX | dict(hidden_act="gelu_fast", attention_probs_dropout_prob=0, hidden_dropout_prob=0),
    "olmo-1b": _OLMO | dict(clip_qkv=None, tie_word_embeddings=True),
    "olmo-7b-0424": _OLMO | dict(clip_qkv=8.0, tie_word_embeddings=False),
    "olmo-3": _OWN | _SIZES | dict(
        model_type="olmo3", architectures=["Olmo3ForCausalLM"], attention_bias=False, pad_token_id=0,
        layer_types=["sliding_attention"] * 3 + ["full_attention"], rope_scaling=_OLMO_YARN, rope_theta=500000,
        sliding_window=64, tie_word_embeddings=False, max_position_embeddings=65536,
    ),
    "granite-3.3": _OWN | _SIZES | dict(
        model_type="granite", architectures=["GraniteForCausalLM"], attention_bias=False, mlp_bias=False,
        attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22,
        pad_token_id=0, rope_scaling=None, rope_theta=1e7, tie_word_embeddings=True,
    ),
    "ministral": _OWN | _SIZES | dict(
        model_type="ministral", architectures=["MinistralForCausalLM"], head_dim=32, rope_theta=1e8, sliding_window=64,
        layer_types=["full_attention"] + ["sliding_attention"] * 3, tie_word_embeddings=False,
    ),
    "ministral-3": _MISTRAL_3 | dict(
        text_config=_TEXT | dict(model_type="ministral3", rope_parameters=_GROWING, tie_word_embeddings=True)
    ),
    "mistral-small-3.1": _MISTRAL_3 | dict(text_config=_TEXT | dict(model_type="mistral", rope_theta=1e9)),
    "gemma-3 with images": dict(
        model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], boi_token_index=90, eoi_token_index=91,
        eos_token_id=[1, 2], image_token_index=92, initializer_range=0.02, mm_tokens_per_image=4,
        torch_dtype="bfloat16", transformers_version="4.50.0.dev0",
        text_config=dict(
            hidden_size=64, intermediate_size=128, model_type="gemma3_text", num_hidden_layers=4, vocab_size=96,
            rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024,
        ),
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=32, image_size=28, intermediate_size=64, patch_size=14,
            num_attention_heads=2, num_hidden_layers=1, vision_use_head=False,
        ),
    ),
    "glm-4-9b-chat": _OWN | _SIZES | _GLM | dict(model_type="glm", architectures=["GlmForCausalLM"]),
    "glm-4-0414": _OWN | _SIZES | _GLM | dict(
        model_type="glm4", architectures=["Glm4ForCausalLM"], eos_token_id=[2, 3, 4], tie_word_embeddings=False
    ),
    "gpt-oss, dequantised": _OWN | _SIZES | dict(
        model_type="gpt_oss", architectures=["GptOssForCausalLM"], attention_bias=True, experts_per_token=2,
        head_dim=16, initial_context_length=4096, layer_types=["sliding_attention", "full_attention"] * 2,
        num_experts_per_tok=2, num_local_experts=4, output_router_logits=False, pad_token_id=0,
        rope_scaling=dict(
            beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096, rope_type="yarn",
            truncate=False,
        ),
        rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False,
        max_position_embeddings=131072,
    ),
}  # fmt: skip
