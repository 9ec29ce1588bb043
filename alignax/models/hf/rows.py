"""The tensors of every family: which of a checkpoint's is which leaf of ours.

A row says a tensor's name, our leaves below "decoder/" (several where theirs are ours joined along the output axis) and
whether it is transposed: PyTorch's linear layers are [out, in], ours [in, out].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from alignax.models.config import ModelConfig


class Row(NamedTuple):
    """One tensor of a checkpoint; `{i}` stands for the layer and `{e}` for the expert."""

    theirs: str
    ours: tuple[str, ...]
    turned: bool = False
    block: int = 0  # joined leaves take turns after so many outputs of each; 0: one whole leaf after the other


Rows = Callable[[ModelConfig], list[Row]]  # the tensors of a family's checkpoint


def split(value: np.ndarray, sizes: Sequence[int], block: int = 0) -> list[np.ndarray]:
    """The parts of a joined tensor, along its last axis, where part p has sizes[p] outputs."""
    if not block:
        return np.split(value, np.cumsum(sizes)[:-1], axis=-1)
    by_turn = value.reshape(*value.shape[:-1], -1, len(sizes), block)
    return [by_turn[..., p, :].reshape(*value.shape[:-1], -1) for p in range(len(sizes))]


def join(parts: Sequence[np.ndarray], block: int = 0) -> np.ndarray:
    """What `split` takes apart."""
    if not block:
        return np.concatenate(parts, axis=-1)
    by_turn = np.stack([part.reshape(*part.shape[:-1], -1, block) for part in parts], axis=-2)
    return by_turn.reshape(*parts[0].shape[:-1], -1)


# ---- Llama's names

OUTPUT = "lm_head.weight"
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
GLM_NORMS = NORMS["before"] | {"attn_post_norm": "post_self_attn_layernorm", "mlp_post_norm": "post_mlp_layernorm"}


def _linear(hf_name: str, *linears: str, bias: bool = False, block: int = 0) -> list[Row]:
    rows = [Row(f"{hf_name}.weight", tuple(f"layers/{name}/kernel" for name in linears), turned=True, block=block)]
    biases = [Row(f"{hf_name}.bias", tuple(f"layers/{name}/bias" for name in linears), block=block)]
    return rows + (biases if bias else [])


def _outside(c: ModelConfig) -> list[Row]:
    rows = [Row("model.embed_tokens.weight", ("embed",))]
    rows += [] if c.norm == "layer_nonparametric" else [Row("model.norm.weight", ("norm/scale",))]
    return rows + ([] if c.tie_embeddings else [Row(OUTPUT, ("unembed",), turned=True)])


def _norms(c: ModelConfig, names: dict[str, str] | None = None) -> list[Row]:
    """Of each layer; `names` are ours and theirs, where they are not Llama's."""
    named = {} if c.norm == "layer_nonparametric" else names or NORMS[c.norm_at]
    rows = [Row(f"{LAYER}{hf_name}.weight", (f"layers/{name}/scale",)) for name, hf_name in named.items()]
    if c.qk_norm != "none":
        rows += [Row(f"{LAYER}self_attn.{x}_norm.weight", (f"layers/{x}_norm/scale",)) for x in "qk"]
    return rows


def _attention(c: ModelConfig) -> list[Row]:
    rows = [row for x in "qkv" for row in _linear(f"{LAYER}self_attn.{x}_proj", x, bias=c.qkv_bias)]
    return rows + _linear(f"{LAYER}self_attn.o_proj", "o", bias=c.out_bias)


def llama(c: ModelConfig) -> list[Row]:
    """What most families have."""
    mlp = [row for x in ("gate", "up", "down") for row in _linear(f"{LAYER}mlp.{x}_proj", x, bias=c.mlp_bias)]
    return _outside(c) + _norms(c) + _attention(c) + mlp


def phi3(c: ModelConfig) -> list[Row]:
    """Queries, keys and values are joined, gate and up too."""
    joined = _linear(f"{LAYER}self_attn.qkv_proj", "q", "k", "v") + _linear(f"{LAYER}mlp.gate_up_proj", "gate", "up")
    alone = _linear(f"{LAYER}self_attn.o_proj", "o") + _linear(f"{LAYER}mlp.down_proj", "down")
    return _outside(c) + _norms(c) + joined + alone


