"""What is watched of a rollout: by hand, and deaf to padding, to prompts and to the replies of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.ops.ngrams import distinct, hashed
from alignax.train.watch import correlation, of_kl, of_replies
from alignax.types import Rollout


def rollout(tokens, prompt=2, **fields):
    """Rows of a prompt of two tokens and the reply; 0 is padding."""
    tokens = jnp.array([[9, 9, *row] for row in tokens])
    mask = (tokens != 0) & (jnp.arange(tokens.shape[1])[None] >= prompt)
    return Rollout(tokens=tokens, valid=tokens != 0, mask=mask, old_logp=jnp.zeros(tokens.shape), **fields)


def test_repeated_and_distinct_by_hand():
    # runs of 3: row 0 has 123, 231, 312, 123: one of four stood there before; row 1 has 456 alone; row 2 none
    r = rollout([[1, 2, 3, 1, 2, 3], [4, 5, 6, 0, 0, 0], [1, 2, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0]], score=jnp.arange(4.0))
    found = of_replies(r, group=2)
    assert found["completions/repeated"] == pytest.approx((1 / 4 + 0) / 2)
    # runs of 2: 12 23 31 12 23 | 45 56 | 12 | 12: 9 of them, 5 different; in the groups 5 of 7 and 1 of 2
    assert found["completions/distinct"] == pytest.approx(5 / 9)
    assert found["completions/distinct_in_group"] == pytest.approx((5 / 7 + 1 / 2) / 2)
    # scores 0 1 2 3, lengths 6 3 2 2
    assert found["rewards/length_correlation"] == pytest.approx(np.corrcoef([0, 1, 2, 3], [6, 3, 2, 2])[0, 1])


def test_others_replies_and_missing_scores_are_not_watched():
    r = rollout([[1, 1, 1, 1], [2, 3, 4, 5]], score=jnp.array([1.0, 2.0]), source=jnp.array([0, 1]))
    found = of_replies(r, group=2)
    assert found["completions/repeated"] == pytest.approx(1 / 2) and found["completions/distinct"] == pytest.approx(
        1 / 3
    )
    assert found["rewards/length_correlation"] == 0.0
    x, y = jnp.array([0.0, 1.0, jnp.nan]), jnp.array([0.0, 2.0, 5.0])
    assert correlation(x, y, jnp.isfinite(x)) == pytest.approx(1.0)


def test_kl_estimators_by_hand():
    logp = jnp.array([[0.0, 0.0, -1.0, -2.0]])
    r = rollout([[1, 2]], score=jnp.zeros(1)).replace(old_logp=logp, ref_logp=jnp.array([[-9.0, -9.0, -1.5, -1.0]]))
    # log-ratios 0.5 and -1: k2 = (0.25 + 1) / 2; k3 = (e^-0.5 - 1 + 0.5) + (e - 1 - 1)
    found = of_kl(r)
    assert found["objective/kl_k2"] == pytest.approx(0.625)
    assert found["objective/kl_k3"] == pytest.approx(np.exp(-0.5) - 0.5 + np.e - 2, rel=1e-6)


def test_runs_are_counted_as_sets_count_them():
    tokens = jax.random.randint(jax.random.key(0), (6, 40), 0, 4)
    mask = jax.random.uniform(jax.random.key(1), (6, 40)) < 0.9
    for n in (1, 2, 3):
        unlike, runs = distinct(hashed(tokens, mask, n))
        for row in range(6):
            real = [
                tuple(np.asarray(tokens[row, i : i + n]))
                for i in range(41 - n)
                if np.asarray(mask[row, i : i + n]).all()
            ]
            assert (unlike[row], runs[row]) == (len(set(real)), len(real))
