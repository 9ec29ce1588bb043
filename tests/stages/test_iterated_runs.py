"""Rounds of select and a fit, on the finished tiny pipeline: every policy comes from the one before."""

import json

import pytest
from stage_runs import file_config, read

from alignax.config import plain
from alignax.lineage import lineage
from alignax.stages import pipeline, probe

TUNED = {"iterated_dpo": "dpo", "rejection": "tune"}


def config(run, name):
    """Two rounds of a config of the world without its first steps, on the tiny policy and reward model."""
    c = plain(file_config(f"world/{name}.py:2"))
    c["steps"] = [step for step in c["steps"] if step.endswith(("_1", "_2"))]
    for step in c["steps"]:
        one = c[step]
        if one["stage"] == "select":
            one |= dict(batch_size=16, max_new_tokens=24, samples_per_prompt=4, data=one["data"] | dict(count=32))
        else:
            one |= dict(batch_size=16, total_steps=2, eval_every_steps=0, save_every_steps=2)
            one["data"]["heldout_percent"] = 25.0
            one |= dict(probe=plain(probe.get_config())) if "probe" in one else {}
    kept = {step: c[step] for step in c["steps"]}
    text = json.dumps(kept).replace('"@sft"', json.dumps(str(run / "sft")))
    return {"steps": c["steps"]} | json.loads(text.replace('"@reward"', json.dumps(str(run / "reward"))))


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_every_round_starts_from_the_last(run, tmp_path, name):
    folder, tuned = pipeline.run(config(run, name), tmp_path / "run"), TUNED[name]
    last = read(folder / f"{tuned}_2/manifest.json")
    first = read(folder / f"{tuned}_1/manifest.json")
    selected = read(folder / "select_2/manifest.json")
    assert last["parents"]["policy"]["content_hash"] == first["content_hash"] != last["content_hash"]
    assert selected["parents"]["policy"]["content_hash"] == first["content_hash"]
    assert last["parents"]["data"]["content_hash"] == selected["content_hash"]
    assert ("reference" in last["parents"]) == (name == "iterated_dpo")
    tree = lineage(folder / f"{tuned}_2")
    assert f"policy: {tuned}_1" in tree and "data: select_2" in tree and "policy: sft" in tree
