"""Tunix's own sampler (JAX, Flax NNX), for benchmarks/rollouts.py: all replies at once, each with its prompt."""

import json
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import timed
from jax.sharding import AxisType
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors


class Ids:
    """A tokenizer of prompts that are ids in text; 0 is the padding, and no sequence gets a beginning of its own."""

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in text.split()]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 0

    def pad_id(self) -> int:
        return 0


def load(folder: str, mesh: jax.sharding.Mesh, dtype: str = "float32") -> Llama3:
    """A checkpoint of Llama's form."""
    c = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    theta = (c.get("rope_parameters") or c).get("rope_theta", 10_000.0)
    heads = c["num_attention_heads"]
    config = ModelConfig(
        num_layers=c["num_hidden_layers"], vocab_size=c["vocab_size"], embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"], num_heads=heads, head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        num_kv_heads=c["num_key_value_heads"], rope_theta=int(theta), norm_eps=c["rms_norm_eps"],
        weight_tying=c["tie_word_embeddings"],
    )  # fmt: skip
    return create_model_from_safe_tensors(folder, config, mesh, dtype=jnp.dtype(dtype))


def main() -> None:
    """The command line."""
    asked = timed.settings()
    model = load(
        asked["folder"], jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2), asked["dtype"]
    )
    config = model.config
    longest = max(map(len, asked["prompts"]))
    cache = CacheConfig(longest + asked["cap"], config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(model, Ids(), cache)
    texts = [" ".join(map(str, ids)) for ids in asked["prompts"] for _ in range(asked["samples"])]

    def rollout(number: int) -> list[int]:
        found = sampler(
            texts, asked["cap"], max_prompt_length=longest, eos_tokens=asked["ends"], temperature=1.0, top_p=1.0,
            seed=number,
        ).tokens  # fmt: skip
        # its replies come without their end; one that found none is as long as it may be
        return [min(len(ids) + 1, asked["cap"]) for ids in found]

    timed.run(asked, version("google-tunix"), rollout, jax=jax.__version__)


if __name__ == "__main__":
    main()
