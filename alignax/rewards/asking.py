"""How a config asks its rewards: the keys that every stage with rewards has, and those over text with their limits."""

from ml_collections import ConfigDict

from alignax.bound import plan_record, static
from alignax.config import Reader
from alignax.rewards.text import Trouble
from alignax.rewards.workers import Workers


def add_keys(c: ConfigDict) -> None:
    """The keys that say what is rewarded and how it is asked, with their defaults and units."""
    # one reward: the folder of a finished reward model, or module:function of (row, completion, *, finished) -> number
    # or None. Or several, name = dict(function=..., its arguments, weight=...) or {"from": folder, "attributes": {...},
    # "weight": ...}: their weighted sum, each part in the log. Folders with a function are an ensemble, of=(...) is of
    # others; docs/online.md
    c.reward_from = ""
    c.reward_weights = ConfigDict()  # of its attributes, where it rates several; 1 each where nothing is said
    c.reward = ""
    c.reward_args = ConfigDict()
    c.rewards = ConfigDict()
    c.reward_workers = 8  # threads for rewards over text
    c.reward_timeout_s = 300.0  # seconds for those of a batch; what is not scored then has no score. 0: no limit
    c.reward_retries = 0  # calls again of a reward over text that raises or gives no number
    # one that goes on failing: "stop" ends the run, which goes on from its last checkpoint; "missing": the replies of
    # that call have no score, and are counted in rewards/NAME/failed
    c.reward_failure = "stop"


@plan_record
class Asking:
    """How rewards over text are asked."""

    workers: int = static()
    timeout_s: float = static()
    trouble: Trouble = static()

    def threads(self) -> Workers:
        """What calls them, side by side."""
        return Workers(self.workers, self.timeout_s)


def asking(r: Reader) -> Asking:
    """How a config asks rewards over text. Raises ConfigError."""
    r.require(r.reward_workers >= 1, "reward_workers", "expected a number of threads, 1 or more")
    r.require(r.reward_timeout_s >= 0, "reward_timeout_s", "expected seconds, or 0 for no limit")
    r.require(r.reward_retries >= 0, "reward_retries", "expected a number of further calls, 0 or more")
    missing = r.one_of("reward_failure", ("stop", "missing")) == "missing"
    return Asking(workers=r.reward_workers, timeout_s=r.reward_timeout_s, trouble=Trouble(r.reward_retries, missing))
