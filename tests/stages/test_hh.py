"""configs/hh/ on dialogues in the form of HH-RLHF, made here, or on the real ones where they are at hand."""

import gzip
import json

import numpy as np
import pytest
from stage_runs import ROOT, file_config, metrics
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignax.data.tokenizer import load_tokenizer
from alignax.main import main
from alignax.manifest import read_manifest

REAL = ROOT.parent / "shared/data/hh_harmless.jsonl.gz"
WORDS = (
    "how",
    "do",
    "I",
    "pick",
    "a",
    "lock",
    "tell",
    "me",
    "about",
    "boats",
    "and",
    "the",
    "sea",
    "what",
    "is",
    "safe",
)


def dialogues(count):
    """Pairs that share every turn but the last; every fourth has two turns of each side."""
    rng = np.random.Generator(np.random.Philox(0))
    say = lambda n: " ".join(rng.choice(WORDS, n))  # noqa: E731
    for index in range(count):
        opening = f"\n\nHuman: {index} {say(5)}\n\nAssistant:"
        opening += f" {say(4)}\n\nHuman: {say(3)}\n\nAssistant:" if index % 4 == 0 else ""
        yield {"chosen": f"{opening} {say(6)}.", "rejected": f"{opening} {say(7)}!"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(preferences, tokenizer): byte-level BPE of 512 tokens, like GPT-2 without a pad token, eos = bos = unk."""
    folder = tmp_path_factory.mktemp("hh")
    if REAL.is_file():
        with gzip.open(REAL, "rt") as file:
            lines = [line for line, _ in zip(file, range(96))]
    else:
        lines = [json.dumps(row) + "\n" for row in dialogues(96)]
    (folder / "hh.jsonl").write_text("".join(lines))
    end = "<|endoftext|>"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([json.loads(line)["chosen"] for line in lines], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)
    fast.save_pretrained(str(folder / "tokenizer"))
    return folder / "hh.jsonl", folder / "tokenizer"


@pytest.fixture(scope="module")
def run_stage(data, tmp_path_factory):
    """Runs configs/hh/<name>.py for two steps; each stage once."""
    root, path = tmp_path_factory.mktemp("runs"), data[0]

    def run(name, *overrides):
        if not (root / name).exists():
            values = ["total_steps=2", "batch_size=8", "save_every_steps=2", "eval_every_steps=2", f"data.path={path}"]
            values += ["data.subset=", "data.heldout_percent=25.0", *overrides]
            config = ROOT / f"configs/hh/{name}.py"
            command = ["run", f"--config={config}", f"--workdir={root / name}"]
            assert main([*command, *(f"--config.{value}" for value in values)]) == 0
        return root / name

    return run


@pytest.fixture(scope="module")
def policy(run_stage, data):
    shape = dict(dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=64)
    small = (f"model_args.{name}={value}" for name, value in shape.items())
    return run_stage("sft", f"tokenizer={data[1]}", *small)


def test_sft_on_dialogues_splits_at_the_last_turn_and_counts_rows(policy):
    counts = read_manifest(policy)["data"]["counts"]
    for split in counts.values():
        dropped = sum(n for name, n in split.items() if name.startswith("dropped_"))
        assert split["kept"] > 0 and split["rows"] == split["kept"] + dropped
    assert counts["train"]["rows"] + counts["heldout"]["rows"] == 96
    # an untrained model is uniform over the V tokens, up to logits of a variance v below 2, which add v / 2 nats
    tokens = len(load_tokenizer(str(policy / "tokenizer")))
    assert metrics(policy)[0]["loss"] == pytest.approx(np.log(tokens), abs=1.0)


def test_a_reward_model_of_dialogues_reports_what_it_is(policy, run_stage):
    stage = run_stage("reward", f"init_from={policy}")
    found = read_manifest(stage)
    assert 0.0 <= found["metrics"]["heldout_accuracy"] <= 1.0
    assert found["metrics"]["pairs"] == found["data"]["counts"]["heldout"]["kept"]
    assert found["parents"]["policy"]["content_hash"] == read_manifest(policy)["content_hash"]


@pytest.mark.slow  # of any pairs: test_offline_objectives
def test_dpo_on_dialogues_starts_at_log_two(policy, run_stage):
    rows = metrics(run_stage("dpo", f"init_from={policy}"))
    # policy == reference; two sums of some 300 nats in float32 differ by up to 300 * 6e-8, times beta / 2 = 0.05: 1e-6
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=3e-6)
    assert rows[1]["loss"] != rows[0]["loss"]


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_the_configs_name_the_hub_and_the_gpt2_tokenizer(name):
    config = file_config(f"hh/{name}.py")
    assert config.data.path == "Anthropic/hh-rlhf" and config.template == "plain"
    assert name != "sft" or config.tokenizer == "gpt2"
    assert (ROOT / f"configs/hh/{name}.py").read_text().count("Command: alignax run") == 1
