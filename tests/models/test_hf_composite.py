"""Checkpoints of text and images: the text part alone is read, and what is not is known by name."""

import json

import hf_cases
import hf_runs
import jax
import numpy as np
import pytest
from errors import refuses
from hf_published import PUBLISHED
from safetensors.numpy import load_file, save_file

from alignax.models.hf import config as hf_config
from alignax.models.hf.headers import INDEX, SINGLE, read_headers

NAME = "ministral3"
IMAGES = {"vision_tower.patch_conv.weight": (4, 3, 2, 2), "multi_modal_projector.linear_1.weight": (4, 4)}
WHOLE = {key: value for key, value in PUBLISHED["ministral-3"].items() if key != "text_config"}


def _old(name: str) -> str:
    return f"language_model.{name}"


def _new(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _composite(folder, renamed, *, images=IMAGES, untied=False, **changes):
    """A folder of text and images, with the text of a case."""
    hf_runs.write(NAME, folder)
    text = {name: x for name, x in hf_cases.CASES[NAME].items() if name != "tie_word_embeddings"}
    (folder / "config.json").write_text(json.dumps(WHOLE | {"text_config": text} | changes))
    tensors = load_file(folder / SINGLE)
    if untied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    others = {("model." if renamed is _new else "") + n: np.ones(shape, np.float32) for n, shape in images.items()}
    save_file({renamed(name): x for name, x in tensors.items()} | others, folder / SINGLE)
    return folder


@pytest.mark.parametrize("renamed", [_old, _new])
def test_the_text_part_is_the_language_model_and_the_rest_is_left(renamed, tmp_path):
    _, want = hf_runs.load(hf_runs.write(NAME, tmp_path / "text"))
    folder = _composite(tmp_path / "whole", renamed)
    model, got = hf_runs.load(folder)
    assert model.config == hf_runs.config_of(NAME)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))
    assert {name.removeprefix("model.") for name in read_headers(folder).left} == set(IMAGES)


def test_an_output_layer_in_the_file_is_one_and_the_config_may_untie(tmp_path):
    folder = _composite(tmp_path / "whole", _old, untied=True)
    model, got = hf_runs.load(folder)
    assert not model.config.tie_embeddings
    np.testing.assert_array_equal(
        got["decoder"]["unembed"][:, :50], load_file(folder / SINGLE)["language_model.lm_head.weight"].T
    )
    told = json.loads((folder / "config.json").read_text())
    tied = lambda: hf_config.from_hf(*hf_config.read_config(folder)).tie_embeddings  # noqa: E731
    (folder / SINGLE).rename(folder / "elsewhere")
    assert not tied()  # no file says: the text's own word, which is no
    (folder / INDEX).write_text(json.dumps({"weight_map": {"language_model.model.norm.weight": "elsewhere"}}))
    assert tied()  # no output layer, and the whole is tied unless it says otherwise
    (folder / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": False}))
    assert not tied()


def test_what_is_of_neither_part_is_named(tmp_path):
    folder = _composite(tmp_path / "whole", _old, images=IMAGES | {"audio_tower.conv.weight": (2,)})
    with refuses(ValueError, "audio_tower.conv.weight (2,)", "no such"):
        hf_runs.load(folder)
    text = hf_runs.write(NAME, tmp_path / "text")
    save_file(load_file(text / SINGLE) | {"vision_tower.conv.weight": np.ones(2, np.float32)}, text / SINGLE)
    with refuses(ValueError, "vision_tower.conv.weight (2,)", "no such"):
        hf_runs.load(text)
    family, theirs = hf_config.read_config(_composite(tmp_path / "scores", _old, architectures=["Mistral3ForScores"]))
    with refuses(ValueError, "Mistral3ForScores", "Ministral3ForCausalLM"):
        hf_config.check_class(family, theirs)
