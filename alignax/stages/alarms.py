"""The alarms of a stage: what every run is watched for, unless its config says otherwise."""

from typing import Any

from ml_collections import ConfigDict

from alignax.bound import Args, bound
from alignax.config import ConfigError, Reader
from alignax.train.alarms import Alarm, alarm

# A KL of 20 nats, scores beyond 100 and accuracies out of 65 to 90 percent are where a run has most likely broken:
# bounds to look at a run by, not laws. A reward model that is right on 90% of what it was not trained on has mostly
# found a tell-tale of the data.
_KL = {"metric": "eval/kl", "above": 20.0}
_PLAYED = {"metric": "eval/gold_reward", "while_rises": "eval/proxy_reward"}
WATCHED: dict[str, dict[str, dict[str, Any]]] = {
    "reward": {
        "guessing": {"metric": "eval/accuracy", "below": 0.65, "after_percent": 100.0},
        "too_easy": {"metric": "eval/accuracy", "above": 0.9},
    },
    "online": {
        "kl": {"metric": "objective/kl", "above": 20.0},
        "saturated": {"metric": "objective/scores", "above": 100.0, "below": -100.0},
        "collapsed": {"metric": "objective/scores_sd", "below": 1e-3},
        "played": _PLAYED,
        "repeating": {"metric": "completions/repeated", "above": 0.5},
    },
    "offline": {"kl": _KL, "played": _PLAYED},
    "distill": {"kl": _KL},
}


def get_config(stage: str) -> ConfigDict:
    """name = dict(metric=..., above=..., below=..., while_rises=..., over=..., after_percent=..., stop=...)."""
    return ConfigDict({name: dict(settings) for name, settings in WATCHED.get(stage, {}).items()})


def planned(r: Reader) -> Args:
    """{name: Alarm} of a config; one that is empty is off. Raises ConfigError for what cannot be."""
    found: dict[str, Alarm] = {}
    for name, settings in r.alarms.items():
        key = r.key(f"alarms.{name}")
        if not isinstance(settings, dict):
            raise ConfigError(f"config.{key} = {settings!r}: expected dict(metric=..., above=...), or {{}} for none")
        if settings:
            found[name] = bound(alarm, settings, key=key, args_key=key)()
    return Args(found)
