"""Episodes with an environment, for the stage `online` and for probes: what a config says of them, and who plays them.

A producer like any other: `learn` knows nothing of it. The environment's reward is one of the rewards, called "env".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import host, sharding
from alignax.bound import Bound, of_config, plan_record, static, takes
from alignax.config import ConfigError, Reader, plain
from alignax.data.arrays import pad
from alignax.data.boundary import Ids
from alignax.data.counts import DataError
from alignax.data.encode import encode_prompt, prompt_rows
from alignax.data.tokenizer import Tokenizer
from alignax.envs.calls import format_of
from alignax.envs.observed import Observer
from alignax.envs.play import Played, Player, begun
from alignax.envs.prompts import tool_prompt_rows, with_text, with_tools
from alignax.envs.protocol import Make, Partner
from alignax.envs.tools import environment
from alignax.evals.policy import Judge, Measured
from alignax.rewards.config import Reward
from alignax.rewards.workers import Workers
from alignax.sampling import turns
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import Sampler
from alignax.stages import partner, plans
from alignax.stages.folder import Stage
from alignax.stages.programs import Produce
from alignax.stages.roles import shared
from alignax.train import reading
from alignax.train.algorithm import Actors
from alignax.train.state import OnlineState, noise_of, reply_keys

NAME = "env"  # of the environment's reward


def add_keys(c: ConfigDict) -> None:
    """The keys of a config that may have an environment, with their defaults and units."""
    # an environment: module:function or class, of what has reset(row) and step(text), or of a class whose public
    # methods are tools (docs/online.md); "": a reply is one turn
    c.env = ""
    c.env_args = ConfigDict()
    c.max_turns = 8  # turns of the policy in an episode; `max_new_tokens` is the room for all
    c.max_observation = 256  # tokens of what an environment says at once; more is cut
    c.env_timeout_s = 60.0  # seconds for one turn of a batch's environments. 0: no limit
    c.env_workers = 8  # threads for environments
    c[partner.KEY] = partner.get_config()  # a second policy, which an environment with a parameter `partner` asks


@plan_record
class Plan:
    """An environment, and what bounds its episodes."""

    made: Bound  # () -> an environment, or an object whose public methods are tools
    partner: partner.Plan | None  # of the second policy, which `made` then takes as well
    max_turns: int = static()
    max_observation: int = static()
    timeout_s: float = static()
    workers: int = static()

    def trial(self) -> Any:
        """An environment that is not played: what it says of itself."""
        return environment(self.made(**({"partner": nobody} if self.partner else {})), "plain")

    @property
    def tools(self) -> tuple[dict, ...]:
        """The schemas that a prompt shows."""
        return tuple(getattr(self.trial(), "tools", None) or ())

    def encode(self, template: str, max_prompt_length: int) -> partial:
        """What makes its arrays of rows."""
        return partial(tool_prompt_rows, template=template, max_prompt_length=max_prompt_length, tools=self.tools)

    def make(self, tokenizer: Tokenizer, template: str, asks: Partner | None = None) -> Make:
        """Its environments under a chat template. Raises DataError for a template whose calls nobody can read."""
        trial, more = self.trial(), {"partner": asks} if asks else {}
        name = format_of(tokenizer, template) if hasattr(trial, "format") else "plain"
        return lambda: environment(self.made(**more), name)


def plan(r: Reader) -> Plan | None:
    """The environment of a config; None where it has none. Raises ConfigError for what does not fit."""
    other = getattr(r, partner.KEY)
    second = partner.plan(other)
    made = of_config(r, "env", given=("partner",))
    if made is None:
        other.require(second is None, "init_from", f"expected '' while config.{r.key('env')} is empty")
        defaults = ConfigDict()
        add_keys(defaults)
        del defaults[partner.KEY]  # looked at above
        plans.unset(r, plain(defaults), "env")
        return None
    r.require(r.max_turns >= 1, "max_turns", "expected 1 turn or more")
    r.require(r.max_observation >= 1, "max_observation", "expected 1 token or more")
    r.require(r.env_timeout_s >= 0, "env_timeout_s", "expected seconds, or 0 for no limit")
    r.require(r.env_workers >= 1, "env_workers", "expected a number of threads, 1 or more")
    limits = {"max_turns": r.max_turns, "max_observation": r.max_observation}
    asks = takes(made, "partner")
    other.require(asks or not second, "init_from", f"expected '': {made.name} has no parameter 'partner' to ask it by")
    other.require(second or not asks, "init_from", f"expected the folder of a second policy, which {made.name} asks")
    found = Plan(made=made, partner=second, timeout_s=r.env_timeout_s, workers=r.env_workers, **limits)
    found.trial()
    return found


def nobody(questions: Sequence[str]) -> list[str]:
    """The partner of an environment that is not played."""
    return ["" for _ in questions]


def batches(found: Plan | None, prefix: str = "") -> dict[str, int]:
    """The sizes that have to divide over the devices, by their keys."""
    return {f"{prefix}{partner.KEY}.batch_size": found.partner.batch_size} if found and found.partner else {}


def reward_of(found: Plan) -> dict[str, Reward]:
    """The reward of the environment, by its name; none of a class of tools without `get_reward`."""
    return {NAME: Reward()} if getattr(found.trial(), "pays", True) else {}


def check(r: Reader) -> None:
    """Raises ConfigError for what an episode of several turns cannot have."""
    r.require(not r.engine, "engine", "expected '' with an env: an outside engine gives replies of one turn")
    r.require(r.opponent == "none", "opponent", "expected 'none' with an env, with which the policy alone talks")
    r.require(r.slots == 0, "slots", "expected 0 with an env: all replies of a batch are written side by side")


class Table:
    """Where episodes of one stage are played: the environments of its rows, under one sampler.

    Raises ConfigError for a run of several processes.
    """

    def __init__(
        self, found: Plan, own: Sampler, tokenizer: Tokenizer, template: str, rows: Sequence[dict], *, longest: int,
        group: int, whole: Any = lambda params: params, asks: Partner | None = None,
    ):  # fmt: skip
        if host.count() > 1:
            raise ConfigError("config.env: a run of several processes has no environments yet; start one process")
        self.plan, self.rows, self.longest, self.group = found, rows, longest, group
        self.tokenizer, self.template, self.own = tokenizer, template, own
        self.make, self.tools = found.make(tokenizer, template, asks), found.tools
        self.workers = Workers(found.workers, found.timeout_s)
        observer = Observer(tokenizer, template, found.max_observation)
        programs = turns.programs(own, group, whole)
        self.player = Player(own, programs, observer, max_turns=found.max_turns, workers=self.workers)

    def play(self, params: Any, prompts: dict, keys: Array, options: Options) -> Played:
        """`group` episodes of each prompt of a batch, by one key each; what `prompts` are padded with counts too."""
        asked = [self.rows[i] for i in np.asarray(prompts["row"])]
        envs, texts = begun(self.make, asked, self.group, self.workers)
        tokens, valid = self.prompts(asked, texts, np.asarray(prompts["tokens"]), np.asarray(prompts["valid"]))
        return self.player.play(params, tokens, valid, keys, options, envs)

    def prompts(
        self, rows: list[dict], texts: list[str | None], tokens: np.ndarray, valid: np.ndarray
    ) -> tuple[Array, Array]:
        """The prompts with what the environments add to them; longer than before only where they do not fit.

        Raises DataError for one that is too long then.
        """
        if any(texts):
            ids = [self.prompt(row, text or "") for row, text in zip(rows, texts, strict=True)]
            width = tokens.shape[1] if max(map(len, ids)) <= tokens.shape[1] else self.longest
            tokens, valid = pad(ids, width, self.own.pad, left=True)
        valid = valid.copy()
        valid[~valid.any(1), -1] = True  # what fills up a batch: a prompt has a token
        return jnp.asarray(tokens), jnp.asarray(valid)

    def prompt(self, row: dict, text: str) -> Ids:
        """The ids of a row's prompt with the text at its end. Raises DataError for one that is too long."""
        (shown,) = with_tools([row], self.tokenizer, self.template, self.tools)
        shown = with_text(shown, text)
        told = {name: shown[name] for name in ("tools", "chat_template_kwargs") if shown.get(name)}
        ids = encode_prompt(self.tokenizer, shown["prompt"], self.template, **told)
        if len(ids) > self.longest:
            raise DataError(
                f"the prompt {str(row['prompt'])[:80]!r} with what its environment adds has {len(ids)} tokens: "
                f"expected at most max_prompt_length = {self.longest}; raise it, or let reset() say less"
            )
        return ids


