"""The functional sampler: prompts and keys in, a Rollout out, under jit."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.ops import output
from alignax.ops.checks import require
from alignax.sampling.filters import top_k as keep_top_k
from alignax.sampling.filters import top_p as keep_top_p
from alignax.types import Model, Params, Rollout


def row_keys(key: Array, rows: Int[Array, " B"]) -> Array:
    """One key per row from its id, 0 or more: its noise depends neither on its place nor on the size of the batch.

    A row that comes again in the *global* batch draws anew: its key also has how often it came before.
    """

    def one(row: Array, before: Array) -> Array:
        other = jax.random.fold_in(key, jnp.uint32(0) - before.astype(jnp.uint32))  # 2^32 - n is no id: nobody's key
        return jnp.where(before > 0, jax.random.fold_in(other, row), jax.random.fold_in(key, row))

    return jax.vmap(one)(rows, occurrences(rows))


def occurrences(rows: Int[Array, " B"]) -> Int[Array, " B"]:
    """How often each row's id stands before it."""
    order_B = jnp.argsort(rows, stable=True)
    sorted_B = rows[order_B]
    before_B = jnp.arange(rows.shape[0]) - jnp.searchsorted(sorted_B, sorted_B)  # place in a run of equal ids
    return jnp.zeros_like(before_B).at[order_B].set(before_B)


def sample(
    model: Model,
    params: Params,
    tokens: Int[Array, "B P"],
    valid: Bool[Array, "B P"],
    keys: Array,
    *,
    capacity: int,
    eos_ids: Int[Array, " E"],
    pad_id: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float = 1.0,
    max_new_tokens: Int[Array, ""] | int | None = None,
    filters: tuple | None = None,
) -> Rollout:
    """Completes left-padded prompts token by token until an end of sequence or `max_new_tokens`.

    Args:
      model, params: the policy.
      tokens, valid: prompts padded on the left; `keys`: one per row, see `row_keys`.
      capacity: room for new tokens, in tokens; static, so a new value compiles again. Everything below is traced.
      eos_ids: every id that ends a sequence; the first one sampled is kept and masked in, what follows is masked out.
      pad_id: fills the rest; may equal an end-of-sequence id, since masks come from lengths.
      temperature: 0 takes the most probable token; negative and nan are refused. `old_logp` is log softmax(logits /
        temperature) at the sampled token (of the untempered distribution where temperature is 0).
      max_new_tokens: limit in tokens, at most `capacity`.
      filters: None, or (top_k, top_p); k <= 0 and p >= 1 are off. `old_logp` is then that of the filtered
        distribution, so a ratio to the unfiltered policy would be biased: online training does not use it.

    Returns:
      Rollout with T = P + capacity, whose first four fields are filled.
    """
    B, P = tokens.shape
    if tokens.shape != valid.shape or P < 1:
        raise ValueError(f"prompts {tokens.shape} and their validity {valid.shape} must be one non-empty [B, P] shape")
    require(temperature >= 0, f"temperature = {temperature}: expected 0 (greedy) or more, such as 1.0")
    T, vocab_size = P + capacity, model.config.vocab_size
    limit = jnp.minimum(capacity if max_new_tokens is None else max_new_tokens, capacity)
    greedy = jnp.asarray(temperature) <= 0
    divisor = jnp.where(greedy, 1.0, temperature)
    kernel_DV = model.unembed(params)[:, :vocab_size]

    def choose(hidden_BD, t):
        logits_BV = output.logits(hidden_BD, kernel_DV, softcap=model.config.logit_softcap, temperature=divisor)
        if filters is not None:
            logits_BV = keep_top_p(keep_top_k(logits_BV, filters[0]), filters[1])
        noise_BV = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), (vocab_size,)))(keys)
        token_B = jnp.argmax(jnp.where(greedy, logits_BV, logits_BV + noise_BV), axis=-1).astype(jnp.int32)
        logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        return token_B, jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]

    def unfinished(carry):
        return (carry["t"] < limit) & ~carry["done"].all()

    def one_token(carry):
        t, alive_B = carry["t"], ~carry["done"]
        token_B, logp_B = choose(carry["hidden"], t)
        token_B = jnp.where(alive_B, token_B, pad_id)
        put = lambda rows, new: jax.lax.dynamic_update_slice_in_dim(rows, new[:, None], P + t, axis=1)  # noqa: E731
        ended_B = (token_B[:, None] == eos_ids[None, :]).any(1)
        hidden_BD, cache = model.decode(layers, token_B, carry["cache"])
        return {
            "t": t + 1,
            "done": carry["done"] | ended_B,
            "hidden": hidden_BD,
            "cache": cache,
            "tokens": put(carry["tokens"], token_B),
            "mask": put(carry["mask"], alive_B),
            "logp": put(carry["logp"], jnp.where(alive_B, logp_B, 0.0)),
        }

    hidden_BPD, cache = model.prefill(params, tokens, valid, model.init_cache(B, T))
    layers = model.unstack(params)
    widen = lambda rows, fill: jnp.pad(rows, ((0, 0), (0, capacity)), constant_values=fill)  # noqa: E731
    carry = {
        "t": jnp.int32(0),
        "done": jnp.zeros((B,), bool),
        "hidden": hidden_BPD[:, -1],
        "cache": cache,
        "tokens": widen(tokens, 0).at[:, P:].set(pad_id),
        "mask": jnp.zeros((B, T), bool),
        "logp": jnp.zeros((B, T), jnp.float32),
    }
    end = jax.lax.while_loop(unfinished, one_token, carry)
    mask_BT = end["mask"]
    return Rollout(tokens=end["tokens"], valid=widen(valid, False) | mask_BT, mask=mask_BT, old_logp=end["logp"])


def finished(rollout: Rollout, eos_ids: Int[Array, " E"]) -> Bool[Array, " B"]:
    """Rows whose last sampled token ends a sequence; a row cut off by the limit is not finished."""
    last_BT = rollout.mask & ~jnp.pad(rollout.mask[:, 1:], ((0, 0), (0, 1)))
    is_eos_BT = (rollout.tokens[:, :, None] == eos_ids[None, None, :]).any(-1)
    return (last_BT & is_eos_BT).any(1)
