"""Online runs that are watched, lag, and learn from data beside: an alarm stops one, and what goes on is the same."""

import json

import pytest
from errors import refuses
from stage_runs import metrics, tiny

from alignax.config import ConfigError
from alignax.manifest import read_manifest
from alignax.report.page import render
from alignax.stages import online, probe
from alignax.train.alarms import Alarmed

STOP = dict(metric="completions/mean_length", above=0.0, after_percent=75.0, stop=True)  # of 4 steps, at the third


def config(run, **values):
    """Four iterations with all that may stand beside the policy's own loss, and two batches in flight."""
    c = tiny(size="pending").ppo
    c.init_from, c.total_steps, c.eval_every_steps, c.probe = str(run / "sft"), 4, 0, probe.get_config()
    c.critic_init, c.value_optimizer_args = "shared", online.get_config().value_optimizer_args
    c.data_loss.update(loss="sft", coefficient=0.5, source="alignax.worlds.sources:demonstrations", batch_size=16)
    c.data_loss.data, c.data_loss.max_length = dict(count=64), 64
    for name, value in values.items():
        c[name] = value
    return c


def timeless(rows):
    """The rows of a log without its times."""
    return [{k: x for k, x in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The run that nothing stops."""
    return online.run(config(run, alarms={}), tmp_path_factory.mktemp("whole") / "ppo")


def test_everything_beside_is_in_the_log(whole):
    rows = metrics(whole)
    assert [row["sampling/staleness"] for row in rows] == [0, 1, 2, 2]
    for row in rows:
        assert row["data/loss"] == pytest.approx(0.5 * row["data/sft"], rel=1e-5)
        assert {"loss/value_avg", "objective/kl_k3", "completions/distinct", "rewards/length_correlation"} <= set(row)
    assert "scalar" not in str(read_manifest(whole)["architecture"]) and not (whole / "alarms.jsonl").exists()


def test_a_run_that_an_alarm_stopped_goes_on_where_it_was(whole, run, tmp_path):
    workdir = tmp_path / "ppo"
    with refuses(Alarmed, "step 3", "config.alarms.long.stop"):
        online.run(config(run, alarms=dict(long=STOP)), workdir)
    (row,) = map(json.loads, (workdir / "alarms.jsonl").read_text().splitlines())
    assert (row["step"], row["alarm"]) == (3, "long")
    assert [row["step"] for row in metrics(workdir)] == [1, 2, 3]  # what was found is kept
    assert "long: completions/mean_length is" in render(workdir).read_text()
    # another bound is no other run: it goes on, with what was in flight, and ends as the one that nothing stopped
    online.run(config(run, alarms=dict(long=STOP | dict(above=1e6))), workdir)
    assert timeless(metrics(workdir)) == timeless(metrics(whole))
    assert read_manifest(workdir)["content_hash"] == read_manifest(whole)["content_hash"]
    assert json.loads((workdir / "config.json").read_text())["alarms"]["long"]["above"] == 1e6


@pytest.mark.slow
def test_replies_that_go_on_in_the_next_steps_survive_a_stop(run, tmp_path):
    """A reward over text, learners that are adapters, prompts shared in learning: stopped at step 3, and gone on."""
    carried = dict(steps_off_policy=0, partial_rollouts=1, lora_args=dict(rank=2), samples_per_prompt=2)
    carried |= dict(share_prompts=True, length_buckets=2, update_args=dict(epochs=1, microbatches=2))
    both = [tmp_path / name for name in ("whole", "stopped")]
    online.run(config(run, alarms={}, **carried), both[0])
    with refuses(Alarmed, "step 3"):
        online.run(config(run, alarms=dict(long=STOP), **carried), both[1])
    online.run(config(run, alarms={}, **carried), both[1])
    whole, gone_on = (timeless(metrics(folder)) for folder in both)
    assert whole == gone_on and whole[0]["sampling/carried"] == 0 and max(x["sampling/carried"] for x in whole) > 0
    hashes = {read_manifest(folder)["content_hash"] for folder in both}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "values, key",
    [
        (dict(alarms=dict(x=5)), "config.alarms.x"),
        (dict(alarms=dict(x=dict(metric="a"))), "config.alarms.x"),
        (dict(steps_off_policy=-1), "config.steps_off_policy = -1"),
        (dict(partial_rollouts=-1), "config.partial_rollouts = -1"),
        (dict(partial_rollouts=1), "config.steps_off_policy = 2"),
        (dict(partial_rollouts=1, steps_off_policy=0, engine="http://x:1"), "config.engine"),
        (dict(partial_rollouts=1, steps_off_policy=0, sampler_devices=1), "config.sampler_devices = 1"),
        (dict(partial_rollouts=1, steps_off_policy=0, slots=16), "config.slots = 16"),
        (dict(sampler_devices=8), "config.sampler_devices = 8"),
        (dict(sampler_devices=2, steps_off_policy=0), "config.sampler_devices = 2"),
    ],
)
def test_what_cannot_be_watched_or_wait_is_refused(run, values, key):
    with refuses(ConfigError, key, "expected" if "_devices = 2" not in key else "steps_off_policy"):
        online.plan(config(run, **values))


@pytest.mark.parametrize(
    "values, key",
    [
        (dict(loss="ppo_clip"), "config.data_loss.loss"),
        (dict(loss="", loss_args={}), "config.data_loss.loss = ''"),
        (dict(source=""), "config.data_loss"),
        (dict(coefficient=-1.0), "config.data_loss.coefficient = -1.0"),
        (dict(batch_size=9), "config.data_loss.batch_size"),
        (dict(train_on="some"), "config.data_loss.train_on = 'some'"),
    ],
)
def test_data_that_cannot_be_learnt_from_beside_is_refused(run, values, key):
    c = config(run)
    c.data_loss.update(**values)
    with refuses(ConfigError, key):
        online.plan(c)
