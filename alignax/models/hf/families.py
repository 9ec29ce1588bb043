"""The table of every family: its classes, which fields of its config.json are which of ours, and its tensors.

One table serves both directions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignax.models.hf import fields as f
from alignax.models.hf import rope_fields as r
from alignax.models.hf import rows
from alignax.models.hf.rows import OUTPUT, Rows


class Family(NamedTuple):
    """A `model_type` of transformers."""

    name: str
    causal: str  # the class of language models, as `architectures` names it
    classifier: str  # that with a scalar head; "": transformers has none
    fixed: dict[str, Any]  # fields of ModelConfig that all its models share
    fields: tuple[f.Field, ...]
    rows: Rows
    output: str = OUTPUT  # the tensor of the output layer, which some files of tied models have as well


_PLAIN = (*f.SHAPE, f.HEAD_DIM, r.ROPE, f.activation("hidden_act"))
_NO_HEAD_DIM = (*f.SHAPE, f.OWN_HEAD_DIM, f.activation("hidden_act"))
_GEMMA = (*f.SHAPE, f.HEAD_DIM, f.ATTENTION_BIAS, f.only("use_bidirectional_attention", None, False))
_GEMMA_CAPPED = (
    f.activation("hidden_activation"),
    f.BY_LAYER,
    f.QUERY_SCALE,
    f.optional("final_logit_softcapping", "logit_softcap"),
)
_ATTENTION_CAP = f.optional("attn_logit_softcapping", "attention_softcap")
_GEMMA_FIXED = {"norm": "rms_plus_one", "scale_embedding": True}


def _gpt2_heads(t: Mapping[str, Any]) -> dict:
    if t["n_head"] < 1 or t["n_embd"] % t["n_head"]:
        raise ValueError(f"n_head = {t['n_head']}: expected a divisor of n_embd = {t['n_embd']}")
    return {"heads": t["n_head"], "kv_heads": t["n_head"], "head_dim": t["n_embd"] // t["n_head"]}


_GPT2 = (
    f.same("n_embd", "dim"),
    f.same("n_layer", "layers"),
    f.Field(("n_head",), _gpt2_heads, lambda c: {"n_head": c.heads}),
    f.Field(
        ("n_inner",),
        lambda t: {"ffn": 4 * t["n_embd"] if t.get("n_inner") is None else t["n_inner"]},
        lambda c: {"n_inner": None if c.ffn == 4 * c.dim else c.ffn},
    ),
    f.same("n_positions", "max_positions"),
    f.same("layer_norm_epsilon", "norm_eps"),
    f.activation("activation_function"),
    f.only("scale_attn_weights", True),
    f.only("scale_attn_by_inverse_layer_idx", False),
    f.only("add_cross_attention", False),
    f.only("tie_word_embeddings", True),
)
_GPT2_FIXED = {
    "norm": "layer", "positions": "learned", "qkv_bias": True, "out_bias": True, "mlp_bias": True, "gated": False,
    "tie_embeddings": True,
}  # fmt: skip


def _neox_heads(t: Mapping[str, Any]) -> dict:
    """Each has keys of its own and an equal share of the width; a `head_dim` is read for the rotation alone."""
    heads = t["num_attention_heads"]
    width = t["hidden_size"] // heads
    if t.get("head_dim") not in (None, width):
        raise ValueError(f"head_dim = {t['head_dim']!r}: supported is hidden_size / num_attention_heads = {width}")
    return {"heads": heads, "kv_heads": heads, "head_dim": width}


_GPT_NEOX = (
    *f.without("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
    f.Field(("num_attention_heads", "head_dim"), _neox_heads, lambda c: {"num_attention_heads": c.heads}),
    f.same("layer_norm_eps", "norm_eps"),
    f.same("use_parallel_residual", "parallel_residual"),
    f.activation("hidden_act"),
    r.ROPE_WITH_SHARE,
    f.ATTENTION_BIAS,
)
_GRANITE = (
    f.same("mlp_bias", "mlp_bias"),
    f.ATTENTION_MULTIPLIER,
    f.number("embedding_multiplier", "embedding_multiplier"),
    f.number("residual_multiplier", "residual_multiplier"),
    f.number("logits_scaling", "logit_divisor"),
)
_GLM = (*f.SHAPE, f.HEAD_DIM, f.activation("hidden_act"), r.ROPE_WITH_SHARE, f.same("attention_bias", "qkv_bias"))


def _sparse_fields(count: str, width: str, *others: f.Field) -> tuple[f.Field, ...]:
    shape = f.without("intermediate_size")
    routing = f.count(count, "experts"), f.same("num_experts_per_tok", "experts_per_token"), f.same(width, "ffn")
    return (*shape, r.ROPE, *routing, *others)


_MIXTRAL = _sparse_fields(
    "num_local_experts", "intermediate_size", f.NULL_HEAD_DIM, f.activation("hidden_act"), f.ALL_SLIDING
)
_QWEN3_MOE = _sparse_fields(
    "num_local_experts", "moe_intermediate_size", f.HEAD_DIM, f.activation("hidden_act"), f.ATTENTION_BIAS,
    f.unused("intermediate_size"),  # of layers without experts, of which there are none: mlp_only_layers
    f.same("norm_topk_prob", "renormalise_experts"), f.only("decoder_sparse_step", 1),
    f.only("mlp_only_layers", [], None), f.only("sliding_window", None), f.only("use_sliding_window", False),
)  # fmt: skip
_GPT_OSS = _sparse_fields(
    "num_local_experts", "intermediate_size", f.HEAD_DIM, f.BY_LAYER, f.ATTENTION_BIAS, f.only("swiglu_alpha", 1.702),
    f.number("swiglu_limit", "glu_limit"),
)  # fmt: skip
_GPT_OSS_FIXED = {"activation": "quick_gelu", "up_offset": 1.0, "mlp_bias": True, "sinks": True}


def _family(
    name: str, causal: str, fields: tuple, tensors: Rows = rows.llama, classifier: str | None = None,
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
        _family("qwen2", "Qwen2ForCausalLM", (*_NO_HEAD_DIM, r.ROPE, f.SOMETIMES_SLIDING), qkv_bias=True),
        _family("qwen3", "Qwen3ForCausalLM", (*_PLAIN, f.ATTENTION_BIAS, f.SOMETIMES_SLIDING), qk_norm="head"),
        _family("gemma", "GemmaForCausalLM", (*_GEMMA, r.ROPE, f.activation("hidden_act")), **_GEMMA_FIXED),
        _family(
            "gemma2", "Gemma2ForCausalLM", (*_GEMMA, r.ROPE, *_GEMMA_CAPPED, _ATTENTION_CAP), norm_at="both",
            **_GEMMA_FIXED,
        ),
        _family(
            "gemma3_text", "Gemma3ForCausalLM",
            (*_GEMMA, r.TWO_ROPES, *_GEMMA_CAPPED, f.unused("attn_logit_softcapping")), norm_at="both", qk_norm="head",
            classifier="Gemma3TextForSequenceClassification", **_GEMMA_FIXED,
        ),
        _family("phi3", "Phi3ForCausalLM", (*_NO_HEAD_DIM, r.PARTIAL_ROPE, f.ALL_SLIDING), rows.phi3),
        _family(
            "olmo2", "Olmo2ForCausalLM", (*_NO_HEAD_DIM, r.ROPE, f.ATTENTION_BIAS), norm_at="after", qk_norm="all",
            classifier="Olmo2ForSequenceClassification",
        ),
        _family(
            "smollm3", "SmolLM3ForCausalLM",
            (*_NO_HEAD_DIM, r.ROPE, f.ATTENTION_BIAS, f.same("mlp_bias", "mlp_bias"), f.SOMETIMES_ROTATED),
        ),
        _family(
            "mixtral", "MixtralForCausalLM", _MIXTRAL,
            rows.sparse("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
        ),
        _family(
            "qwen3_moe", "Qwen3MoeForCausalLM", _QWEN3_MOE,
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
                *f.without("rms_norm_eps"), f.OWN_HEAD_DIM, f.activation("hidden_act"), r.ROPE, f.ATTENTION_BIAS,
                f.optional("clip_qkv", "qkv_clip"),
            ),
            norm="layer_nonparametric", norm_eps=1e-5,
        ),
        _family(
            "olmo3", "Olmo3ForCausalLM", (*_NO_HEAD_DIM, r.TWO_ROPES, f.BY_LAYER, f.ATTENTION_BIAS), norm_at="after",
            qk_norm="all",
        ),
        _family("granite", "GraniteForCausalLM", (*_NO_HEAD_DIM, r.ROPE, f.ATTENTION_BIAS, *_GRANITE), classifier=""),
        _family("ministral", "MinistralForCausalLM", (*_PLAIN, f.BY_LAYER)),
        _family(
            "ministral3", "Ministral3ForCausalLM",
            (*f.SHAPE, f.HEAD_DIM, f.activation("hidden_act"), r.ROPE_WITH_GROWTH, f.ALL_SLIDING),
        ),
        _family("glm", "GlmForCausalLM", _GLM, rows.glm, rope_interleaved=True),
        _family("glm4", "Glm4ForCausalLM", _GLM, rows.glm, rope_interleaved=True, norm_at="both"),
        _family("gpt_oss", "GptOssForCausalLM", _GPT_OSS, rows.gpt_oss, **_GPT_OSS_FIXED),
    )
}  # fmt: skip
