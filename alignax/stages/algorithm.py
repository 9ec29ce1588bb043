"""The algorithm of an online config: functions with their settings bound, refused where they do not fit each other.

What a function fits, it says itself (`ops.checks.FACTS`): one of another package is bound as one of ours is.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from alignax.bound import Bound, Terms, bound, of_config, takes
from alignax.config import ConfigError, Reader, record_of
from alignax.losses.kl import kl as kl_loss
from alignax.models import bigram
from alignax.ops.checks import between, fact
from alignax.ops.corrections import truncated_weights
from alignax.ops.kl import check_placement
from alignax.rewards.config import Reward
from alignax.sampling.sampler import Sampler
from alignax.stages import moving, plans
from alignax.train import online
from alignax.train.algorithm import Actors, Algorithm, Combined, Constraint, DataLoss, Draw, Weighing
from alignax.train.moving import headless
from alignax.train.scores import shape_scores
from alignax.train.updates import Updates, updates
from alignax.types import Pair, Rollout

RECORDS = (Rollout, Pair)  # what a loss of the policy may take
MOST_BUCKETS = 16
UNSHAPED = dict(normalize=False, clip=0.0, missing_eos_penalty=0.0, overlong_buffer=0)  # `shape_scores` that is off
VALUE = ("value_loss", "value_loss_args", "value_optimizer", "value_optimizer_args")  # what a critic reads


def algorithm_of(
    r: Reader, rewards: dict[str, Reward], defaults: dict[str, Any], data: DataLoss | None = None
) -> Algorithm:
    """The algorithm of a config. Raises ConfigError for functions and settings that do not fit each other."""
    plans.sampling(r)
    r.require(r.temperature > 0, "temperature", "expected > 0; a greedy policy has no log-ratio")
    update, opponent, group = fixed(r, "update_args", updates), opponent_of(r), r.samples_per_prompt
    every = update()
    terms, record = plans.terms(r, RECORDS, microbatches=every.microbatches)
    given = {"kl_in_reward": r.kl_placement == "reward", "group": group}
    advantage = chosen(r, "advantage", "alignax.train.advantages", given, later=("weights",))
    value = critic_of(r, advantage, rewards, defaults)
    check_groups(r, advantage, opponent)
    scoring = fixed(r, "scoring_args", shape_scores, {"max_tokens": r.max_new_tokens})
    check_parts(r, advantage, scoring, rewards)
    check_updates(r, every)
    check_losses(r, advantage, opponent, terms, record)
    controller, memory = controller_of(r, (1 if opponent else group) * r.batch_size * r.oversample)
    weighing = weighing_of(rewards)
    check_steps(r, weighing)
    loss, *further = terms.items()
    steps = r.total_steps * every.epochs * every.minibatches
    return Algorithm(
        draws=(Draw(replies=1), Draw(replies=group - 1, author=opponent)) if opponent else (Draw(replies=group),),
        temperature=r.temperature,
        filters=filters_of(r),
        max_new_tokens=r.max_new_tokens,
        share_prompts=r.share_prompts,
        length_buckets=r.length_buckets,
        carried=r.partial_rollouts,
        keep=r.batch_size if r.oversample > 1 else 0,
        **vars(weighing),
        shaping=shaping_of(r, rewards),
        scoring=scoring,
        advantage=advantage,
        correction=correction_of(r),
        policy={"policy": loss[1]} | dict(further),
        on_pairs=record is Pair,
        penalty=penalty_of(r, advantage),
        value=value,
        value_coef=r.value_coef if r.critic_init == "shared" else None,
        data=data,
        controller=controller,
        memory=memory,
        kl_coef=r.kl_coef,
        updates=update,
        policy_optimizer=plans.optimizer(r, "optimizer", steps),
        value_optimizer=plans.optimizer(r, "value_optimizer", steps) if value and r.critic_init != "shared" else None,
        entropy_controller=moving.entropy_controller_of(r),
        follow=moving.follow_of(r),
        ema=moving.ema_of(r),
    )


def weighing_of(rewards: Mapping[str, Reward]) -> Weighing:
    """How the rewards of a config become one score."""
    return Weighing(
        weights={name: one.weight for name, one in rewards.items()},
        combined={name: Combined(function=one.combine, of=one.of) for name, one in rewards.items() if one.combine},
        constraints={name: Constraint(**one.constraint) for name, one in rewards.items() if one.constraint},
        per_step=tuple(name for name, one in rewards.items() if one.step_ends),
    )


def check_steps(r: Reader, weighing: Weighing) -> None:
    """The numbers of a reward of steps stay where they are. Raises ConfigError."""
    found = weighing.per_step
    if found and (r.scoring_args.get("normalize", True) or r.scoring_args.get("clip", 5.0)):
        raise ConfigError(
            f"config.{r.key('scoring_args')}: {found[0]!r} is a reward of steps, whose numbers stand at their tokens: "
            "the score of a whole reply cannot be normalised or clipped beside it; set normalize=False, clip=0.0"
        )


def shaping_of(r: Reader, rewards: dict[str, Reward]) -> Bound | None:
    """What is made of scores beside the reference's. Raises ConfigError beside rewards of steps."""
    found = of_config(r, "reward_shaping", "alignax.rewards.shaping")
    r.require(r.reference_replies >= 1, "reference_replies", "expected a number of replies to each prompt, 1 or more")
    if found and any(one.step_ends for one in rewards.values()):
        raise r.error("reward_shaping", "it shapes the score of a whole reply, and a reward here is of steps")
    if found and r.env:
        raise r.error(
            "reward_shaping", "the reference's replies are of one turn, episodes of an env are not; set it to ''"
        )
    return found


