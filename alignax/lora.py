"""Low-rank adapters: small trees that stand at params["lora"] beside a frozen decoder. Pure functions.

W + s A B for the kernels [D F] that a path rule names (LoRA, Hu et al. 2021, 2106.09685, equation 3; s = alpha / R), or
with s = alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023, 2312.03732). DoRA (Liu et al. 2024, 2402.09353, equation 5) gives
each column of the sum a trained length m: m (W + s A B) / ||W + s A B||, the norm taken over D.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from alignax.types import Params

TARGETS = "(q|k|v|o|gate|up|down)$"


def init(
    key: Array, params: Params, *, rank: int = 16, alpha: float = 0.0, targets: str = TARGETS, rslora: bool = False,
    dora: bool = False,
) -> Params:  # fmt: skip
    """A fresh adapter {"layers": {name: {a [L D R], b [L R F], scale [L]}}} of a decoder's parameters.

    a ~ U(-1/sqrt(D), 1/sqrt(D)) and b = 0, as the reference implementation has them, so that nothing changes at first;
    with `dora` also m [L F], the lengths of W's columns. `alpha` = 0 takes 2 * rank. `scale` is no parameter: the model
    stops its gradient, and a step leaves it alone (`frozen` of the optimizers).

    Raises ValueError if rank < 1, or if `targets`, a regular expression over names such as "q", finds no kernel.
    """
    if rank < 1:
        raise ValueError(f"rank = {rank}: expected at least 1, such as 16")
    layers = params["decoder"]["layers"]
    names = [n for n in sorted(layers) if "kernel" in layers[n] and re.search(targets, n)]
    if not names:
        known = ", ".join(n for n in sorted(layers) if "kernel" in layers[n])
        raise ValueError(f"targets = {targets!r}: finds none of the projections {known}")
    scale = scaling(rank=rank, alpha=alpha, rslora=rslora)

    def one(key: Array, kernel: Array) -> dict[str, Array]:
        L, D, F = kernel.shape
        a = jax.random.uniform(key, (L, D, rank), minval=-(D**-0.5), maxval=D**-0.5)
        out = {"a": a, "b": jnp.zeros((L, rank, F)), "scale": jnp.full((L,), scale, jnp.float32)}
        return out | ({"m": jnp.linalg.norm(kernel, axis=1)} if dora else {})

    keys = jax.random.split(key, len(names))
    return {"layers": {n: one(k, layers[n]["kernel"]) for n, k in zip(names, keys, strict=True)}}


def scaling(*, rank: int = 16, alpha: float = 0.0, rslora: bool = False, **_: object) -> float:
    """The scale s of an adapter with these arguments of `init`."""
    return (alpha or 2.0 * rank) / (rank**0.5 if rslora else rank)


def merge(params: Params) -> Params:
    """The tree with the adapter, if it has one, worked into its kernels, and without "lora"."""
    if "lora" not in params:
        return params
    layers = dict(params["decoder"]["layers"])
    for name, adapter in params["lora"]["layers"].items():
        layers[name] = layers[name] | {"kernel": merged(layers[name]["kernel"], adapter)}
    rest = {k: v for k, v in params.items() if k != "lora"}
    return rest | {"decoder": params["decoder"] | {"layers": layers}}


def merged(kernel: Array, adapter: Any) -> Array:
    """One kernel [L D F] with its adapter."""
    total = kernel + adapter["scale"][:, None, None] * (adapter["a"] @ adapter["b"])
    if "m" not in adapter:
        return total
    return total * (adapter["m"] / jnp.linalg.norm(total, axis=1))[:, None, :]
