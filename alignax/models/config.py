"""What a decoder is made of: one frozen dataclass; a model family is a set of its values (`models/hf`)."""

import dataclasses
import math
from collections.abc import Sequence

KINDS = ("full", "sliding", "nope")  # of attention: all earlier tokens; the last `window` ones; all, without rotation
COMPUTE = ("dtype", "remat", "attention", "vocab_shards")  # how results are computed and not what they are
_CHOICES = {
    "positions": ("rotary", "learned"),
    "rope_type": ("default", "linear", "llama3", "yarn", "longrope", "dynamic"),
    "norm": ("rms", "rms_plus_one", "layer", "layer_nonparametric"),
    "norm_at": ("before", "after", "both"),
    "qk_norm": ("none", "head", "all"),
    "activation": ("silu", "gelu", "gelu_tanh", "quick_gelu"),
    "remat": ("none", "dots", "attention", "offload", "full"),
    "attention": ("auto", "xla", "cudnn", "splash"),
    "dtype": ("float32", "bfloat16", "float16"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder; the defaults have the Llama shape. `vocab_size` comes from the tokenizer, so no config file gives it.

    Raises ValueError for a field that is out of range or does not fit the others.
    """

    vocab_size: int  # tokens that may get probability
    dim: int = 128  # D, residual width
    layers: int = 4  # L
    heads: int = 4  # N, query heads
    kv_heads: int = 4  # K; heads must be a multiple of it
    head_dim: int = 32  # H; even, because rotary positions turn pairs
    ffn: int = 384  # F, width of the feed-forward layer, of each expert where there are several
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the output layer is the transposed embedding
    logit_softcap: float = 0.0  # c of c tanh(logits / c), the output's soft cap (Gemma 2); 0: off
    logit_divisor: float = 1.0  # what logits are divided by (Granite)
    vocab_multiple: int = 64  # the embedding is padded to a multiple of it; the padding never gets probability
    vocab_rows: int = 0  # rows of an imported embedding, where they are more than the tokenizer has tokens

    # ---- positions
    positions: str = "rotary"  # "learned": a table of max_positions rows is added to the embedding (GPT-2)
    max_positions: int = 0  # context length that the model was made for, tokens; 0: not known
    rope_fraction: float = 1.0  # share of each head that is rotated (Phi)
    rope_interleaved: bool = False  # a pair is two neighbours (GLM); else one of the first half and one of the second
    rope_type: str = "default"  # how frequencies are stretched for a longer context: see `rotary.frequencies`
    rope_factor: float = 1.0  # by how much; "longrope" has rope_factors instead
    rope_low: float = 1.0  # llama3, yarn: a pair that turns less often in rope_original tokens is stretched whole,
    rope_high: float = 4.0  # one that turns more often not at all (YaRN's is 32)
    rope_original: int = 8192  # llama3, yarn, longrope: context length before stretching, tokens
    rope_truncate: bool = True  # yarn: those two bounds are rounded to whole pairs
    rope_magnitude: float = 1.0  # yarn, longrope: what the rotated numbers are multiplied with
    rope_factors: Sequence[float] = ()  # longrope: one for each pair, in texts of at most rope_original tokens
    rope_long_factors: Sequence[float] = ()  # longrope: in longer ones, which are refused; kept for the export
    rope_theta_sliding: float = 0.0  # base in sliding layers, never stretched (Gemma 3); 0: as in the others

    # ---- attention
    pattern: Sequence[str] = ("full",)  # KINDS of the layers, repeated: ("sliding", "full") alternates (Gemma 2)
    window: int = 0  # tokens that a sliding layer sees, the token itself included
    qkv_bias: bool = False
    qkv_clip: float = 0.0  # bound on |queries|, |keys| and |values| before they are rotated (OLMo 1); 0: off
    out_bias: bool = False
    sinks: bool = False  # each head has a logit of its own that takes attention and gives nothing (gpt-oss)
    qk_norm: str = "none"  # norm of queries and keys: "head", each head (Qwen 3), "all", all heads at once (OLMo 2)
    query_scale_dim: float = 0.0  # queries are scaled by its -1/2 power (Gemma 2); 0: head_dim
    query_growth: float = 0.0  # beta of 1 + beta log(1 + floor(position / rope_original)), by which queries grow
    attention_softcap: float = 0.0  # c of c tanh(q k / c); 0: off

    # ---- residual and feed-forward
    # "rms_plus_one": weights are stored less one (Gemma); "layer": less the mean, with a bias (GPT-2);
    # "layer_nonparametric": that without weight or bias (OLMo 1)
    norm: str = "rms"
    norm_at: str = "before"  # of each part; "after": of what it adds to the residual (OLMo 2), "both" (Gemma 2)
    scale_embedding: bool = False  # by sqrt(D) (Gemma)
    embedding_multiplier: float = 1.0  # (Granite)
    residual_multiplier: float = 1.0  # of what each part adds to the residual (Granite)
    parallel_residual: bool = False  # feed-forward reads what attention reads, not what it adds to (GPT-NeoX)
    activation: str = "silu"  # "quick_gelu": x sigmoid(1.702 x)
    gated: bool = True  # activation(gate) * up; else activation(up)
    glu_limit: float = 0.0  # bound on gate, from above, and on |up| (gpt-oss); 0: off
    up_offset: float = 0.0  # added to up (gpt-oss: 1)
    mlp_bias: bool = False  # of experts their router too
    experts: int = 0  # E, feed-forward layers to choose from for each token (Mixtral); 0: one for all
    experts_per_token: int = 0
    renormalise_experts: bool = True  # the chosen experts' weights sum to one

    # ---- how it is computed
    dtype: str = "float32"  # of activations; parameters, norms, softmax and log-probs are float32 always
    # What is kept of each layer for its backward pass, the most memory first: "none": all that it reads; "dots": the
    # products with parameters and what attention gives; "attention": what attention gives; "full": the layer's input
    # alone, which "offload" moves to the host's memory meanwhile. What is not kept is computed again.
    remat: str = "none"
    # "auto": the device's own kernel where it can do what is asked, else "xla". "xla" can do all, with T x T logits;
    # "cudnn" (NVIDIA GPUs, Ampere or later): no float32, soft cap, sinks, packed rows, nor heads that are no multiple
    # of 8 or larger than 128 (Hopper: 256); "splash" (TPUs; elsewhere interpreted, for tests): no shared beginnings
    attention: str = "auto"
    vocab_shards: int = 1  # devices that the vocabulary is cut over: a chunk of logits takes its columns from all

    def __post_init__(self):
        object.__setattr__(self, "pattern", _period(tuple(self.pattern), self.layers))  # a list, out of a JSON file
        for name in ("rope_factors", "rope_long_factors"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        sizes = (
            "vocab_size",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab_multiple",
            "vocab_shards",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(map(repr, known))}")
        if not 0 <= self.norm_eps < math.inf:
            raise ValueError(f"norm_eps = {self.norm_eps}: expected a small number of 0 or more, such as 1e-5")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}")
        if self.rotated % 2 or not 0 < self.rope_fraction <= 1:
            raise ValueError(
                f"head_dim = {self.head_dim}, rope_fraction = {self.rope_fraction}: rotary positions turn pairs of "
                "numbers, so that head_dim * rope_fraction must be even, and the fraction in (0, 1]"
            )
        if not (self.rope_factor > 0 and self.rope_original > 0 and self.rope_magnitude > 0):
            raise ValueError(
                f"rope_factor = {self.rope_factor}, rope_original = {self.rope_original}, rope_magnitude = "
                f"{self.rope_magnitude}: expected numbers above 0"
            )
        if self.rope_type in ("llama3", "yarn") and not self.rope_high > self.rope_low > 0:
            raise ValueError(f"rope_low = {self.rope_low}, rope_high = {self.rope_high}: expected 0 < low < high")
        for name in ("rope_factors", "rope_long_factors") if self.rope_type == "longrope" else ():
            factors, pairs = getattr(self, name), self.rotated // 2
            if len(factors) != pairs or not min(factors) > 0:
                raise ValueError(f"{name} = {factors}: expected {pairs} numbers above 0, one for each pair")
        if not self.pattern or not set(self.pattern) <= set(KINDS):
            raise ValueError(f"pattern = {self.pattern}: expected layers among {', '.join(KINDS)}")
        if "sliding" in self.pattern and self.window < 1:
            raise ValueError(f"window = {self.window}: a sliding layer needs at least 1 token")
        if self.positions == "learned" and self.max_positions < 1:
            raise ValueError(f"max_positions = {self.max_positions}: learned positions need a table of at least 1 row")
        if self.rope_type == "dynamic" and self.max_positions < 1:
            raise ValueError(f"max_positions = {self.max_positions}: 'dynamic' changes there, expected at least 1")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token}: expected 1 to experts = {self.experts}")
        if not self.gated and (self.experts or self.glu_limit or self.up_offset):
            raise ValueError("gated = False: expected True with experts, glu_limit or up_offset, which are of a gate")
        for name, example in (("logit_softcap", 30), ("qkv_clip", 8), ("glu_limit", 7), ("query_growth", 0.1)):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"{name} = {value}: expected a number above 0, such as {example}, or 0 (off)")
        for name in ("logit_divisor", "embedding_multiplier", "residual_multiplier"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} = {value}: expected a number above 0, or 1 (off)")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding."""
        return -(-max(self.vocab_size, self.vocab_rows) // self.vocab_multiple) * self.vocab_multiple

    @property
    def rotated(self) -> int:
        """Leading numbers of each head that rotary positions turn."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def context(self) -> int:
        """Tokens that a text may have; 0: no bound but quality. Beyond it there is no position, or another rotation.

        What "longrope" and "dynamic" turn by depends on how long the text will be in the end, which a sampler does not
        know: only up to the length at which they change do its log-probabilities stay those of the learner.
        """
        if self.positions == "learned" or self.rope_type == "dynamic":
            return self.max_positions
        return self.rope_original if self.rope_type == "longrope" else 0

    @property
    def query_scale(self) -> float:
        """What q k is multiplied with."""
        return (self.query_scale_dim or self.head_dim) ** -0.5

    @property
    def spans(self) -> tuple[str, ...]:
        """Of each layer how far it looks back, and so what its cache has to keep: "full" or "sliding"."""
        return tuple("sliding" if kind == "sliding" else "full" for kind in self.kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of attention of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))

    def architecture(self) -> dict:
        """What parameters must share to be exchangeable: every field but those of COMPUTE; values as JSON has them."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in COMPUTE}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _period(kinds: tuple[str, ...], layers: int) -> tuple[str, ...]:
    """The shortest pattern that gives the same layers: one name for one architecture."""
    kinds = tuple(kinds[i % len(kinds)] for i in range(layers)) if kinds else ()
    for size in range(1, len(kinds)):
        if all(kinds[i] == kinds[i % size] for i in range(layers)):
            return kinds[:size]
    return kinds
