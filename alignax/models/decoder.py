"""The decoder as a bundle of pure functions: layers scanned over stacked parameters, one cache per layer in decoding.

A parameter tree is `{"decoder": {"embed", "layers" (each leaf [L, ...]), "norm" (if it has weights), "positions"
(learned ones only), "unembed" (untied only)}}`, with `"scalar"` beside it for a reward or value model and `"lora"` for
an adapter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from alignax.models import cache
from alignax.models.attention import Shared, attend_cached, attention, layout, positions_of
from alignax.models.config import ModelConfig
from alignax.models.heads import init_scalar, scalar
from alignax.models.kernels import attended, attender, flush, kernel_of
from alignax.models.layers import Block, norm
from alignax.models.rotary import query_growth, turns
from alignax.types import ByDevice, Layout, Model, Params

_policies = jax.checkpoint_policies
REMAT = {
    "dots": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, attended),
    "attention": attended,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["input"],
        offload_src="device", offload_dst="pinned_host",
    ),
    "full": None,
}  # fmt: skip


CAST = ("kernel", "embed", "unembed", "gate", "up", "down")  # leaves that are in the dtype of activations in every use
BLOCKS = 6  # of a cache, at most: each is a branch that is compiled


def decoder(
    config: ModelConfig,
    constrain: Callable[[Array], Array] = lambda x: x,
    *,
    by_device: ByDevice = lambda f: f,
    by_rows: ByDevice = lambda f: f,
    device: Any = None,
) -> Model:
    """The model of a config. `apply`, `prefill` and `extend` agree: tests hold them to it.

    `constrain` is put on the residual [B, T, D] before and after every layer: `sharding.rows(mesh)` keeps its rows
    split over all devices, where the compiler would otherwise be free to gather rows instead of kernels.
    `sharding.by_device(mesh)` hands a kernel the rows of each device, `sharding.by_rows(mesh)` a sampler those of the
    devices that share some. `device`, any of the mesh, says which kernel there is; it is the first one unless given.
    Raises ValueError for a kernel that is not for this config or device.
    """
    kernel_of(config, device)
    block, final = Block(config), norm(config)
    dtype, learned = jnp.dtype(config.dtype), config.positions == "learned"
    kinds, spans = map(tuple, map(dict.fromkeys, (config.kinds, config.spans)))  # those that occur
    # whether blocks of a cache are left out: a GPU would ask its host before
    skip = (device or jax.devices()[0]).platform != "gpu"
    scores = {"scale": config.query_scale, "softcap": config.attention_softcap}

    def init(key: Array) -> Params:
        x = jnp.zeros((1, 1, config.dim), dtype)
        k_embed, k_layers, k_head, k_norm = jax.random.split(key, 4)
        see = lambda q, k, v, sinks: (attention(q, k, v, jnp.ones((1, 1, 1), bool)), None)  # noqa: E731
        one = lambda k: block.init(k, x, turned(jnp.zeros((1, 1), jnp.int32), kinds[0]), see)["params"]  # noqa: E731
        table = lambda key, rows: config.dim**-0.5 * jax.random.normal(key, (rows, config.dim))  # noqa: E731
        tree = {
            "embed": table(k_embed, config.padded_vocab),
            "layers": jax.vmap(one)(jax.random.split(k_layers, config.layers)),
        }
        if "params" in (weights := final.init(k_norm, x)):
            tree["norm"] = weights["params"]
        if learned:
            tree["positions"] = table(jax.random.fold_in(k_embed, 1), config.max_positions)
        if not config.tie_embeddings:
            tree["unembed"] = jax.random.normal(k_head, (config.dim, config.padded_vocab)) * config.dim**-0.5
        return {"decoder": tree}

    def adapter_of(params: Params) -> Params:
        return params.get("lora", {}).get("layers", {})

    def embed(params: Params, tokens: Array, positions: Array) -> Array:
        x = params["decoder"]["embed"][tokens].astype(dtype)
        x = x * jnp.asarray(config.dim**0.5, dtype) if config.scale_embedding else x
        x = x * jnp.asarray(config.embedding_multiplier, dtype) if config.embedding_multiplier != 1 else x
        return x + params["decoder"]["positions"][positions].astype(dtype) if learned else x

    def finish(params: Params, x: Array) -> Array:
        return final.apply({"params": params["decoder"].get("norm", {})}, x)  # pyright: ignore[reportReturnType]

    def turned(positions: Array, kind: str) -> tuple[Array, Array] | None:
        return None if learned else turns(positions, config, kind)

    def grown(q: Array, positions: Array) -> Array:
        return q * query_growth(positions, config)[..., None, None].astype(dtype) if config.query_growth else q

    def scan(params: Params, tokens_BT: Array, valid_BT: Array | Layout, keep):
        """The residual after the last layer, and what `keep(x, k, v)` keeps of each layer, stacked."""
        kernel, back = kernel_of(config, device, valid_BT), lambda x: x
        packed = isinstance(valid_BT, Layout)
        if kernel != "xla" and not packed:
            tokens_BT, valid_BT, back = flush(tokens_BT, valid_BT)
        rows = layout(valid_BT)
        # what differs by kind of layer, for each kind; one body serves all layers and picks its own
        attend = attender(config, kernel, rows, packed=packed, by_device=by_device, device=device)
        turn = [turned(rows.position, kind) for kind in kinds]
        pick = lambda made, i: made[0] if len(kinds) == 1 else jax.tree.map(lambda *x: jnp.stack(x)[i], *made)  # noqa: E731

        def layer(x, scanned):
            p, adapter, kind = scanned
            see = lambda q, k, v, sinks: (attend(grown(q, rows.position), k, v, sinks, kind), (k, v))  # noqa: E731
            x = checkpoint_name(x, "input")
            x, (k, v) = block.apply({"params": p, "lora": adapter}, x, pick(turn, kind), see)
            return constrain(x), keep(back(x), back(k), back(v))

        if config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[config.remat])
        x = constrain(embed(params, tokens_BT, rows.position))
        of_layer = np.array([kinds.index(kind) for kind in config.kinds], np.int32)
        last, kept = jax.lax.scan(layer, x, (params["decoder"]["layers"], adapter_of(params), of_layer))
        return back(x), back(last), kept

    def apply(params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"] | Layout) -> Float[Array, "B T D"]:
        """Hidden states after the final norm. Positions count the real tokens only, so padding may lie on any side."""
        return finish(params, scan(params, tokens, valid, lambda x, k, v: None)[1])

    def hidden_states(
        params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"] | Layout
    ) -> Float[Array, "E B T D"]:
        """The embedding, then the residual after each of the L layers, E = L + 1; the final norm is not in them."""
        first, _, others = scan(params, tokens, valid, lambda x, k, v: x)
        return jnp.concatenate([first[None], others])

    def init_cache(batch: int, length: int, beside: int = 0) -> dict:
        """An empty cache of `length` tokens per row, `models.cache`. Every array of it begins with the rows.

        Layers with a window keep a ring: what a window has passed is overwritten. `beside`: tokens of another cache
        that may be joined with it: both have the same tiles.
        """
        blocks = BLOCKS if skip else 1
        width = min(cache.TILE, max(length, beside))
        room = {"full": length, "sliding": min(length, config.window + cache.TILE)}
        one = lambda span: cache.empty(batch, room[span], config.kv_heads, config.head_dim, dtype, blocks, width)  # noqa: E731
        layers = [one(span) for span in config.spans]
        slots = {span: cache.slots(layers[config.spans.index(span)][0]) for span in spans}
        return {
            "k": [k for k, _ in layers],
            "v": [v for _, v in layers],
            # for each span of layers: position of the token in a slot, -1 for none; and where a row's own slots begin
            "at": {span: jnp.full((batch, slots[span]), -1, jnp.int32) for span in spans},
            "first": {span: jnp.zeros((batch,), jnp.int32) for span in spans},
            "position": jnp.zeros((batch,), jnp.int32),  # of the next token, by row
            "index": jnp.zeros((batch,), jnp.int32),  # of the next token among those that went into the row's own slots
        }

    def prefill(params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], empty: dict):
        """Reads whole prompts, padded on either side, into the slots of an empty cache.

        What comes next overwrites the padding on the right. Raises ValueError for more tokens than it has room for.
        """
        full = empty["at"].get("full")
        if full is not None and tokens.shape[1] > full.shape[1]:
            raise ValueError(
                f"{tokens.shape[1]} tokens for a cache of {full.shape[1]}: make it with init_cache for all"
            )
        _, hidden_BTD, (k_L, v_L) = scan(params, tokens, valid, lambda x, k, v: (k, v))
        index_B = jnp.max(jnp.where(valid, jnp.arange(1, tokens.shape[1] + 1)[None], 0), axis=1)
        put = {span: cache.newest(empty["at"][span].shape[1], index_B, tokens.shape[1]) for span in spans}
        position_BT = jnp.where(valid, positions_of(valid), -1)
        layers = [cache.filled(empty["k"][i], *map(put[span], (k_L[i], v_L[i]))) for i, span in enumerate(config.spans)]
        return finish(params, hidden_BTD), empty | {
            "k": [k for k, _ in layers],
            "v": [v for _, v in layers],
            "at": {span: put[span](position_BT, -1) for span in spans},
            "position": valid.sum(1, dtype=jnp.int32),
            "index": index_B,
        }

    def unstack(params: Params) -> Params:
        """Layers with their adapters as a list: the stack is sliced once and not for every token of a loop."""
        both = {"params": params["decoder"]["layers"], "lora": adapter_of(params)}
        split = [jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(config.layers)]
        return params | {"decoder": params["decoder"] | {"layers": split}}

    def extend(
        params: Params, tokens: Int[Array, "B C"], valid: Bool[Array, "B C"], before: dict
    ) -> tuple[Float[Array, "B C D"], dict]:
        """Reads C more tokens per row, each row from its own place on; `params` come from `unstack`.

        A row may be padded anywhere. Layers are unrolled, each with its own cache. `before` may have "shared": the
        cache of prompts, each of which several rows go on from, with what `Shared` knows of these rows, "row" and
        "place". Raises ValueError for more tokens at once than a ring has room for.
        """
        C, ring = tokens.shape[1], before["at"].get("sliding")
        if ring is not None and config.window + cache.TILE <= ring.shape[1] < config.window + C:
            raise ValueError(f"{C} tokens at once: a ring has room for {cache.TILE} beside its window; read fewer")
        number_BC = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1  # padding takes no slot
        positions_BC = jnp.maximum(before["position"][:, None] + number_BC, 0)
        index_BC = before["index"][:, None] + number_BC
        slot, at = {}, {}
        for span in spans:
            S, first_B1 = before["at"][span].shape[1], before["first"][span][:, None]
            place_BC = first_B1 + (index_BC % (S - first_B1) if span == "sliding" else index_BC)
            slot[span] = jnp.where(valid, place_BC, S)  # padding goes nowhere
            rows_B1 = jnp.arange(len(tokens))[:, None]
            at[span] = before["at"][span].at[rows_B1, slot[span]].set(positions_BC, mode="drop")

        def seen(at_BS: Array, span: str) -> Bool[Array, "B C S"]:
            """Which slots the queries see; what is not there sees nothing: a free row's blocks cost nothing."""
            ahead_BCS = positions_BC[:, :, None] - at_BS[:, None]
            seen_BCS = (at_BS >= 0)[:, None] & (ahead_BCS >= 0) & valid[:, :, None]
            return seen_BCS & (ahead_BCS < config.window) if span == "sliding" else seen_BCS

        own, prompt, common = {span: seen(at[span], span) for span in spans}, {}, before.get("shared")
        if common:
            prompt_B = common["place"] // common["row"].shape[1]
            prompt = {span: seen(common["at"][span][prompt_B], span) for span in spans}
        x, keys, values = embed(params, tokens, positions_BC), [], []
        layers = zip(params["decoder"]["layers"], config.kinds, config.spans, strict=True)
        for i, (p, kind, span) in enumerate(layers):
            shared = None
            if common:
                shared = Shared(common["k"][i], common["v"][i], prompt[span], common["row"], common["place"])

            def see(q, k_new, v_new, sinks, i=i, span=span, shared=shared):
                k, v = cache.put(before["k"][i], before["v"][i], k_new, v_new, slot[span])
                q = grown(q, positions_BC)
                return attend_cached(q, k, v, own[span], shared=shared, skip=skip, sinks=sinks, **scores), (k, v)

            x, (k, v) = block.apply(p, x, turned(positions_BC, kind), see)
            keys.append(k)
            values.append(v)
        read_B = valid.sum(1, dtype=jnp.int32)
        position_B, index_B = before["position"] + read_B, before["index"] + read_B
        after = {"k": keys, "v": values, "at": at, "first": before["first"], "position": position_B, "index": index_B}
        return finish(params, x), after

    def unembed(params: Params) -> Float[Array, "D V"]:
        """The output matrix, padded vocabulary included; `ops.logprobs` keeps the padding out of the probabilities.

        `logit_divisor` is in it: logits are a product of hidden states with this matrix, whatever reads them.
        """
        tree = params["decoder"]
        kernel_DV = tree["embed"].T if config.tie_embeddings else tree["unembed"]
        return (kernel_DV if config.logit_divisor == 1 else kernel_DV / config.logit_divisor).astype(dtype)

    return Model(
        config=config, init=init, apply=apply, hidden_states=hidden_states, init_cache=init_cache, prefill=prefill,
        unstack=unstack, cast=partial(cast, config), extend=extend, unembed=unembed, scalar=scalar, join=cache.join,
        init_scalar=lambda key, attributes=None: init_scalar(key, config.dim, attributes), by_device=by_device,
        by_rows=by_rows,
    )  # fmt: skip


def cast(config: ModelConfig, params: Params) -> Params:
    """Kernels in the dtype in which layers use them, so that half as much is copied: no number differs.

    With an adapter, whose norms are of the whole precision, and where the output divides, they stay as they are.
    """
    dtype = jnp.dtype(config.dtype)
    if dtype == jnp.float32 or "lora" in params or config.logit_divisor != 1:
        return params
    used = lambda path, x: x.astype(dtype) if path[-1].key in CAST else x  # noqa: E731
    return params | {"decoder": jax.tree_util.tree_map_with_path(used, params["decoder"])}


def param_count(params: Params) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
