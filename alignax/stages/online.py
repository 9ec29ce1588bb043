"""Online RL against a reward model or a function: PPO, and methods without a critic. See configs/world/ppo.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import host, sharding
from alignax.bound import Args, Bound, fill, plan_record, static
from alignax.config import plain
from alignax.data.arrays import fingerprint
from alignax.rewards import asking
from alignax.rewards.config import Reward, rewards_of
from alignax.sampling.sampler import Sampler, sampler
from alignax.stages import (
    alarms,
    beside,
    episodes,
    fitting,
    folder,
    golden,
    inputs,
    lagging,
    lengths,
    online_shapes,
    outside,
    parents,
    partner,
    plans,
    probe,
    programs,
    reference_rewards,
    roles,
    shapes,
)
from alignax.stages.algorithm import algorithm_of, fixed, trial
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.train import moving, online
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.updates import updates

STAGE = Declaration(
    "online",
    plans.POLICY,
    {
        "policy": Parent("init_from"),
        "reference": Parent("reference_from"),
        "reward": Parent("reward_from", makes=plans.REWARD, reads=("", "golden.")),
        "reward.*": Parent("rewards.*.from", makes=plans.REWARD, reads=("", "golden.")),
    }
    | partner.READS
    | probe.READS,
)


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("online")
    c.template = "chat"  # "chat": the tokenizer's chat template; "plain": prompt, completion, end of sequence
    plans.add_prompts(c, "jsonl")
    # filters of sampling, and so of the policy's log-probabilities (docs/online.md); the reference is taken whole
    c.top_k = 0  # the most probable tokens that are left; 0: all
    c.top_p = 1.0  # the least mass of the most probable ones that are left; 1: all
    c.min_p = 0.0  # the least probability that is left, as a share of the largest; 0: all
    # an outside engine that samples, vLLM or SGLang at http://HOST:PORT; "": the policy is sampled here
    c.engine = ""
    c.engine_args = ConfigDict()  # of alignax.sampling.engine.engine
    episodes.add_keys(c)  # an environment of several turns
    c.reference_from = ""  # folder of the reference policy; "": the policy's own start
    # of alignax.train.reference.follow, which counts iterations here; empty: the reference stands still
    c.reference_args = ConfigDict()
    # decay, per iteration, of an average of the policy, which the run measures and saves in its place; 0: off
    c.ema = 0.0
    asking.add_keys(c)  # rewards; here at_least or at_most makes one a constraint, step_ends rewards each step, and an
    # env's own is one of them, "env": of weight 1, or that of rewards = dict(env=dict(weight=...))
    # what is made of the score beside the scores of the reference's replies to the same prompt: function of
    # alignax.rewards.shaping, or module:function: "preference" (PAR's sigmoid), "centred"; "": nothing
    c.reward_shaping = ""
    c.reward_shaping_args = ConfigDict()
    c.reference_replies = 1  # of the reference to each prompt, sampled and scored once, before the first iteration
    c.scoring_args = ConfigDict()  # of alignax.train.scores.shape_scores
    c.samples_per_prompt = 1  # replies to each prompt of a batch; a group estimator needs 2 or more
    # in scoring and learning each prompt stands once before all its replies, as branches of one row: worth it where
    # prompts are long
    c.share_prompts = False
    # scoring and learning leave padding out by n programs, for replies that fill 1/n, 2/n ... of their room: each
    # microbatch runs the least that holds its own. All are compiled: worth it where most replies are far from the limit
    c.length_buckets = 1
    # who gives all replies of a group but the first: "none", the policy itself; or a function of
    # alignax.sampling.opponents, or module:function: "greedy", the policy at temperature 0 (ReMax); "reference" (XPO,
    # vBoN); "mixture", pi^(1 - share) ref^share (Nash-MD)
    c.opponent = "none"
    c.opponent_args = ConfigDict()
    c.oversample = 1  # sample that many times batch_size prompts and learn from those whose scores differ, first
    # a loss on data beside the rollouts (PPO-ptx, docs/online.md): of alignax.stages.beside
    c.data_loss = beside.get_config()
    # policy and critic learn an adapter each, of alignax.lora.init: dict(rank=16); the decoder beneath, which reference
    # and reward model share where they stand on the same content, is frozen. Empty: all parameters are trained
    c.lora_args = ConfigDict()
    # "reward": trunk and head of the reward model; "policy": its trunk and a new head; "shared": a head on the policy's
    # own trunk, whose loss is a term of the policy's; "none"
    c.critic_init = "reward"
    c.advantage = "gae"  # function of alignax.train.advantages, or module:function; only gae needs a critic
    c.advantage_args = ConfigDict()
    c.loss = "ppo_clip"  # function of alignax.losses, or module:function, of a Rollout, or of a Pair: best and worst
    c.loss_args = ConfigDict()
    c.terms = ConfigDict()  # losses added to it: name = dict(coefficient=..., and its arguments); entropy, for example
    # of the coefficient of terms.entropy, which is where it starts: function of alignax.ops.entropy; "": it stays
    c.entropy_controller = ""
    c.entropy_controller_args = ConfigDict()
    # weights of the advantages, for a sampler that is not the learner to the last bit: function of
    # alignax.ops.corrections, or module:function; "": off, or truncated_weights where it has arguments
    c.correction = ""
    c.correction_args = ConfigDict()
    c.value_loss = "value_clip"
    c.value_loss_args = ConfigDict()
    c.value_coef = 0.1  # of that loss beside the policy's, where they share a trunk
    c.kl_coef = 0.05  # at the start
    c.kl_placement = "reward"  # or "loss"
    c.kl_estimator = "k1"  # "k1" in the reward; "k2", "k3" or "k3+k2" in the loss
    c.kl_loss_args = ConfigDict()  # of alignax.losses.kl, in the loss: dict(importance_weighted=False) for GRPO's own
    c.kl_controller = "fixed_kl"  # function of alignax.ops.kl: fixed_kl, adaptive_kl or pid_kl
    c.kl_controller_args = ConfigDict()
    c.update_args = ConfigDict()  # of alignax.train.updates.updates
    c.optimizer = "adamw"  # function of alignax.train.optimizer
    c.optimizer_args = ConfigDict({"learning_rate": 3e-6})
    c.value_optimizer = "adamw"
    c.value_optimizer_args = ConfigDict({"learning_rate": 1e-5})
    c.batch_size = 64  # prompts per iteration that are learnt from
    # a batch is learnt from so many steps after it was sampled (docs/online.md); 0: at once, by the weights it is of
    c.steps_off_policy = 0
    # batches of prompts that are begun beside each: a step ends when batch_size prompts are answered, all replies to
    # each, and the others go on in the next steps (docs/online.md); 0: a step waits for all of its own
    c.partial_rollouts = 0
    c.sampler_devices = 0  # devices that sample alone, the first ones, while the others learn; 0: all do both in turn
    c.total_steps = 100  # iterations
    c.eval_every_steps = 10  # 0: never
    c.save_every_steps = 10
    c.keep_checkpoints = 2
    c.tensorboard = False
    c.alarms = alarms.get_config("online")  # metrics that are watched, by name (docs/online.md); {} is none
    c.probe = probe.get_config()
    c.golden = golden.get_config()  # pairs that policy and reward model are asked for at each evaluation
    return c


@plan_record
class Plan(plans.Learning):
    """What a run does."""

    algorithm: Algorithm
    rewards: dict[str, Reward]
    asking: asking.Asking
    reference_replies: int = static()
    max_prompt_length: int = static()
    slots: int = static()
    oversample: int = static()
    steps_off_policy: int = static()
    partial_rollouts: int = static()
    sampler_devices: int = static()
    critic_init: str = static()
    engine: Bound | None
    env: episodes.Plan | None
    lora_args: Args = static()
    data_loss: beside.Plan | None
    probe: probe.Plan | None
    golden: golden.Plan | None

    @property
    def ahead(self) -> int:
        """Batches of prompts that have begun before the one of a step: they wait in the state."""
        return self.steps_off_policy + self.partial_rollouts

    def draws(self, form: str) -> int:
        """Prompts that a run reads: as many as it samples for, whatever it learns from."""
        del form
        return (self.total_steps + self.ahead) * self.batch_size * self.oversample

    def readings(self) -> list[Readings]:
        """What makes its arrays."""
        return [Readings(episodes.readings(self.env, self.template, self.max_prompt_length), ("train",))]


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    env = episodes.plan(r)
    if env:
        episodes.check(r)
    rewards = rewards_of(r, episodes.reward_of(env) if env else {})
    watch, known = probe.plan(r.probe, r.template), golden.plan(r.golden, r.template)
    every = fixed(r, "update_args", updates)()
    more = beside.plan(r.data_loss, r.template, r.total_steps, every)
    if r.lora_args:
        plans.check_lora(r)
    lagging.check(r)
    batches = (
        {"batch_size": r.batch_size}
        | episodes.batches(env)
        | probe.batches(watch)
        | golden.batches(known)
        | beside.batches(more)
    )
    fields = plans.shared(r, batches=batches)
    algorithm = algorithm_of(r, rewards, plain(get_config()), more.loss if more else None)
    fields["data_loss"] = more
    fields |= {"engine": outside.engine_of(r), "env": env, "source": plans.source(r), "asking": asking.asking(r)}
    made = fill(Plan, r, algorithm=algorithm, rewards=rewards, probe=watch, golden=known, **fields)
    r.finish()
    trial(algorithm)
    return made


def programs_of(p: Plan, world: shapes.World) -> list[shapes.Program]:
    """What a run compiles."""
    return online_shapes.planned(p, world)


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Trains a policy, with its own start or another policy as the reference. Resumes what it finds there."""
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan

    # ---- prompts
    tokenizer = parents.get_tokenizer(stage)
    ((encode, _),) = p.readings()
    prompts, counts, rows = inputs.encoded(p, encode, tokenizer, "train", root)
    folder.say(f"prompts: {counts}")

    # ---- models: policy and reference, critic from the reward model or the policy
    mesh = parents.get_mesh(p.mesh, host.devices()[p.sampler_devices :])  # the first ones sample
    loaded = roles.load(stage, tokenizer, mesh)
    group = p.algorithm.draws[0].replies
    prompts_at_once = p.batch_size * p.oversample * (1 + p.partial_rollouts)
    sizes = prompts_at_once * group, group, p.max_prompt_length, p.algorithm.max_new_tokens
    # with an environment all replies of a batch are written side by side
    slots, key = (sizes[0], "batch_size") if p.env else (p.slots, "slots")
    lengths.check_slots(loaded.model, slots, *sizes, key=key)
    own = sampler(loaded.model, tokenizer, p.template, p.algorithm.max_new_tokens, p.slots)
    actors, frozen = Actors(own, loaded.critic_model), loaded.frozen()

    # ---- produce and learn, as one program if the rewards are on the device
    build = lambda policy, critic, at: online.start(p.algorithm, policy, critic, p.seed, at)  # noqa: E731
    at = loaded.reference if p.algorithm.follow else None
    state = parents.place(build, loaded.policy, loaded.critic, at, mesh=mesh)
    marks = programs.step_marks(p.rewards, loaded.model, tokenizer)
    if on_models := {name: marks[name] for name in marks if name in loaded.rewards}:
        frozen["step_ends"] = jax.device_put(on_models, sharding.replicated(mesh))
    of_models, of_texts = scorers(p, loaded, own, marks, rows)
    loader = fitting.make_loader(p, prompts, p.batch_size * p.oversample)
    if p.algorithm.shaping:
        given = actors, frozen, of_models, of_texts(p.reference_replies), prompts, loader, len(rows), mesh
        frozen["reference_rewards"] = reference_rewards.table(stage, *given)
    sample, scorer = producer(stage, actors, frozen, tokenizer, rows, mesh), of_texts(p.algorithm.group)
    lag, put = p.steps_off_policy, lambda batch: sharding.put_batch(batch, mesh)
    if p.partial_rollouts:
        state = lagging.with_begun(p.algorithm, state, [put(loader.batch(i)) for i in range(p.ahead)], mesh)
    if lag:
        here = lambda state, batch: online.sampled(p.algorithm, actors, frozen, state, batch)  # noqa: E731
        state = lagging.with_pending(state, here, put(loader.batch(0)), lag, mesh)
    on_device = of_models(p.algorithm)
    if scorer or p.engine or p.env or p.sampler_devices:
        step_fn = programs.two_programs(p.algorithm, actors, on_device, scorer, frozen, state, sample, mesh)
    else:
        step_fn = programs.one_program(p.algorithm, actors, on_device, frozen, state)
    if lag:
        step_fn = lagging.filled_first(step_fn, sample, lambda i: put(loader.batch(i)), lag)
    step_fn = programs.with_drift(step_fn, roles.calibrations(stage))

    # ---- train
    alone = [found for name, found in loaded.rewards.items() if not p.rewards[name].combine]
    proxy = alone[0] if len(loaded.rewards) == len(alone) == 1 else None
    watch = probe.build(stage, p.probe, loaded.model, tokenizer, mesh, proxy=proxy, bases=loaded.bases)
    base = loaded.base["policy"] if loaded.base else {}
    ordered = golden.watch(golden.build(stage, p.golden, tokenizer, mesh), loaded.model, loaded.reference, proxy)

    def measured(state: Any) -> dict[str, float]:
        params = base | moving.result(state)
        return (watch.summary(params, loaded.reference) if watch else {}) | ordered(params)

    evaluate = fitting.once_per_step(measured) if p.probe or p.golden else None
    show, data = (
        ("objective/scores", "objective/kl", "policy/approxkl_avg"),
        beside.loader(stage, p.data_loss, tokenizer),
    )
    batch = lambda step: loader.batch(step + p.ahead) | data(step)  # noqa: E731
    state = fitting.loop(stage, state, step_fn, batch, put, evaluate, show=show)

    # ---- checkpoint
    return folder.finish(
        stage,
        params=moving.result(state),
        step=p.total_steps,
        model=loaded.model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": fingerprint(prompts), "counts": counts},
        metrics=evaluate(state) if evaluate else {},
    )


