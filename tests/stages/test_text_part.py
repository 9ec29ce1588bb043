"""The text part of a checkpoint of text and images comes in alone, and goes out as a language model."""

import json
import sys
from pathlib import Path

import numpy as np
from errors import refuses
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import hf_cases
from test_import_export import V, write

from alignax.config import ConfigError
from alignax.interop.classifier import class_keys
from alignax.interop.export import export
from alignax.main import main
from alignax.models.hf.families import FAMILIES


def test_the_text_comes_in_with_a_line_about_the_rest_and_goes_out_alone(tmp_path, capsys):
    case = {name: x for name, x in hf_cases.CASES["ministral3"].items() if name != "tie_word_embeddings"}
    folder = write(tmp_path / "theirs", hf_cases.CASES["ministral3"], vocab_size=V)
    want = load_file(folder / "model.safetensors")
    whole = {"model_type": "mistral3", "text_config": case | {"vocab_size": V}, "dtype": "float32"}
    whole |= {
        "vision_config": {"model_type": "pixtral"},
        "architectures": ["Mistral3ForConditionalGeneration"],
        "wings": 2,
    }
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = {f"language_model.{name}": x for name, x in want.items()} | {"vision_tower.x": np.ones(2, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "the text part alone; not read: vision_tower (1 tensors)" in err and "reads nothing of wings;" in err
    out = export(tmp_path / "ours", tmp_path / "out")
    back = load_file(out / "model.safetensors")
    assert {name: x.tobytes() for name, x in back.items()} == {name: x.tobytes() for name, x in want.items()}
    told = json.loads((out / "config.json").read_text())
    assert (told["model_type"], told["architectures"]) == ("ministral3", ["Ministral3ForCausalLM"])
    assert told["tie_word_embeddings"] and "vision_config" not in told and told["wings"] == 2
    assert told["rope_parameters"]["llama_4_scaling_beta"] == 0.5


def test_a_reward_model_of_a_family_without_a_class_for_it_is_not_exported():
    params = {"scalar": {"kernel": np.ones(4), "bias": np.zeros(())}}
    with refuses(ConfigError, "granite", "adapter"):
        class_keys(FAMILIES["granite"], params, [], {})
