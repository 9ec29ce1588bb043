"""Configs that cannot mean what they say: one message, exit status 1, nothing compiled and nothing written."""

from pathlib import Path

import pytest
from errors import names, refuses
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
    "config, overrides, key, word",
    [
        ("nowhere.py", [], "nowhere.py", "configs/"),
        (TINY, ["--config.ppo.kl_coeff=0.1"], "--config.ppo.kl_coeff:", "'ppo.kl_coef'"),
        (TINY, ["--config.ppo.kl_coef=much"], "--config.ppo.kl_coef=much", "float"),
        (TINY, ["--config.sft.total_steps=2.5"], "--config.sft.total_steps=2.5", "int"),
        (TINY, ["kl_coef=0.1"], "'kl_coef=0.1'", "--config.KEY=VALUE"),
        (DPO, ["--config.loss_args={'bta': 0.1}"], "config.loss_args.bta:", "'beta'"),
        (DPO, ["--config.loss_args.bta=0.1"], "config.loss_args.bta:", "'beta'"),
        (DPO, ["--config.loss_args={'beta': '0.1'}"], "config.loss_args.beta = '0.1'", "float"),
        (DPO, ["--config.loss=dop"], "config.loss = 'dop'", "'dpo'"),
        (DPO, ["--config.loss=:dpo"], "config.loss = ':dpo'", "module:function"),
        (DPO, ["--config.loss=.losses:dpo"], "config.loss = '.losses:dpo'", "module:function"),
        (DPO, ["--config.total_steps=0"], "config.total_steps = 0:", "1 or more"),
        (PPO, ["--config.save_every_steps=0"], "config.save_every_steps = 0:", "1 or more"),
        (PPO, ["--config.eval_every_steps=-1"], "config.eval_every_steps = -1:", "0 or more"),
        (PPO, ["--config.seed=-1"], "config.seed = -1:", "0 or more"),
        (PPO, ["--config.max_prompt_length=-5"], "config.max_prompt_length = -5:", "1 or more"),
        (DPO, ["--config.template=chta"], "config.template = 'chta'", "'chat'"),
        (DPO, ["--config.mesh.data=3"], "config.mesh:", "8 devices"),
        (DPO, ["--config.mesh.data=0"], "config.mesh: mesh.data = 0:", "-1"),
        (PPO, ["--config.kl_coef=inf"], "config.kl_coef = inf:", "penalty"),
        (PPO, ["--config.temperature=inf"], "config.temperature = inf:", "greedy"),
        (DPO, ["--config.optimizer_args.learning_rate=inf"], "config.optimizer_args", "finite"),
        (DPO, ["--config.optimizer_args.warmup_percent=200.0"], "config.optimizer_args", "100"),
        (PPO, ["--config.reward_from=", "--config.reward=builtins:len"], "config.reward = 'len':", "finished"),
        (TINY, ["--config.reward.init_from=@sfft"], "config.reward.init_from = '@sfft':", "'sft'"),
        (TINY, ["--config.sft.init_from=@dpo"], "config.sft.init_from = '@dpo':", "before"),
        (DPO, ["--config.loss=nowhere:dpo"], "config.loss = 'nowhere:dpo'", "'nowhere'"),
        (DPO, ["--config.optimizer_args.learning_rate=-x"], "--config.optimizer_args.learning_rate=-x", "float"),
        (DPO, ["--config.batch_size=12"], "config.batch_size: 12", "8 devices"),
        (DPO, ["--config.batch_size=64", "--config.microbatches=5"], "config.batch_size: 64", "5 microbatches"),
        (DPO, ["--config.lora_args={'rank': 0}"], "config.lora_args.rank = 0:", "1"),
        (DPO, ["--config.packing=dense"], "config.packing = 'dense'", "'off', 'bucketed', 'packed', 'shared'"),
        (
            DPO,
            ["--config.compute.attention=splash", "--config.packing=shared"],
            "config.compute.attention = 'splash'",
            "(branches)",
        ),
        (PPO, ["--config.share_prompts=true"], "config.share_prompts", "samples_per_prompt"),
        (DPO, ["--config.probe.batch_size=9"], "config.probe.batch_size: 9", "8 devices"),
        (
            PPO,
            ["--config.batch_size=64", "--config.update_args.minibatches=3"],
            "config.batch_size: 64",
            "3 minibatches",
        ),
        (PPO, ["--config.reward=alignax.worlds.gold:gold"], "config.reward", "exactly one"),
        (PPO, ["--config.reward_from="], "config.reward", "exactly one"),
        (PPO, ["--config.critic_init=nonce"], "config.critic_init = 'nonce'", "'reward'"),
        (PPO, ["--config.temperature=0.0"], "config.temperature = 0.0:", "> 0"),
        (PPO, ["--config.temperature=nan"], "config.temperature = nan", "number"),
        (PPO, ["--config.temperature=-1.0"], "config.temperature = -1.0:", "greedy"),
        (PPO, ["--config.probe.temperature=-1.0"], "config.probe.temperature = -1.0:", "greedy"),
        (COLLECT, ["--config.temperature=-0.5"], "config.temperature = -0.5:", "greedy"),
        (PPO, ["--config.kl_coef=nan"], "config.kl_coef = nan", "number"),
        (RLOO, ["--config.kl_coef=-0.1"], "config.kl_coef = -0.1:", "penalty"),
        (
            PPO,
            ["--config.kl_controller_args.horizon=0.0"],
            "config.kl_controller_args: adaptive_kl: horizon = 0.0:",
            "expected",
        ),
        (PPO, ["--config.kl_controller_args.target=nan"], "config.kl_controller_args.target = nan", "number"),
        (PPO, ["--config.kl_loss_args={'importance_weighted': False}"], "config.kl_loss_args", "kl_placement"),
        (PPO, ["--config.update_args.kl_limit=-0.1"], "config.update_args: kl_limit = -0.1:", "0"),
        (PPO, ["--config.advantage_args.gamma=1.5"], "config.advantage_args: gae: gamma = 1.5:", "[0, 1]"),
        (
            DPO,
            ["--config.loss=ipo", "--config.loss_args.aggregation=token"],
            "config.loss_args: ipo: aggregation = 'token'",
            "'sum' or 'mean'",
        ),
        (DPO, ["--config.loss_args.beta=nan"], "config.loss_args.beta = nan", "number"),
        (
            DPO,
            ["--config.optimizer_args.learning_rate=-1e-3"],
            "config.optimizer_args: learning_rate = -0.001:",
            "0 or more",
        ),
        (PPO, ["--config.kl_placement=loss"], "'k1' in the loss", "gradient"),
        (PPO, ["--config.kl_estimator=k3"], "'k3' in the reward", "'k1'"),
        (RLOO, ["--config.kl_controller=adaptive_kl"], "config.kl_controller_args.target", "missing"),
        (SFT, ["--config.source=jsnl"], "config.source = 'jsnl'", "'jsonl'"),
        (SFT, ["--config.model_args={'width': 3}"], "config.model_args.width:", "argument"),
        (SFT, ["--config.compute.remat=some"], "config.compute.remat = 'some'", "'none', 'dots', "),
        (SFT, ["--config.compute.attention=cudnn"], "config.compute.attention = 'cudnn'", "NVIDIA"),
        (SFT, ["--config.model="], "config.model is empty", "config.init_from"),
        (SFT, ["--config.tokenizer="], "config.tokenizer is empty", "config.init_from"),
        (DPO, ["--config.init_from=", "--config.data.path=x"], "config.init_from is empty", "starts"),
    ],
)
def test_a_mistake_stops_before_anything_is_made(config, overrides, key, word, tmp_path, capsys):
    workdir = tmp_path / "run"
    err = fails(capsys, "run", f"--config={config}", f"--workdir={workdir}", *overrides)
    names(err, key, word)
    assert not workdir.exists()


