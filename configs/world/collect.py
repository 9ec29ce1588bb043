"""Preferences on the harbour desk: two samples per prompt, labelled by a Bradley-Terry annotator at temperature 1/4.

Command: alignax run --config=configs/world/collect.py --config.init_from=RUN/sft --workdir=RUN/collect
After a colon, another kind of judgement, four samples per prompt in order or rated by part:
alignax run --config=configs/world/collect.py:rankings --config.init_from=RUN/sft --workdir=RUN/rankings
alignax run --config=configs/world/collect.py:ratings --config.init_from=RUN/sft --workdir=RUN/ratings
"""

from alignax.stages import collect


def get_config(kind="pairs"):
    c = collect.get_config()
    c.kind = kind
    c.init_from = "runs/quickstart/sft"
    c.source = "alignax.worlds.sources:prompts"
    c.data = dict(count=7_000, world_split="reward")
    c.max_prompt_length = 24
    c.max_new_tokens = 32
    c.batch_size = 128
    c.reward = "alignax.worlds.gold:gold"
    if kind != "pairs":
        c.data.count, c.samples_per_prompt = 3_500, 4  # as many samples
    if kind != "ratings":  # which are the gold parts themselves
        c.annotator_args = dict(mode="bradley_terry", temperature=0.25)
    return c
