"""Replies of a policy to every prompt of a plan, with what rewards say of them: what collect, select and mine share."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alignax import forward, host, sharding
from alignax.bound import plan_record, static
from alignax.config import ConfigError, Reader
from alignax.data.counts import Counts
from alignax.data.encode import prompt_rows
from alignax.data.loader import eval_batches
from alignax.log import progress, replace_file
from alignax.manifest import files_hash
from alignax.ops.checks import Scalar
from alignax.rewards import ensemble
from alignax.rewards.config import Reward
from alignax.sampling.sampler import Sampler, sampler
from alignax.stages import folder, inputs, lengths, parents, plans, programs, roles
from alignax.stages.algorithm import weighing_of
from alignax.stages.folder import Stage
from alignax.stages.plans import Readings
from alignax.train import rewarded
from alignax.types import Params, Rollout

Judge = Callable[[Rollout, dict], Rollout]  # (rollout, the prompts that it answers) -> the rollout with its scores


def add_keys(c: ConfigDict, samples_per_prompt: int) -> None:
    """The keys of a stage that samples every prompt of its data, with their defaults and units."""
    c.template = "chat"
    plans.add_prompts(c, "jsonl")
    c.batch_size = 64  # prompts sampled at once
    c.samples_per_prompt = samples_per_prompt  # replies to each prompt


@plan_record
class Sampled(plans.Reading):
    """Of a stage that samples every prompt of its data."""

    max_prompt_length: int = static()
    max_new_tokens: int = static()
    slots: int = static()
    temperature: Scalar
    batch_size: int = static()
    samples_per_prompt: int = static()

    def readings(self) -> list[Readings]:
        """What makes its arrays."""
        options = {"template": self.template, "max_prompt_length": self.max_prompt_length}
        return [Readings(partial(prompt_rows, **options), ("train",))]


def check_rewards(r: Reader, rewards: Mapping[str, Reward]) -> None:
    """What rewards there can be where nothing is learnt. Raises ConfigError."""
    for name, one in rewards.items():
        if one.constraint or one.step_ends:
            what = "a constraint, whose multiplier is learnt" if one.constraint else "a reward of steps"
            raise ConfigError(f"config.{r.key(f'rewards.{name}')}: {what}: only the stage online has it")


class Asked(NamedTuple):
    """The prompts of a plan, and the policy that answers them."""

    tokenizer: Any
    mesh: Mesh
    params: Params
    sampler: Sampler
    prompts: dict[str, Any]  # arrays of `prompt_rows`
    counts: Counts
    rows: list[dict]  # of text, which `row` of the arrays indexes


class Replies(NamedTuple):
    """The samples of one prompt."""

    row: dict  # of the prompt
    texts: list[str]
    done: list[bool]  # the sample came to its end of sequence
    scores: dict[str, list[float]] = {}  # by the judge; nan where there is none
    parts: dict[str, list[float]] = {}  # of the first judge's rewards, by their names


def asked(stage: Stage) -> Asked:
    """The prompts of a stage's plan and its policy. Raises ConfigError for slots that do not fit."""
    p: Sampled = stage.plan
    tokenizer, mesh = parents.get_tokenizer(stage), parents.get_mesh(p.mesh)
    model, params = parents.new_or_loaded(stage, tokenizer, mesh)
    ((encode, _),) = p.readings()
    prompts, counts, rows = inputs.encoded(p, encode, tokenizer, "train", stage.root)
    K = p.samples_per_prompt
    sizes = K * p.batch_size, K, p.max_prompt_length, p.max_new_tokens
    lengths.check_slots(model, p.slots, *sizes, key="slots")
    own = sampler(model, tokenizer, p.template, p.max_new_tokens, p.slots)
    return Asked(tokenizer, mesh, params, own, prompts, counts, rows)


