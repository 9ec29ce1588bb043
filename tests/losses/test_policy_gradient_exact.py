"""Policy gradients by enumeration: the expected gradient of each method against that of the expected reward.

Three tokens (0 ends a reply), replies of up to three tokens, one logit per prefix and token: 15 replies, 225 groups of
two. Every expectation over groups is a finite sum. "Small" is one group per batch, as the step would reduce it; "large"
divides the expected numerator by the expected denominator, which is what a batch of very many groups comes to.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_inputs import label

from alignax.losses.cispo import cispo
from alignax.losses.clip_cov import clip_cov
from alignax.losses.dapo import dapo
from alignax.losses.dr_grpo import dr_grpo
from alignax.losses.entropy import entropy
from alignax.losses.grpo import grpo
from alignax.losses.gspo import gspo
from alignax.losses.gspo_token import gspo_token
from alignax.losses.kl_cov import kl_cov
from alignax.losses.nash_md import nash_md
from alignax.losses.ppo_clip import ppo_clip
from alignax.losses.ppo_dual_clip import ppo_dual_clip
from alignax.losses.reinforce import reinforce
from alignax.losses.sapo import sapo
from alignax.losses.sft import sft
from alignax.ops import advantages as adv
from alignax.ops.corrections import truncated_weights
from alignax.ops.kl import k1
from alignax.ops.masked import ratio, weighted_sums
from alignax.ops.returns import gae, token_rewards
from alignax.types import Demo, Rollout

V = 3
OFF = 1e6  # a clip that never acts


class World:
    """All replies of up to `horizon` tokens, with a random policy, sampler, reference and reward."""

    def __init__(self, horizon):
        prefixes = [p for n in range(horizon) for p in itertools.product(range(1, V), repeat=n)]
        ended = [(*p, 0) for p in prefixes]
        cut = list(itertools.product(range(1, V), repeat=horizon))  # cut off at the horizon, without an end
        self.replies = sorted(ended + cut)
        pad = [y + (0,) * (horizon - len(y)) for y in self.replies]
        # column 0 is the prompt's last token, as in every record
        self.tokens = jnp.asarray(np.pad(np.array(pad), ((0, 0), (1, 0))), jnp.int32)
        self.mask = jnp.asarray([[False] + [t < len(y) for t in range(horizon)] for y in self.replies])
        at = [[prefixes.index(y[:t]) if t < len(y) else 0 for t in range(horizon)] for y in self.replies]
        self.prefix = jnp.asarray(np.pad(np.array(at), ((0, 0), (1, 0))), jnp.int32)
        rng = np.random.default_rng(7)
        draw = lambda scale, *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
        self.logits, self.ref = draw(0.7, len(prefixes), V), draw(0.7, len(prefixes), V)
        self.old = self.logits + draw(0.8, len(prefixes), V)  # another policy, not far
        self.reward = draw(1.0, len(self.replies))
        pairs = np.array(list(itertools.product(range(len(self.replies)), repeat=2)))
        self.pairs = jnp.asarray(pairs)  # [groups, 2]

    def logp(self, logits):
        """log pi of every token of every reply, zeros outside."""
        table = jax.nn.log_softmax(logits)
        return jnp.where(self.mask, table[self.prefix, self.tokens], 0.0)

    def probability(self, logits):
        return jnp.exp(self.logp(logits).sum(1))

    def rollout(self, logits, rows, old, **fields):
        """The record of the replies `rows`, sampled from `old`; from the policy itself, to the last bit, if None."""
        table = jax.nn.log_softmax(logits)
        spread = -jnp.sum(jnp.exp(table) * table, axis=1)
        mask, logp, ref_logp = (x[rows] for x in (self.mask, self.logp(logits), self.logp(self.ref)))
        old_logp = jax.lax.stop_gradient(logp) if old is None else self.logp(old)[rows]
        fields |= dict(logp=logp, old_logp=old_logp, ref_logp=ref_logp, entropy=spread[self.prefix[rows]])
        return Rollout(tokens=self.tokens[rows], valid=mask, mask=mask, **fields)

    def expected(self, loss, advantage, *, large=False, old=None, sampler=None):
        """Expected gradient of the loss over groups of two; `advantage(score [2], mask, rows)` -> [2 T]."""
        p = self.probability(next(x for x in (sampler, old, self.logits) if x is not None))
        weight = p[self.pairs[:, 0]] * p[self.pairs[:, 1]]

        def sums(logits, rows):
            a = jax.lax.stop_gradient(advantage(self.reward[rows], self.mask[rows], rows))
            out = loss(self.rollout(logits, rows, old, advantage=a))
            return weighted_sums(out.value, out.weight)

        def total(logits):
            top, bottom = jax.vmap(lambda rows: sums(logits, rows))(self.pairs)
            if large:
                return jnp.sum(weight * top) / jnp.sum(weight * bottom)
            return jnp.sum(weight * ratio(top, bottom))

        return np.asarray(jax.jit(jax.grad(total))(self.logits))

    def truth(self):
        """The gradient of the expected *loss*, -sum_y pi(y) R(y)."""
        return np.asarray(jax.grad(lambda logits: -jnp.sum(self.probability(logits) * self.reward))(self.logits))


WORLD = World(3)
SHORT = World(1)
TRUTH = WORLD.truth()
MEAN_LENGTH = float(jnp.sum(WORLD.probability(WORLD.logits) * WORLD.mask.sum(1)))


def per_row(fn):
    """An advantage per reply as one per token."""
    return lambda score, mask, rows: adv.spread(fn(score), mask)


raw = per_row(lambda score: score)
centred = per_row(partial(adv.group_mean, group=2))
loo = per_row(partial(adv.leave_one_out, group=2))
standardised = per_row(partial(adv.group_standardise, group=2))
sequence_sum = partial(reinforce, aggregation="sequence_sum")


def off_course(got, truth=TRUTH):
    """The sine of the angle to the true gradient: 0 if they agree up to a positive factor."""
    cosine = np.sum(got * truth) / np.linalg.norm(got) / np.linalg.norm(truth)
    assert cosine > 0.3, "not even a useful direction"
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


def test_the_enumeration_is_complete():
    assert len(WORLD.replies) == 15 and len(SHORT.replies) == 3
    for world in (WORLD, SHORT):
        for logits in (world.logits, world.old):
            np.testing.assert_allclose(world.probability(logits).sum(), 1, rtol=1e-6)
    assert np.linalg.norm(TRUTH) > 0.1
    assert 0.15 < off_course(TRUTH + 0.2 * np.roll(TRUTH, 1)) < 0.3  # the measure sees an error of a fifth


# ---- unbiased, up to a known factor ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, advantage, factor",
    [
        (sequence_sum, raw, 1.0),
        (sequence_sum, loo, 1.0),
        (sequence_sum, centred, 0.5),  # the mean of two holds the reply's own score: (M - 1) / M
        (sequence_sum, per_row(lambda score: adv.remax(score, jnp.float32([0.37]))), 1.0),  # any constant baseline
        (partial(dr_grpo, max_tokens=3.0), centred, 0.5 / 3),
        (partial(dr_grpo, max_tokens=3.0), loo, 1 / 3),
    ],
    ids=["reinforce", "rloo", "group mean", "remax", "dr_grpo", "dr_grpo with rloo"],
)
@pytest.mark.parametrize("large", [False, True])
def test_whole_replies_are_unbiased_in_any_batch(loss, advantage, factor, large):
    np.testing.assert_allclose(WORLD.expected(loss, advantage, large=large), factor * TRUTH, rtol=1e-4, atol=2e-6)


TOKEN_MEANS = [reinforce, ppo_clip, ppo_dual_clip, dapo, cispo, kl_cov, partial(clip_cov, fraction=0.0)]


@pytest.mark.parametrize("loss", TOKEN_MEANS, ids=label)
def test_token_means_are_unbiased_in_large_batches_only(loss):
    # On-policy the numerator is exact; one group's own number of tokens, which divides it, goes with what was sampled.
    large = WORLD.expected(loss, loo, large=True)
    np.testing.assert_allclose(large, TRUTH / MEAN_LENGTH, rtol=1e-4, atol=2e-6)
    assert off_course(WORLD.expected(loss, loo)) > 0.05


def test_gae_with_lambda_one_is_unbiased_whatever_the_critic():
    value = jnp.asarray(np.random.default_rng(2).normal(size=WORLD.prefix.shape), jnp.float32)
    by_prefix = value[0, 0] + jnp.sin(WORLD.prefix * 1.7)  # some function of the state

    def advantage(score, mask, rows):
        rewards = token_rewards(score, jnp.zeros(mask.shape), mask, 0.0)
        return gae(rewards, by_prefix[rows], mask, lam=1.0)[0]

    np.testing.assert_allclose(WORLD.expected(sequence_sum, advantage), TRUTH, rtol=1e-4, atol=2e-6)


def prefix_values():
    """V of each position: the expected reward given the prefix before it."""
    p, reward = np.asarray(WORLD.probability(WORLD.logits), np.float64), np.asarray(WORLD.reward)
    out = np.zeros(WORLD.mask.shape, np.float32)
    for i, y in enumerate(WORLD.replies):
        for t in range(len(y)):
            same = [j for j, z in enumerate(WORLD.replies) if z[:t] == y[:t]]
            out[i, t + 1] = np.sum(p[same] * reward[same]) / np.sum(p[same])
    return jnp.asarray(out)


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_gae_with_a_small_lambda_needs_the_right_critic(lam):
    right = prefix_values()

    def advantage(score, mask, rows, values=right):
        rewards = token_rewards(score, jnp.zeros(mask.shape), mask, 0.0)
        return gae(rewards, values[rows], mask, lam=lam)[0]

    np.testing.assert_allclose(WORLD.expected(sequence_sum, advantage), TRUTH, rtol=1e-4, atol=2e-6)
    wrong = partial(advantage, values=jnp.where(WORLD.mask, 0.5 * right + 0.3, 0.0))
    assert off_course(WORLD.expected(sequence_sum, wrong)) > 0.05


def test_rewards_to_go_with_k1_are_the_gradient_of_reward_minus_kl():
    beta, ref_logp = 0.3, WORLD.logp(WORLD.ref)

    def objective(logits):
        p, logp = WORLD.probability(logits), WORLD.logp(logits)
        return -jnp.sum(p * (WORLD.reward - beta * jnp.sum(logp - ref_logp, axis=1)))

    truth = np.asarray(jax.grad(objective)(WORLD.logits))
    kl = k1(WORLD.logp(WORLD.logits), ref_logp)

    def to_go(score, mask, rows):
        return gae(token_rewards(score, kl[rows], mask, beta), jnp.zeros(mask.shape), mask, lam=1.0)[0]

    np.testing.assert_allclose(WORLD.expected(sequence_sum, to_go), truth, rtol=1e-4, atol=2e-6)
    assert off_course(truth) > 0.1  # and the KL is a part of it

    def whitened(score, mask, rows):
        return adv.reinforce_plus_plus(score, kl[rows], mask, beta)

    # REINFORCE++ whitens by moments that hold the reply's own reward: biased where the batch is as small as here
    assert off_course(WORLD.expected(sequence_sum, whitened), truth) > 0.05


def test_nash_md_is_the_gradient_of_preference_minus_kl():
    opponent, tau, ref_logp = WORLD.probability(WORLD.ref), 0.3, WORLD.logp(WORLD.ref)
    win = jax.nn.sigmoid(WORLD.reward[:, None] - WORLD.reward[None]) @ opponent  # P(y > y') against the opponent

    def objective(logits):
        p, log_ratio = WORLD.probability(logits), jnp.sum(WORLD.logp(logits) - ref_logp, axis=1)
        return -jnp.sum(p * (win - tau * log_ratio))

    truth = np.asarray(jax.grad(objective)(WORLD.logits))
    got = WORLD.expected(partial(nash_md, tau=tau), lambda score, mask, rows: adv.spread(win[rows] - 0.5, mask))
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=2e-6)

    def one_token_log_ratios(rollout):  # TRL's form: what a token does to the KL of those after it is left out
        local = rollout.logp * (rollout.advantage - tau * jax.lax.stop_gradient(rollout.logp - rollout.ref_logp))
        return nash_md(rollout).replace(value=-jnp.sum(jnp.where(rollout.mask, local, 0.0), axis=1))

    local = WORLD.expected(one_token_log_ratios, lambda score, mask, rows: adv.spread(win[rows] - 0.5, mask))
    assert off_course(local, truth) > 0.05


def test_raft_is_the_forward_kl_to_best_of_two():
    """The winner of two is distributed as BOND's Theorem 1 says (ties included), and SFT on it follows."""
    world, reward = WORLD, jnp.round(WORLD.reward * 2)  # ties
    p = np.asarray(world.probability(world.logits), np.float64)
    below, upto = ([p[np.asarray(op(reward, r))].sum() for r in reward] for op in (jnp.less, jnp.less_equal))
    best_of_two = p * np.array([u + b for u, b in zip(upto, below)])  # p * p_<= * (1 + p_< / p_<=)
    np.testing.assert_allclose(best_of_two.sum(), 1, rtol=1e-6)
    truth = jax.grad(lambda logits: -jnp.sum(jnp.float32(best_of_two) * world.logp(logits).sum(1)))(world.logits)

    def nll(logits, rows):
        best = adv.winners(reward[rows], group=2)
        mask = world.mask[rows] & best[:, None]
        logp = world.logp(logits)[rows]
        out = sft(Demo(logp=logp, mask=mask, entropy=logp, correct=mask))
        return weighted_sums(out.value, out.weight)[0]

    weight = jnp.float32(p)[world.pairs].prod(1)
    got = jax.grad(lambda logits: jnp.sum(weight * jax.vmap(lambda rows: nll(logits, rows))(world.pairs)))(world.logits)
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=2e-6)