def asked_by(stage: Stage, role: str, found: Plan, tokenizer: Tokenizer, template: str, mesh: Mesh) -> Partner | None:
    """The partner of an environment, from the folder of its role."""
    return partner.load(stage, role, found.partner, tokenizer, template, mesh) if found.partner else None


def producer(
    stage: Any, actors: Actors, frozen: dict, tokenizer: Tokenizer, rows: Sequence[dict], mesh: Mesh
) -> Produce:
    """Rollouts with the environment that the stage's plan names."""
    p, algorithm = stage.plan, stage.plan.algorithm
    arrays, tree = shared({"base": frozen["base"]} if "base" in frozen else {})
    whole = lambda given: reading.whole(given[0], tree(given[1]), "policy")  # noqa: E731
    table = Table(
        p.env, actors.sampler, tokenizer, p.template, rows, longest=p.max_prompt_length, group=algorithm.group,
        whole=whole, asks=asked_by(stage, "partner", p.env, tokenizer, p.template, mesh),
    )  # fmt: skip

    def produce(state: OnlineState, prompts: dict) -> tuple[Any, dict]:
        key = noise_of(jax.random.wrap_key_data(state.key), state.step)
        keys = reply_keys(key, prompts["row"], algorithm.group)  # those of `train.online.produce`
        options = Options(temperature=algorithm.temperature, **algorithm.sampling_filters)
        played = table.play((state.policy.params, arrays), prompts, keys, options)
        marks = {"version": int(state.step), "source": 0}
        marks = {name: np.full(len(played.reward), value, np.int32) for name, value in marks.items()}
        found = jax.tree.map(np.asarray, played.rollout).replace(**marks)
        rewards = {NAME: played.reward} if NAME in algorithm.weights else None
        rollout = sharding.put_batch(found.replace(rewards=rewards), mesh)
        return rollout, {name: x.mean() for name, x in played.metrics.items()}

    return produce


def readings(found: Plan | None, template: str, max_prompt_length: int) -> partial:
    """What makes arrays of prompts, with an environment or without."""
    if found is None:
        return partial(prompt_rows, template=template, max_prompt_length=max_prompt_length)
    return found.encode(template, max_prompt_length)


def measured(table: Table, judge: Judge) -> Callable[..., tuple[Measured, dict[str, np.ndarray]]]:
    """A measure of a policy with an environment: (params, reference, reward params, prompts, key, temperature) ->
    (what is known of the replies, {name: one number for each}), the environment's reward, if it has one, as
    "env/reward"."""
    pays = bool(reward_of(table.plan))

    def measure(params, reference, reward_params, prompts, key, temperature):
        keys = row_keys(key, prompts["row"])
        played = table.play(params, prompts, keys, Options(temperature=temperature))
        found = judge(params, reference, reward_params, played.rollout, temperature)
        return found, played.metrics | ({"env/reward": played.reward} if pays else {})

    return measure
