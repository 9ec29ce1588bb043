"""transformers' Llama on our parameters: what parity with the widely used implementation is measured against.

Imported by tests and by tests/goldens/make_llama.py; needs NumPy only until `logits` is called.
"""

import numpy as np

SHAPE = dict(
    vocab_size=40, dim=8, layers=2, heads=2, kv_heads=1, head_dim=6, ffn=12, rope_theta=500.0, vocab_multiple=16
)
PADDED = 48  # 40 up to a multiple of 16


def name_of(tied: bool) -> str:
    return "tied" if tied else "untied"


def inputs(tied: bool) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(tokens, valid, parameters by path): row 0 is full, row 1 padded by 3 on the left, row 2 by 5."""
    rng, c = np.random.default_rng(7 + tied), SHAPE
    tokens = rng.integers(0, c["vocab_size"], (3, 9)).astype(np.int32)
    valid = np.arange(9)[None] >= np.array([[0], [3], [5]])
    heads, kv, L, D, F = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"], c["layers"], c["dim"], c["ffn"]
    dense = {"q": (D, heads), "k": (D, kv), "v": (D, kv), "o": (heads, D), "gate": (D, F), "up": (D, F), "down": (F, D)}
    params = {f"layers/{name}/kernel": rng.normal(0, shape[0] ** -0.5, (L, *shape)) for name, shape in dense.items()}
    params |= {f"layers/{name}/scale": rng.normal(1, 0.2, (L, D)) for name in ("attn_norm", "mlp_norm")}
    params |= {"norm/scale": rng.normal(1, 0.2, D), "embed": rng.normal(0, 1, (PADDED, D))}
    if not tied:
        params["unembed"] = rng.normal(0, D**-0.5, (D, PADDED))
    return tokens, valid, {name: leaf.astype(np.float32) for name, leaf in params.items()}


def tree_of(params: dict[str, np.ndarray]) -> dict:
    """{"decoder": ...} of the package from parameters by path."""
    tree: dict = {}
    for path, leaf in params.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return {"decoder": tree}


OURS = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
        "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}  # fmt: skip
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}


def logits(params: dict[str, np.ndarray], tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[B, T, V] of LlamaForCausalLM with eager attention in float32, positions counted over the real tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c, tied = SHAPE, "unembed" not in params
    V = c["vocab_size"]
    config = LlamaConfig(
        vocab_size=V, hidden_size=c["dim"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
        num_key_value_heads=c["kv_heads"], head_dim=c["head_dim"], intermediate_size=c["ffn"], rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]}, rope_theta=c["rope_theta"],
        tie_word_embeddings=tied, attn_implementation="eager", attention_bias=False, hidden_act="silu",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": params["embed"][:V], "model.norm.weight": params["norm/scale"]}
    state["lm_head.weight"] = params["embed"][:V] if tied else params["unembed"][:, :V].T
    for i in range(c["layers"]):
        layer = f"model.layers.{i}."
        state |= {f"{layer}{hf}.weight": params[f"layers/{name}/kernel"][i].T for hf, name in OURS.items()}
        state |= {f"{layer}{hf}.weight": params[f"layers/{name}/scale"][i] for hf, name in NORMS.items()}
    state = {name: torch.tensor(np.ascontiguousarray(leaf)) for name, leaf in state.items()}
    model.load_state_dict(state, strict=True)
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens.astype(np.int64)), attention_mask=torch.tensor(valid.astype(np.int64)),
            position_ids=torch.tensor(positions),
        )  # fmt: skip
    return out.logits.numpy()
