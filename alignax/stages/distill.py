"""Distillation: a teacher's predictions -> policy. `alignax run --config=configs/world/distill.py`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from alignax import forward, sharding
from alignax.bound import Bound, of_config, plan_record, static
from alignax.data.arrays import fingerprint
from alignax.data.encode import demo_rows, prompt_rows
from alignax.ops.checks import Scalar
from alignax.sampling.sampler import Sampler, sampler
from alignax.stages import fitting, folder, inputs, parents, plans, probe, supervised
from alignax.stages.plans import Declaration, Parent, Readings
from alignax.train.state import TrainState, new_state
from alignax.types import Distill, Model, Params

STAGE = Declaration(
    "distill",
    plans.POLICY,
    {"policy": Parent("init_from"), "teacher": Parent("teacher_from", reads=("",))} | probe.READS,
    fresh=("model",),  # a student has its teacher's tokenizer
)
RECORDS = (Distill,)  # what a loss may take


def get_config() -> ConfigDict:
    """Every key of the stage, with its default and unit."""
    c = fitting.training_config("distill")
    del c.lora_args, c.packing  # a student learns whole, from rows that its own samples fill
    c.loss = "gkd"  # function of alignax.losses, module:function, or the function, of a Distill
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


@plan_record
class Plan(supervised.Supervised):
    """What a run does."""

    model: Bound | None  # (vocab_size) -> ModelConfig
    on_policy: float = static()
    max_prompt_length: int = static()
    max_new_tokens: int = static()
    temperature: Scalar
    probe: probe.Plan | None

    def draws(self, form: str) -> int:
        """Rows that a run reads: prompts for the steps on its own samples, completions for the others."""
        share = self.on_policy if form == "prompt_only" else 1 - self.on_policy
        return round(self.total_steps * self.batch_size * share)

    def readings(self) -> list[Readings]:
        """What makes its arrays: prompts for the steps on its own samples, completions for the others."""
        demos = partial(demo_rows, template=self.template, max_length=self.max_length)
        prompts = partial(prompt_rows, template=self.template, max_prompt_length=self.max_prompt_length)
        if self.on_policy == 1:
            return [Readings(prompts, ("train",)), Readings(demos, ("heldout",))]
        own = [Readings(prompts, ("train",))] if self.on_policy else []
        return [Readings(demos, ("train", "heldout")), *own]


def plan(config: Any, prefix: str = "") -> Plan:
    """The config as bound functions and numbers. Raises ConfigError for what does not fit."""
    r = plans.read(config, STAGE, get_config(), prefix)
    r.require(r.teacher_from, "teacher_from", "expected the folder of a finished policy to learn from")
    r.require(
        0 <= r.on_policy <= 1,
        "on_policy",
        "expected a share of the steps, from 0 (only the data's completions) to 1 (only the student's own samples)",
    )
    plans.sampling(r)
    watch = probe.plan(r.probe, r.template)
    model = of_config(r, "model", "alignax.models.presets", given=("vocab_size",))
    return supervised.planned(Plan, r, RECORDS, model=model, probe=watch, batches=probe.batches(watch))


def view(models: tuple[Model, Model], params: Params, teacher: Params, batch: dict) -> Distill:
    """What the losses see of a batch: `models` are the student's and the teacher's."""
    return forward.distill(models[0], params, models[1], teacher, batch)


def sampled(sampler: Sampler, plan: Plan, state: TrainState, prompts: dict) -> tuple[dict, dict]:
    """The student's own replies as a batch, and metrics of them."""
    _, noise = jax.random.split(jax.random.key(plan.seed))
    key = jax.random.fold_in(noise, state.step)
    rollout = sampler.draw(state.learner.params, prompts, key, temperature=plan.temperature)
    batch = {"tokens": rollout.tokens, "valid": rollout.valid, "mask": rollout.mask}
    return batch, {"on_policy": jnp.float32(1), "completions/mean_length": rollout.mask.sum(1).mean()}


