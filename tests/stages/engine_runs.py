"""A small online run with an outside engine."""

from stage_runs import file_config, write_rows

from alignax.stages import probe
from alignax.worlds import sources

STEPS, GROUP, CAPACITY = 3, 2, 12


def config(run, folder, **values):
    """GRPO on prompts that all differ, without a probe."""
    c = file_config("world/online.py:grpo")
    c.init_from, c.total_steps, c.eval_every_steps, c.save_every_steps = str(run / "sft"), STEPS, 0, STEPS
    c.reward_from, c.reward, c.probe = "", "alignax.worlds.gold:gold", probe.get_config()
    c.source, c.data = "jsonl", dict(path=str(folder / "prompts.jsonl"))
    c.max_new_tokens, c.batch_size, c.samples_per_prompt, c.temperature = CAPACITY, 8, GROUP, 0.8
    for name, value in values.items():
        c[name] = value
    return c


def write_prompts(folder):
    """Writes prompts.jsonl, of which no two are the same; returns the folder."""
    rows = {}
    for row in sources.prompts(split="train", count=200)[0]:
        rows.setdefault(str(row["prompt"]), row)
    write_rows(folder / "prompts.jsonl", list(rows.values())[:48])
    return folder
