"""With an adapter of peft alignax gives the logits of PyTorch; ours goes into peft whole and gives our logits there."""

import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "models"))

import hf_adapters  # noqa: E402
import hf_cases  # noqa: E402
import hf_runs  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: E402

from alignax import forward  # noqa: E402

THEIRS = {
    "llama": dict(target_modules=["q_proj", "v_proj"], lora_alpha=5),
    "gpt2": dict(target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True),
    "phi3": dict(target_modules="all-linear", use_rslora=True, alpha_pattern={"gate_up_proj": 7}),
    "qwen3": dict(
        target_modules=r".*\.(q_proj|down_proj)",
        rank_pattern={"q_proj": 5},
        alpha_pattern={r"layers.1.mlp.down_proj": 3},
    ),
    "gemma2": dict(target_modules="all-linear", use_dora=True, use_rslora=True),
    "mixtral": dict(target_modules=["q_proj", "o_proj"], exclude_modules=["o_proj"]),
    "gpt_neox": dict(target_modules=["query_key_value", "dense"], use_dora=True),
    "glm4": dict(target_modules="all-linear"),
}
OURS = [
    ("llama", {"rslora": True, "alpha": 5.0}),
    ("gpt2", {"dora": True, "targets": "^(q|v|down)$"}),  # k keeps its own length in the joined layer
    ("phi3", {"dora": True, "rslora": True}),
    ("gpt_neox", {"dora": True, "targets": "^(q|v|down)$"}),
]


def _base(folder, auto=AutoModelForCausalLM, **options):
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **options).eval()


def _run(model) -> np.ndarray:
    tokens, valid = map(torch.tensor, hf_cases.inputs())
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=tokens.long(), attention_mask=valid.long(), position_ids=positions)
    return out.logits.numpy()


def _theirs(base, folder, *, task="CAUSAL_LM", **settings):
    """A peft model with random adapters, saved in `folder`."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type=task, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_peft_gives_its_logits(name, tmp_path):
    first = hf_runs.write(name, tmp_path / "base")
    there = _theirs(_base(first), tmp_path / "adapter", **THEIRS[name])
    model, params = hf_runs.load(first)
    adapter = hf_adapters.load(tmp_path / "adapter", name, model)
    _, valid = hf_cases.inputs()
    want = _run(there)[valid]
    np.testing.assert_allclose(hf_runs.forward(model, params | adapter)[valid], want, atol=1e-4)
    with there.disable_adapter():
        assert np.abs(_run(there)[valid] - want).max() > 1e-2


@pytest.mark.parametrize("name, settings", OURS)
def test_an_adapter_of_ours_goes_into_peft_whole_and_gives_our_logits(name, settings, tmp_path):
    first = hf_runs.write(name, tmp_path / "base")
    model, params = hf_runs.load(first)
    tree = params | {"lora": hf_adapters.fresh(params, **settings)}
    out = hf_adapters.save(tmp_path / "adapter", name, model, tree, rslora=settings.get("rslora", False))
    there = peft.PeftModel.from_pretrained(_base(first), out).eval()
    inside, file = peft.get_peft_model_state_dict(there), load_file(out / "adapter_model.safetensors")
    assert set(inside) == set(file)
    for key, value in file.items():
        np.testing.assert_array_equal(inside[key].numpy(), value, err_msg=key)
    _, valid = hf_cases.inputs()
    np.testing.assert_allclose(_run(there)[valid], hf_runs.forward(model, tree)[valid], atol=1e-4)


def test_scores_of_a_reward_adapter_are_those_of_peft_both_ways(tmp_path):
    first, options = hf_runs.write("llama", tmp_path / "base"), {"num_labels": 1, "pad_token_id": 0}
    base = _base(first, AutoModelForSequenceClassification, **options)
    want = _run(_theirs(base, tmp_path / "adapter", task="SEQ_CLS", target_modules=["q_proj"]))
    model, params = hf_runs.load(first)
    tree = params | hf_adapters.load(tmp_path / "adapter", "llama", model)
    tokens, valid = map(jnp.asarray, hf_cases.inputs())
    np.testing.assert_allclose(
        np.asarray(jax.jit(partial(forward.score, model))(tree, tokens, valid)), want[:, 0], atol=1e-4
    )
    out = hf_adapters.save(tmp_path / "out", "llama", model, tree)
    back = peft.PeftModel.from_pretrained(_base(first, AutoModelForSequenceClassification, **options), out).eval()
    np.testing.assert_allclose(_run(back), want, atol=1e-5)