def filters_of(r: Reader) -> dict[str, Any]:
    """The filters that are on, by name; one that is traced is."""
    r.require(
        (r.top_k == 0) | (r.top_k >= 2), "top_k", "expected 0 (off), or 2 tokens or more: of one there is no ratio"
    )
    r.require((r.top_p > 0) & (r.top_p <= 1), "top_p", "expected 1 (off), or a mass above 0, such as 0.95")
    r.require((r.min_p >= 0) & (r.min_p < 1), "min_p", "expected 0 (off), or a share below 1, such as 0.05")
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    values = {name: getattr(r, name) for name in off}
    return {name: x for name, x in values.items() if isinstance(x, Tracer) or x != off[name]}


def chosen(r: Reader, name: str, package: str, given: dict[str, Any], later: tuple[str, ...] = ()) -> Bound:
    """A function that a config has to name, with what the stage gives it: what of that it has no parameter for, not.

    `later` names what it is given when it is called.
    """
    found = of_config(r, name, package, given=(*given, *later))
    if found is None:
        raise r.error(name, f"expected a function of {package}, or module:function")
    return found.given(**{key: value for key, value in given.items() if takes(found.function, key)})


def fixed(r: Reader, name: str, function: Callable, given: dict[str, Any] | None = None) -> Bound:
    """A function that is no choice, with the arguments that the config's key has for it."""
    key, given = r.key(name), given or {}
    return bound(function, getattr(r, name), key=key, args_key=key, given=tuple(given)).given(**given)


def correction_of(r: Reader) -> Bound | None:
    """What weighs the advantages for a sampler that is not the learner; arguments alone are of `truncated_weights`."""
    if not r.correction and r.correction_args:
        return fixed(r, "correction_args", truncated_weights)
    return of_config(r, "correction", "alignax.ops.corrections")


def opponent_of(r: Reader) -> Bound | None:
    """Who replies beside the policy, if anybody does."""
    if r.opponent != "none":
        return of_config(r, "opponent", "alignax.sampling.opponents")
    if r.opponent_args:
        raise ConfigError(f"config.{r.key('opponent_args')} is set, but the opponent is 'none': nothing reads it")
    return None


