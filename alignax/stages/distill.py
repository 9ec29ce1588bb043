"""Distillation: a teacher's predictions -> policy. `alignax run --config=configs/world/distill.py`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.config import bind, resolve
from alignax.data.arrays import fingerprint
from alignax.data.encode import demo_rows, prompt_rows
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import pad_id
from alignax.sampling.sample import row_keys, sample
from alignax.stages import common, inputs, parents, probe
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Distill

RECORDS = (Distill,)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = common.training_config("distill")
    del c.lora_args, c.packing  # a student learns whole, from rows that its own samples fill
    c.loss = "gkd"  # function of alignax.losses, or module:function, of a Distill
    c.teacher_from = ""  # folder of the finished policy to learn from: any size, the student's tokenizer and template
    c.model = ""  # preset of alignax.models.presets, or module:function, of a fresh student; "" takes the parent's
    c.model_args = ConfigDict()  # fields of the preset to change
    # share of the steps on the student's own samples: 0 only the data's completions, 1 none of them; those held out are
    # always read, for the loss on them
    c.on_policy = 0.5
    c.max_prompt_length = 256  # tokens of a prompt to sample for; longer prompts are dropped and counted
    c.max_new_tokens = 128
    c.temperature = 1.0  # of sampling; the loss has its own
    c.optimizer_args = ConfigDict({"learning_rate": 1e-5})
    c.probe = probe.get_config()
    return c


def run(config: Any, workdir: str | Path, root: Path | None = None) -> Path:
    """Trains a policy on a teacher's predictions of the data's completions and of the student's own samples.

    Agarwal et al. 2023 (GKD, 2306.13649, Algorithm 1), where `on_policy` is lambda. Resumes what it finds there.
    """
    roles = {"policy": "init_from", "teacher": "teacher_from", "proxy": "probe.reward_from"}
    stage = common.open_stage("distill", config, workdir, root, roles)
    if stage is None:
        return Path(workdir)
    cfg, workdir, fresh = stage.cfg, stage.workdir, "policy" not in stage.parents
    _ = cfg.teacher_from  # open_stage has found the folder

    # ---- data: completions to learn from, prompts to complete, where some step asks for them; completions held out
    tokenizer = parents.get_tokenizer(stage, parent="teacher" if fresh else "policy")
    options = {"template": cfg.template, "max_length": cfg.max_length}
    short = {"template": cfg.template, "max_prompt_length": cfg.max_prompt_length}
    load = partial(inputs.encoded, stage)
    arrays, counts = {}, {}
    if cfg.on_policy < 1:
        arrays["completions"], counts["train"], _ = load(demo_rows, tokenizer, "train", root, **options)
    if cfg.on_policy > 0:
        arrays["prompts"], counts["prompts"], _ = load(prompt_rows, tokenizer, "train", root, **short)
    held, counts["heldout"], _ = load(demo_rows, tokenizer, "heldout", root, **options)
    common.console.print(f"distillation: {counts}")

    # ---- models: the student from its parent or fresh, and the teacher, which does not change
    mesh = parents.get_mesh(cfg)
    model, start = parents.new_or_loaded(stage, cfg.model, cfg.model_args, tokenizer, mesh)
    fits = {"tokenizer": tokenizer, "template": cfg.template, "compute": parents.compute_of(cfg), "mesh": mesh}
    teacher_model, teacher, _ = parents.load_model(stage, "teacher", parents.POLICIES, **fits)

    # ---- objective and optimizer
    loss = resolve(cfg.loss, "alignax.losses", key="loss")
    loss_args = bind(loss, cfg.loss_args, key="loss_args")
    optimizer = common.get_optimizer(cfg.optimizer, cfg.optimizer_args, cfg.total_steps)

    def term(params, teacher, batch):
        return loss(forward.distill(model, params, teacher_model, teacher, batch), **loss_args)

    def metrics(state, teacher, batch):
        found = term(state.learner.params, teacher, batch)
        return found.metrics | {"loss": (found.value, found.weight)}

    # ---- the two kinds of step: the same update of completions, given or sampled by the student itself
    objective = lambda params, teacher, batch: {"loss": (1.0, term(params, teacher, batch))}  # noqa: E731
    update = make_step(objective, optimizer, microbatches=cfg.microbatches)
    ends, capacity, temperature = (
        jnp.asarray(sorted(stop_ids(tokenizer, cfg.template)), jnp.int32),
        cfg.max_new_tokens,
        cfg.temperature,
    )
    choices, noise = jax.random.split(jax.random.key(cfg.seed))

    def given(state, batch, teacher):
        state, metrics = update(state, batch, teacher)
        return state, metrics | {"on_policy": jnp.float32(0)}

    def sampled(state, prompts, teacher):
        keys = row_keys(jax.random.fold_in(noise, state.step), prompts["row"])
        rollout = sample(
            model, state.learner.params, prompts["tokens"], prompts["valid"], keys,
            capacity=capacity, eos_ids=ends, pad_id=pad_id(tokenizer), temperature=temperature,
        )  # fmt: skip
        batch = {"tokens": rollout.tokens, "valid": rollout.valid, "mask": rollout.mask}
        state, metrics = update(state, batch, teacher)
        length = rollout.mask.sum(1).mean()
        return state, metrics | {"on_policy": jnp.float32(1), "completions/mean_length": length}

    # ---- train
    watch = probe.build(stage, cfg.probe, model, tokenizer, cfg.template, mesh, root)
    part = max(cfg.batch_size // cfg.microbatches // mesh.size, 1) * mesh.size  # logits of a microbatch, not of all
    heldout = common.evaluator(metrics, held, part, mesh)

    @common.once_per_step
    def evaluate(state):
        probed = probe.summary(watch.measure(state.learner.params, start)) if watch else {}
        if fresh:
            probed.pop("eval/kl", None)  # random parameters are nothing to stay near to
        return heldout(state, teacher) | probed

    state = parents.place(lambda p: new_state(p, optimizer), start, mesh=mesh)
    programs = {"completions": sharding.jit_step(given, state), "prompts": sharding.jit_step(sampled, state)}
    loaders = {kind: common.make_loader(cfg, rows, cfg.batch_size) for kind, rows in arrays.items()}
    own_S = on_policy_steps(choices, cfg.on_policy, cfg.total_steps)

    def make_batch(step):
        kind = "prompts" if own_S[step] else "completions"
        return {kind: loaders[kind].batch(step)}

    def step_fn(state, batch):
        ((kind, rows),) = batch.items()
        return programs[kind](state, rows, teacher)

    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    show = ("loss", "agreement", "on_policy")
    state = common.loop(stage, state, step_fn, make_batch, put, evaluate, show=show)

    # ---- checkpoint
    common.finish(
        stage,
        params=state.learner.params,
        step=cfg.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=cfg.template,
        data={"fingerprint": fingerprint(arrays), "counts": counts},
        metrics=evaluate(state),
    )
    return workdir


def draws(config: dict, form: str) -> int:
    """Rows of this form that a run reads: prompts for the steps on its own samples, completions for the others."""
    share = config["on_policy"] if form == "prompt_only" else 1 - config["on_policy"]
    return round(config["total_steps"] * config["batch_size"] * share)


def on_policy_steps(key: jax.Array, share: float, total_steps: int) -> Bool[np.ndarray, " S"]:
    """Whether each step learns from the student's own samples: u < share, where u ~ uniform[0, 1) of (key, step)."""
    uniform = jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step)))
    return np.asarray(uniform(jnp.arange(total_steps)) < share)
