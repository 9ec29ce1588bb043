"""The table of every family: its classes, which fields of its config.json are which of ours, and its tensors.

One table serves both directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from alignax.models.config import ModelConfig
from alignax.models.hf import fields as f
from alignax.models.hf import rows
from alignax.models.hf.rows import OUTPUT, Row


class Family(NamedTuple):
    """A `model_type` of transformers."""

    name: str
    causal: str  # the class of language models, as `architectures` names it
    classifier: str  # that with a scalar head; "": transformers has none
    fixed: dict[str, Any]  # fields of ModelConfig that all its models share
    fields: tuple[f.Field, ...]
    rows: Callable[[ModelConfig], list[Row]]
    output: str = OUTPUT  # the tensor of the output layer, which some files of tied models have as well


_PLAIN = (*f.SHAPE, f.HEAD_DIM, f.ROPE, f.activation("hidden_act"))
_EQUAL_HEADS = f.Field((), lambda t: {"head_dim": t["hidden_size"] // t["num_attention_heads"]}, lambda c: {})
_NO_HEAD_DIM = (*f.SHAPE, _EQUAL_HEADS, f.activation("hidden_act"))
_GEMMA = (*f.SHAPE, f.HEAD_DIM, f.ATTENTION_BIAS, f.only("use_bidirectional_attention", None, False))
_GEMMA_FIRST = (f.activation("hidden_act"), f.only("hidden_activation", None, "gelu_pytorch_tanh"))
_GEMMA_CAPPED = (
    f.activation("hidden_activation"),
    f.unread("hidden_act"),  # in published files; nothing of these families reads it
    f.BY_LAYER,
    f.QUERY_SCALE,
    f.optional("attn_logit_softcapping", "attention_softcap"),
    f.optional("final_logit_softcapping", "logit_softcap"),
)
_GEMMA_FIXED = {"norm": "rms_plus_one", "scale_embedding": True}
_GPT2 = (
    f.same("n_embd", "dim"),
    f.same("n_layer", "layers"),
    f.Field(
        ("n_head",),
        lambda t: {"heads": t["n_head"], "kv_heads": t["n_head"], "head_dim": t["n_embd"] // t["n_head"]},
        lambda c: {"n_head": c.heads},
    ),
    f.Field(
        ("n_inner",),
        lambda t: {"ffn": t.get("n_inner") or 4 * t["n_embd"]},
        lambda c: {"n_inner": None if c.ffn == 4 * c.dim else c.ffn},
    ),
    f.same("n_positions", "max_positions"),
    f.same("layer_norm_epsilon", "norm_eps"),
    f.activation("activation_function"),
    f.only("scale_attn_weights", True),
    f.only("scale_attn_by_inverse_layer_idx", False),
    f.only("tie_word_embeddings", True),
)
_GPT2_FIXED = {
    "norm": "layer", "positions": "learned", "qkv_bias": True, "out_bias": True, "mlp_bias": True, "gated": False,
    "tie_embeddings": True,
}  # fmt: skip
_GPT_NEOX = (
    *f.without("num_key_value_heads", "rms_norm_eps"),
    f.Field((), lambda t: {"kv_heads": t["num_attention_heads"]}, lambda c: {}),
    _EQUAL_HEADS,
    f.same("layer_norm_eps", "norm_eps"),
    f.same("use_parallel_residual", "parallel_residual"),
    f.activation("hidden_act"),
    f.ROPE_WITH_SHARE,
    f.ATTENTION_BIAS,
    f.unread("hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "is_decoder"),
)
_GRANITE = (
    f.same("mlp_bias", "mlp_bias"),
    f.ATTENTION_MULTIPLIER,
    f.number("embedding_multiplier", "embedding_multiplier"),
    f.number("residual_multiplier", "residual_multiplier"),
    f.number("logits_scaling", "logit_divisor"),
)
_GLM = (*f.SHAPE, f.HEAD_DIM, f.activation("hidden_act"), f.ROPE_WITH_SHARE, f.same("attention_bias", "qkv_bias"))
_GPT_OSS = (
    f.BY_LAYER,
    f.ATTENTION_BIAS,
    f.only("hidden_act", "silu"),  # in every file; the experts have the next one
    f.only("swiglu_alpha", 1.702),
    f.number("swiglu_limit", "glu_limit"),
    f.unread("experts_per_token", "initial_context_length"),  # num_experts_per_tok and the rope's original length again
)
_GPT_OSS_FIXED = {"activation": "quick_gelu", "up_offset": 1.0, "mlp_bias": True, "sinks": True}


def _sparse_fields(count: str, width: str, *others: f.Field) -> tuple[f.Field, ...]:
    shape = f.without("intermediate_size")
    ours = f.same(count, "experts"), f.same("num_experts_per_tok", "experts_per_token"), f.same(width, "ffn")
    return (*shape, f.HEAD_DIM, f.ROPE, *ours, *others)


def _family(
    name: str, causal: str, fields: tuple, tensors: Callable = rows.llama, classifier: str | None = None,
    output: str = OUTPUT, **fixed,
) -> Family:  # fmt: skip
    if classifier is None:
        classifier = causal.replace("ForCausalLM", "ForSequenceClassification")
    return Family(name, causal, classifier, fixed, fields, tensors, output)


FAMILIES = {
    family.name: family
    for family in (
        _family("llama", "LlamaForCausalLM", (*_PLAIN, f.ATTENTION_BIAS, f.same("mlp_bias", "mlp_bias"))),
        _family("mistral", "MistralForCausalLM", (*_PLAIN, f.ALL_SLIDING)),
        _family("qwen2", "Qwen2ForCausalLM", (*_NO_HEAD_DIM, f.ROPE, f.SOMETIMES_SLIDING), qkv_bias=True),
        _family("qwen3", "Qwen3ForCausalLM", (*_PLAIN, f.ATTENTION_BIAS, f.SOMETIMES_SLIDING), qk_norm="head"),
        _family("gemma", "GemmaForCausalLM", (*_GEMMA, f.ROPE, *_GEMMA_FIRST), **_GEMMA_FIXED),
        _family("gemma2", "Gemma2ForCausalLM", (*_GEMMA, f.ROPE, *_GEMMA_CAPPED), norm_at="both", **_GEMMA_FIXED),
        _family(
            "gemma3_text", "Gemma3ForCausalLM", (*_GEMMA, f.TWO_ROPES, *_GEMMA_CAPPED), norm_at="both", qk_norm="head",
            classifier="Gemma3TextForSequenceClassification", **_GEMMA_FIXED,
        ),
        _family("phi3", "Phi3ForCausalLM", (*_NO_HEAD_DIM, f.PARTIAL_ROPE, f.ALL_SLIDING), rows.phi3),
        _family(
            "olmo2", "Olmo2ForCausalLM", (*_NO_HEAD_DIM, f.ROPE, f.ATTENTION_BIAS), norm_at="after", qk_norm="all",
            classifier="Olmo2ForSequenceClassification",
        ),
        _family(
            "smollm3", "SmolLM3ForCausalLM",
            (*_NO_HEAD_DIM, f.ROPE, f.ATTENTION_BIAS, f.same("mlp_bias", "mlp_bias"), f.SOMETIMES_ROTATED),
        ),
        _family(
            "mixtral", "MixtralForCausalLM",
            _sparse_fields("num_local_experts", "intermediate_size", f.activation("hidden_act"), f.ALL_SLIDING),
            rows.sparse("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
        ),
        _family(
            "qwen3_moe", "Qwen3MoeForCausalLM",
            _sparse_fields(
                "num_local_experts", "moe_intermediate_size", f.activation("hidden_act"), f.ATTENTION_BIAS,
                f.unread("intermediate_size"),  # of layers without experts, of which there are none: mlp_only_layers
                f.same("norm_topk_prob", "renormalise_experts"), f.only("decoder_sparse_step", 1),
                f.only("mlp_only_layers", [], None), f.only("sliding_window", None),
                f.only("use_sliding_window", False),
            ),
            rows.sparse("mlp", {name: f"{name}_proj" for name in ("gate", "up", "down")}), qk_norm="head",
        ),
        _family("gpt2", "GPT2LMHeadModel", _GPT2, rows.gpt2, classifier="GPT2ForSequenceClassification", **_GPT2_FIXED),
        _family(
            "gpt_neox", "GPTNeoXForCausalLM", _GPT_NEOX, rows.gpt_neox, output=rows.NEOX_OUTPUT, norm="layer",
            gated=False, mlp_bias=True,
        ),
        _family(
            "olmo", "OlmoForCausalLM",
            (
                *f.without("rms_norm_eps"), _EQUAL_HEADS, f.activation("hidden_act"), f.ROPE, f.ATTENTION_BIAS,
                f.optional("clip_qkv", "qkv_clip"),
            ),
            norm="layer_nonparametric", norm_eps=1e-5,
        ),
        _family(
            "olmo3", "Olmo3ForCausalLM", (*_NO_HEAD_DIM, f.TWO_ROPES, f.BY_LAYER, f.ATTENTION_BIAS), norm_at="after",
            qk_norm="all",
        ),
        _family("granite", "GraniteForCausalLM", (*_NO_HEAD_DIM, f.ROPE, f.ATTENTION_BIAS, *_GRANITE), classifier=""),
        _family("ministral", "MinistralForCausalLM", (*_PLAIN, f.BY_LAYER)),
        _family(
            "ministral3", "Ministral3ForCausalLM",
            (*f.SHAPE, f.HEAD_DIM, f.activation("hidden_act"), f.ROPE_WITH_GROWTH, f.ALL_SLIDING),
        ),
        _family("glm", "GlmForCausalLM", _GLM, rows.glm, rope_interleaved=True),
        _family("glm4", "Glm4ForCausalLM", _GLM, rows.glm, rope_interleaved=True, norm_at="both"),
        _family(
            "gpt_oss", "GptOssForCausalLM", _sparse_fields("num_local_experts", "intermediate_size", *_GPT_OSS),
            rows.gpt_oss, **_GPT_OSS_FIXED,
        ),
    )
}  # fmt: skip
