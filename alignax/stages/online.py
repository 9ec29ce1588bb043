"""Online RL against a reward model or a function: PPO, and methods without a critic. See configs/world/ppo.py."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import ConfigError, bind, record_of, resolve
from alignax.data.arrays import fingerprint
from alignax.data.encode import prompt_rows
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import pad_id
from alignax.losses.kl import kl as kl_loss
from alignax.ops.advantages import truncated_weights
from alignax.ops.kl import check_placement
from alignax.ops.masked import masked_mean
from alignax.sampling.opponent import beside, mixture
from alignax.sampling.sample import finished, row_keys, sample
from alignax.stages import common, inputs, parents, probe, programs, roles
from alignax.stages.precheck import bind_term
from alignax.stages.settings import episodes
from alignax.train import online
from alignax.train.state import new_online_state
from alignax.types import Pair, Rollout

RECORDS = (Rollout, Pair)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.shared_config("online")
    c.template = "chat"  # "chat": the tokenizer's chat template; "plain": prompt, completion, end of sequence
    c.source = "jsonl"  # prompts: function of alignax.data.sources, or module:function
    c.data = ConfigDict()  # its arguments
    c.max_prompt_length = 256  # tokens; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.temperature = 1.0  # of sampling, and so of every log-probability
    c.reward_from = ""  # folder of a finished reward model, or
    c.reward_weights = ConfigDict()  # of its attributes, where it rates several; 1 each where nothing is said
    c.reward = ""  # module:function of (row, completion, *, finished) -> number or None: one of the two
    c.reward_args = ConfigDict()
    c.scoring_args = ConfigDict()  # of alignax.train.online.shape_scores
    c.samples_per_prompt = 1  # replies to each prompt of a batch; a group estimator needs 2 or more
    # in scoring and learning each prompt stands once before all its replies, as branches of one row: worth it where
    # prompts are long
    c.share_prompts = False
    # who gives all replies of a group but the first: "none", the policy itself; "greedy", the policy at temperature 0
    # (ReMax); "reference" (XPO, vBoN); "mixture", pi^(1 - share) ref^share (Nash-MD)
    c.opponent = "none"
    c.opponent_share = 0.5  # the reference's share in the mixture
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
    # of alignax.ops.advantages.truncated_weights, for a sampler that is not the learner to the last bit; empty: off
    c.correction_args = ConfigDict()
    c.value_loss = "value_clip"
    c.value_loss_args = ConfigDict()
    c.kl_coef = 0.05  # at the start
    c.kl_placement = "reward"  # or "loss"
    c.kl_estimator = "k1"  # "k1" in the reward; "k2", "k3" or "k3+k2" in the loss
    c.kl_loss_args = ConfigDict()  # of alignax.losses.kl, in the loss: dict(importance_weighted=False) for GRPO's own
    c.kl_controller = "fixed_kl"  # function of alignax.ops.kl: fixed_kl, adaptive_kl or pid_kl
    c.kl_controller_args = ConfigDict()
    c.update_args = ConfigDict()  # of alignax.train.online.updates
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


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Aligns a policy to a reward; returns the folder of the finished stage. Resumes what it finds there."""
    named = {"policy": "init_from", "reward": "reward_from", "proxy": "probe.reward_from"}
    stage = common.open_stage("online", config, workdir, root, named)
    if stage is None:
        return Path(workdir)
    cfg, workdir = stage.cfg, stage.workdir
    text_reward, reward_args = cfg.reward, cfg.reward_args
    _ = cfg.reward_from  # open_stage has found the folder

    # ---- prompts
    tokenizer = parents.get_tokenizer(stage)
    short = {"template": cfg.template, "max_prompt_length": cfg.max_prompt_length}
    prompts, counts, rows = inputs.encoded(stage, prompt_rows, tokenizer, "train", root, **short)
    common.console.print(f"prompts: {counts}")
    start, ends = prompts["tokens"].shape[1], jnp.asarray(sorted(stop_ids(tokenizer, cfg.template)), jnp.int32)

    # ---- models: policy and reference from the parent, critic from the reward model or the policy
    mesh = parents.get_mesh(cfg)
    loaded = roles.load(stage, tokenizer, mesh)
    model, proxy, frozen = loaded.model, loaded.reward, loaded.frozen()

    # ---- the pure parts of an iteration
    parts = make_parts(cfg, model, loaded.critic_model, ends, pad_id(tokenizer), start)
    optimizers = parts.policy_optimizer, parts.critic_optimizer
    state = parents.place(
        lambda p, c: new_online_state(p, c, *optimizers, cfg.kl_coef, cfg.seed, parts.kl_memory),
        loaded.policy, loaded.critic, mesh=mesh,
    )  # fmt: skip
    if proxy:  # the reward is on the device: one program
        one_row = {"start": start, "group": cfg.samples_per_prompt} if cfg.share_prompts else {}
        scorer = lambda params, r: forward.score(proxy[0], params, r.tokens, r.valid, **one_row)  # noqa: E731
        step_fn = programs.one_program(parts, scorer, frozen, state)
    else:  # the reward reads text: two programs and one transfer between them
        gold = probe.gold_reward(text_reward, reward_args, key="reward")
        scorer = programs.text_scorer(gold, rows, tokenizer, cfg.template, cfg.samples_per_prompt)
        step_fn = programs.two_programs(parts, scorer, frozen, state)

    # ---- train
    seen = {"reward": proxy, "bases": loaded.bases}
    watch = probe.build(stage, cfg.probe, model, tokenizer, cfg.template, mesh, root, **seen)
    still = loaded.still["policy"] if loaded.still else {}
    measured = (lambda s: probe.summary(watch.measure(still | s.policy.params, loaded.reference))) if watch else None
    evaluate = common.once_per_step(measured) if measured else None
    loader = common.make_loader(cfg, prompts, cfg.batch_size * cfg.oversample)
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    show = ("objective/scores", "objective/kl", "policy/approxkl_avg")
    state = common.loop(stage, state, step_fn, loader.batch, put, evaluate, show=show)

    # ---- checkpoint
    common.finish(
        stage,
        params=state.policy.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(prompts), "counts": counts},
        metrics=evaluate(state) if evaluate else {},
    )
    return workdir