def scorers(
    p: Plan, loaded: roles.Roles, own: Sampler, marks: dict, rows: list[dict]
) -> tuple[programs.RewardOf, Callable[[int], programs.HostScore | None]]:
    """(algorithm -> the rewards of models, replies to a prompt -> those over text, None where there are none)."""
    per_step = {name: one.per_step for name, one in p.rewards.items() if one.per_step}
    models = {name: model for name, (model, _) in loaded.rewards.items()}
    texts = {name: one.function for name, one in p.rewards.items() if one.function}
    limits = p.asking.threads(), p.asking.trouble
    of_models = lambda algorithm: programs.on_device(algorithm, models, per_step, own.ends)  # noqa: E731
    of_texts = lambda group: programs.text_scorer(texts, rows, own, group, *limits, marks) if texts else None  # noqa: E731
    return of_models, of_texts


def producer(
    stage: folder.Stage, actors: Actors, frozen: dict, tokenizer: Any, rows: list[dict], mesh: Mesh
) -> programs.Produce:
    """What gives the rollouts of a plan."""
    p: Plan = stage.plan
    if p.engine:
        return outside.producer(stage, actors, frozen, tokenizer, mesh)
    if p.env:
        return episodes.producer(stage, actors, frozen, tokenizer, rows, mesh)
    if p.sampler_devices:
        return lagging.sampler(p.algorithm, actors, frozen, mesh, p.sampler_devices)
    return programs.sampling(p.algorithm, actors, frozen, mesh)
