"""Online RL against a reward model or a function: PPO, and methods without a critic. See configs/world/ppo.py."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignax import sharding
from alignax.bound import Args, Bound, fill, plan_record, static
from alignax.config import plain
from alignax.data.arrays import fingerprint
from alignax.rewards.config import Reward, rewards_of
from alignax.rewards.text import Workers
from alignax.sampling.sampler import sampler
from alignax.stages import episodes, fitting, folder, inputs, lengths, outside, parents, plans, probe, programs, roles
from alignax.stages.algorithm import algorithm_of, trial
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.train import online
from alignax.train.algorithm import Actors, Algorithm

STAGE = Declaration(
    "online",
    plans.POLICY,
    {
        "policy": Parent("init_from"),
        "reference": Parent("reference_from"),
        "reward": Parent("reward_from", makes=plans.REWARD, reads=("",)),
        "reward.*": Parent("rewards.*.from", makes=plans.REWARD, reads=("",)),
    }
    | probe.READS,
)


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.shared_config("online")
    c.template = "chat"  # "chat": the tokenizer's chat template; "plain": prompt, completion, end of sequence
    c.source = "jsonl"  # prompts: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.slots = 0  # replies that are written at once; 0: all, or what a quarter of the memory holds
    c.temperature = 1.0  # of sampling, and so of every log-probability
    # filters of sampling, and so of the policy's log-probabilities (docs/online.md); the reference is taken whole
    c.top_k = 0  # the most probable tokens that are left; 0: all
    c.top_p = 1.0  # the least mass of the most probable ones that are left; 1: all
    c.min_p = 0.0  # the least probability that is left, as a share of the largest; 0: all
    # an outside engine that samples, vLLM or SGLang at http://HOST:PORT; "": the policy is sampled here
    c.engine = ""
    c.engine_args = ConfigDict()  # of alignax.sampling.engine.engine
    episodes.add_keys(c)  # an environment of several turns
    c.reference_from = ""  # folder of the reference policy; "": the policy's own start
    # one reward: the folder of a finished reward model, or module:function of (row, completion, *, finished) -> number
    # or None. Or several, name = dict(function=..., its arguments, weight=...) or {"from": folder, "attributes": {...},
    # "weight": ...}: their weighted sum, each part in the log. An env's own reward is one of them, "env": of weight 1,
    # or that of env = dict(weight=...)
    c.reward_from = ""
    c.reward_weights = ConfigDict()  # of its attributes, where it rates several; 1 each where nothing is said
    c.reward = ""
    c.reward_args = ConfigDict()
    c.rewards = ConfigDict()
    c.reward_workers = 8  # threads for rewards over text
    c.reward_timeout_s = (
        300.0  # seconds for those of a batch; a reply that is not scored then has no score. 0: no limit
    )
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
    # policy and critic learn an adapter each, of alignax.lora.init: dict(rank=16); the decoder beneath, which reference
    # and reward model share where they stand on the same content, is frozen. Empty: all parameters are trained
    c.lora_args = ConfigDict()
    c.critic_init = "reward"  # trunk and head of the reward model; "policy": its trunk and a new head; "none"
    c.advantage = "gae"  # function of alignax.train.advantages, or module:function; only gae needs a critic
    c.advantage_args = ConfigDict()
    c.loss = "ppo_clip"  # function of alignax.losses, or module:function, of a Rollout, or of a Pair: best and worst
    c.loss_args = ConfigDict()
    c.terms = ConfigDict()  # losses added to it: name = dict(coefficient=..., and its arguments); entropy, for example
    # weights of the advantages, for a sampler that is not the learner to the last bit: function of
    # alignax.ops.corrections, or module:function; "": off, or truncated_weights where it has arguments
    c.correction = ""
    c.correction_args = ConfigDict()
    c.value_loss = "value_clip"
    c.value_loss_args = ConfigDict()
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
    c.total_steps = 100  # iterations
    c.eval_every_steps = 10  # 0: never
    c.save_every_steps = 10
    c.keep_checkpoints = 2
    c.tensorboard = False
    c.probe = probe.get_config()
    return c


@plan_record
class Plan(plans.Learning):
    """What a run does."""

    algorithm: Algorithm
    rewards: dict[str, Reward]
    reward_workers: int = static()
    reward_timeout_s: float = static()
    max_prompt_length: int = static()
    slots: int = static()
    oversample: int = static()
    critic_init: str = static()
    engine: Bound | None
    env: episodes.Plan | None
    lora_args: Args = static()
    probe: probe.Plan | None

    def draws(self, form: str) -> int:
        """Prompts that a run reads: as many as it samples for, whatever it learns from."""
        del form
        return self.total_steps * self.batch_size * self.oversample

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
    watch = probe.plan(r.probe, r.template)
    r.require(r.reward_workers >= 1, "reward_workers", "expected a number of threads, 1 or more")
    r.require(r.reward_timeout_s >= 0, "reward_timeout_s", "expected seconds, or 0 for no limit")
    if r.lora_args:
        plans.check_lora(r)
    fields = plans.shared(r, batches={"batch_size": r.batch_size} | probe.batches(watch))
    algorithm = algorithm_of(r, rewards, plain(get_config()))
    fields |= {"engine": outside.engine_of(r), "env": env, "source": plans.source(r)}
    made = fill(Plan, r, algorithm=algorithm, rewards=rewards, probe=watch, **fields)
    r.finish()
    trial(algorithm)
    return made


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
    mesh = parents.get_mesh(p.mesh)
    loaded = roles.load(stage, tokenizer, mesh)
    group = p.algorithm.draws[0].replies
    sizes = p.batch_size * p.oversample * group, group, p.max_prompt_length, p.algorithm.max_new_tokens
    # with an environment all replies of a batch are written side by side
    slots, key = (sizes[0], "batch_size") if p.env else (p.slots, "slots")
    lengths.check_slots(loaded.model, slots, *sizes, key=key)
    own = sampler(loaded.model, tokenizer, p.template, p.algorithm.max_new_tokens, p.slots)
    actors, frozen = Actors(own, loaded.critic_model), loaded.frozen()

    # ---- produce and learn, as one program if the rewards are on the device
    build = lambda policy, critic: online.start(p.algorithm, policy, critic, p.seed)  # noqa: E731
    state = parents.place(build, loaded.policy, loaded.critic, mesh=mesh)
    on_device = programs.on_device(p.algorithm, {name: model for name, (model, _) in loaded.rewards.items()})
    on_host = {name: one.function for name, one in p.rewards.items() if one.function}
    workers = Workers(p.reward_workers, p.reward_timeout_s)
    scorer = programs.text_scorer(on_host, rows, own, p.algorithm.group, workers) if on_host else None
    producer = outside.producer(stage, actors, frozen, tokenizer, mesh) if p.engine else None
    if p.env:
        producer = episodes.producer(stage, actors, frozen, tokenizer, rows, mesh)
    if scorer or producer:
        step_fn = programs.two_programs(p.algorithm, actors, on_device, scorer, frozen, state, mesh, producer)
    else:
        step_fn = programs.one_program(p.algorithm, actors, on_device, frozen, state)

    # ---- train
    proxy = next(iter(loaded.rewards.values())) if len(loaded.rewards) == 1 else None
    watch = probe.build(stage, p.probe, loaded.model, tokenizer, mesh, proxy=proxy, bases=loaded.bases)
    base = loaded.base["policy"] if loaded.base else {}
    measured = (lambda s: probe.summary(watch.measure(base | s.policy.params, loaded.reference))) if watch else None
    evaluate = fitting.once_per_step(measured) if measured else None
    loader = fitting.make_loader(p, prompts, p.batch_size * p.oversample)
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    show = ("objective/scores", "objective/kl", "policy/approxkl_avg")
    state = fitting.loop(stage, state, step_fn, loader.batch, put, evaluate, show=show)

    # ---- checkpoint
    return folder.finish(
        stage,
        params=state.policy.params,
        step=p.total_steps,
        model=loaded.model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": fingerprint(prompts), "counts": counts},
        metrics=evaluate(state) if evaluate else {},
    )