def glm(c: ModelConfig) -> list[Row]:
    """Gate and up are joined; norms after each part have names of their own."""
    names = {name: hf_name for name, hf_name in GLM_NORMS.items() if c.norm_at == "both" or "post" not in name}
    mlp = _linear(f"{LAYER}mlp.gate_up_proj", "gate", "up") + _linear(f"{LAYER}mlp.down_proj", "down")
    return _outside(c) + _norms(c, names) + _attention(c) + mlp


# ---- experts


def sparse(module: str, names: dict[str, str]) -> Rows:
    """Llama's names, but for experts of which each has tensors of its own."""

    def rows(c: ModelConfig) -> list[Row]:
        router = Row(f"{LAYER}{module}.gate.weight", ("layers/experts/router",), turned=True)
        each = [
            Row(f"{LAYER}{module}.experts.{{e}}.{hf_name}.weight", (f"layers/experts/{name}",), turned=True)
            for name, hf_name in names.items()
        ]
        return _outside(c) + _norms(c) + _attention(c) + [router, *each]

    return rows


def gpt_oss(c: ModelConfig) -> list[Row]:
    """Experts share a tensor, which is [expert, in, out]; gate and up alternate in it, number by number."""
    leaf = "layers/experts/{}"
    mlp = [Row(f"{LAYER}mlp.router.weight", (leaf.format("router"),), turned=True)]
    mlp += [Row(f"{LAYER}mlp.router.bias", (leaf.format("router_bias"),))]
    for end in ("", "_bias"):
        pair = tuple(leaf.format(name + end) for name in ("gate", "up"))
        mlp += [Row(f"{LAYER}mlp.experts.gate_up_proj{end}", pair, block=1)]
        mlp += [Row(f"{LAYER}mlp.experts.down_proj{end}", (leaf.format("down" + end),))]
    return _outside(c) + _norms(c) + _attention(c) + [Row(f"{LAYER}self_attn.sinks", ("layers/sinks/logit",)), *mlp]


# ---- names of their own


def _layer_norm(hf_name: str, name: str) -> list[Row]:
    return [Row(f"{hf_name}.{x}", (f"{name}/{y}",)) for x, y in (("weight", "scale"), ("bias", "bias"))]


def gpt2(c: ModelConfig) -> list[Row]:
    """Its Conv1D weights are [in, out], as ours."""

    def conv(hf_name: str, *linears: str) -> list[Row]:
        names = ("weight", "kernel"), ("bias", "bias")
        return [
            Row(f"transformer.h.{{i}}.{hf_name}.{x}", tuple(f"layers/{name}/{y}" for name in linears)) for x, y in names
        ]

    return [
        Row("transformer.wte.weight", ("embed",)),
        Row("transformer.wpe.weight", ("positions",)),
        *_layer_norm("transformer.ln_f", "norm"),
        *_layer_norm("transformer.h.{i}.ln_1", "layers/attn_norm"),
        *_layer_norm("transformer.h.{i}.ln_2", "layers/mlp_norm"),
        *conv("attn.c_attn", "q", "k", "v"),
        *conv("attn.c_proj", "o"),
        *conv("mlp.c_fc", "up"),
        *conv("mlp.c_proj", "down"),
    ]


NEOX_OUTPUT = "embed_out.weight"


def gpt_neox(c: ModelConfig) -> list[Row]:
    """Queries, keys and values are joined head by head."""
    layer, bias = "gpt_neox.layers.{i}.", c.qkv_bias
    return [
        Row("gpt_neox.embed_in.weight", ("embed",)),
        *([] if c.tie_embeddings else [Row(NEOX_OUTPUT, ("unembed",), turned=True)]),
        *_layer_norm("gpt_neox.final_layer_norm", "norm"),
        *_layer_norm(f"{layer}input_layernorm", "layers/attn_norm"),
        *_layer_norm(f"{layer}post_attention_layernorm", "layers/mlp_norm"),
        *_linear(f"{layer}attention.query_key_value", "q", "k", "v", bias=bias, block=c.head_dim),
        *_linear(f"{layer}attention.dense", "o", bias=bias),
        *_linear(f"{layer}mlp.dense_h_to_4h", "up", bias=True),
        *_linear(f"{layer}mlp.dense_4h_to_h", "down", bias=True),
    ]
