"""Parts of an online config that do not fit each other: refused by its plan, before anything is loaded."""

import pytest
from errors import refuses

from alignax.config import ConfigError, plain
from alignax.stages import online
from configs.world import online as recipes
from configs.world import tools

BRIEF = dict(function="alignax.rewards.style:length", most=12)


def gdpo(**values):
    """The recipe with a reward model and a text reward, and changes."""
    c = recipes.get_config("gdpo")
    c.rewards = {"judge": {"from": "x"}, "brief": BRIEF}
    return plain(c) | values


@pytest.mark.parametrize(
    "config, key, word",
    [
        (gdpo(reward_shaping="centred"), "config.reward_shaping = 'centred'", "'gdpo'"),
        (gdpo(rewards={"judge": {"from": "x"}, "b": BRIEF | dict(at_least=-1.0)}), "config.rewards.b", "constraint"),
        (plain(tools.grpo(tools.TOOL)) | dict(init_from="x", reward_shaping="centred"), "config.reward_shaping", "env"),
        (plain(tools.grpo(tools.TOOL)) | dict(init_from="x", steps_off_policy=1), "config.steps_off_policy = 1", "env"),
        (
            gdpo(advantage="group_baseline", rewards={"b": BRIEF | dict(at_least=-1.0, multiplier=50.0)}),
            "config.rewards.b.multiplier = 50.0",
            "max_multiplier",
        ),
    ],
)
def test_what_would_have_no_effect_or_none_that_is_meant(config, key, word):
    with refuses(ConfigError, key, word):
        online.plan(config)


def test_what_fits_is_planned():
    assert set(online.plan(gdpo()).algorithm.weights) == {"judge", "brief"}
