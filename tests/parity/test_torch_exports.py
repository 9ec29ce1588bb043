"""What alignax writes, transformers loads: no tensor missing or left over, the same logits and the same scores."""

import dataclasses
import itertools
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "models"))

import hf_cases  # noqa: E402
import hf_runs  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch_families  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: E402

from alignax import forward, sharding  # noqa: E402
from alignax.models.decoder import decoder  # noqa: E402
from alignax.models.hf import config as hf_config  # noqa: E402
from alignax.models.hf.weights import load_weights, save_weights  # noqa: E402
from alignax.stages.parents import init_params, sharded_shapes  # noqa: E402

GOLDEN = np.load(TESTS / "goldens" / "families.npz")


def _loads(auto, folder):
    """The PyTorch model of a folder, into which every tensor of the folder has gone, and no other was made up."""
    model, told = auto.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "llama3_scaled", "gemma3", "phi3", "smollm3", "qwen3_moe"),
        *("gpt_neox", "olmo3", "granite", "ministral3", "glm4", "gpt_oss"),
    ],
)
def test_a_config_and_weights_of_ours_give_transformers_the_same_model(name, tmp_path):
    model, params = hf_runs.load(hf_runs.write(name, tmp_path / "in"))
    out = tmp_path / "out"
    out.mkdir()
    family, _ = hf_runs.config_of(name)
    keys = hf_config.to_hf(model.config, family)  # none but these: what the origin said else is not needed
    AutoConfig.for_model(family.name, **keys, pad_token_id=0).save_pretrained(out)
    save_weights(out, family, model.config, params, dtype="float32")
    _, valid = hf_cases.inputs()
    _loads(AutoModelForCausalLM, out)
    np.testing.assert_allclose(torch_families.run(out)["logits"][valid], GOLDEN[name][valid], atol=1e-5)


@pytest.mark.parametrize(
    "name, labels",
    [
        *itertools.product(("gpt2", "llama", "gemma3"), (1, 3)),
        *(("gpt_neox", 1), ("olmo", 1), ("glm4", 3), ("gpt_oss", 1)),
    ],
)
def test_scores_are_those_of_the_classes_with_a_scalar_head_and_go_back(name, labels, tmp_path):
    there = torch_families.build(name, AutoModelForSequenceClassification, num_labels=labels, pad_token_id=0)
    torch_families.save(there, tmp_path / "in")
    tokens, valid = hf_cases.inputs()
    positions = torch.tensor((valid.cumsum(1) - 1).clip(min=0))
    inputs = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(valid).long()}
    model = _loads(AutoModelForSequenceClassification, tmp_path / "in")
    with torch.no_grad():
        want = model(**inputs, position_ids=positions).logits.numpy()

    family, theirs = hf_config.read_config(tmp_path / "in")
    ours = decoder(dataclasses.replace(hf_config.from_hf(family, theirs), tie_embeddings=True))  # as `imported` does
    attributes = None if labels == 1 else labels
    shapes = jax.eval_shape(lambda: init_params(ours, jax.random.key(0), scalar=True, attributes=attributes))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    params = load_weights(tmp_path / "in", family, ours.config, sharded_shapes(shapes, mesh))
    got = jax.jit(lambda p: forward.score(ours, p, jnp.asarray(tokens), jnp.asarray(valid)))(params)
    np.testing.assert_allclose(np.asarray(got).reshape(want.shape), want, atol=1e-5)

    out = tmp_path / "out"
    out.mkdir()
    save_weights(out, family, ours.config, params, dtype="float32")
    assert (out / "model.safetensors").stat().st_size > 0
    (out / "config.json").write_text((tmp_path / "in/config.json").read_text())
    back = _loads(AutoModelForSequenceClassification, out)
    with torch.no_grad():
        np.testing.assert_array_equal(back(**inputs, position_ids=positions).logits.numpy(), want)
