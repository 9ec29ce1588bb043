"""SmolLM2-135M-Instruct with its weights, where ALIGNAX_SMOLLM2 names its folder: in, greedy text, DPO, and out again.

About eight minutes on 2 CPU cores. tests/stages/test_import_configs.py has what can be tested without weights.
"""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
FOLDER = os.environ.get("ALIGNAX_SMOLLM2", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ALIGNAX_SMOLLM2 names no folder of SmolLM2-135M-Instruct")

import json  # noqa: E402

from safetensors.numpy import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from alignax.data.encode import encode_prompt  # noqa: E402
from alignax.data.tokenizer import load_tokenizer  # noqa: E402
from alignax.interop.export import export, export_adapter  # noqa: E402
from alignax.main import main  # noqa: E402
from alignax.stages import offline  # noqa: E402
from alignax.stages.playground import complete  # noqa: E402

PROMPTS = ["What is the capital of France?", "Write a haiku about the sea."]
NEW = 24  # tokens


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The imported policy."""
    out = tmp_path_factory.mktemp("smollm2") / "ours"
    assert main(["import", FOLDER, str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tuned(ours):
    """An adapter that two steps of DPO have trained."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say something about {x}."}],
            "chosen": [{"role": "assistant", "content": f"I like {x}."}],
            "rejected": [{"role": "assistant", "content": f"{x}? No."}],
        }
        for x in ("tea", "rain", "maps", "owls", "chess", "trains", "bread", "snow", "cats", "ink", "jazz", "salt")
    ]
    data = ours.parent / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = offline.get_config()
    c.init_from, c.data.path, c.data.heldout_percent = str(ours), str(data), 25.0
    c.lora_args.rank, c.max_length, c.batch_size = 4, 64, 8
    c.mesh.data, c.mesh.fsdp = 1, -1  # the simulated devices of the tests hold it once between them
    c.total_steps, c.eval_every_steps, c.save_every_steps = 2, 0, 2
    c.optimizer_args.learning_rate = 1e-3
    return offline.run(c, ours.parent / "dpo")


def _replies(model, prompts=PROMPTS) -> list[str]:
    """What `generate` writes, greedily."""
    tokenizer, out = AutoTokenizer.from_pretrained(FOLDER), []
    for prompt in prompts:
        turn = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**asked, do_sample=False, max_new_tokens=NEW)[0, asked["input_ids"].shape[1] :]
        out.append(tokenizer.decode(ids, skip_special_tokens=True))
    return out


def _model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _greedy(folder, prompts=PROMPTS) -> list[str]:
    return [text for ((text, _),) in complete(folder, prompts, temperature=0.0, max_new_tokens=NEW)]


def test_greedy_replies_are_those_of_transformers(ours):
    assert _greedy(ours) == _replies(_model(FOLDER))


def test_its_prompts_are_those_of_its_template(ours):
    tokenizer = load_tokenizer(str(ours / "tokenizer"))
    for prompt in PROMPTS:
        turn = [{"role": "user", "content": prompt}]
        want = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(tokenizer, turn, "chat") == want


def test_out_again_changes_no_bit(ours):
    out = export(ours, ours.parent / "out")
    want, got = (load_file(Path(folder) / "model.safetensors") for folder in (FOLDER, out))
    assert set(want) == set(got) and all(got[name].tobytes() == x.tobytes() for name, x in want.items())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((out / name).read_text()) == json.loads((Path(FOLDER) / name).read_text())


def test_preferences_start_at_log_2_and_adapter_and_sum_are_one_model(tuned):
    first = next(row for row in map(json.loads, (tuned / "metrics.jsonl").open()) if row["split"] == "train")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    whole = _model(export(tuned, tuned.parent / "whole"))
    adapter = peft.PeftModel.from_pretrained(_model(FOLDER), export_adapter(tuned, tuned.parent / "adapter")).eval()
    tokens = torch.tensor([load_tokenizer(str(tuned / "tokenizer"))(PROMPTS[1])["input_ids"]])
    with torch.no_grad():
        one, other = (model(input_ids=tokens).logits.numpy() for model in (whole, adapter))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert _greedy(tuned) == _replies(whole) == _replies(adapter)
