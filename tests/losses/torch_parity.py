"""The JAX side of the comparison with PyTorch, shared by the goldens' test and the live one."""

import jax
import jax.numpy as jnp
import numpy as np

from alignax.losses.bradley_terry import bradley_terry
from alignax.losses.dpo import dpo
from alignax.losses.ppo_clip import ppo_clip
from alignax.ops.logprobs import token_stats
from alignax.ops.masked import reduce
from alignax.types import Pair, Rollout, Scored, Side


def run_token_stats(hidden, kernel, targets, *, chunk, **settings):
    def stats(hidden, kernel):
        return token_stats(hidden, kernel, targets, vocab_size=kernel.shape[1], chunk=chunk, **settings)

    def score(hidden, kernel):
        out = stats(hidden, kernel)
        return jnp.sum(out.logp + out.entropy)

    grads = jax.jit(jax.grad(score, (0, 1)))(hidden, kernel)
    out = jax.jit(stats)(hidden, kernel)
    return {"logp": out.logp, "entropy": out.entropy}, dict(zip(("hidden", "kernel"), grads))


def run_bradley_terry(chosen, rejected):
    def f(d):
        return reduce(bradley_terry(Scored(**d, mask=jnp.ones(4, bool))))

    return jax.value_and_grad(f)({"chosen": chosen, "rejected": rejected})


def run_dpo(chosen, chosen_ref, chosen_mask, rejected, rejected_ref, rejected_mask, **settings):
    def f(d):
        w = Side(logp=d["chosen"], ref_logp=chosen_ref, mask=chosen_mask)
        l = Side(logp=d["rejected"], ref_logp=rejected_ref, mask=rejected_mask)
        return reduce(dpo(Pair(chosen=w, rejected=l), **settings))

    return jax.value_and_grad(f)({"chosen": chosen, "rejected": rejected})


def run_ppo_clip(logp, old_logp, advantage, mask, **settings):
    def f(d):
        rollout = Rollout(
            tokens=jnp.zeros(mask.shape, jnp.int32), valid=mask, mask=mask, old_logp=old_logp, entropy=old_logp,
            advantage=advantage, logp=d["logp"],
        )  # fmt: skip
        return reduce(ppo_clip(rollout, **settings))

    return jax.value_and_grad(f)({"logp": logp})


def compare(loss, fields, settings, want, want_grads):
    """Value and gradients of `loss` here equal PyTorch's, to float32 rounding."""
    fields = {name: jnp.asarray(array) for name, array in fields.items()}
    runs = {"bradley_terry": run_bradley_terry, "dpo": run_dpo, "ppo_clip": run_ppo_clip}
    if loss == "token_stats":
        results = [run_token_stats(**fields, **settings, chunk=chunk) for chunk in (8, 64)]
    else:
        value, grads = runs[loss](**fields, **settings)
        results = [({"value": value}, grads)]
    for got, got_grads in results:
        assert got.keys() == want.keys() and got_grads.keys() == want_grads.keys()
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)
        for name in want_grads:
            np.testing.assert_allclose(got_grads[name], want_grads[name], rtol=1e-4, atol=1e-5, err_msg=name)
