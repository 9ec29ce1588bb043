"""transformers' PyTorch model of every family: what it computes now is what the goldens say, layer by layer as ours."""

import json
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
import transformers  # noqa: E402

from tests.marks import quick  # noqa: E402

GOLDEN = np.load(TESTS / "goldens" / "families.npz")


@pytest.mark.parametrize("name", quick(["llama", "llama3_scaled", "qwen2_yarn"], "llama3_scaled"))
def test_logits_agree_after_thousands_of_positions(name, tmp_path):
    """The last bit of a frequency is multiplied with the position."""
    torch_families.save(torch_families.build(name), tmp_path)
    tokens = np.random.default_rng(1).integers(3, hf_cases.V, (1, 3000)).astype(np.int32)
    model, params = hf_runs.load(tmp_path)
    apply = jax.jit(lambda params: model.apply(params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))[:, -64:])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(tokens).long(), logits_to_keep=64).logits.numpy()
    np.testing.assert_allclose(hf_runs.logits_of(model, params, apply(params)), want, atol=1e-4)


@pytest.mark.parametrize("name", quick([*hf_cases.CASES], "llama", "gemma3", "gpt_neox", "gpt_oss"))
def test_pytorch_says_what_the_goldens_say_and_its_layers_are_ours(name, tmp_path):
    torch_families.save(torch_families.build(name), tmp_path)
    want = torch_families.run(tmp_path)
    tokens, valid = hf_cases.inputs()
    np.testing.assert_allclose(want["logits"][valid], GOLDEN[name][valid], atol=1e-5)
    model, params = hf_runs.load(tmp_path)
    both = jax.jit(lambda *inputs: (model.hidden_states(*inputs), model.apply(*inputs)))
    states, last = both(params, jnp.asarray(tokens), jnp.asarray(valid))
    got = np.concatenate([states[:-1], last[None]])  # transformers' last one is after the final norm
    np.testing.assert_allclose(got[:, valid], want["hidden"][:, valid], rtol=1e-5, atol=1e-5)


def test_the_text_part_of_a_model_of_text_and_images_is_what_it_says_of_text(tmp_path):
    """Mistral 3's, whose class says by default that the output layer is the embedding, although its file has one."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    vision = transformers.PixtralVisionConfig(**sizes, image_size=28, patch_size=14)
    text = hf_cases.CASES["ministral3"] | {"tie_word_embeddings": False}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    auto = transformers.AutoModelForImageTextToText
    torch_families.save(auto.from_config(config, attn_implementation="eager"), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": True}))
    model, params = hf_runs.load(tmp_path)
    _, valid = hf_cases.inputs()
    want = torch_families.run(tmp_path, auto)["logits"]
    np.testing.assert_allclose(hf_runs.forward(model, params)[valid], want[valid], atol=1e-4)
