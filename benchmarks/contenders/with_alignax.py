"""alignax, as a user runs it: the stage itself, at the settings of configs/hh/, from data to checkpoint.

Options are keys of the config. The loss "parent" makes the random policy that the stages reward and offline start from.
No evaluation is timed, nor the checkpoint at the end.
"""

import sys
from pathlib import Path

import measure
import numpy as np

from alignax.config import plain
from alignax.log import read_metrics
from alignax.stages import fitting, offline, reward, sft
from configs.hh import dpo as dpo_config
from configs.hh import reward as reward_config
from configs.hh import sft as sft_config

STAGES = {
    "sft": (sft, sft_config), "parent": (sft, sft_config), "reward": (reward, reward_config),
    "dpo": (offline, dpo_config),
}  # fmt: skip


def config_of(settings: dict):
    """The config, with what the settings say."""
    stage, config = STAGES[settings["loss"]]
    c = config.get_config()
    c.source, c.data = "jsonl", {"path": settings["data"], "heldout_split": "test"}
    if stage is sft:
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
    """The stage's `fit`, which notes the rows of each step, and its end: the moment when the log gets its metrics."""

    def __init__(self):
        self.fit, self.ends, self.rows = fitting.fit, measure.Ends(), {}

    def __call__(self, state, step_fn, make_batch, *, log, **options):
        def batch(step):
            made = make_batch(step)
            rows = np.ravel(made["row"])
            self.rows[step] = rows[rows >= 0]
            return made

        write = log.log

        def noted(step, metrics, split="train", **times):
            if split == "train":
                self.ends.note()
            write(step, metrics, split, **times)

        log.log = noted
        return self.fit(state, step_fn, batch, log=log, **options)


def main() -> None:
    """One run of a stage, or the parent of others."""
    settings, pairs = measure.load()
    workdir, config = Path(sys.argv[2]).with_suffix(""), plain(config_of(settings))
    if settings["loss"] == "parent":
        sft.run(config, workdir)
        return
    compiles, watched = measure.Compiles(), Watched()
    fitting.fit = watched
    STAGES[settings["loss"]][0].run(config, workdir)
    reads = np.array([measure.real_tokens(settings["loss"], pair) for pair in pairs])
    measure.finish(
        settings, watched.ends, [int(reads[watched.rows[step]].sum()) for step in sorted(watched.rows)],
        [row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"],
        ("alignax", "jax", "jaxlib", "flax", "optax"), compiles,
    )  # fmt: skip


if __name__ == "__main__":
    main()
