"""The decoder as a bundle of pure functions: layers scanned over stacked parameters, one cache per layer in decoding.

A parameter tree is `{"decoder": {"embed", "layers" (each leaf [L, ...]), "norm", "unembed" (untied only)}}`, and
`"scalar"` beside it for a reward or value model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.models.config import ModelConfig
from alignax.models.heads import init_scalar, scalar
from alignax.models.layers import Block, attend_one, attention, norm
from alignax.types import Model, Params

REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def decoder(config: ModelConfig, constrain: Callable[[Array], Array] = lambda x: x) -> Model:
    """The model of a config. `apply`, `prefill` and `decode` agree: tests hold them to it.

    `constrain` is put on the residual [B, T, D] before and after every layer: `sharding.rows(mesh)` keeps its rows
    split over all devices, where the compiler would otherwise be free to gather rows instead of kernels.
    """
    block, final = Block(config), norm(config)
    dtype = jnp.dtype(config.dtype)

    def init(key: Array) -> Params:
        x, positions = jnp.zeros((1, 1, config.dim), dtype), jnp.zeros((1, 1), jnp.int32)
        k_embed, k_layers, k_head, k_norm = jax.random.split(key, 4)
        see = lambda q, k, v: (attention(q, k, v, jnp.ones((1, 1, 1), bool)), None)  # noqa: E731
        one = lambda k: block.init(k, x, positions, see)["params"]  # noqa: E731
        tree = {
            "embed": config.dim**-0.5 * jax.random.normal(k_embed, (config.padded_vocab, config.dim)),
            "layers": jax.vmap(one)(jax.random.split(k_layers, config.layers)),
            "norm": final.init(k_norm, x)["params"],
        }
        if not config.tie_embeddings:
            tree["unembed"] = jax.random.normal(k_head, (config.dim, config.padded_vocab)) * config.dim**-0.5
        return {"decoder": tree}

    def embed(params: Params, tokens: Array) -> Array:
        return params["decoder"]["embed"][tokens].astype(dtype)

    def finish(params: Params, x: Array) -> Array:
        return final.apply({"params": params["decoder"]["norm"]}, x)  # pyright: ignore[reportReturnType]

    def scan(params: Params, tokens_BT: Array, valid_BT: Array, keep):
        positions_BT = positions_of(valid_BT)
        mask_BTS = causal(valid_BT)

        def layer(x, p):
            see = lambda q, k, v: (attention(q, k, v, mask_BTS), keep(k, v))  # noqa: E731
            x, kept = block.apply({"params": p}, x, positions_BT, see)
            return constrain(x), kept

        if config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[config.remat])
        x, kept = jax.lax.scan(layer, constrain(embed(params, tokens_BT)), params["decoder"]["layers"])
        return finish(params, x), kept

    def apply(params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Hidden states after the final norm. Positions count the real tokens only, so padding may lie on any side."""
        return scan(params, tokens, valid, lambda k, v: None)[0]

    def init_cache(batch: int, length: int) -> dict:
        """An empty cache of `length` positions per row; the keys and values of a layer are [B, K, S, H]."""
        shape = (batch, config.kv_heads, length, config.head_dim)
        return {
            "k": [jnp.zeros(shape, dtype) for _ in range(config.layers)],
            "v": [jnp.zeros(shape, dtype) for _ in range(config.layers)],
            "valid": jnp.zeros((batch, length), bool),
            "position": jnp.zeros((batch,), jnp.int32),  # of the next token, by row
            "index": jnp.zeros((), jnp.int32),  # slot of the next token, the same in every row
        }

    def prefill(params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], cache: dict):
        """Reads whole prompts (padded on the left) into slots 0..T-1 of an empty cache."""
        T = tokens.shape[1]
        hidden_BTD, (k_L, v_L) = scan(params, tokens, valid, lambda k, v: (k.swapaxes(1, 2), v.swapaxes(1, 2)))
        put = lambda slot, new: slot.at[:, :, :T].set(new)  # noqa: E731
        return hidden_BTD, {
            "k": [put(slot, k_L[i]) for i, slot in enumerate(cache["k"])],
            "v": [put(slot, v_L[i]) for i, slot in enumerate(cache["v"])],
            "valid": cache["valid"].at[:, :T].set(valid),
            "position": valid.sum(1, dtype=jnp.int32),
            "index": jnp.int32(T),
        }

    def unstack(params: Params) -> Params:
        """Layers as a list: slicing the stack once before a decoding loop instead of once per token."""
        layers = params["decoder"]["layers"]
        split = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(config.layers)]
        return params | {"decoder": params["decoder"] | {"layers": split}}

    def decode(params: Params, token: Int[Array, " B"], cache: dict) -> tuple[Float[Array, "B D"], dict]:
        """Reads one token per row; `params` come from `unstack`. Layers are unrolled, each with its own cache."""
        positions_B1, index = cache["position"][:, None], cache["index"]
        valid_BS = cache["valid"].at[:, index].set(True)
        x, keys, values = embed(params, token[:, None]), [], []
        for p, k_BKSH, v_BKSH in zip(params["decoder"]["layers"], cache["k"], cache["v"], strict=True):

            def see(q, k, v, k_BKSH=k_BKSH, v_BKSH=v_BKSH):
                k_BKSH = jax.lax.dynamic_update_slice_in_dim(k_BKSH, k.swapaxes(1, 2), index, axis=2)
                v_BKSH = jax.lax.dynamic_update_slice_in_dim(v_BKSH, v.swapaxes(1, 2), index, axis=2)
                return attend_one(q[:, 0], k_BKSH, v_BKSH, valid_BS)[:, None], (k_BKSH, v_BKSH)

            x, (k_new, v_new) = block.apply({"params": p}, x, positions_B1, see)
            keys.append(k_new)
            values.append(v_new)
        cache = {"k": keys, "v": values, "valid": valid_BS, "position": cache["position"] + 1, "index": index + 1}
        return finish(params, x)[:, 0], cache

    def unembed(params: Params) -> Float[Array, "D V"]:
        """The output matrix, padded vocabulary included; `ops.logprobs` keeps the padding out of the probabilities."""
        tree = params["decoder"]
        return (tree["embed"].T if config.tie_embeddings else tree["unembed"]).astype(dtype)

    return Model(
        config=config, init=init, apply=apply, init_cache=init_cache, prefill=prefill, unstack=unstack, decode=decode,
        unembed=unembed, scalar=scalar,
        init_scalar=lambda key, attributes=None: init_scalar(key, config.dim, attributes),
    )  # fmt: skip


def positions_of(valid_BT: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of each token among the real tokens of its row; padding before the first one counts as 0."""
    return jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)


def causal(valid_BT: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Query t sees the real tokens at or before t."""
    T = valid_BT.shape[1]
    return jnp.tril(jnp.ones((T, T), bool))[None] & valid_BT[:, None, :]


def param_count(params: Params) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
