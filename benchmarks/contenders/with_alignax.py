"""alignax, as a user runs it: the stage itself, on the prepared file, timed by its own log.

Options are keys of the stage's config. With "parent" among the settings' losses, it makes the random policy that the
stages reward and offline start from.
"""

import sys
import time
from pathlib import Path

import measure
import numpy as np

from alignax.config import plain
from alignax.log import read_metrics
from alignax.stages import common, offline, reward, sft

STAGES = {"sft": sft, "reward": reward, "dpo": offline, "parent": sft}


def config_of(settings: dict):
    """The stage's config: its defaults, and what the settings say."""
    loss = settings["loss"]
    c = STAGES[loss].get_config()
    c.template, c.source, c.data = "plain", "jsonl", {"path": settings["data"], "heldout_split": "test"}
    if STAGES[loss] is sft:
        c.tokenizer, c.model, c.model_args = settings["tokenizer"], "llama", settings["shape"]
    else:
        c.init_from = settings["parent"]
    c.compute.dtype = settings["dtype"]
    c.max_length, c.batch_size, c.total_steps = settings["max_length"], settings["batch"], settings["total_steps"]
    c.optimizer_args = {"learning_rate": settings["learning_rate"]}
    c.eval_every_steps, c.save_every_steps = 0, settings["total_steps"]
    for key, value in settings["options"].items():
        *path, name = key.split(".")
        group = c
        for part in path:
            group = group[part]
        group[name] = value
    return c


class Watched:
    """The stage's `fit`, told to note when each step is called, which rows it reads, and the memory before it saves."""

    def __init__(self):
        self.fit, self.calls, self.rows, self.peak_mb = common.fit, [], {}, 0.0

    def __call__(self, state, step_fn, make_batch, **options):
        def step(state, batch):
            self.calls.append(time.perf_counter())
            return step_fn(state, batch)

        def batch(step):
            made = make_batch(step)
            rows = np.ravel(made["row"])
            self.rows[step], self.peak_mb = rows[rows >= 0], measure.peak_mb()
            return made

        return self.fit(state, step, batch, **options)


def main() -> None:
    """One run of a stage, or the parent of others."""
    settings, pairs = measure.load()
    workdir = Path(sys.argv[2]).with_suffix("")
    config = config_of(settings)
    if settings["loss"] == "parent":
        STAGES["parent"].run(plain(config), workdir)
        return
    compiles, watched = measure.Compiles(), Watched()
    common.fit = watched
    STAGES[settings["loss"]].run(plain(config), workdir)
    logged = [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"]
    reads = np.array([measure.real_tokens(settings["loss"], pair) for pair in pairs])
    measure.finish(
        settings,
        ends=list(np.cumsum([row["time/step"] for row in logged])),
        tokens=[int(reads[watched.rows[step]].sum()) for step in range(len(logged))],
        losses=[row["loss"] for row in logged],
        packages=("alignax", "jax", "jaxlib", "flax", "optax"),
        peak_mb=watched.peak_mb,
        **compiles.report(watched.calls[settings["warmup_steps"]], watched.calls[-1]),
    )


if __name__ == "__main__":
    main()
