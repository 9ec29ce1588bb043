"""Texts longer than a model's positions are refused from the config and the parents' manifests alone."""

import pytest
from errors import refuses

from alignax.config import ConfigError
from alignax.models.config import ModelConfig
from alignax.stages import collect, distill, evaluate, offline, online, reward, sft
from alignax.stages.lengths import check_context, longest_of, longest_text
from alignax.stages.plans import parents_of

LEARNED = ModelConfig(8, positions="learned", max_positions=64)
LONG = ModelConfig(8, rope_type="longrope", rope_original=64, rope_factors=(1.0,) * 16, rope_long_factors=(2.0,) * 16)
DYNAMIC = ModelConfig(8, rope_type="dynamic", max_positions=64)
SAMPLED = "config.max_prompt_length + max_new_tokens = 65"


def _check(model, config, stage, role):
    """`check_context` of a role as its stage declares it."""
    config = config | ({"policies": {role: "x"}} if stage is evaluate else {})
    check_context(model, config, role, parents_of(stage.STAGE, config)[role])


def _config(stage, **values):
    """The stage's own config, of texts that fit, but for `values`; "probe.x" is a key of its probe."""
    c = stage.get_config().to_dict()
    short = {"max_length": 64, "max_prompt_length": 32, "max_new_tokens": 32}
    for group in (c, c.get("probe", {})):
        group.update({key: value for key, value in short.items() if key in group})
    for key, value in values.items():
        group, name = (c["probe"], key[6:]) if key.startswith("probe_") else (c, key)
        assert name in group
        group[name] = value
    return c


@pytest.mark.parametrize(
    "model", [LEARNED, LONG, DYNAMIC, ModelConfig(8)], ids=["learned", "longrope", "dynamic", "any"]
)
@pytest.mark.parametrize("stage", [sft, reward, offline, online, collect, distill, evaluate])
def test_texts_that_fit_are_read_by_every_role(stage, model):
    for role in stage.STAGE.reads:
        if "*" not in role:
            _check(model, _config(stage), stage, role)


@pytest.mark.parametrize(
    "stage, values, role, key, word",
    [
        (sft, dict(max_length=65), "policy", "config.max_length = 65", "learned"),
        (reward, dict(max_length=65), "policy", "config.max_length = 65", "learned"),
        (offline, dict(max_length=65), "policy", "config.max_length = 65", "learned"),
        (online, dict(max_new_tokens=33), "policy", SAMPLED, "learned"),
        (online, dict(max_new_tokens=33), "reward", SAMPLED, "learned"),
        (collect, dict(max_prompt_length=33), "policy", SAMPLED, "learned"),
        (distill, dict(max_new_tokens=33), "policy", SAMPLED, "learned"),
        (distill, dict(max_length=65), "teacher", "config.max_length = 65", "(teacher)"),
        (
            offline,
            dict(probe_source="x", probe_max_new_tokens=33),
            "policy",
            "config.probe.max_prompt_length",
            "learned",
        ),
        (
            offline,
            dict(probe_source="x", probe_max_new_tokens=33),
            "proxy",
            "config.probe.max_prompt_length",
            "(proxy)",
        ),
        (
            evaluate,
            dict(probe_source="x", probe_max_new_tokens=33),
            "mine",
            "config.probe.max_prompt_length",
            "learned",
        ),
    ],
)
def test_longer_texts_are_refused_by_the_roles_that_read_them(stage, values, role, key, word):
    config = _config(stage, **values)
    with refuses(ConfigError, key, word):
        _check(LEARNED, config, stage, role)
    _check(ModelConfig(8), config, stage, role)


@pytest.mark.parametrize(
    "stage, values, role",
    [
        (distill, dict(on_policy=0.0, max_new_tokens=99), "policy"),  # nothing is sampled
        (offline, dict(max_length=99, probe_source="x"), "proxy"),  # which reads probes alone
        (offline, dict(probe_max_new_tokens=99), "policy"),  # there is no probe
        (online, dict(probe_source="x", probe_max_new_tokens=99), "reward"),
    ],
)
def test_texts_that_a_role_does_not_read_are_not_counted(stage, values, role):
    _check(LEARNED, _config(stage, **values), stage, role)


def test_the_message_names_the_kind_of_positions():
    for model in (LONG, DYNAMIC):
        with refuses(ConfigError, f"rope_type '{model.rope_type}'", "64 tokens"):
            _check(model, _config(sft, max_length=65), sft, "policy")


@pytest.mark.parametrize(
    "stage, values, want",
    [
        (sft, dict(max_length=65), 65),
        (online, dict(max_prompt_length=40, max_new_tokens=50), 90),
        (distill, dict(max_length=65, max_new_tokens=50), 82),  # 32 + 50 of its own samples
        (distill, dict(max_length=65, max_new_tokens=50, on_policy=0.0), 65),
        (offline, dict(probe_max_new_tokens=500), 64),  # a probe trains nothing
    ],
)
def test_the_longest_text_is_that_of_the_data_or_of_the_samples(stage, values, want):
    config = _config(stage, **values)
    assert longest_of(config) == want
    assert longest_text({"config": config}) == want  # a manifest of before it was recorded
    assert longest_text({"config": config, "longest_text": 100}) == 100  # an ancestor's
