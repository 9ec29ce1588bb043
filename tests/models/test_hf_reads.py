"""What transformers reads of a config, against our tables: they change together or one of these fails."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import transformers
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

from alignax.models.hf import reads
from alignax.models.hf.composite import APART, COMPOSITES, TOLD
from alignax.models.hf.config import IGNORED, OFF
from alignax.models.hf.families import FAMILIES

# made into others by the config class: layer_types, no_rope_layers, a part of rope_parameters
OF_THE_CLASS = {"max_window_layers", "no_rope_layer_interval", "partial_rotary_factor", "use_sliding_window"}


def _declared(name):
    return _stored(name, {field.name for field in dataclasses.fields(CONFIG_MAPPING[name])})


def _read(name):
    return _stored(name, reads.keys_read(name))


def _stored(name, keys):
    """Keys under the name that config.json has: num_experts of Qwen3-MoE is num_local_experts."""
    return {CONFIG_MAPPING[name].attribute_map.get(key, key) for key in keys}


def _table(name):
    return {key for field in FAMILIES[name].fields for key in field.keys}


def test_names_are_found_wherever_a_config_is_read():
    source = """
    class Attention:
        def __init__(self, config):
            self.size = config.a // self.config.b
            self.other = getattr(config, "c", None) or getattr(self.config.get_text_config(), "d")
            self.last = hasattr(config, "e") and text_config.f and other.config.g.h
            self.config = setting.no, getattr(layer, "no"), "no"
    """
    found = set(reads._names(ast.parse(source.replace("\n    ", "\n"))))
    assert found - {"get_text_config"} == set("abcdefg")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_that_a_family_declares_and_reads_is_decided(name):
    """A key that a later transformers adds to a family and reads is one that alignax has to compute or refuse."""
    known = _table(name) | IGNORED | set(OFF) | set(PretrainedConfig().to_dict())
    assert _declared(name) & _read(name) <= known


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_a_table_is_one_that_transformers_reads_or_declares(name):
    assert _table(name) <= _read(name) | _declared(name) | OF_THE_CLASS


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_rotary_parameters_that_a_familys_own_code_takes_is_in_its_table(name):
    """rope_type, rope_theta and those of a type are read for every family."""
    module = model_type_to_module_name(name)
    source = Path(transformers.__file__).parent / "models" / module / f"modeling_{module}.py"
    taken = re.findall(r'rope_parameters(?:\[layer_type\])?(?:\.get\(|\[)"(\w+)"', source.read_text(encoding="utf-8"))
    group = {key for field in FAMILIES[name].fields for key in field.group}
    assert set(taken) - {"rope_type", "rope_theta"} == group - {"max_position_embeddings"}


@pytest.mark.parametrize("name", COMPOSITES)
def test_every_key_that_a_composite_declares_and_reads_is_known(name):
    assert _declared(name) & _read(name) <= APART | set(TOLD) | set(PretrainedConfig().to_dict())


def test_what_is_passed_over_is_read_somewhere():
    """A key that nothing reads needs no entry: it is told and let through."""
    read = set().union(*map(reads.keys_read, FAMILIES))
    of_ours = {"score_bias", "_sliding_window_pattern", "sliding_window_pattern", "torch_dtype", "use_cache"}
    assert IGNORED - of_ours - read - set().union(*map(_declared, FAMILIES)) == set()


def test_masks_and_caches_are_part_of_what_a_family_reads():
    """Their keys are in no modelling file of a Llama."""
    assert {"is_causal", "attention_chunk_size", "layer_types", "sliding_window", "rope_parameters"} <= reads.keys_read(
        "llama"
    )
    assert not {"unk_token_id", "rope_interleaved", "qk_norm", "temperature"} & reads.keys_read("llama")