def name_of(opponent: Bound | None) -> str:
    """The name of an opponent of ours, "none" for none, "" of one from elsewhere."""
    if opponent is None:
        return "none"
    ours = opponent.function.__module__ == "alignax.sampling.opponents"
    return opponent.name if ours else ""


def check_groups(r: Reader, advantage: Bound, opponent: Bound | None) -> None:
    """Who replies, and how often, is what the advantage is defined with."""
    group, name, rival = r.samples_per_prompt, r.advantage, name_of(opponent)
    fitting = fact(advantage.function, "opponents")
    if fitting is not None and rival not in fitting and not (rival == "" and fitting != ("none",)):
        expected = " or ".join(map(repr, fitting))
        raise r.error("opponent", f"expected {expected} with advantage {name!r}")
    pairs = fact(advantage.function, "pairs")
    if opponent and group > 2 and (pairs or fact(opponent.function, "deterministic")):
        raise r.error("samples_per_prompt", f"one reply of the policy and one of the opponent {r.opponent!r} make 2")
    compared = fact(advantage.function, "compares") or r.oversample > 1 or opponent
    r.require(
        group >= (2 if compared else 1),
        "samples_per_prompt",
        "a reply is compared with others to its prompt; expected 2 or more",
    )
    r.require(r.oversample >= 1, "oversample", "expected 1 (off) or more")
    if r.share_prompts and (group < 2 or opponent):
        wrong = f"opponent 'none', not {r.opponent!r}" if opponent else f"samples_per_prompt of 2 or more, not {group}"
        raise ConfigError(
            f"config.{r.key('share_prompts')} puts the policy's own replies to a prompt in one row: expected {wrong}"
        )
    if r.kl_placement == "reward" and pairs and opponent:
        r.require(r.kl_coef == 0, "kl_coef", "in the reward it charges one side of a comparison only; set it to 0")


def check_parts(r: Reader, advantage: Bound, scoring: Bound, rewards: dict[str, Reward]) -> None:
    """An advantage that reads the rewards by themselves sees nothing of what is made of their sum."""
    if not fact(advantage.function, "reads_parts"):
        return
    if r.reward_shaping:
        raise r.error("reward_shaping", f"advantage {r.advantage!r} reads the rewards, and not the score; set it to ''")
    if constrained := [name for name, one in rewards.items() if one.constraint]:
        raise ConfigError(
            f"config.{r.key(f'rewards.{constrained[0]}')} is a constraint: advantage {r.advantage!r} reads "
            "the rewards, and not the score that a multiplier enters; give it a weight"
        )
    settings = scoring.options | scoring.numbers
    for name, off in UNSHAPED.items():
        if isinstance(settings[name], Tracer) or settings[name] != off:
            raise ConfigError(
                f"config.{r.key('scoring_args')}.{name} = {settings[name]}: advantage {r.advantage!r} reads the "
                f"rewards, and not the score that this shapes; set scoring_args to {UNSHAPED}. A missing end, and "
                "length, can be rewards of their own: alignax.rewards.style:ended, :length"
            )
    if r.kl_placement == "reward":
        r.require(
            r.kl_coef == 0, "kl_coef", f"{advantage.name} charges no score; set it to 0, or kl_placement to 'loss'"
        )


