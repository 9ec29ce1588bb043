"""The table of every family: which fields of its config.json are which of ours, and which tensor is which leaf.

One table serves both directions. A tensor's row says its name, our leaves below "decoder/" (several where theirs are
ours joined along the output axis) and whether it is transposed: PyTorch's linear layers are [out, in], ours [in, out].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from alignax.models.config import ModelConfig
from alignax.models.hf import fields as f


class Row(NamedTuple):
    """One tensor of a checkpoint; `{i}` stands for the layer and `{e}` for the expert."""

    theirs: str
    ours: tuple[str, ...]
    turned: bool = False


class Family(NamedTuple):
    """A `model_type` of transformers."""

    name: str
    causal: str  # the class of language models, as `architectures` names it
    classifier: str  # that with a scalar head
    fixed: dict[str, Any]  # fields of ModelConfig that all its models share
    fields: tuple[f.Field, ...]
    rows: Callable[[ModelConfig], list[Row]]


# ---- tensors

LAYER = "model.layers.{i}."
NORMS = {
    "before": {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
    "both": {
        "attn_norm": "input_layernorm",
        "attn_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


def _linear(theirs: str, *ours: str, bias: bool = False) -> list[Row]:
    rows = [Row(f"{theirs}.weight", tuple(f"layers/{name}/kernel" for name in ours), turned=True)]
    return rows + ([Row(f"{theirs}.bias", tuple(f"layers/{name}/bias" for name in ours))] if bias else [])


def _outside(c: ModelConfig) -> list[Row]:
    rows = [Row("model.embed_tokens.weight", ("embed",)), Row("model.norm.weight", ("norm/scale",))]
    return rows + ([] if c.tie_embeddings else [Row("lm_head.weight", ("unembed",), turned=True)])


def _norms(c: ModelConfig) -> list[Row]:
    rows = [Row(f"{LAYER}{theirs}.weight", (f"layers/{ours}/scale",)) for ours, theirs in NORMS[c.norm_at].items()]
    if c.qk_norm != "none":
        rows += [Row(f"{LAYER}self_attn.{x}_norm.weight", (f"layers/{x}_norm/scale",)) for x in "qk"]
    return rows


def _attention(c: ModelConfig) -> list[Row]:
    rows = [row for x in "qkv" for row in _linear(f"{LAYER}self_attn.{x}_proj", x, bias=c.qkv_bias)]
    return rows + _linear(f"{LAYER}self_attn.o_proj", "o", bias=c.out_bias)


def _llama(c: ModelConfig) -> list[Row]:
    mlp = [row for x in ("gate", "up", "down") for row in _linear(f"{LAYER}mlp.{x}_proj", x, bias=c.mlp_bias)]
    return _outside(c) + _norms(c) + _attention(c) + mlp


def _phi3(c: ModelConfig) -> list[Row]:
    joined = _linear(f"{LAYER}self_attn.qkv_proj", "q", "k", "v") + _linear(f"{LAYER}mlp.gate_up_proj", "gate", "up")
    alone = _linear(f"{LAYER}self_attn.o_proj", "o") + _linear(f"{LAYER}mlp.down_proj", "down")
    return _outside(c) + _norms(c) + joined + alone


def _sparse(module: str, names: dict[str, str]) -> Callable[[ModelConfig], list[Row]]:
    def rows(c: ModelConfig) -> list[Row]:
        router = Row(f"{LAYER}{module}.gate.weight", ("layers/experts/router",), turned=True)
        each = [
            Row(f"{LAYER}{module}.experts.{{e}}.{theirs}.weight", (f"layers/experts/{ours}",), turned=True)
            for ours, theirs in names.items()
        ]
        return _outside(c) + _norms(c) + _attention(c) + [router, *each]

    return rows


def _gpt2(c: ModelConfig) -> list[Row]:
    """Its Conv1D weights are [in, out], as ours."""

    def conv(theirs: str, *ours: str) -> list[Row]:
        names = ("weight", "kernel"), ("bias", "bias")
        return [
            Row(f"transformer.h.{{i}}.{theirs}.{x}", tuple(f"layers/{name}/{y}" for name in ours)) for x, y in names
        ]

    def layer_norm(theirs: str, ours: str) -> list[Row]:
        return [Row(f"transformer.{theirs}.{x}", (f"{ours}/{y}",)) for x, y in (("weight", "scale"), ("bias", "bias"))]

    return [
        Row("transformer.wte.weight", ("embed",)),
        Row("transformer.wpe.weight", ("positions",)),
        *layer_norm("ln_f", "norm"),
        *layer_norm("h.{i}.ln_1", "layers/attn_norm"),
        *layer_norm("h.{i}.ln_2", "layers/mlp_norm"),
        *conv("attn.c_attn", "q", "k", "v"),
        *conv("attn.c_proj", "o"),
        *conv("mlp.c_fc", "up"),
        *conv("mlp.c_proj", "down"),
    ]


# ---- families

_PLAIN = (*f.SHAPE, f.HEAD_DIM, f.ROPE, f.activation("hidden_act"))
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


# of the layers without experts, of which there are none: see mlp_only_layers
_DENSE_WIDTH = f.unused("intermediate_size")


def _sparse_fields(count: str, width: str, *others: f.Field) -> tuple[f.Field, ...]:
    shape = tuple(field for field in f.SHAPE if field.keys != ("intermediate_size",))
    ours = f.count(count, "experts"), f.same("num_experts_per_tok", "experts_per_token"), f.same(width, "ffn")
    return (*shape, f.ROPE, f.activation("hidden_act"), *ours, *others)


def _family(name: str, causal: str, fields: tuple, rows: Callable = _llama, classifier: str = "", **fixed) -> Family:
    classifier = classifier or causal.replace("ForCausalLM", "ForSequenceClassification")
    return Family(name, causal, classifier, fixed, fields, rows)


FAMILIES = {
    family.name: family
    for family in (
        _family("llama", "LlamaForCausalLM", (*_PLAIN, f.ATTENTION_BIAS, f.same("mlp_bias", "mlp_bias"))),
        _family("mistral", "MistralForCausalLM", (*_PLAIN, f.ALL_SLIDING)),
        _family("qwen2", "Qwen2ForCausalLM", (*_NO_HEAD_DIM, f.ROPE, f.SOMETIMES_SLIDING), qkv_bias=True),
        _family("qwen3", "Qwen3ForCausalLM", (*_PLAIN, f.ATTENTION_BIAS, f.SOMETIMES_SLIDING), qk_norm="head"),
        _family("gemma", "GemmaForCausalLM", (*_GEMMA, f.ROPE, f.activation("hidden_act")), **_GEMMA_FIXED),
        _family(
            "gemma2", "Gemma2ForCausalLM", (*_GEMMA, f.ROPE, *_GEMMA_CAPPED, _ATTENTION_CAP), norm_at="both",
            **_GEMMA_FIXED,
        ),
        _family(
            "gemma3_text", "Gemma3ForCausalLM",
            (*_GEMMA, f.TWO_ROPES, *_GEMMA_CAPPED, f.unused("attn_logit_softcapping")), norm_at="both", qk_norm="head",
            classifier="Gemma3TextForSequenceClassification", **_GEMMA_FIXED,
        ),
        _family("phi3", "Phi3ForCausalLM", (*_NO_HEAD_DIM, f.PARTIAL_ROPE, f.ALL_SLIDING), _phi3),
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
            _sparse_fields("num_local_experts", "intermediate_size", f.NULL_HEAD_DIM, f.ALL_SLIDING),
            _sparse("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
        ),
        _family(
            "qwen3_moe", "Qwen3MoeForCausalLM",
            _sparse_fields(
                "num_local_experts", "moe_intermediate_size", f.HEAD_DIM, f.ATTENTION_BIAS, _DENSE_WIDTH,
                f.same("norm_topk_prob", "renormalise_experts"), f.only("decoder_sparse_step", 1),
                f.only("mlp_only_layers", [], None), f.only("sliding_window", None),
                f.only("use_sliding_window", False),
            ),
            _sparse("mlp", {name: f"{name}_proj" for name in ("gate", "up", "down")}), qk_norm="head",
        ),
        _family("gpt2", "GPT2LMHeadModel", _GPT2, _gpt2, classifier="GPT2ForSequenceClassification", **_GPT2_FIXED),
    )
}  # fmt: skip