def test_dropping_uninformative_groups_changes_the_denominator_only():
    binary = (WORLD.reward > 0).astype(jnp.float32)

    def sums(keep, logits, rows):
        score = binary[rows]
        kept = adv.informative(score, group=2) | ~jnp.bool_(keep)
        a = adv.spread(adv.group_mean(score, group=2), WORLD.mask[rows])
        rollout = WORLD.rollout(logits, rows, None, advantage=a)
        out = dapo(rollout.replace(mask=rollout.mask & kept[:, None]))
        return weighted_sums(out.value, out.weight)

    p = WORLD.probability(WORLD.logits)
    weight = p[WORLD.pairs].prod(1)
    grads, tokens = [], []
    for keep in (False, True):
        whole = lambda logits, k=keep: jnp.sum(weight * jax.vmap(lambda r: sums(k, logits, r)[0])(WORLD.pairs))  # noqa: E731
        grads.append(np.asarray(jax.grad(whole)(WORLD.logits)))
        tokens.append(float(jnp.sum(weight * jax.vmap(lambda r, k=keep: sums(k, WORLD.logits, r)[1])(WORLD.pairs))))
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-4, atol=1e-6)
    assert tokens[1] < 0.8 * tokens[0]


# ---- biased by design -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [grpo, gspo, gspo_token, sapo], ids=lambda fn: fn.__name__)
def test_a_reply_divided_by_its_own_length_is_biased(loss):
    # The gradient of another objective: on-policy, that of E[(R - J) / |y|] with J = E[R] held.
    expected_reward = jnp.sum(WORLD.probability(WORLD.logits) * WORLD.reward)
    shared = (WORLD.reward - expected_reward) / WORLD.mask.sum(1)
    other = np.asarray(jax.grad(lambda logits: -jnp.sum(WORLD.probability(logits) * shared))(WORLD.logits))
    for large in (False, True):
        got = WORLD.expected(loss, loo, large=large)
        assert off_course(got) > 0.05
        np.testing.assert_allclose(got, other, rtol=1e-4, atol=2e-6)


