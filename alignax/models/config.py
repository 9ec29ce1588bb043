"""What a decoder is made of: one frozen dataclass; a model family is a set of its values."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder in the Llama shape. `vocab_size` comes from the tokenizer, so a config file does not give it."""

    vocab_size: int
    dim: int = 128  # D, residual width
    layers: int = 4  # L
    heads: int = 4  # N, query heads
    kv_heads: int = 4  # K; heads must be a multiple of it
    head_dim: int = 32  # H; even, because rotary positions turn pairs
    ffn: int = 384  # F, width of the gated feed-forward layer
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the output layer is the transposed embedding
    logit_softcap: float = 0.0  # c of c tanh(logits / c), the output's soft cap (Gemma 2); 0: off
    vocab_multiple: int = 64  # the embedding is padded to a multiple of it; the padding never gets probability
    dtype: str = "float32"  # of activations; parameters, norms, softmax and log-probs are float32 always
    remat: str = (
        "none"  # what a layer keeps for its backward pass: "none" (all), "dots" (matrix products), "full" (nothing)
    )

    vocab_shards: int = 1  # devices that the vocabulary is cut over: a chunk of logits takes its columns from all

    def __post_init__(self):
        for name in (
            "vocab_size",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab_multiple",
            "vocab_shards",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd: rotary positions turn pairs of numbers")
        if self.remat not in ("none", "dots", "full"):
            raise ValueError(f"remat = {self.remat!r}: expected 'none', 'dots' or 'full'")
        if not self.logit_softcap >= 0:
            raise ValueError(
                f"logit_softcap = {self.logit_softcap}: expected a bound on |logit|, such as 30, or 0 (off)"
            )
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype = {self.dtype!r}: expected 'float32', 'bfloat16' or 'float16'")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def architecture(self) -> dict:
        """What parameters must share to be exchangeable: every field but those that only change how it is computed."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("dtype", "remat", "vocab_shards")}
