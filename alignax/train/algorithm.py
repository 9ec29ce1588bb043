"""What an online iteration is made of: functions with their settings, and the models that they run."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.bound import Bound, Terms, plan_record, static
from alignax.ops.checks import Scalar
from alignax.sampling.sampler import Sampler
from alignax.types import Model, Rollout


@runtime_checkable
class Score(Protocol):
    """A reward on the device."""

    def __call__(self, frozen: dict, rollout: Rollout) -> dict[str, Float[Array, "B *K"]]:  # noqa: F821
        """{name: one number for each row, or, of an ensemble, [B K]}, from the frozen parameters and the rollout."""
        ...


@plan_record
class Draw:
    """The replies that one author gives to each prompt."""

    replies: int = static()
    author: Bound | None = None  # a function of `sampling.opponents` or like one; None: the policy itself


@plan_record
class Combined:
    """A reward that is made of others, or of what the members of an ensemble say."""

    function: Bound  # ([K B]) -> [B]: of `rewards.combine`
    of: tuple[str, ...] = static(default=())  # the names of the others; (): it is an ensemble


@plan_record
class Constraint:
    """A reward that has to keep a limit in the mean; see `train.constraints`."""

    limit: Scalar
    sign: Scalar  # 1: at least the limit; -1: at most
    learning_rate: Scalar = 0.1  # of the ascent of ln lambda
    multiplier: Scalar = 1.0  # lambda at the start
    max_multiplier: Scalar = 10.0


@plan_record
class Weighing:
    """How rewards become one score: what `train.rewarded` reads of an algorithm, or of a stage that has no other."""

    weights: dict[str, Scalar]  # of the rewards, by name
    combined: dict[str, Combined]  # of them those that are made of others
    constraints: dict[str, Constraint] = dataclasses.field(default_factory=dict)  # those that are; their weight is 0
    per_step: tuple[str, ...] = static(default=())  # those that come by token, [B T], at the last one of each step


@plan_record
class DataLoss:
    """A loss of the policy on rows of data beside the rollout: PPO-ptx (Ouyang et al. 2022, 2203.02155, equation 2)."""

    term: Bound  # record -> Loss
    coefficient: Scalar
    record: type = static()  # what it takes: a Demo, a Pair or an Unpaired


@plan_record
class Algorithm(Weighing):
    """What an iteration does. Numbers are leaves: `jax.vmap` over algorithms is a sweep."""

    draws: tuple[Draw, ...]  # of each prompt, in the order of its rows; the policy's own come first
    temperature: Scalar  # of the policy's replies, and so of every log-probability
    filters: dict[str, Any]  # of `ops.filters`, by name: those that are on. Which these are is structure
    max_new_tokens: int = static()
    share_prompts: bool = static(default=False)  # a prompt stands once before all its replies in scoring and learning
    length_buckets: int = static(default=1)  # programs of scoring and learning, by how much room the replies take
    # batches of prompts that are begun beside each: replies that are not over when one is answered go on in the next
    carried: int = static(default=0)
    keep: int = static(default=0)  # groups to learn from, chosen among those sampled; 0 is all of them
    shaping: Bound | None = None  # (scores, [B M] of the reference's replies) -> scores: of `rewards.shaping`
    scoring: Bound  # (scores, finished, tokens, moments) -> (scores, moments): `shape_scores`
    advantage: Bound  # (rollout, scores, coefficient) -> (rollout, KL, metrics): of `train.advantages`
    correction: Bound | None  # (old_logp, sampler_logp, mask) -> weights of the advantages; None: there are none
    policy: Terms
    on_pairs: bool = static(default=False)  # the policy's losses take the best and the worst reply as a Pair
    penalty: Bound | None  # rollout -> Loss: the KL as a term of the policy's loss; None: it is in the reward
    value: Bound | None  # rollout -> Loss of the critic; None: there is none
    value_coef: Scalar | None = None  # of that loss as a term of the policy's, whose trunk has the head; None: apart
    data: DataLoss | None = None
    controller: Bound  # (coefficient, KL[, memory]) -> coefficient[, memory]: of `ops.kl`
    memory: Any = ()  # of the controller at the start, a tree of numbers; most have none
    kl_coef: Scalar  # at the start
    updates: Bound  # () -> Updates
    policy_optimizer: Bound  # () -> Optimizer
    value_optimizer: Bound | None
    entropy_controller: Bound | None = None  # (coefficient, entropy) -> (applied, the next): of `ops.entropy`
    follow: Bound | None = None  # (reference, parameters, step) -> reference: `train.reference`. None: it stands still
    ema: Scalar | None = None  # decay, per iteration, of an average of the policy; None: there is none

    @property
    def group(self) -> int:
        """Replies to each prompt, M: neighbours among the B = P * M rows."""
        return sum(draw.replies for draw in self.draws)

    @property
    def sampling_filters(self) -> dict[str, Any]:
        """The filters with `top_k` as a whole number, of which a sweep may have made a float."""
        return {name: jnp.asarray(x, jnp.int32) if name == "top_k" else x for name, x in self.filters.items()}

    @property
    def learnt_filters(self) -> dict[str, Any]:
        """The filters under which the policy's losses see it: those of its sampler, to which they take a ratio.

        A loss on pairs takes none. Its implicit rewards are ratios to the reference, and of whole distributions both:
        equal ones before the first update, where a filter would credit each token with the mass that it cuts off.
        """
        return {} if self.on_pairs else self.sampling_filters

    @property
    def learnt(self) -> int:
        """Those of them that the update sees, the first: an opponent's only where they are one side of a pair."""
        return self.group if self.on_pairs else self.draws[0].replies


class Actors(NamedTuple):
    """The models of an iteration; what they are trained from, or stand on, is in the `frozen` parameters.

    `frozen` has "reference"; "reward", what the score on the device reads; and "base", {"policy", "critic"}: the
    decoders under learners that hold an adapter and a head alone.
    """

    sampler: Sampler  # its model is the policy's and the reference's
    critic: Model | None = None

    @property
    def policy(self) -> Model:
        """The model of policy and reference."""
        return self.sampler.model
