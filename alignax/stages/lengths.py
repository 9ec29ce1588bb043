"""How long a stage's texts are, and whether they fit into the models that read them: from the config alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from alignax.config import ConfigError
from alignax.models.config import ModelConfig
from alignax.sampling import memory
from alignax.stages.plans import Parent
from alignax.types import Model

READ, SAMPLED = ("max_length",), ("max_prompt_length", "max_new_tokens")  # of the data; what a policy writes, together


def longest_of(config: Mapping[str, Any]) -> int:
    """Tokens that a text of one stage may have, of its data, of data beside it or of its samples."""
    beside = config.get("data_loss", {})
    groups = (config, beside) if beside.get("loss") else (config,)
    return max((longest for group in groups for _, longest in _lengths(group)), default=0)


def longest_text(manifest: Mapping[str, Any]) -> int:
    """Tokens that a text may have had on which a checkpoint or its ancestors were trained; 0: they were not.

    Manifests of before this was recorded have their own config to say it.
    """
    return manifest.get("longest_text") or longest_of(manifest["config"])


def _lengths(group: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """(keys, their sum) of the texts that a config, or its probe, reads; a `group` without on-policy texts has none."""
    for keys in (READ,) if group.get("on_policy") == 0 else (READ, SAMPLED):
        if all(key in group for key in keys):
            yield keys, sum(group[key] for key in keys)


def check_context(model: ModelConfig, config: Mapping[str, Any], role: str, parent: Parent) -> None:
    """Raises ConfigError if the texts that a parent reads may be longer than its model can (`ModelConfig.context`)."""
    for prefix in parent.reads:
        group = config if not prefix else config.get(prefix[:-1], {})
        if prefix and not group.get("source"):
            continue
        for keys, longest in _lengths(group):
            if 0 < model.context < longest:
                what = "learned positions" if model.positions == "learned" else f"rope_type {model.rope_type!r}"
                raise ConfigError(
                    f"config.{prefix}{' + '.join(keys)} = {longest}: a model with {what} ({role}) reads texts of at "
                    f"most {model.context} tokens; lower it"
                )


def check_slots(model: Model, slots: int, replies: int, group: int, prompt: int, reply: int, *, key: str) -> None:
    """Raises ConfigError, naming the config's `key`, for slots that are more than the memory of all devices holds; for
    the sizes see `memory.fitting`. More slots than replies are as many as these."""
    there = memory.machine_bytes() * jax.process_count()
    most = memory.fitting(model, there, replies, group, prompt, reply)
    if min(slots, replies) > most:
        raise ConfigError(
            f"config.{key} = {slots}: caches of that many replies of {reply} tokens, with prompts of {prompt}, do not "
            f"fit into the {there / 1e9:,.1f} GB of all devices; expected at most {max(most, 0)}, or 0 for what fits"
        )
