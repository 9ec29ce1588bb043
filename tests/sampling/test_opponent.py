"""Opponents: the geometric mixture as a model, and its replies beside the policy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import EOS, PAD, prompt_batch, tiny

from alignax.sampling.mixture import mixture
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.train.online import side_by_side

CAPACITY = 5


def draw(model, params, batch, temperature=1.0, key=0, group=1):
    keys = row_keys(jax.random.key(key), jnp.arange(group * len(batch["row"])))
    options = dict(capacity=CAPACITY, eos_ids=jnp.array([EOS]), pad_id=PAD, options=Options(temperature=temperature))
    options |= dict(group=group)
    return sample(model, params, batch["tokens"], batch["valid"], keys, **options)


@pytest.fixture(scope="module")
def policies():
    model, policy = tiny(layers=1, logit_divisor=0.5)
    return model, policy, tiny(layers=1, seed=7)[1]


def logits(model, params, rollout):
    """[B T V], each about the token at its place."""
    hidden_BTD = model.apply(params, rollout.tokens, rollout.valid)
    return jnp.pad((hidden_BTD @ model.unembed(params)[:, : model.config.vocab_size])[:, :-1], ((0, 0), (1, 0), (0, 0)))


def test_a_soft_cap_is_refused():
    with refuses(ValueError, "logit_softcap = 5.0", "opponent"):
        mixture(tiny(layers=1, logit_softcap=5.0)[0], 0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_mixture_is_the_normalised_geometric_mean_token_by_token(policies, share):
    model, policy, reference = policies
    batch = prompt_batch()
    rollout = draw(mixture(model, share), (policy, reference), batch, temperature=0.8)
    ours, theirs = (jax.nn.log_softmax(logits(model, one, rollout)) for one in (policy, reference))
    want = jax.nn.log_softmax(((1 - share) * ours + share * theirs) / 0.8)
    want = jnp.take_along_axis(want, rollout.tokens[..., None], axis=-1)[..., 0]
    mask = np.asarray(rollout.mask)
    np.testing.assert_allclose(rollout.old_logp[mask], want[mask], atol=2e-5)


def test_several_replies_of_a_mixture_to_a_prompt_are_those_to_as_many_prompts(policies):
    model, policy, reference = policies
    batch = prompt_batch(B=3)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
    run = lambda *given, **more: draw(mixture(model, 0.4), (policy, reference), *given, **more)  # noqa: E731
    np.testing.assert_array_equal(run(batch, group=2).tokens, run(repeated).tokens)


def test_at_the_ends_it_is_one_of_the_two(policies):
    model, policy, reference = policies
    batch = prompt_batch()
    alone = [draw(model, one, batch).tokens for one in (policy, reference)]
    assert (alone[0] != alone[1]).any()
    for share, want in ((0.0, alone[0]), (1.0, alone[1])):
        np.testing.assert_array_equal(draw(mixture(model, share), (policy, reference), batch).tokens, want)


def test_applied_whole_it_is_what_it_decodes(policies):
    model, policy, reference = policies
    mixed, params = mixture(model, 0.4), (policy, reference)
    rollout = draw(mixed, params, prompt_batch())
    logp = jax.nn.log_softmax(logits(mixed, params, rollout))
    got = jnp.take_along_axis(logp, rollout.tokens[..., None], axis=-1)[..., 0]
    mask = np.asarray(rollout.mask)
    np.testing.assert_allclose(got[mask], rollout.old_logp[mask], atol=2e-5)


def test_a_share_outside_is_refused(policies):
    with refuses(ValueError, "share = 1.2", "[0, 1]"):
        mixture(policies[0], 1.2)


def test_the_policys_reply_comes_first_and_the_others_are_marked(policies):
    model, policy, reference = policies
    batch = prompt_batch()
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
    own, others = draw(model, policy, batch), draw(model, reference, twice)
    both = side_by_side([own, others], [1, 2])
    np.testing.assert_array_equal(both.tokens[::3], own.tokens)
    np.testing.assert_array_equal(both.tokens[1::3], others.tokens[::2])
    np.testing.assert_array_equal(both.old_logp[2::3], others.old_logp[1::2])
    np.testing.assert_array_equal(both.source, np.tile([0, 1, 1], len(batch["row"])))
