"""experiments/tools/run.py on made-up runs: figures by hand."""

import pytest

from experiments import load


@pytest.fixture(scope="module")
def run():
    return load("tools")


def made(right, calls):
    """What the two steps measured of a seed."""
    told = lambda gold, **more: {"gold_reward": gold, "kl": 0.0} | more  # noqa: E731
    of_tools = {"tools/calls": calls, "tools/failures": 0.0}
    with_tool = {"sft": told(0.2, **of_tools), "grpo_tool": told(right, **of_tools)}
    return {"with_tool": with_tool, "without": {name: told(0.1) for name in ("sft", "grpo", "grpo_tool")}}


def test_the_table_is_of_the_runs(run):
    table = run.collect([made(0.8, 1.0), made(0.9, 1.1), made(1.0, 1.2)])
    row = table["GRPO with the tool, shown it"]
    assert row["accuracy"]["mean"] == pytest.approx(0.9) and row["calls"]["mean"] == pytest.approx(1.1)
    # the standard error of three values 0.1 apart is 0.1 / sqrt(3); t with 2 degrees of freedom is 4.303
    assert row["accuracy"]["ci95"] == pytest.approx([0.9 - 0.2484, 0.9 + 0.2484], abs=1e-3)
    assert table["gain of the tool"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert "calls" not in table["SFT, not shown it"]


def test_the_page_has_a_row_for_each(run):
    runs = {seed: made(0.8 + 0.1 * seed, 1.0) for seed in range(3)}
    page = run.markdown(run.results(runs))
    assert all(f"| {name} |" in page for name in run.ROWS) and "Seeds 0, 1, 2" in page
