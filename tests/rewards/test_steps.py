"""Rewards of steps: where steps end, what is said of each, and where it enters the advantages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import prompt_batch, rollout_batch, tiny
from tiny_online import ALONE, build_actors, build_algorithm, build_frozen, build_state, models

from alignax import forward
from alignax.config import ConfigError, Reader, plain
from alignax.ops.returns import gae, token_rewards
from alignax.rewards.config import rewards_of
from alignax.rewards.steps import OF_LOGITS, marks, score_steps, step_ends, step_texts
from alignax.rewards.text import Trouble
from alignax.rewards.workers import Workers
from alignax.stages import online as stage
from alignax.stages import programs
from alignax.stages.algorithm import algorithm_of
from alignax.train import advantages, online, rewarded
from alignax.worlds.tokenizer import build_tokenizer

MARK, END, WORD, PAD = 7, 1, 3, 0
MARKS = np.zeros(10, bool)
MARKS[MARK] = True


@pytest.mark.parametrize(
    "reply, want",
    [
        ([WORD, MARK, WORD, END], [0, 1, 0, 1]),
        ([WORD, MARK, WORD, MARK, END], [0, 1, 0, 0, 1]),  # the last step has the end of sequence, as in step_rows
        ([WORD, MARK, WORD, MARK], [0, 1, 0, 1]),  # cut off right behind a step
        ([MARK, MARK, WORD], [1, 1, 1]),
        ([END], [1]),
        ([WORD, WORD], [0, 1]),
    ],
)
def test_where_steps_end(reply, want):
    prompt, behind = [MARK, WORD], [MARK, PAD]  # a marker of the prompt, and what stands behind a reply, end no step
    tokens = np.array([prompt + reply + behind], np.int32)
    mask = np.array([[0] * 2 + [1] * len(reply) + [0] * 2], bool)
    got = step_ends(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(MARKS), (END,))
    np.testing.assert_array_equal(got[0], [0, 0, *want, 0, 0])


def test_the_steps_of_a_reply_as_texts():
    words = {WORD: "tea ", MARK: "\n", 4: "cake"}
    texts_of = lambda tokens, mask: ["".join(words.get(int(t), "") for t in row[keep])  # noqa: E731
                                     for row, keep in zip(tokens, mask)]  # fmt: skip
    tokens = np.array([[WORD, MARK, 4, END], [4, END, PAD, PAD]], np.int32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    ends = np.asarray(step_ends(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(MARKS), (END,)))
    assert step_texts(texts_of, tokens, mask, ends) == [["tea \n", "cake"], ["cake"]]


def test_the_ids_that_end_a_step_are_those_whose_text_does():
    own = build_tokenizer()
    found = marks(own, len(own) + 5, ".")
    assert found.shape == (len(own) + 5,) and found[own.convert_tokens_to_ids(".")] and found.sum() == 1
    for marker in ("", "no such text"):
        with refuses(ValueError, f"step_ends = {marker!r}", "ends"):
            marks(own, len(own), marker)


def lengths(row, steps, *, finished):
    return [float(len(step)) for step in steps]


def test_a_number_for_each_step_and_what_fails_is_named():
    ends = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], bool)
    steps, done = [["ab", "c"], ["dddd"]], np.ones(2, bool)
    values, found = score_steps(lengths, [{}] * 2, steps, done, ends, Workers(2, 5.0))
    np.testing.assert_array_equal(values, [[0, 2, 0, 1], [4, 0, 0, 0]])
    np.testing.assert_array_equal(found.values, [3, 4])

    def one_too_few(row, steps, *, finished):
        return lengths(row, steps, finished=finished)[1:] if len(steps) > 1 else [None]

    with refuses(ValueError, "'one_too_few'", "1 values", "2 steps"):
        score_steps(one_too_few, [{}] * 2, steps, done, ends, Workers(2, 5.0))
    values, found = score_steps(one_too_few, [{}] * 2, steps, done, ends, Workers(2, 5.0), trouble=Trouble(0, True))
    assert np.isnan(found.values).all() and list(found.failed) == [0]  # the second has no score, which is no failure


def test_verdicts_are_the_head_at_each_token_however_the_rows_are_read():
    model, params = tiny(seed=4, scalar=True, layers=1)
    rollout = rollout_batch()
    want = model.scalar(params, model.apply(params, rollout.tokens, rollout.valid))
    for rows in ({"start": 1}, {"start": 2}, {"start": 2, "room": 10}):
        got = forward.verdicts(model, params, rollout.tokens, rollout.valid, **rows)
        seen = np.asarray(rollout.valid) & (np.arange(12)[None] >= rows["start"])
        np.testing.assert_allclose(np.asarray(got)[seen], np.asarray(want)[seen], rtol=1e-4, atol=1e-5)


# ---- in the advantages


def test_rewards_of_steps_are_at_their_tokens_and_the_rest_of_the_score_at_the_last():
    mask = jnp.array([[0, 1, 1, 1, 1]], bool)
    steps = jnp.array([[9.0, 2.0, 0.0, 0.5, 0.0]])  # what is outside of the mask is no reward
    kl = jnp.full((1, 5), 0.1)
    got = token_rewards(jnp.array([4.0]), kl, mask, 1.0, steps)
    np.testing.assert_allclose(got, [[0, 2 - 0.1, -0.1, 0.5 - 0.1, 1.5 - 0.1]], rtol=1e-6)
    np.testing.assert_allclose(got.sum(), token_rewards(jnp.array([4.0]), kl, mask, 1.0).sum(), rtol=1e-6)
    # undiscounted, without a critic: the advantage is what is still to come
    advantage, _ = gae(got, jnp.zeros((1, 5)), mask, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(advantage, [[0, 3.6, 1.7, 1.8, 1.4]], rtol=1e-6)


@pytest.mark.parametrize("name", ["gae", "reinforce_plus_plus"])
def test_estimators_of_tokens_see_when_a_step_was_rewarded_and_those_of_replies_its_sum(name):
    rollout = rollout_batch()
    score = rollout.mask.sum(1).astype(jnp.float32)
    at_last, spread = jnp.zeros_like(rollout.old_logp), rollout.mask.astype(jnp.float32)
    estimator = getattr(advantages, name)
    given = {"kl_in_reward": False}
    of = lambda steps: estimator(rollout.replace(step_rewards=steps), score, jnp.float32(0), **given)[0].advantage  # noqa: E731
    plain_one = estimator(rollout, score, jnp.float32(0), **given)[0].advantage
    np.testing.assert_array_equal(of(at_last), plain_one)
    assert np.abs(of(spread) - plain_one).max() > 0.1
    whole = [
        advantages.group_baseline(rollout.replace(step_rewards=x), score, jnp.float32(0), group=2, **given)[0].advantage
        for x in (spread, None)
    ]
    np.testing.assert_array_equal(*whole)


@pytest.mark.slow
def test_a_process_reward_model_on_the_device():
    """Its numbers are those of `forward.stepwise` at the ends of steps, and their sum is in the score."""
    settings = dict(**ALONE, advantage="reinforce_plus_plus", scoring_args=dict(normalize=False, clip=0.0))
    algorithm = dataclasses.replace(
        build_algorithm(**settings), weights={"reward": 0.5, "flat": 1.0}, per_step=("reward",)
    )
    marked = jnp.zeros(64, bool).at[jnp.arange(2, 30)].set(True)
    frozen = build_frozen() | {"step_ends": {"reward": marked}}
    model, _, _, params = models()
    actors = build_actors()._replace(critic=None)
    judge = programs.on_device(algorithm, {"reward": model}, {"reward": "log_probability"}, actors.sampler.ends)
    state, prompts = build_state(algorithm), prompt_batch()
    key = jax.random.wrap_key_data(state.key)
    rollout = online.produce(algorithm, actors, frozen, state.policy.params, prompts, key, state.step)
    found = judge(frozen, rollout)["reward"]
    ends = np.asarray(step_ends(rollout.tokens, rollout.mask, marked, actors.sampler.ends))
    reply = {"tokens": rollout.tokens, "valid": rollout.valid}
    judged = {"reply": reply, "target": jnp.zeros(ends.shape), "step_end": jnp.asarray(ends)}
    logit = forward.stepwise(model, params, judged).logit
    want = np.where(ends, OF_LOGITS["log_probability"](logit), 0.0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert (ends.sum(1) > 1).any()
    score = lambda frozen, rollout: judge(frozen, rollout) | {"flat": jnp.ones(8)}  # noqa: E731
    scored = rewarded.scored(algorithm, rollout, score(frozen, rollout))
    np.testing.assert_allclose(scored.score, 1 + 0.5 * want.sum(1), rtol=1e-4)
    np.testing.assert_allclose(scored.step_rewards, 0.5 * want, rtol=1e-4, atol=1e-5)
    _, metrics = online.iteration(algorithm, actors, score, state, frozen, prompts)
    np.testing.assert_allclose(metrics["rewards/reward/mean"], want.sum(1).mean(), rtol=1e-4)


def test_a_shape_that_is_not_the_tokens_is_refused():
    algorithm = dataclasses.replace(build_algorithm(), per_step=("reward",))
    with refuses(ValueError, "'reward'", "tokens"):
        rewarded.scored(algorithm, rollout_batch(), {"reward": jnp.zeros(8)})


# ---- in a config


def config(**rewards):
    own = dict(rewards=rewards, critic_init="none", advantage="reinforce_plus_plus")
    return Reader(plain(stage.get_config()) | own)


PRM = {"from": "runs/steps", "step_ends": "\n", "per_step": "probability"}


def test_scores_that_are_normalised_or_clipped_have_no_place_beside_steps():
    r = config(prm=PRM)
    with refuses(ConfigError, "config.scoring_args", "'prm'", "normalize=False"):
        algorithm_of(r, rewards_of(r), plain(stage.get_config()))


@pytest.mark.parametrize(
    "reward, key, word",
    [
        (PRM | {"per_step": "sum"}, "config.rewards.x.per_step = 'sum'", "'probability'"),
        (PRM | {"step_ends": ""}, "config.rewards.x.step_ends", "ends"),
        ({"from": "x", "per_step": "logit"}, "config.rewards.x.step_ends", "ends"),
        ({"function": lengths}, "config.rewards.x", "step_ends"),
        ({"function": "alignax.rewards.style:ended", "step_ends": "."}, "config.rewards.x.function", "steps"),
        (PRM | {"at_least": 1.0}, "config.rewards.x.at_least", "steps"),
        (PRM | {"function": "alignax.rewards.combine:mean"}, "config.rewards.x.per_step", "process reward model"),
    ],
)  # fmt: skip
def test_rewards_of_steps_that_no_config_can_hold(reward, key, word):
    with refuses(ConfigError, key, word):
        rewards_of(config(x=reward))


def test_the_one_reward_of_a_config_is_not_of_steps():
    with refuses(ConfigError, "config.reward = ", "config.rewards"):
        rewards_of(Reader(plain(stage.get_config()) | {"reward": lengths}))


def test_a_config_names_steps_of_text_and_of_a_model():
    found = rewards_of(config(prm=PRM | {"weight": 2.0}, text={"function": lengths, "step_ends": "."}))
    assert found["prm"].per_step == "probability" and found["prm"].weight == 2.0 and found["prm"].step_ends == "\n"
    assert found["text"].step_ends == "." and not found["text"].per_step
