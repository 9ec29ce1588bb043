"""Configs that cannot mean what they say: one message, exit status 1, nothing compiled and nothing written."""

from pathlib import Path

import pytest
from stage_runs import ROOT, TINY, fails, tiny, write_rows

from alignax.config import ConfigError, plain
from alignax.main import load_config
from alignax.stages import offline, pipeline, sft

COLLECT = ROOT / "configs/world/collect.py"
DPO = ROOT / "configs/world/dpo.py"
PPO = ROOT / "configs/world/ppo.py"
RLOO = ROOT / "configs/world/online.py:rloo"
SFT = ROOT / "configs/world/sft.py"
TEXT = Path(__file__).with_name("text_sft.py")


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """No model is even built in these tests."""

    def build(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr("alignax.stages.parents.decoder", build)


@pytest.mark.parametrize(
    "config, overrides, message",
    [
        ("nowhere.py", [], "no such file; configs that come with alignax are in configs/"),
        (TINY, ["--config.ppo.kl_coeff=0.1"], "--config.ppo.kl_coeff: no such key; did you mean 'ppo.kl_coef'?"),
        (TINY, ["--config.ppo.kl_coef=much"], "much"),
        (TINY, ["--config.sft.total_steps=2.5"], "2.5"),
        (TINY, ["kl_coef=0.1"], "'kl_coef=0.1': expected --config.KEY=VALUE"),
        (DPO, ["--config.loss_args={'bta': 0.1}"], "config.loss_args.bta: dpo takes no such argument; did you mean"),
        (DPO, ["--config.loss_args.bta=0.1"], "config.loss_args.bta: dpo takes no such argument; did you mean 'beta'?"),
        (DPO, ["--config.loss_args={'beta': '0.1'}"], "config.loss_args.beta = '0.1': expected float"),
        (
            DPO,
            ["--config.loss=dop"],
            "config.loss = 'dop': there is no module 'alignax.losses.dop'; did you mean 'dpo'",
        ),
        (DPO, ["--config.loss=nowhere:dpo"], "config.loss = 'nowhere:dpo': there is no module 'nowhere'"),
        (DPO, ["--config.optimizer_args.learning_rate=-x"], "learning_rate"),
        (DPO, ["--config.batch_size=12"], "config.batch_size: 12 rows do not divide over 8 devices"),
        (
            DPO,
            ["--config.batch_size=64", "--config.microbatches=5"],
            "config.batch_size: 64 rows do not divide over 5 microbatches",
        ),
        (DPO, ["--config.lora_args={'rank': 0}"], "config.lora_args.rank = 0: expected 1 or more"),
        (
            DPO,
            ["--config.packing=dense"],
            "config.packing = 'dense': expected one of 'off', 'bucketed', 'packed', 'sha",
        ),
        (
            DPO,
            ["--config.compute.attention=splash", "--config.packing=shared"],
            "config.compute.attention = 'splash': it knows no rows whose texts share a beginning",
        ),
        (PPO, ["--config.share_prompts=true"], "samples_per_prompt of 2 or more, not 1"),
        (DPO, ["--config.probe.batch_size=9"], "config.probe.batch_size: 9 rows do not divide over 8 devices"),
        (
            PPO,
            ["--config.batch_size=64", "--config.update_args.minibatches=3"],
            "config.batch_size: 64 rows do not divide over 3 minibatches",
        ),
        (PPO, ["--config.reward=alignax.worlds.gold:gold"], "or config.rewards (several by name): set exactly one"),
        (PPO, ["--config.reward_from="], "or config.rewards (several by name): set exactly one"),
        (PPO, ["--config.critic_init=nonce"], "config.critic_init = 'nonce': expected one of 'reward'"),
        (PPO, ["--config.temperature=0.0"], "config.temperature = 0.0: expected > 0"),
        (PPO, ["--config.temperature=nan"], "config.temperature = nan: expected a number"),
        (PPO, ["--config.temperature=-1.0"], "config.temperature = -1.0: expected"),
        (PPO, ["--config.probe.temperature=-1.0"], "config.probe.temperature = -1.0: expected"),
        (COLLECT, ["--config.temperature=-0.5"], "config.temperature = -0.5: expected"),
        (PPO, ["--config.kl_coef=nan"], "config.kl_coef = nan: expected a number"),
        (RLOO, ["--config.kl_coef=-0.1"], "config.kl_coef = -0.1: expected 0 (no penalty) or more"),
        (PPO, ["--config.kl_controller_args.horizon=0.0"], "config.kl_controller_args: adaptive_kl: horizon = 0.0"),
        (PPO, ["--config.kl_controller_args.target=nan"], "config.kl_controller_args.target = nan: expected a number"),
        (PPO, ["--config.kl_loss_args={'importance_weighted': False}"], "config.kl_loss_args is set, but kl_placement"),
        (PPO, ["--config.update_args.kl_limit=-0.1"], "config.update_args: kl_limit = -0.1: expected 0"),
        (PPO, ["--config.advantage_args.gamma=1.5"], "config.advantage_args: gae: gamma = 1.5: expected a number in"),
        (DPO, ["--config.loss=ipo", "--config.loss_args.aggregation=token"], "'token': expected 'sum' or 'mean'"),
        (DPO, ["--config.loss_args.beta=nan"], "config.loss_args.beta = nan: expected a number"),
        (DPO, ["--config.optimizer_args.learning_rate=-1e-3"], "config.optimizer_args: learning_rate = -0.001: expec"),
        (PPO, ["--config.kl_placement=loss"], "KL estimator 'k1' in the loss: its expected gradient is 0"),
        (PPO, ["--config.kl_estimator=k3"], "KL estimator 'k3' in the reward"),
        (
            RLOO,
            ["--config.kl_controller=adaptive_kl"],
            "config.kl_controller_args.target is missing: adaptive_kl needs",
        ),
        (SFT, ["--config.source=jsnl"], "config.source = 'jsnl': there is no module 'alignax.data.sources.jsnl'; did"),
        (SFT, ["--config.model_args={'width': 3}"], "config.model_args.width: harbor takes no such argument"),
        (SFT, ["--config.compute.remat=some"], "config.compute.remat = 'some': expected one of 'none', 'dots', "),
        (SFT, ["--config.compute.attention=cudnn"], "config.compute.attention = 'cudnn': it needs an NVIDIA GPU of"),
        (SFT, ["--config.model="], "config.model is empty, and so is config.init_from"),
        (SFT, ["--config.tokenizer="], "config.tokenizer is empty, and so is config.init_from"),
        (DPO, ["--config.init_from=", "--config.data.path=x"], "config.init_from is empty: this stage starts from"),
    ],
)
def test_a_mistake_stops_before_anything_is_made(config, overrides, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    err = fails(capsys, "run", f"--config={config}", f"--workdir={workdir}", *overrides)
    assert message in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["dpo"].update(dict(los="dpo")), "config.dpo.los is not a key of this stage; did you mean 'loss'?"),
        (lambda c: c["dpo"].update(dict(batch_size="16")), "config.dpo.batch_size = '16': expected int, got str"),
        (lambda c: c["dpo"].update(dict(mesh=4)), "config.dpo.mesh = 4: expected a group of keys, got int"),
        (lambda c: c["dpo"].pop("loss"), "config.dpo.loss is missing"),
        (lambda c: c["dpo"].update(dict(stage="ofline")), "config.dpo.stage = 'ofline': there is no such stage"),
        (lambda c: c.update(dict(extra=1)), "config.extra: nothing runs it; add it to config.steps"),
        (lambda c: c.update(dict(steps=("sft", "dop"))), "config.steps names 'dop', but config.dop is not there"),
        (lambda c: c["ppo"].update(dict(reward_args=dict(offset=1.0))), "config.ppo.reward is empty: nothing reads it"),
        (lambda c: c["evaluate"]["probe"].update(dict(source="")), "config.evaluate.probe.data is set, but"),
    ],
)
def test_a_mistake_in_the_last_step_stops_the_first(change, message, tmp_path):
    config = plain(tiny())
    change(config)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_called_by_hand_checks_its_config_too(tmp_path):
    config = tiny().dpo
    config.loss_args = dict(bta=0.1)
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        offline.run(config, tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()


def test_a_key_that_nothing_reads_is_found_before_the_first_step(monkeypatch, tmp_path):
    """A stage that declares a key and forgets it: the mistake of an author, not of a user."""
    monkeypatch.undo()  # the model is built
    path = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": f"tea {'cake ' * n}", "completion": "tea"} for n in range(16)]
    )
    config = plain(load_config(f"{TEXT}:{path}", [])) | {"forgotten": 2}
    with_key = plain(sft.get_config()) | {"forgotten": 1}
    monkeypatch.setattr(sft, "get_config", lambda: with_key)
    with pytest.raises(ConfigError, match="nothing reads config.forgotten: remove it, or the stage has a bug"):
        sft.run(config, tmp_path / "sft")
    assert not (tmp_path / "sft/metrics.jsonl").exists()


def test_a_config_of_another_stage_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.stage = 'sft': this is the 'offline' stage"):
        offline.run(tiny().sft, tmp_path / "dpo")


def test_a_step_of_a_pipeline_is_no_folder_of_a_stage_alone(tmp_path):
    with pytest.raises(ConfigError, match="config.init_from = '@sft': '@' names a step of a pipeline"):
        offline.run(tiny().dpo, tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()
