"""A stage in a file outside of the package is as good as one of ours: `own_stage.py` beside this test."""

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import finished, tiny

from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.lineage import lineage
from alignax.manifest import read_manifest
from alignax.stages import evaluate, pipeline, playground
from alignax.stages.preview import preview


def pipeline_of(run, **values):
    """The stage on two finished policies, and an evaluation of what it makes."""
    c = tiny()
    own = dict(plain(c.ppo.probe), stage="own_stage", seed=0, init_from=str(run / "sft"))
    keys = ("source", "data", "max_prompt_length", "stage", "seed", "init_from")
    own = {key: own[key] for key in keys} | {"other_from": str(run / "dpo"), "share": 0.5, "template": "chat"}
    own |= {"mesh": plain(c.ppo.mesh), "compute": plain(c.ppo.compute)} | values
    judged = plain(c.evaluate) | {"init_from": str(run / "sft"), "policies": {"mean": "@own"}}
    judged["probe"]["reward_from"] = str(run / "reward")
    return {"steps": ["own", "evaluate"], "own": own, "evaluate": judged}


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    return pipeline.run(pipeline_of(run), tmp_path_factory.mktemp("own") / "run")


def test_it_makes_a_policy_that_others_take(run, made):
    got, one, other = (load_params(x / "params") for x in (made / "own", run / "sft", run / "dpo"))
    jax.tree.map(lambda x, a, b: np.testing.assert_allclose(x, (a + b) / 2, atol=1e-6), got, one, other)
    assert read_manifest(made / "own")["makes"] == "policy"
    assert "mean/kl" in read_manifest(made / "evaluate")["metrics"]
    assert playground.complete(made / "own", ["tea ."], max_new_tokens=2)


def test_it_shows_in_lineage_and_data(run, made):
    tree = lineage(made)
    assert "mean: own  own_stage  step 1" in tree and "other: dpo  offline" in tree
    own, _ = preview(pipeline_of(run), rows=1, workdir=made), None
    assert [section["name"] for section in own] == ["own"] and own[0]["rows"]


def test_it_is_not_run_again_unless_something_changed(run, made):
    before = finished(made)
    pipeline.run(pipeline_of(run), made)
    assert finished(made) == before
    pipeline.run(pipeline_of(run, share=0.25), made)
    assert finished(made)["own"] > before["own"] and finished(made)["evaluate"] > before["evaluate"]


def test_its_mistakes_are_found_before_anything_is_made(run, tmp_path):
    with refuses(ConfigError, "config.own.share = 2.0", "share"):
        pipeline.run(pipeline_of(run, share=2.0), tmp_path / "run")
    with refuses(ConfigError, "config.own.shear", "'share'"):
        pipeline.run(pipeline_of(run, shear=2.0), tmp_path / "run")
    assert not (tmp_path / "run").exists() and evaluate.STAGE.makes == "files"
