"""A stage from outside of the package: the average of two policies. Nothing of alignax knows it by name."""

from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from alignax.bound import fill, plan_record, static
from alignax.data.encode import prompt_rows
from alignax.ops.checks import Scalar
from alignax.stages import fitting, folder, inputs, parents, plans
from alignax.stages.plans import Declaration, Parent, Readings

STAGE = Declaration("own_stage", plans.POLICY, {"policy": Parent("init_from"), "other": Parent("other_from")})


def get_config():
    c = fitting.shared_config("own_stage")
    c.other_from = ""
    c.share = 0.5
    c.template = "chat"
    c.source, c.data, c.max_prompt_length = "jsonl", ConfigDict(), 16
    return c


@plan_record
class Plan(plans.Reading):
    share: Scalar
    max_prompt_length: int = static()

    def readings(self):
        options = {"template": self.template, "max_prompt_length": self.max_prompt_length}
        return [Readings(partial(prompt_rows, **options), ("train",))]


def plan(config, prefix=""):
    r = plans.read(config, STAGE, get_config(), prefix)
    r.require(0 <= r.share <= 1, "share", "expected a share in [0, 1]")
    made = fill(Plan, r, source=plans.source(r, drawn=False), **plans.shared(r))
    r.finish()
    return made


def run(config, workdir, root=None, made=None):
    stage = folder.open_stage(STAGE, plan, config, workdir, root, made)
    if stage is None:
        return Path(workdir)
    p, mesh, tokenizer = stage.plan, parents.get_mesh(stage.plan.mesh), parents.get_tokenizer(stage)
    ((encode, _),) = p.readings()
    _, counts, _ = inputs.encoded(p, encode, tokenizer, "train", root)
    model, one = parents.new_or_loaded(stage, tokenizer, mesh)
    _, other, _ = parents.load_model(stage, "other", tokenizer, mesh, expected=model.config)
    params = jax.tree.map(lambda a, b: (1 - p.share) * a + p.share * b, one, other)
    data = {"fingerprint": "none", "counts": {"train": counts}}
    return folder.finish(stage, params=params, step=1, model=model, tokenizer=tokenizer, template=p.template, data=data)
