"""The geometric mixture of two policies as one model, for the sampler."""

import jax.numpy as jnp
from jax import Array

from alignax.ops.checks import Scalar, require
from alignax.types import Model, Params


def mixture(model: Model, share: Scalar) -> Model:
    """The geometric mixture pi^(1 - share) ref^share of two policies of one architecture, normalised token by token.

    Its parameters are the pair (policy, reference). softmax((1 - share) z + share z') is the mixture of one token's
    distributions, and a weighted sum of logits is one product of the joined hidden states with the joined kernels: the
    sampler needs to know nothing of it. With a temperature, the mixture of the untempered distributions is tempered.
    Nash-MD's opponent (Munos et al. 2023, 2312.00886, section 4) at its share beta; TRL's `mixture_coef`.

    Raises ValueError if share is outside [0, 1], and if the model caps its logits: a weighted sum of capped logits is
    no capped product.
    """
    cap = model.config.logit_softcap
    require(not cap, f"mixture: logit_softcap = {cap}: capped logits do not mix by one product; take another opponent")
    require((share >= 0) & (share <= 1), f"mixture: share = {share}: expected the reference's share in [0, 1]")

    def apply(params: Params, tokens: Array, valid: Array) -> Array:
        return _join(*(model.apply(one, tokens, valid) for one in params))

    def prefill(params: Params, tokens: Array, valid: Array, caches: tuple) -> tuple:
        both = zip(params, caches, strict=True)
        policy, reference = (model.prefill(one, tokens, valid, cache) for one, cache in both)
        return _join(policy[0], reference[0]), (policy[1], reference[1])

    def extend(layers: tuple, tokens: Array, valid: Array, caches: tuple) -> tuple:
        both = zip(layers, caches, strict=True)
        policy, reference = (model.extend(one, tokens, valid, cache) for one, cache in both)
        return _join(policy[0], reference[0]), (policy[1], reference[1])

    def unembed(params: Params) -> Array:
        policy_DV, reference_DV = (model.unembed(one) for one in params)
        return jnp.concatenate([(1 - share) * policy_DV, share * reference_DV])

    return model._replace(
        apply=apply,
        prefill=prefill,
        extend=extend,
        unembed=unembed,
        init_cache=lambda batch, length: (model.init_cache(batch, length), model.init_cache(batch, length)),
        unstack=lambda params: tuple(model.unstack(one) for one in params),
        join=None,
    )


def _join(policy: Array, reference: Array) -> Array:
    return jnp.concatenate([policy, reference], axis=-1)
