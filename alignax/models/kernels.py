"""Which kernel attends, on which device, what each refuses, and how a layer calls it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from alignax.models.attention import attention, visible
from alignax.models.config import ModelConfig
from alignax.types import ByDevice, Layout

KEPT = "attention"  # name of what attention gives: a remat policy may keep it


def attended(primitive: Any, *arrays: Any, **params: Any) -> bool:
    """The remat policy that keeps what attention gives, so that the backward pass does not run a kernel again."""
    named = jax.checkpoint_policies.save_only_these_names(KEPT)(primitive, *arrays, **params)
    return named or primitive.name.startswith("dot_product_attention_fwd")  # cuDNN's, which names nothing


def kernel_of(config: ModelConfig, device: Any = None, rows: Array | Layout | None = None) -> str:
    """The kernel for these rows: the one that the config names, or with "auto" the device's own where it can.

    `device` is that of the mesh, or the first one. Raises ValueError if the named kernel cannot do what is asked.
    """
    device = device or jax.devices()[0]
    if config.attention == "auto":
        best = "splash" if device.platform == "tpu" else "cudnn" if device.device_kind.startswith("NVIDIA") else "xla"
        return "xla" if refusal(best, config, device, rows) else best
    if why := refusal(config.attention, config, device, rows):
        raise ValueError(f"attention = {config.attention!r}: {why}")
    return config.attention


def refusal(kernel: str, config: ModelConfig, device: Any, rows: Array | Layout | None = None) -> str:
    """Why a kernel cannot do what is asked, and what to use instead; "" if it can."""
    packed = isinstance(rows, Layout)
    if kernel == "splash" and packed and rows.branch is not None:
        return "it knows no rows whose texts share a beginning (branches): use 'xla', or 'auto'"
    if kernel != "cudnn":
        return ""
    capability = float(device.compute_capability) if device.device_kind.startswith("NVIDIA") else 0.0
    c, largest = config, 256 if capability >= 9 else 128
    reasons = (
        (capability < 8, f"it needs an NVIDIA GPU of compute capability 8.0, this is {device.device_kind}: use 'auto'"),
        (c.dtype == "float32", "it has no float32: use 'xla', or dtype = 'bfloat16'"),
        (c.attention_softcap, f"it has no soft cap, attention_softcap = {c.attention_softcap}: use 'xla', or 'auto'"),
        (c.sinks, "it has no sinks: use 'xla', or 'auto'"),
        (c.head_dim % 8, f"it takes heads of a multiple of 8 numbers, head_dim = {c.head_dim}: use 'xla', or 'auto'"),
        (c.head_dim > largest, f"it takes heads of {largest} numbers at most, head_dim = {c.head_dim}: use 'xla'"),
        (packed, "it knows no rows of several texts (packing, branches): use 'xla', or 'auto'"),
    )
    return next((why for holds, why in reasons if holds), "")


def flush(tokens_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"]) -> tuple[Array, Array, Callable[[Any], Array]]:
    """(tokens, valid) with the real tokens of each row first, and the function that puts [B, T, ...] back in place.

    What comes last is seen by no real token: such rows need no mask but the causal one.
    """
    count_B1 = valid_BT.sum(1, keepdims=True, dtype=jnp.int32)
    before = lambda x: jnp.cumsum(x, axis=1, dtype=jnp.int32) - 1  # noqa: E731
    place_BT = jnp.where(valid_BT, before(valid_BT), count_B1 + before(~valid_BT))
    put = lambda x, place: jnp.zeros_like(x).at[place].set(x, unique_indices=True)  # noqa: E731
    take = lambda x, place: x.at[place].get(unique_indices=True, mode="promise_in_bounds")  # noqa: E731
    first_BT = jnp.arange(valid_BT.shape[1])[None] < count_B1
    return jax.vmap(put)(tokens_BT, place_BT), first_BT, lambda x: jax.vmap(take)(x, place_BT)


def attender(
    config: ModelConfig, kernel: str, rows: Layout, *, packed: bool, by_device: ByDevice, device: Any = None
) -> Callable[..., Array]:
    """`(q, k, v, sinks, kind) -> heads` of a layer; `kind` (traced) is the place of its kind in `dict.fromkeys(kinds)`.

    Rows of one text each must be flush for a kernel other than "xla"; see `kernel_of` for what each can do.
    """
    reach = [config.window if kind == "sliding" else 0 for kind in dict.fromkeys(config.kinds)]
    windows = tuple(dict.fromkeys(reach))
    of_kind = jnp.array([windows.index(window) for window in reach])
    scores = {"scale": config.query_scale, "softcap": config.attention_softcap}
    if kernel == "xla":
        masks_WBTS = jnp.stack([visible(rows, window) for window in windows])
        mask = lambda kind: masks_WBTS[0 if len(windows) == 1 else of_kind[kind]]  # noqa: E731
        return lambda q, k, v, sinks, kind: checkpoint_name(attention(q, k, v, mask(kind), sinks=sinks, **scores), KEPT)
    if kernel == "cudnn":
        forms = [by_device(partial(cudnn, window=window, scale=config.query_scale)) for window in windows]
    else:
        interpret = (device or jax.devices()[0]).platform != "tpu"
        forms = [by_device(partial(splash, window=window, interpret=interpret, **scores)) for window in windows]
    text = rows.document if packed else None

    def attend(q: Array, k: Array, v: Array, sinks: Array | None, kind: Array) -> Array:
        # each row has a copy of the sinks, because a device is given its part of the rows of all that it is given
        row_sinks = sinks if sinks is None else jnp.broadcast_to(sinks[None], (len(q), len(sinks)))
        given = (q, k, v) if kernel == "cudnn" else (q, k, v, text, row_sinks)
        # a kernel's window is part of its program: layers of one body with different windows choose between programs
        return forms[0](*given) if len(forms) == 1 else jax.lax.switch(of_kind[kind], forms, *given)

    return attend


def cudnn(
    q_BTNH: Float[Array, "B T N H"], k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"],
    *, window: int, scale: float,
) -> Float[Array, "B T N H"]:  # fmt: skip
    """Causal attention of flush rows by cuDNN's flash kernel; `window` = 0 is no window."""
    near = (window - 1, 0) if window else None  # tokens to the left and to the right, besides the query's own
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True, local_window_size=near, implementation="cudnn"
    )


def splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    document_BT: Int[Array, "B T"] | None = None,
    sinks_BN: Float[Array, "B N"] | None = None,
    *,
    window: int,
    scale: float,
    softcap: float,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Causal attention within documents (None: one, flush) by the Pallas kernel for TPUs, `window` = 0 is no window.

    A window counts slots, which are positions where the tokens of a document follow one another.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # slow to import, and for TPUs only

    (T, N), lanes = q_BTNH.shape[1:3], 128
    block = min(4 * lanes, -(-T // lanes) * lanes)
    length = -(-T // block) * block  # rows are padded to whole blocks: what is added is later than all, and cut off
    square = (length, length)
    mask = pallas.LocalMask(square, (window - 1, 0), 0) if window else pallas.CausalMask(square)
    blocks = pallas.BlockSizes(block, block, block, block, block, block, block, block)  # forward and backward alike
    with jax.ensure_compile_time_eval():  # which blocks are skipped is known before any array is
        kernel = pallas.make_splash_mha(
            pallas.MultiHeadMask([mask] * N), block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret,
            attn_logits_soft_cap=softcap or None, residual_checkpoint_name=KEPT,
        )  # fmt: skip
    whole = lambda x: jnp.pad(x, ((0, 0), (0, length - T), *((0, 0),) * (x.ndim - 2)))  # noqa: E731
    q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)  # the kernel has no scale of its own
    heads = [whole(x).swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH)]
    texts = None if document_BT is None else pallas.SegmentIds(whole(document_BT), whole(document_BT))
    out_BNTH: Any = jax.vmap(kernel)(*heads, texts, sinks_BN)
    return out_BNTH[:, :, :T].swapaxes(1, 2)
