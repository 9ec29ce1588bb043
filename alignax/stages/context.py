"""Whether a stage's texts fit into the models that read them: from the config and what the models are made of."""

from typing import Any

from alignax.config import ConfigError
from alignax.models.config import ModelConfig

READ = ("max_length",)  # tokens of a text of the data,
SAMPLED = ("max_prompt_length", "max_new_tokens")  # and, together, of one that a policy writes
NOT_PROBED = ("teacher", "reward", "critic")  # roles that read the stage's own texts alone


def check_context(model: ModelConfig, config: dict[str, Any], role: str = "policy") -> None:
    """Raises ConfigError if the texts that a role reads may be longer than its model can (`ModelConfig.context`).

    The proxy reads what is written in probes, and a student that learns from the data alone samples nothing.
    """
    groups = {} if role == "proxy" else {"": config}
    if role not in NOT_PROBED and config.get("probe", {}).get("source"):
        groups["probe."] = config["probe"]
    for prefix, group in groups.items():
        for keys in (READ,) if group.get("on_policy") == 0 else (READ, SAMPLED):
            longest = sum(group[key] for key in keys) if all(key in group for key in keys) else 0
            if 0 < model.context < longest:
                what = "learned positions" if model.positions == "learned" else f"rope_type {model.rope_type!r}"
                raise ConfigError(
                    f"config.{prefix}{' + '.join(keys)} = {longest}: a model with {what} ({role}) reads texts of at "
                    f"most {model.context} tokens; lower it"
                )
