"""experiments/questions and experiments/staleness: players without a model, and tables of made-up runs."""

import pytest

from experiments import load


def test_who_knows_what_to_ask_wins_more():
    players = load("questions").players(games=300)
    demonstrated, true, halved = players.values()
    assert 0.2 < demonstrated < 0.4 < true < 0.75 and halved == 1.0


def test_the_table_of_games_is_of_the_runs():
    run = load("questions")
    told = lambda won: {"questions/won": won, "gold_reward": won - 0.1, "env/turns": 7.0, "kl": 0.0}  # noqa: E731
    found = run.results({seed: {"sft": told(0.2), "grpo": told(0.4 + 0.1 * seed)} for seed in range(3)})
    # three values 0.1 apart: the standard error is 0.1 / sqrt(3), t with 2 degrees of freedom 4.303
    assert found["table"]["grpo"]["games won"]["ci95"] == pytest.approx([0.5 - 0.2484, 0.5 + 0.2484], abs=1e-3)
    assert "--seeds 0 1 2" in found["command"] and "| grpo | 0.50" in run.markdown(found)


def test_every_lag_has_a_run_with_a_correction_but_none():
    run = load("staleness")
    assert run.names()[:5] == ["grpo-k0", "grpo-k1", "grpo-k1-corrected", "grpo-k4", "grpo-k4-corrected"]
    c = run.config_of("rloo-k4-corrected", 1, run.HERE)
    assert (c.steps_off_policy, c.correction, c.seed) == (4, "truncated_weights", 1)
    assert run.config_of("rloo-k0", 0, run.HERE).correction == ""
    one = dict.fromkeys(run.TITLES, 1.0)
    found = run.results({"grpo-k0": {0: one | {"difference": None}}, "grpo-k1-corrected": {0: one}})
    assert "| grpo-k0 | 1 | 1.00 | 1.00 | 1.00 | 1.00 | - | 1.000 |" in run.markdown(found)
