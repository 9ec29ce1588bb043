"""What a config says of that which moves beside the policy: reference, average, the entropy's coefficient."""

from typing import Any

from jax.core import Tracer

from alignax.bound import Bound, bound, of_config
from alignax.config import ConfigError, Reader
from alignax.stages import plans
from alignax.train.reference import follow


def follow_of(r: Reader) -> Bound | None:
    """How the reference follows the policy; None: it stands still. Adapters, which do not mix, are refused."""
    if not r.reference_args:
        return None
    key = r.key("reference_args")
    if r.lora_args:
        raise ConfigError(
            f"config.{key} with lora_args: a mixture of two adapters is no mixture of the models; set one of them"
        )
    found = bound(follow, r.reference_args, key=key, args_key=key)
    plans.tried(lambda: found({}, {}, 1))
    return found


def entropy_controller_of(r: Reader) -> Bound | None:
    """The controller of the entropy's coefficient, if there is one."""
    found = of_config(r, "entropy_controller", "alignax.ops.entropy")
    if found and "entropy" not in r.terms:
        raise r.error(
            "entropy_controller",
            "it controls the coefficient of terms.entropy, which is not there: set terms = dict(entropy=dict("
            "coefficient=0.0)), say, where it starts",
        )
    return found


def ema_of(r: Reader) -> Any:
    """The decay of the policy's average; None for none. One that is traced is."""
    r.require((r.ema >= 0) & (r.ema < 1), "ema", "expected 0 (off), or a decay per iteration below 1, such as 0.95")
    return r.ema if isinstance(r.ema, Tracer) or r.ema != 0 else None