def run(config: Any, workdir: str | Path, root: Path | None = None, made: Plan | None = None) -> Path:
    """Trains a policy on a teacher's predictions of the data's completions and of the student's own samples.

    Agarwal et al. 2023 (GKD, 2306.13649, Algorithm 1), where `on_policy` is lambda. Resumes what it finds there.
    """
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p: Plan = stage.plan
    fresh = "policy" not in stage.parents

    # ---- data: completions to learn from, prompts to complete, where some step asks for them; completions held out
    tokenizer = parents.get_tokenizer(stage, parent="teacher" if fresh else "policy")
    arrays, counts, held = texts(p, tokenizer, root)
    folder.say(f"distillation: {counts}")

    # ---- models: the student from its parent or fresh, and the teacher, which does not change
    mesh = parents.get_mesh(p.mesh)
    model, start = parents.new_or_loaded(stage, tokenizer, mesh, preset=p.model)
    teacher_model, teacher, _ = parents.load_model(stage, "teacher", tokenizer, mesh)
    record = partial(view, (model, teacher_model))

    on_given, on_own = steps(p, record, sampler(model, tokenizer, p.template, p.max_new_tokens))

    # ---- train
    watch = probe.build(stage, p.probe, model, tokenizer, mesh)
    parts = sharding.row_shards(mesh)
    part = max(p.batch_size // p.microbatches // parts, 1) * parts  # logits of a microbatch, not of all
    metrics = lambda state, teacher, batch: supervised.metrics_of(p.terms, record(state.learner.params, teacher, batch))  # noqa: E731
    heldout = fitting.evaluator(metrics, held, part, mesh)

    @fitting.once_per_step
    def evaluate(state):
        probed = watch.summary(state.learner.params, start) if watch else {}
        if fresh:
            probed.pop("eval/kl", None)  # random parameters are nothing to stay near to
        return heldout(state, teacher) | probed

    state = parents.place(lambda params: new_state(params, p.optimizer()), start, mesh=mesh)
    programs = {"completions": sharding.jit_step(on_given, state), "prompts": sharding.jit_step(on_own, state)}
    loaders = {kind: fitting.make_loader(p, rows, p.batch_size) for kind, rows in arrays.items()}
    own_S = on_policy_steps(jax.random.split(jax.random.key(p.seed))[0], p.on_policy, p.total_steps)

    def make_batch(step):
        kind = "prompts" if own_S[step] else "completions"
        return {kind: loaders[kind].batch(step)}

    def step_fn(state, batch):
        ((kind, rows),) = batch.items()
        return programs[kind](state, rows, teacher)

    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    show = ("loss", "agreement", "on_policy")
    state = fitting.loop(stage, state, step_fn, make_batch, put, evaluate, show=show)

    # ---- checkpoint
    return folder.finish(
        stage,
        params=state.learner.params,
        step=p.total_steps,
        model=model,
        tokenizer=tokenizer,
        template=p.template,
        data={"fingerprint": fingerprint(arrays), "counts": counts},
        metrics=evaluate(state),
    )


def texts(p: Plan, tokenizer: Any, root: Path | None) -> tuple[dict[str, dict], dict, dict]:
    """({kind: arrays to train on}, counts, completions held out), of the two kinds of step that the plan has."""
    arrays, counts, held = {}, {}, {}
    for encode, splits in p.readings():
        kind = "prompts" if encode.func is prompt_rows else "completions"
        for split in splits:
            found, count, _ = inputs.encoded(p, encode, tokenizer, split, root)
            counts["prompts" if kind == "prompts" else split] = count
            if split == "train":
                arrays[kind] = found
            else:
                held = found
    return arrays, counts, held


def steps(p: Plan, record: Callable, own: Sampler) -> tuple[Callable, Callable]:
    """The two kinds of step: the same update of completions, given or sampled by the student itself."""
    update = supervised.update(p, record)

    def on_given(state, batch, teacher):
        state, metrics = update(state, batch, teacher)
        return state, metrics | {"on_policy": jnp.float32(0)}

    def on_own(state, prompts, teacher):
        batch, more = sampled(own, p, state, prompts)
        state, metrics = update(state, batch, teacher)
        return state, metrics | more

    return on_given, on_own


def on_policy_steps(key: jax.Array, share: float, total_steps: int) -> Bool[np.ndarray, " S"]:
    """Whether each step learns from the student's own samples: u < share, where u ~ uniform[0, 1) of (key, step)."""
    uniform = jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step)))
    return np.asarray(uniform(jnp.arange(total_steps)) < share)
