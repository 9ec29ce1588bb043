"""Named shapes: a config says `model = "harbor"` and, to change a field of it, `model_args = dict(layers=2)`."""

from alignax.models.config import ModelConfig


def harbor(
    *,
    vocab_size: int,
    dim: int = 128,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 4,
    head_dim: int = 32,
    ffn: int = 384,
) -> ModelConfig:
    """About 0.7M parameters: enough to check facts against the prompt on the harbour desk, few enough for a CPU."""
    return ModelConfig(vocab_size, dim, layers, heads, kv_heads, head_dim, ffn)


def llama(
    *,
    vocab_size: int,
    dim: int = 512,
    layers: int = 8,
    heads: int = 8,
    kv_heads: int = 4,
    head_dim: int = 64,
    ffn: int = 1536,
    rope_theta: float = 10_000.0,
    tie_embeddings: bool = True,
) -> ModelConfig:
    """A Llama shape; the defaults make about 25M parameters beside the embedding."""
    return ModelConfig(
        vocab_size, dim, layers, heads, kv_heads, head_dim, ffn, rope_theta=rope_theta, tie_embeddings=tie_embeddings
    )
