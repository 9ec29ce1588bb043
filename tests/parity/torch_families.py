"""The PyTorch side of tests/models/hf_cases.py: the model of a case, and what it computes."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import hf_cases


def build(name: str, auto=transformers.AutoModelForCausalLM, **changes):
    """The model of a case, in float32, with the weights of the rule."""
    case = hf_cases.CASES[name] | changes
    config = transformers.AutoConfig.for_model(**case)
    return auto.from_config(config, attn_implementation="eager").eval()


def save(model, folder) -> None:
    """Saves it, with the weights of the rule in place of the random ones, and loads those."""
    model.save_pretrained(folder)
    from safetensors.numpy import load_file, save_file

    found = load_file(folder / "model.safetensors")
    save_file(
        {n: hf_cases.weights(n, x.shape) for n, x in found.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def run(folder, auto=transformers.AutoModelForCausalLM) -> dict[str, np.ndarray]:
    """Logits and the hidden states before each layer of the checkpoint in a folder."""
    model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokens, valid = map(torch.tensor, hf_cases.inputs())
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            input_ids=tokens.long(), attention_mask=valid.long(), position_ids=positions, output_hidden_states=True
        )
    return {"logits": out.logits.numpy(), "hidden": torch.stack(out.hidden_states).numpy()}