@pytest.mark.parametrize(
    "change, key, word",
    [
        (lambda c: c["dpo"].update(dict(los="dpo")), "config.dpo.los ", "'loss'"),
        (lambda c: c["dpo"].update(dict(batch_size="16")), "config.dpo.batch_size = '16'", "int"),
        (lambda c: c["dpo"].update(dict(mesh=4)), "config.dpo.mesh = 4:", "group"),
        (lambda c: c["dpo"].pop("loss"), "config.dpo.loss", "missing"),
        (lambda c: c["dpo"].update(dict(stage="ofline")), "config.dpo.stage = 'ofline'", "stage"),
        (lambda c: c.update(dict(extra=1)), "config.extra", "config.steps"),
        (lambda c: c.update(dict(steps=("sft", "dop"))), "config.steps names 'dop'", "config.dop"),
        (lambda c: c["ppo"].update(dict(reward_args=dict(offset=1.0))), "config.ppo.reward is empty", "reads"),
        (lambda c: c["evaluate"]["probe"].update(dict(source="")), "config.evaluate.probe.data", "source"),
    ],
)
def test_a_mistake_in_the_last_step_stops_the_first(change, key, word, tmp_path):
    config = plain(tiny())
    change(config)
    with refuses(ConfigError, key, word):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_called_by_hand_checks_its_config_too(tmp_path):
    config = tiny().dpo
    config.loss_args = dict(bta=0.1)
    with refuses(ConfigError, "config.loss_args.bta", "'beta'"):
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
    with refuses(ConfigError, "config.forgotten", "remove"):
        sft.run(config, tmp_path / "sft")
    assert not (tmp_path / "sft/metrics.jsonl").exists()


def test_a_config_of_another_stage_is_refused(tmp_path):
    with refuses(ConfigError, "config.stage = 'sft'", "'offline'"):
        offline.run(tiny().sft, tmp_path / "dpo")


def test_a_step_of_a_pipeline_is_no_folder_of_a_stage_alone(tmp_path):
    with refuses(ConfigError, "config.init_from = '@sft'", "pipeline"):
        offline.run(tiny().dpo, tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()
