"""PPO in the forms that the quickstart does not take."""

import numpy as np
import pytest
from stage_runs import metrics, tiny

from alignax.stages import online, probe


@pytest.fixture(scope="module")
def ppo(run):
    """The online stage on the finished SFT policy, two iterations, no probe."""

    def variant(workdir, size, **values):
        config = tiny(size=size).ppo
        config.init_from, config.total_steps, config.eval_every_steps = str(run / "sft"), 2, 0
        config.probe = probe.get_config()
        for name, value in values.items():
            config[name] = value
        return metrics(online.run(config, workdir))

    return variant


def test_a_reward_over_text_with_a_critic_from_the_policy_and_an_adaptive_coefficient(ppo, tmp_path):
    """Two programs with the gold program between them, which cannot score every reply."""
    target, horizon, batch = 0.01, 100.0, 16
    first, second = ppo(tmp_path / "ppo", "short", kl_coef=0.05, reward="own_parts:partial_gold")
    assert first["objective/kl_coef"] == pytest.approx(0.05)
    # Ziegler et al. 2019: coef * (1 + clip(kl / target - 1, -0.2, 0.2) * batch / horizon); at the first iteration the
    # policy is the reference, so kl = 0 and the error is clipped at -0.2: 0.05 * (1 - 0.2 * 16 / 100) = 0.0484
    error = np.clip(first["objective/kl"] / target - 1, -0.2, 0.2)
    assert second["objective/kl_coef"] == pytest.approx(0.05 * (1 + error * batch / horizon))
    assert second["objective/kl_coef"] == pytest.approx(0.0484, rel=1e-4)
    assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)
    for row in (first, second):
        assert 0 < row["objective/missing_scores"] < 1 and row["objective/scores_sd"] > 0
        assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()


@pytest.mark.slow
def test_a_kl_penalty_in_the_loss_by_k2(ppo, run, tmp_path):
    values = {"kl_placement": "loss", "kl_estimator": "k2", "reward_from": str(run / "reward")}
    first, second = ppo(tmp_path / "ppo", "whole", **values)
    for row in (first, second):
        assert row["objective/non_score_reward"] == 0.0  # nothing is charged in the reward
        total = row["loss/policy_avg"] + row["objective/kl_coef"] * row["loss/kl_avg"]
        assert row["loss/policy_total"] == pytest.approx(total, rel=1e-4, abs=1e-6)
    # the mean over the minibatches of the first iteration, of which the first is at the reference and gives 0
    assert 0 < first["loss/kl_avg"] < second["loss/kl_avg"]


@pytest.mark.slow  # its passes through the model: test_forward
def test_replies_that_share_their_prompt_learn_the_same(ppo, run, tmp_path):
    values = {"reward_from": str(run / "reward"), "samples_per_prompt": 2}
    apart, shared = (ppo(tmp_path / name, "whole", **values, share_prompts=name == "shared")[0]
                     for name in ("apart", "shared"))  # fmt: skip
    # what counts tokens beyond a clip changes with the last digit of a ratio
    counted = [name for name in apart if "clipfrac" in name]
    left_out = lambda row: {k: x for k, x in row.items() if k not in ("split", *counted) and k[:5] != "time/"}  # noqa: E731
    assert left_out(shared) == pytest.approx(left_out(apart), rel=2e-3, abs=1e-4)
    assert [shared[name] for name in counted] == pytest.approx([apart[name] for name in counted], abs=5e-3)
    assert apart["critic/grad_norm"] > 0 and apart["grad_norm"] > 0
