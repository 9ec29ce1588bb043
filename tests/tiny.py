"""Tiny models, batches of unequal lengths and the objectives of the stages, shared by the tests of several rooms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from alignax import forward
from alignax.losses.bradley_terry import bradley_terry
from alignax.losses.dpo import dpo
from alignax.losses.kl import kl
from alignax.losses.ppo_clip import ppo_clip
from alignax.losses.sft import sft
from alignax.losses.value_clip import value_clip
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.sharding import path_name
from alignax.types import Model, Rollout

VOCAB, PAD, EOS = 50, 0, 1
SHAPE = dict(vocab_size=VOCAB, dim=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=32)  # vocabulary padded to 64
HEAD = {"kernel": jax.ShapeDtypeStruct((SHAPE["dim"],), "float32"), "bias": jax.ShapeDtypeStruct((), "float32")}


@functools.lru_cache
def tiny(seed: int = 0, scalar: bool = False, constrain=lambda x: x, **changes):
    """(model, parameters) of SHAPE with changes, with a scalar head if asked."""
    model, rng = decoder(ModelConfig(**SHAPE | changes), constrain), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0)) | ({"scalar": HEAD} if scalar else {})

    def draw(path, leaf):  # drawn here and not by model.init, whose compile takes seconds
        fan_in = leaf.shape[-2] if leaf.ndim > 1 and "embed" not in path_name(path) else SHAPE["dim"]
        mean, sd = (1.0, 0.1) if "scale" in path_name(path) else (0.0, fan_in**-0.5)
        return jnp.asarray(rng.normal(mean, sd, leaf.shape), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def rows(B: int) -> np.ndarray:
    """Row ids."""
    return np.arange(B, dtype=np.int32)


def demo_batch(B: int = 8, T: int = 12, seed: int = 0) -> dict:
    """Prompts of 2 to 4 tokens, completions of 1 token up to the context, padded on the right with random ones."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, (B, T)).astype(np.int32)
    prompt, total = rng.integers(2, 5, B), rng.integers(5, T + 1, B)
    total[0], total[1] = 5, T  # very unequal, whatever the seed
    place = np.arange(T)[None]
    tokens[np.arange(B), total - 1] = EOS
    valid = place < total[:, None]
    batch = {"tokens": tokens, "valid": valid, "mask": valid & (place >= prompt[:, None]), "row": rows(B)}
    return jax.tree.map(jnp.asarray, batch)


def pair_batch(B: int = 8, T: int = 12, seed: int = 0) -> dict:
    """Two sides of different lengths."""
    sides = {name: demo_batch(B, T, seed + i) for i, name in enumerate(("chosen", "rejected"))}
    return {name: {k: v for k, v in side.items() if k != "row"} for name, side in sides.items()} | {
        "row": jnp.asarray(rows(B))
    }


def prompt_batch(B: int = 8, P: int = 5, seed: int = 0) -> dict:
    """Prompts of 2 to P tokens, padded on the left."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, (B, P)).astype(np.int32)
    length = rng.integers(2, P + 1, B)
    length[0], length[1] = 2, P
    valid = np.arange(P)[None] >= P - length[:, None]
    return jax.tree.map(jnp.asarray, {"tokens": np.where(valid, tokens, PAD), "valid": valid, "row": rows(B)})


def rollout_batch(B: int = 8, T: int = 12, seed: int = 0) -> Rollout:
    """A scored rollout of random numbers; its last row has no action at all."""
    batch, rng = demo_batch(B, T, seed), np.random.default_rng(seed + 100)
    noise = lambda mean, sd: jnp.asarray(rng.normal(mean, sd, (B, T)), jnp.float32)  # noqa: E731
    return Rollout(
        tokens=batch["tokens"], valid=batch["valid"], mask=batch["mask"].at[-1].set(False),
        old_logp=noise(-4, 0.5), ref_logp=noise(-4, 0.5), old_value=noise(0, 1), advantage=noise(0, 1),
        returns=noise(0, 1),
    )  # fmt: skip


def objectives(model: Model) -> dict:
    """name -> (objective(params, frozen, batch), batch, whether it needs the scalar head), as the stages bind them."""

    def policy(params, frozen, rollout):
        view = forward.policy_view(model, params, rollout, temperature=0.9, start=1)
        return {"loss/policy_avg": (1.0, ppo_clip(view)), "loss/kl_avg": (0.3, kl(view))}

    def critic(params, frozen, rollout):
        value_BT = forward.values(model, params, rollout.tokens, rollout.valid)
        return {"loss/value_avg": (1.0, value_clip(rollout.replace(value=value_BT)))}

    pair = lambda p, frozen, b: {"loss": (1.0, dpo(forward.pair(model, p, frozen, b)))}  # noqa: E731
    scored = lambda p, _, b: {"loss": (1.0, bradley_terry(forward.scored(model, p, b), centering=0.01))}  # noqa: E731
    return {
        "sft": (lambda p, _, b: {"loss": (1.0, sft(forward.demo(model, p, b)))}, demo_batch(), False),
        "reward": (scored, pair_batch(), True),
        "dpo": (pair, pair_batch(), False),
        "ppo": (policy, rollout_batch(), False),
        "value": (critic, rollout_batch(), True),
    }


def one_more(model: Model, layers, token_B, cache):
    """(cache, hidden [B D]) after one more token of each row: a step of `jax.lax.scan`."""
    hidden_B1D, cache = model.extend(layers, token_B[:, None], jnp.ones((len(token_B), 1), bool), cache)
    return cache, hidden_B1D[:, 0]


def leaves_by_path(tree) -> dict:
    """'decoder/embed' -> leaf."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def close(got, want, *, rtol: float = 0.0, atol: float) -> None:
    """Asserts that two trees are close, naming the leaf that is not."""
    got, want = leaves_by_path(got), leaves_by_path(want)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(want[name]), rtol=rtol, atol=atol, err_msg=name)
