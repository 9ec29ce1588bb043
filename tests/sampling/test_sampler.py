"""A policy's sampler: what it draws, whose noise is whose, and the texts that it makes of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import EOS, PAD, prompt_batch, tiny

from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import Sampler, texts
from alignax.types import Rollout


class Words:
    """A tokenizer that writes the id."""

    def batch_decode(self, rows, skip_special_tokens, clean_up_tokenization_spaces):
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        return [" ".join(map(str, row)) for row in rows]


def test_texts_hold_sampled_tokens_only_and_no_end():
    mask = jnp.array([[0, 1, 1, 1], [0, 1, 0, 0]], bool)
    rollout = Rollout(tokens=jnp.array([[7, 8, 0, 2], [7, 2, 2, 5]]), valid=mask.at[:, 0].set(True), mask=mask,
                      old_logp=jnp.zeros((2, 4)))  # fmt: skip
    assert texts(Words(), np.asarray(rollout.tokens), np.asarray(rollout.mask), [1, 2]) == ["8 0", ""]


def test_a_reply_says_whether_it_ended_and_a_row_keeps_its_noise_wherever_it_stands():
    (model, params), prompts, key = tiny(layers=1), prompt_batch(), jax.random.key(3)
    own = Sampler(model, capacity=4, ends=(EOS, 2), pad=PAD)
    got = own.draw(params, prompts, key)
    last = np.asarray(got.tokens)[np.arange(8), 4 + np.asarray(got.mask).sum(1)]  # prompts of 5 tokens
    np.testing.assert_array_equal(got.finished, np.isin(last, [EOS, 2]))
    order = np.array([3, 0, 7, 1, 2, 4, 5, 6])
    turned = own.draw(params, jax.tree.map(lambda x: x[order], prompts), key)
    np.testing.assert_array_equal(turned.tokens, got.tokens[order])
    keys = row_keys(key, prompts["row"])
    same = own.reply(params, prompts["tokens"], prompts["valid"], keys)
    np.testing.assert_array_equal(same.tokens, got.tokens)