def check_losses(r: Reader, advantage: Bound, opponent: Bound | None, terms: Terms, record: type) -> None:
    """What each loss of the policy says that it needs."""
    for key, term in plans.keyed(terms).items():
        if fact(term.function, "offline_only"):
            raise ConfigError(
                f"config.{r.key(key)} = {term.name!r} corrects for pairs that others sampled: use it offline"
            )
        for needed, have in (("opponent", name_of(opponent)), ("advantage", advantage.name)):
            want = fact(term.function, f"online_needs_{needed}")
            if want and want != have:
                raise r.error(needed, f"the loss {term.name!r} needs {want!r}")
        if fact(term.function, "own_kl") and r.kl_placement == "reward":
            r.require(r.kl_coef == 0, "kl_coef", f"{term.name} has its own KL; set it to 0")
    if record is not Pair:
        return
    if not fact(advantage.function, "pairs"):
        raise ConfigError(
            f"config.{r.key('loss')} = {r.loss!r} takes pairs: set advantage to 'best_and_worst', not {r.advantage!r}"
        )
    for name in ("correction", "correction_args"):
        if getattr(r, name):
            raise ConfigError(f"config.{r.key(name)} weighs advantages: a loss on pairs has none")


def critic_of(r: Reader, advantage: Bound, rewards: dict[str, Reward], defaults: dict[str, Any]) -> Bound | None:
    """The loss of the critic, if there is one: as the advantage asks."""
    learns, how = fact(advantage.function, "critic"), r.one_of("critic_init", ("reward", "policy", "shared", "none"))
    changed = [key for key in (*VALUE, "value_coef") if getattr(r, key) != defaults[key]]
    unread = {"shared": ("value_optimizer", "value_optimizer_args"), "none": ()}.get(how, ("value_coef",))
    if unread := [key for key in changed if key in unread]:
        whose = "a critic of its own" if how == "shared" else "critic_init = 'shared', a head on the policy's trunk"
        raise ConfigError(f"config.{r.key(unread[0])} is set, but it is read for {whose}; critic_init = {how!r}")
    if how == "shared":
        r.require(between(0.0)(r.value_coef), "value_coef", "expected 0 or more, such as 0.1")
    if how == "none":
        if learns:
            raise ConfigError(
                f"config.{r.key('advantage')} = {r.advantage!r} needs a critic: set critic_init to 'policy' or 'reward'"
            )
        if changed:
            raise ConfigError(f"config.{r.key(changed[0])} is set, but there is no critic (critic_init = 'none')")
        return None
    if learns is False:
        raise r.error("critic_init", f"advantage {r.advantage!r} has no critic; set critic_init to 'none'")
    if how == "reward" and sum(bool(one.role and not one.combine) for one in rewards.values()) != 1:
        raise r.error(
            "critic_init",
            "it needs config.reward_from, one reward model to start from; with a text reward, or several models, use "
            "'policy', or 'none' if the advantage needs no critic",
        )
    found = chosen(r, "value_loss", "alignax.losses", {})
    record_of(found.function, (Rollout,), key=r.key("value_loss"))
    return found


def penalty_of(r: Reader, advantage: Bound) -> Bound | None:
    """The KL as a term of the loss, if it is placed there."""
    r.require(between(0.0)(r.kl_coef), "kl_coef", "expected 0 (no penalty) or more; less rewards the KL")
    try:
        check_placement(r.kl_estimator, r.kl_placement)
    except ValueError as error:
        raise ConfigError(f"config.{r.key('kl_estimator')}, config.{r.key('kl_placement')}: {error}") from None
    if r.kl_placement != "loss":
        if r.kl_loss_args:
            raise ConfigError(
                f"config.{r.key('kl_loss_args')} is set, but kl_placement = {r.kl_placement!r}: no loss reads it; set "
                "kl_placement to 'loss'"
            )
        return None
    if "kl" in r.terms:
        raise ConfigError(f"config.{r.key('terms.kl')}: kl_placement = 'loss' adds that term already, times kl_coef")
    if fact(advantage.function, "chosen_only"):
        raise ConfigError(
            f"config.{r.key('kl_placement')} = 'loss' with advantage {r.advantage!r}: only chosen replies are learnt "
            "from, and the KL over those is not the policy's; use 'reward', with kl_coef = 0 for none"
        )
    return fixed(r, "kl_loss_args", kl_loss, {"estimator": r.kl_estimator})