def make_parts(cfg: Any, model: Any, critic_model: Any, ends: jax.Array, pad: int, start: int) -> online.Parts:
    """Binds models, losses and settings into the parts of an iteration."""
    temperature, capacity, group = cfg.temperature, cfg.max_new_tokens, cfg.samples_per_prompt
    rival, share = cfg.opponent, cfg.opponent_share
    rows = {"start": start, "group": group if cfg.share_prompts else 1}  # how a model reads a rollout
    mixed = mixture(model, share) if rival == "mixture" else model
    check_placement(cfg.kl_estimator, cfg.kl_placement)
    in_reward = cfg.kl_placement == "reward"
    kl_args = bind(kl_loss, cfg.kl_loss_args, key="kl_loss_args", given=("estimator",))
    penalty = partial(kl_loss, estimator=cfg.kl_estimator, **kl_args)
    policy_loss = resolve(cfg.loss, "alignax.losses", key="loss")
    on_pairs = record_of(policy_loss, RECORDS, key="loss") is Pair
    alone = rival != "none" and not on_pairs
    value_loss = resolve(cfg.value_loss, "alignax.losses", key="value_loss")
    loss_args = bind(policy_loss, cfg.loss_args, key="loss_args")
    further = {name: bind_term(name, args, key=f"terms.{name}") for name, args in cfg.terms.items()}
    corrects = bool(cfg.correction_args)
    correction = bind(truncated_weights, cfg.correction_args, key="correction_args")
    value_args = bind(value_loss, cfg.value_loss_args, key="value_loss_args")
    update_settings = online.updates(**bind(online.updates, cfg.update_args, key="update_args"))
    control = resolve(cfg.kl_controller, "alignax.ops.kl", key="kl_controller")
    control_args = bind(control, cfg.kl_controller_args, key="kl_controller_args", given=("batch_size",))
    if "batch_size" in inspect.signature(control).parameters:
        control_args["batch_size"] = episodes(cfg.batch_size, group, rival, cfg.oversample)
    control_kl, kl_memory = with_memory(partial(control, **control_args))
    total = cfg.total_steps * update_settings.epochs * update_settings.minibatches

    def replies(of, params, prompts, key, numbers, temperature):
        each = jax.tree.map(lambda x: jnp.repeat(x, len(numbers), axis=0), prompts)  # a group's replies are neighbours
        keys = row_keys(key, each["row"] * group + jnp.tile(numbers, len(prompts["row"])))
        options = {"capacity": capacity, "eos_ids": ends, "pad_id": pad, "temperature": temperature}
        return sample(of, params, each["tokens"], each["valid"], keys, **options)

    def draw(params, reference, prompts, key):
        own = jnp.arange(group if rival == "none" else 1)
        rollout = replies(model, params, prompts, key, own, temperature)
        if rival != "none":
            rivals = {
                "greedy": (model, params, 0.0),
                "reference": (model, reference, temperature),
                "mixture": (mixed, (params, reference), temperature),
            }
            of, theirs, heat = rivals[rival]
            rollout = beside(rollout, replies(of, theirs, prompts, key, jnp.arange(1, group), heat))
        return rollout, finished(rollout, ends)

    def annotate(policy, reference, critic, rollout):
        every = group if alone else 1  # of an opponent that is left out nobody asks

        def logp(params):
            tokens, valid = rollout.tokens[::every], rollout.valid[::every]
            stats = forward.token_statistics(model, params, tokens, valid, temperature=temperature, **rows)
            return jnp.zeros(rollout.mask.shape, jnp.float32).at[::every].set(stats.logp)

        rollout = rollout.replace(ref_logp=logp(reference))
        if corrects:
            rollout = rollout.replace(old_logp=logp(policy), sampler_logp=rollout.old_logp)
        if critic is None:
            return rollout
        return rollout.replace(old_value=forward.values(critic_model, critic, rollout.tokens, rollout.valid, **rows))

    def policy_objective(params, rollout, kl_coef):
        view = forward.policy_view(model, params, rollout, temperature=temperature, **rows)
        record = forward.best_and_worst(view, group) if on_pairs else view
        terms = {"loss/policy_avg": (1.0, policy_loss(record, **loss_args))}
        terms |= {f"loss/{name}_avg": (coefficient, term(record)) for name, (coefficient, term) in further.items()}
        return terms if in_reward else terms | {"loss/kl_avg": (kl_coef, penalty(view))}

    def critic_objective(params, rollout):
        value_BT = forward.values(critic_model, params, rollout.tokens, rollout.valid, **rows)
        return {"loss/value_avg": (1.0, value_loss(rollout.replace(value=value_BT), **value_args))}

    def advantages(rollout, score_B, kl_coef):
        rollout, kl, metrics = estimate(rollout, score_B, kl_coef)
        if not corrects:
            return rollout, kl, metrics
        weight_BT = truncated_weights(rollout.old_logp, rollout.sampler_logp, rollout.mask, **correction)
        metrics["sampling/importance_ratio"] = masked_mean(weight_BT, rollout.mask)
        return rollout.replace(advantage=rollout.advantage * weight_BT), kl, metrics

    scoring = bind(online.shape_scores, cfg.scoring_args, key="scoring_args", given=("max_tokens",))
    estimator = resolve(cfg.advantage, "alignax.train.advantages", key="advantage")
    estimator_args = bind(estimator, cfg.advantage_args, key="advantage_args", given=("kl_in_reward", "group"))
    estimate = partial(estimator, kl_in_reward=in_reward, group=group, **estimator_args)
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, total)
    value_optimizer = common.get_optimizer(cfg.value_optimizer, cfg.value_optimizer_args, total, key="value_optimizer")
    return online.Parts(
        sample=draw,
        annotate=annotate,
        shape=partial(online.shape_scores, max_tokens=capacity, **scoring),
        advantages=advantages,
        policy_objective=policy_objective,
        critic_objective=critic_objective if critic_model else None,
        control_kl=control_kl,
        policy_optimizer=optimizer,
        critic_optimizer=value_optimizer if critic_model else None,
        updates=update_settings,
        group=group,
        alone=alone,
        keep=cfg.batch_size if cfg.oversample > 1 else 0,
        kl_memory=kl_memory,
    )


def draws(config: dict, form: str) -> int:
    """Rows of this form, prompts, that a run reads: as many as it samples for, whatever it learns from."""
    return config["total_steps"] * config["batch_size"] * config["oversample"]


def with_memory(control: Any) -> tuple[Any, Any]:
    """A KL controller as (coef, kl, memory) -> (coef, memory), and its memory at the start: () if it has none."""
    memory = inspect.signature(control).parameters.get("memory")
    if memory is None:
        return lambda coef, kl, memory: (control(coef, kl), memory), ()
    if memory.default is memory.empty:
        raise ConfigError("config.kl_controller: its parameter 'memory' has no default: give it what it starts with")
    return control, memory.default