def judge(stage: Stage, rewards: Mapping[str, Reward], asked: Asked) -> Judge:
    """What scores replies by the weighted sum of `rewards`, each on the device or in threads, as in `online`."""
    p, weighing = stage.plan, weighing_of(rewards)
    loaded = roles.reward_models(stage, rewards, asked.tokenizer, asked.mesh)
    of_text = {name: one.function for name, one in rewards.items() if one.function}
    given = of_text, asked.rows, asked.sampler, p.samples_per_prompt
    on_host = programs.text_scorer(*given, p.asking.threads(), p.asking.trouble)
    frozen = {name: params for name, (_, params) in loaded.items()}

    @jax.jit
    def on_device(frozen: dict, rollout: Rollout) -> dict[str, jax.Array]:
        of = lambda name: ensemble.scores if ensemble.is_ensemble(frozen[name]) else forward.score  # noqa: E731
        read = rollout.tokens, rollout.valid
        return {name: of(name)(model, frozen[name], *read) for name, (model, _) in loaded.items()}

    total = jax.jit(partial(rewarded.scored, weighing))

    def scored(rollout: Rollout, prompts: dict) -> Rollout:
        texts = host.together(lambda: on_host(rollout, prompts)).scores if of_text else {}
        found = {name: host.rows_like(x, rollout.finished) for name, x in texts.items()}  # pyright: ignore[reportArgumentType]
        return total(rollout, on_device(frozen, rollout) | found)

    return scored


def draw(stage: Stage, asked: Asked, judges: Mapping[str, Judge], what: str) -> list[Replies]:
    """The samples of every prompt, in the order of the prompts, with the score of each judge; with a bar.

    Deterministic in the seed: reply j to a row has the noise of its own number (`Sampler.draw`).
    """
    p, seed, rows = stage.plan, jax.random.key(stage.plan.seed), sharding.batch_sharding(asked.mesh)
    options = {"temperature": p.temperature, "group": p.samples_per_prompt}
    run = jax.jit(lambda params, batch: asked.sampler.draw(params, batch, seed, **options), out_shardings=rows)
    texts, done, scores, parts = [], [], {name: [] for name in judges}, {}
    batches = list(eval_batches(asked.prompts, p.batch_size, **host.share()))
    for batch in progress(batches, f"{stage.workdir.name}: sampling {what}"):
        put = sharding.put_batch(batch, asked.mesh)
        rollout = run(asked.params, put)
        judged = {name: score(rollout, put) for name, score in judges.items()}
        said = {name: (one.score, one.rewards) for name, one in judged.items()}
        rollout, said = host.everywhere((rollout, said))
        texts += asked.sampler.texts(rollout)
        done += rollout.finished.tolist()
        for i, (name, (score, rewards)) in enumerate(said.items()):
            scores[name] += score.tolist()
            for part, values in () if i else rewards.items():
                parts.setdefault(part, []).extend(values.tolist())
    tables = {"texts": texts, "done": done, "scores": scores, "parts": parts}
    return [
        Replies(row=asked.rows[row_id], **_cut(tables, i * p.samples_per_prompt, (i + 1) * p.samples_per_prompt))
        for i, row_id in enumerate(asked.prompts["row"])
    ]


def _cut(tables: dict, start: int, end: int) -> dict:
    """The rows from `start` to `end` of columns, and of tables of columns."""
    return {k: _cut(x, start, end) if isinstance(x, dict) else x[start:end] for k, x in tables.items()}


def usable(replies: Replies) -> tuple[list[int], list[str]]:
    """Which replies can be compared, and why the others cannot: each is finished, has its scores, and a text that no
    reply before it has."""
    kept, lost, texts = [], [], set()
    for i, (text, done) in enumerate(zip(replies.texts, replies.done, strict=True)):
        missing = not all(math.isfinite(values[i]) for values in replies.scores.values())
        if not done or missing or text in texts:
            lost.append("unfinished" if not done else "unscorable" if missing else "identical")
            continue
        kept.append(i)
        texts.add(text)
    return kept, lost


def question(row: dict) -> dict:
    """What a reply answers: the prompt, and what else its chat template was told."""
    return {name: row[name] for name in ("prompt", "tools", "chat_template_kwargs") if name in row}


def write(stage: Stage, files: Mapping[str, list[dict]], counts: dict, metrics: dict) -> Path:
    """Writes rows as JSON lines, {name of the file: rows}, and closes the stage."""
    lines = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}
    host.in_first(lambda: [replace_file(stage.workdir / name, text) for name, text in lines.items()])
    content, first = files_hash(stage.workdir, [*files]), next(iter(files.values()))
    return folder.finish(
        stage,
        params=None,
        content=content,
        files=tuple(files),
        step=len(first),
        data={"fingerprint": content, "counts": counts},
        metrics=metrics,
    )
