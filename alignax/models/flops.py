"""Parameters, FLOPs per token and model FLOPs utilisation, from a ModelConfig alone.

A product of [A] with [A, B] is 2AB FLOPs. Norms, rotary angles, softmax and activations are left out: a few per cent of
a small model, nothing of a large one. Attention is counted as in PaLM (2204.02311, appendix B): every query meets all T
keys, since the causal half that a kernel may skip is no part of the definition.
"""

import jax

from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.decoder import param_count as count

# Dense bf16 FLOP/s of one JAX device, by its device_kind, as the makers publish them. A device of TPU v3 is one of the
# two cores of a chip. What is not here has no known peak: better no utilisation than a wrong one.
PEAK = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def layer_weights(config: ModelConfig) -> int:
    """Weights of one layer that a token is multiplied with; of experts, those that it goes to."""
    c = config
    attention = 2 * c.dim * c.head_dim * (c.heads + c.kv_heads)  # q and o, k and v
    one = (3 if c.gated else 2) * c.dim * c.ffn  # gate, up, down
    return attention + (c.experts_per_token * one + c.dim * c.experts if c.experts else one)


def param_count(config: ModelConfig) -> int:
    """Numbers in the parameter tree of a policy; nothing is computed."""
    return count(jax.eval_shape(decoder(config).init, jax.random.key(0)))


def forward_flops(config: ModelConfig, length: int, *, output: bool = True) -> float:
    """FLOPs per token of one forward pass over rows of `length` tokens.

    2 (L weights + D V) + 4 N H sum_l S_l, with S_l the keys that a query meets in layer l: all, or those of a window.
    `output` = False leaves out the output layer D V: a reward or value model has a single column instead. Raises
    ValueError if length < 1.
    """
    c = config
    if length < 1:
        raise ValueError(f"length = {length}: expected at least 1 token")
    keys = sum(min(length, c.window) if kind == "sliding" else length for kind in c.kinds)
    products = c.layers * layer_weights(c) + (c.dim * c.padded_vocab if output else 0)
    return 2.0 * products + 4.0 * c.heads * c.head_dim * keys


def train_flops(config: ModelConfig, length: int, *, output: bool = True) -> float:
    """FLOPs per token of a forward and a backward pass: a gradient takes two products where the value took one.

    What is computed again to save memory (remat, chunks of the vocabulary) is not counted: it is work of the program
    and not of the model.
    """
    return 3.0 * forward_flops(config, length, output=output)


def batch_flops(config: ModelConfig, batch: dict, *, output: bool) -> float:
    """FLOPs of learning from a batch: forward and backward of the trained model over its rows, padding included.

    What a frozen model reads (a reference; the mismatched replies of KTO) is not learnt from, and not counted. Of
    packed rows the output layer reads some states only.
    """
    if "packed" in batch:
        places, read = batch["packed"]["tokens"], batch["packed"]["read"]
        last = train_flops(config, 1, output=output) - train_flops(config, 1, output=False)
        return places.size * train_flops(config, places.shape[-1], output=False) + read.size * last
    if "tokens" in batch:
        return batch["tokens"].size * train_flops(config, batch["tokens"].shape[-1], output=output)
    sides = [one for name, one in batch.items() if isinstance(one, dict) and name != "mismatched"]
    return sum(batch_flops(config, one, output=output) for one in sides)


def ideal_seconds(flops: float, device_kind: str, devices: int = 1) -> float | None:
    """Seconds that so many FLOPs take at the devices' bf16 peak; None for a kind whose peak is not known.

    Model FLOPs utilisation (MFU) is this divided by the seconds that they took: `time/mfu` in the log of a stage.
    """
    peak = PEAK.get(device_kind)
    return None if peak is None else flops / (devices * peak)