def controller_of(r: Reader, episodes: int) -> tuple[Bound, Any]:
    """The controller of the KL coefficient, and its memory at the start, () if it has none.

    `episodes`: the policy's own replies of one iteration, for a controller that counts them.
    """
    found = chosen(r, "kl_controller", "alignax.ops.kl", {"batch_size": episodes})
    if fact(found.function, "multiplies"):
        r.require(r.kl_coef > 0, "kl_coef", f"{found.name} multiplies it; expected > 0")
    memory = inspect.signature(found.function).parameters.get("memory")
    if memory is None:
        return found, ()
    if memory.kind is memory.KEYWORD_ONLY:
        raise r.error("kl_controller", "its parameter 'memory' is its third by position: (kl_coef, kl, memory, *, ...)")
    if memory.default is memory.empty:
        raise r.error("kl_controller", "its parameter 'memory' has no default: give it what it starts with")
    return found, memory.default


def check_updates(r: Reader, every: Updates) -> None:
    """How often a rollout is used: its prompts divide into the minibatches, and those into what they are cut into."""
    for key in ("epochs", "minibatches", "microbatches"):
        if getattr(every, key) < 1:
            raise ConfigError(f"config.{r.key('update_args')}.{key} = {getattr(every, key)}: expected 1 or more")
    plans.divides(r, "batch_size", r.batch_size, every.minibatches, "minibatches")
    plans.divides(r, "batch_size", r.batch_size // every.minibatches, every.microbatches, "microbatches")
    r.require(r.length_buckets <= MOST_BUCKETS, "length_buckets", f"each is compiled; expected 1 to {MOST_BUCKETS}")
    prompts, devices = r.batch_size // every.minibatches // every.microbatches, plans.row_parts(r)
    if r.share_prompts:
        plans.divides(r, "share_prompts", prompts, devices, "devices (prompts of a microbatch)")
    elif r.length_buckets > 1:
        plans.divides(r, "length_buckets", prompts * r.samples_per_prompt, devices, "devices (replies of a microbatch)")


def trial(algorithm: Algorithm) -> Any:
    """The shapes that a whole iteration makes, of a model that is two tables; or the exception that it raised.

    Raises ConfigError for a setting that a function refuses. Other errors may come of the shapes, which are guesses.
    """
    model, every = bigram.bigram(5), algorithm.updates()
    params = bigram.shapes(model)
    sampler = Sampler(model, algorithm.max_new_tokens, ends=(1,), pad=0)
    apart = algorithm.value is not None and algorithm.value_coef is None
    actors = Actors(sampler, model if apart else None)
    policy = headless(params) if algorithm.value_coef is None else params
    kept = every.minibatches * every.microbatches
    algorithm = dataclasses.replace(algorithm, keep=kept if algorithm.keep else 0, carried=0, data=None)
    prompts = bigram.prompts(2 * kept if algorithm.keep else kept)

    def whole(policy: Any, critic: Any, prompts: Any) -> Any:
        state = online.start(algorithm, policy, critic, 0, headless(policy))
        made = algorithm.combined
        given = {name: (2,) if name in made else () for name in algorithm.weights}
        given = {name: members for name, members in given.items() if name not in made or not made[name].of}
        given |= dict.fromkeys(algorithm.per_step, (prompts["tokens"].shape[1] + algorithm.max_new_tokens,))
        score = lambda frozen, rollout: {  # noqa: E731
            name: jnp.zeros((len(rollout.tokens), *more)) for name, more in given.items()
        }
        frozen: dict[str, Any] = {"reference": headless(policy)}
        if algorithm.shaping:
            frozen["reference_rewards"] = {name: jnp.zeros((1, 2)) for name in algorithm.weights}
        return online.iteration(algorithm, actors, score, state, frozen, prompts)

    return plans.tried(whole, policy, params if apart else None, prompts)