def test_without_different_lengths_there_is_no_such_bias():
    truth = SHORT.truth()
    for loss in (grpo, gspo, gspo_token, sapo, dapo, reinforce):
        np.testing.assert_allclose(SHORT.expected(loss, loo), truth, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("loss", [sequence_sum, dr_grpo], ids=["reinforce", "dr_grpo"])
def test_dividing_by_the_groups_std_is_biased(loss):
    # with two replies the std is |R_1 - R_2| / sqrt(2): only the sign of the difference is left
    for large in (False, True):
        assert off_course(WORLD.expected(loss, standardised, large=large)) > 0.05
    assert off_course(SHORT.expected(loss, standardised), SHORT.truth()) > 0.02  # not a matter of lengths


def test_clip_cov_is_biased_because_it_leaves_tokens_out():
    some = partial(clip_cov, fraction=0.5, cov_low=0.1, cov_high=9.0)
    assert off_course(WORLD.expected(some, loo, large=True)) > 0.02


UNCLIPPED = [
    partial(ppo_clip, clip=OFF),
    partial(dapo, clip_low=OFF, clip_high=OFF),
    partial(cispo, max_ratio=OFF),
    partial(kl_cov, coef=0.0),
]


@pytest.mark.parametrize("loss", UNCLIPPED, ids=label)
def test_token_ratios_correct_one_token_replies_only(loss):
    """Off-policy: a token's own ratio leaves out how likely the policy is to come to its prefix."""
    np.testing.assert_allclose(SHORT.expected(loss, loo, old=SHORT.old), SHORT.truth(), rtol=1e-4, atol=2e-6)
    assert off_course(WORLD.expected(loss, loo, old=WORLD.old, large=True)) > 0.05


@pytest.mark.parametrize(
    "loss",
    [
        reinforce,  # no correction at all
        ppo_clip,  # a clipped token has no gradient
        dapo,
        partial(ppo_dual_clip, max_ratio=1.25),
        grpo,
        gspo,
        gspo_token,
        partial(cispo, max_ratio=1.1),  # a bounded weight is too small
        sapo,  # the gate fades
        partial(kl_cov, coef=1.0, fraction=0.5),  # a penalty is added
    ],
    ids=label,
)
def test_off_policy_even_one_token_replies_are_biased(loss):
    assert off_course(SHORT.expected(loss, loo, old=SHORT.old), SHORT.truth()) > 0.02


def mismatched(level, cap):
    """RLOO on replies of another sampler, weighted by pi_old / sampler."""
    old, sampler = WORLD.logp(WORLD.logits), WORLD.logp(WORLD.old)

    def advantage(score, mask, rows):
        weight = truncated_weights(old[rows], sampler[rows], mask, level=level, cap=cap)
        return weight * adv.spread(score, mask)

    return WORLD.expected(sequence_sum, advantage, sampler=WORLD.old)


def test_importance_weights_for_the_sampler():
    np.testing.assert_allclose(mismatched("sequence", float("inf")), TRUTH, rtol=1e-4, atol=2e-6)
    assert off_course(mismatched("token", float("inf"))) > 0.05  # the prefix's ratio is left out
    assert off_course(mismatched("sequence", 1.0)) > 0.05  # truncated
    uncorrected = WORLD.expected(sequence_sum, raw, sampler=WORLD.old)
    assert off_course(uncorrected) > 0.05


def test_the_entropy_term_is_not_the_entropy_of_replies():
    """Its gradient holds the prefixes fixed; that of the replies' entropy also moves which prefixes are met."""
    p = WORLD.probability(WORLD.logits)

    def replies(logits):
        q = WORLD.probability(logits)
        return jnp.sum(q * WORLD.logp(logits).sum(1))

    truth = np.asarray(jax.grad(replies)(WORLD.logits))

    def summed(logits):
        value = entropy(WORLD.rollout(logits, jnp.arange(15), None)).value
        return jnp.sum(p * jnp.sum(jnp.where(WORLD.mask, value, 0.0), axis=1))

    np.testing.assert_allclose(summed(WORLD.logits), replies(WORLD.logits), rtol=1e-5)  # the same value,
    error = np.asarray(jax.grad(summed)(WORLD.logits)) - truth
    assert np.linalg.norm(error) > 0.5 * np.linalg.norm(truth)  # another gradient
