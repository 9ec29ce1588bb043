"""Completions of a finished policy for prompts given by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp

from alignax.config import ConfigError
from alignax.data.arrays import pad
from alignax.data.counts import DataError
from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import load_tokenizer, pad_id
from alignax.manifest import check_parent, read_manifest
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import sampler
from alignax.stages.parents import template_of, whole
from alignax.stages.plans import POLICY


def complete(
    checkpoint: str | Path, prompts: list[str], *, n: int = 1, temperature: float = 1.0, top_p: float = 1.0,
    top_k: int = 0, max_new_tokens: int = 64, seed: int = 0,
) -> list[list[tuple[str, bool]]]:  # fmt: skip
    """`n` completions of each prompt as (text, whether it ended by itself), with the template of the checkpoint."""
    if n < 1 or max_new_tokens < 1 or not temperature >= 0 or not 0 < top_p <= 1:
        given = f"n = {n}, max_new_tokens = {max_new_tokens}, temperature = {temperature}, top_p = {top_p}"
        raise ConfigError(f"{given}: expected n >= 1, max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1")
    folder = Path(checkpoint)
    manifest = read_manifest(folder)
    check_parent(manifest, role="policy", makes=POLICY)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    model, params = whole(folder, manifest)
    template = template_of(manifest, tokenizer)
    encoded = [encode_prompt(tokenizer, prompt, template) for prompt in prompts]
    known = [[i for i in ids if i != tokenizer.unk_token_id] for ids in encoded]
    for prompt, ids, kept in zip(prompts, encoded, known, strict=True):
        if tokenizer.unk_token_id != tokenizer.eos_token_id and len(kept) < len(ids):
            raise DataError(f"{prompt!r} has {len(ids) - len(kept)} words that the tokenizer of {folder} does not know")
    longest = max(map(len, encoded)) + max_new_tokens
    if 0 < model.config.context < longest:
        raise ConfigError(
            f"a prompt and max_new_tokens = {max_new_tokens} make {longest} tokens: this model reads at most "
            f"{model.config.context}; lower max_new_tokens"
        )
    tokens, valid = pad(encoded, max(map(len, encoded)), pad_id(tokenizer), left=True)
    own = sampler(model, tokenizer, template, max_new_tokens)
    options = Options(temperature=temperature, top_k=top_k, top_p=top_p)
    keys = row_keys(jax.random.key(seed), jnp.arange(len(prompts) * n, dtype=jnp.int32))
    draw = jax.jit(lambda params, tokens, valid, keys: own.reply(params, tokens, valid, keys, options, group=n))
    rollout = jax.device_get(draw(params, tokens, valid, keys))
    found = list(zip(own.texts(rollout), rollout.finished.tolist(), strict=True))
    return [found[i * n : (i + 1) * n] for i in range(len(prompts))]
