"""Manifests: what a folder is, whose child it is, and whether it is still current."""

import json
import math
import shutil

import pytest
from errors import names, refuses
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignax.lineage import lineage
from alignax.manifest import (
    CheckpointError,
    check_parent,
    config_hash,
    is_current,
    parent_record,
    read_manifest,
    start,
    why_stale,
    write_manifest,
)

CONFIG = {"beta": 0.1, "model": {"dim": 128, "heads": (4, 2)}, "limit": math.inf}


def finish(folder, stage="sft", makes="policy", *, content="a" * 64, parents=None, config=CONFIG, step=10, **fields):
    """A finished stage with stand-in parameters."""
    (folder / "params").mkdir(parents=True, exist_ok=True)
    (folder / "params/_METADATA").write_text("{}")
    links = {role: parent_record(folder, parent) for role, parent in (parents or {}).items()}
    fields = {"name": folder.name, "parents": links, "step": step} | fields
    return write_manifest(folder, stage=stage, makes=makes, config=config, content_hash=content, **fields)


def test_a_manifest_reads_as_written(tmp_path):
    written = finish(tmp_path / "sft", metrics={"loss": 0.1 + 0.2, "gap": math.nan}, data={"counts": {"rows": 3}})
    read = read_manifest(tmp_path / "sft")
    assert read == written
    assert read["metrics"] == {"loss": 0.1 + 0.2, "gap": "NaN"}
    assert read["config"] == {"beta": 0.1, "model": {"dim": 128, "heads": [4, 2]}, "limit": "Infinity"}
    assert (read["format"], read["stage"], read["step"]) == (1, "sft", 10)
    assert [path.name for path in (tmp_path / "sft").iterdir() if path.is_file()] == ["manifest.json"]


def test_a_folder_that_is_no_finished_stage_says_why(tmp_path):
    def reason(name):
        with pytest.raises(CheckpointError) as error:
            read_manifest(tmp_path / name)
        message = str(error.value)
        assert message.startswith(str(tmp_path / name))
        return message

    for name in ("empty", "half/steps", "pipeline", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "other/notes.txt").write_text("")
    finish(tmp_path / "pipeline/sft")
    finish(tmp_path / "torn")
    (tmp_path / "torn/manifest.json").write_text('{"format": 1, "st')
    finish(tmp_path / "list")
    (tmp_path / "list/manifest.json").write_text("[]")
    finish(tmp_path / "newer")
    newer = json.loads((tmp_path / "newer/manifest.json").read_text()) | {"format": 2}
    (tmp_path / "newer/manifest.json").write_text(json.dumps(newer))
    finish(tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/params")

    assert "no such directory" in reason("absent")
    assert "a file" in reason("file")
    assert "is empty" in reason("empty")
    names(reason("half"), "not finished", "again")
    names(reason("pipeline"), "did you mean", "sft")
    names(reason("other"), "not the folder", "stage")
    assert "valid JSON" in reason("torn")
    assert "JSON object" in reason("list")
    names(reason("newer"), "format 2", "format 1")
    assert "params/ is missing" in reason("bare")


def test_a_parent_that_does_not_fit_is_refused_field_by_field(tmp_path):
    theirs = {"dim": 128, "layers": 2, "remat": "full", "heads": [4, 2]}
    fields = {"tokenizer_hash": "1" * 64, "template_hash": "2" * 64, "architecture": theirs}
    parent = finish(tmp_path / "sft", **fields)
    same = fields | {"architecture": {"heads": (4, 2), "dim": 128, "layers": 2, "remat": "none"}}
    check_parent(parent, role="policy", makes=("policy", "reward"), ignore=("remat",), **same)
    check_parent(parent, role="policy")
    with refuses(CheckpointError, "parent reward = 'sft'", "fit") as error:
        check_parent(
            parent,
            role="reward",
            makes="reward",
            tokenizer_hash="3" * 64,
            template_hash="4" * 64,
            architecture={"dim": 256, "layers": 2, "remat": "full", "heads": [4, 4], "bias": True},
        )
    for line, found in zip(str(error.value).splitlines()[1:-1], (
        ("sft", "policy", "reward"),
        ("tokenizer_hash:", "1" * 12, "3" * 12),
        ("template_hash:", "2" * 12, "4" * 12),
        ("architecture.bias:", "nothing", "True"),
        ("architecture.dim:", "128", "256"),
        ("architecture.heads:", "[4, 2]", "[4, 4]"),
    ), strict=True):  # fmt: skip
        names(line, *found)
    with refuses(CheckpointError, "tokenizer_hash", "none", "3333"):
        check_parent(finish(tmp_path / "old"), role="policy", tokenizer_hash="3" * 64)


@pytest.mark.parametrize("stage, makes", [("sft", "policy"), ("reward", "reward"), ("collect", "files")])
def test_a_manifest_of_before_it_said_what_was_made_is_read_by_its_stage(tmp_path, stage, makes):
    written = finish(tmp_path / stage, stage, makes)
    (tmp_path / stage / "manifest.json").write_text(json.dumps({k: v for k, v in written.items() if k != "makes"}))
    assert read_manifest(tmp_path / stage)["makes"] == makes


def make_tokenizer(words=("<pad>", "<eos>", "hello", "world"), **kwargs):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    kwargs = {"pad_token": "<pad>", "eos_token": "<eos>"} | kwargs
    return PreTrainedTokenizerFast(tokenizer_object=backend, **kwargs)


def test_the_config_hash_ignores_order_and_tuples_and_nothing_else():
    same = {"limit": math.inf, "model": {"heads": [4, 2], "dim": 128}, "beta": 0.1}
    assert config_hash(CONFIG) == config_hash(same)
    others = [CONFIG | {"beta": math.nextafter(0.1, 1)}, CONFIG | {"model": {"dim": 128}}, CONFIG | {"limit": 1.0}, {}]
    assert len({config_hash(other) for other in [CONFIG, *others]}) == 5


def test_a_step_is_stale_only_if_its_config_or_its_parents_content_changed(tmp_path):
    finish(tmp_path / "sft")
    finish(tmp_path / "dpo", "offline", parents={"policy": tmp_path / "sft"})
    links = {"policy": parent_record(tmp_path / "dpo", tmp_path / "sft")}
    assert links["policy"]["path"] == "../sft"
    assert is_current(tmp_path / "dpo", CONFIG, links)
    assert "no such directory" in why_stale(tmp_path / "ppo", CONFIG, links)
    changed = {"beta": 0.2, "model": {"dim": 128, "heads": [4, 2]}, "limit": math.inf}
    assert why_stale(tmp_path / "dpo", changed, links) == "config.beta: was 0.1, now 0.2"
    assert not is_current(tmp_path / "dpo", changed, links)

    finish(tmp_path / "sft", step=20)  # made again with the same content: the child is still current
    links = {"policy": parent_record(tmp_path / "dpo", tmp_path / "sft")}
    assert is_current(tmp_path / "dpo", CONFIG, links)
    finish(tmp_path / "sft", content="b" * 64)
    links = {"policy": parent_record(tmp_path / "dpo", tmp_path / "sft")}
    reason = why_stale(tmp_path / "dpo", CONFIG, links)
    assert reason == "parent policy: content was aaaaaaaaaaaa, now bbbbbbbbbbbb"
    assert why_stale(tmp_path / "dpo", CONFIG, {}) == "parent policy: content was aaaaaaaaaaaa, now none"
    shutil.rmtree(tmp_path / "dpo/params")
    assert "params/ is missing" in why_stale(tmp_path / "dpo", CONFIG, links)


def test_a_step_is_stale_if_the_code_of_a_function_changed(tmp_path):
    finish(tmp_path / "ppo", code={"reward": "a"})
    assert is_current(tmp_path / "ppo", CONFIG, {})  # nobody says what it is now
    assert why_stale(tmp_path / "ppo", CONFIG, {}, {"reward": "a"}) is None
    assert (
        why_stale(tmp_path / "ppo", CONFIG, {}, {"reward": "b"}) == "config.reward: the code of the function is another"
    )
    finish(tmp_path / "old")  # by a version that did not look
    assert why_stale(tmp_path / "old", CONFIG, {}, {"reward": "b"}) is None

    assert start(tmp_path / "half", CONFIG, {}, {"reward": "a"}) is None
    assert start(tmp_path / "half", CONFIG, {}, {"reward": "a"}) is None
    assert start(tmp_path / "half", CONFIG, {}, {"reward": "b"}) == "config.reward: the code of the function is another"


def test_start_goes_on_with_the_same_run_and_clears_another(tmp_path):
    folder, links = tmp_path / "dpo", {"policy": {"path": "../sft", "content_hash": "a" * 64}}

    def leave():
        (folder / "steps/10").mkdir(parents=True)
        finish(folder)
        (folder / "notes.txt").write_text("mine")

    assert start(folder, CONFIG, links) is None
    assert json.loads((folder / "config.json").read_text())["beta"] == 0.1
    leave()
    assert start(folder, CONFIG, links) is None
    assert (folder / "steps/10").is_dir() and (folder / "manifest.json").is_file()

    assert start(folder, CONFIG | {"beta": 0.3}, links) == "config.beta: was 0.1, now 0.3"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt", "started.json"]
    assert json.loads((folder / "config.json").read_text())["beta"] == 0.3
    leave()
    moved = {"policy": {"path": "/elsewhere/sft", "content_hash": "a" * 64}}
    assert start(folder, CONFIG | {"beta": 0.3}, moved) is None
    other = {"policy": {"path": "../sft", "content_hash": "b" * 64}}
    assert "parent policy: content was aaaa" in start(folder, CONFIG | {"beta": 0.3}, other)
    assert not (folder / "steps").exists()

    (tmp_path / "project").mkdir()
    (tmp_path / "project/config.json").write_text("precious")
    with refuses(CheckpointError, "config.json", "no stage"):
        start(tmp_path / "project", CONFIG, {})
    assert (tmp_path / "project/config.json").read_text() == "precious"


def test_start_killed_while_clearing_clears_again(tmp_path, monkeypatch):
    from alignax import manifest

    start(tmp_path / "x", CONFIG, {})
    (tmp_path / "x/steps/10").mkdir(parents=True)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manifest.shutil, "rmtree", killed)
        start(tmp_path / "x", {"beta": 1.0}, {})
    assert "config.beta" in start(tmp_path / "x", CONFIG, {})  # the first config again: its steps may be half gone
    assert not (tmp_path / "x/steps").exists()


def test_lineage_of_a_pipeline_and_of_a_stage(tmp_path):
    run = tmp_path / "run"
    finish(run / "sft", metrics={"loss": 1.25, "note": "x"}, step=400)
    finish(run / "collect", "collect", content="c" * 64, parents={"policy": run / "sft"}, files=["pairs.jsonl"])
    finish(run / "reward", content="d" * 64, stage="reward", parents={"base": run / "sft", "data": run / "collect"})
    finish(run / "ppo", content="e" * 64, stage="online", parents={"policy": run / "sft", "reward": run / "reward"})
    (run / "dpo/steps").mkdir(parents=True)
    tree = lineage(run)
    assert tree.splitlines() == [
        "run",
        "├── dpo  [unfinished]",
        "└── ppo  online  step 10  eeeeeeee",
        "    ├── policy: sft  sft  step 400  aaaaaaaa  loss 1.25",
        "    └── reward: reward  reward  step 10  dddddddd",
        "        ├── base: sft  sft  step 400  aaaaaaaa  loss 1.25",
        "        └── data: collect  collect  step 10  cccccccc",
        "            └── policy: sft  sft  step 400  aaaaaaaa  loss 1.25",
    ]
    shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(run)
    assert lineage(tmp_path / "moved").splitlines()[1:] == tree.splitlines()[1:]

    run = tmp_path / "moved"
    assert lineage(run / "ppo").splitlines() == [line[4:] for line in tree.splitlines()[2:]]
    finish(run / "sft", content="f" * 64, step=500)
    shutil.rmtree(run / "collect")
    lines = lineage(run / "ppo").splitlines()
    assert lines[1] == "├── policy: sft  sft  step 500  ffffffff  [changed since: was aaaaaaaa]"
    assert lines[-1] == "    └── data: collect  [missing]"
    with pytest.raises(CheckpointError, match="no such directory"):
        lineage(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not finished"):
        lineage(run / "dpo")


def test_a_parent_outside_the_pipeline_is_linked_by_its_absolute_path(tmp_path):
    finish(tmp_path / "elsewhere/sft")
    finish(tmp_path / "run/dpo", "offline", parents={"policy": tmp_path / "elsewhere/sft"})
    assert read_manifest(tmp_path / "run/dpo")["parents"]["policy"]["path"] == str(tmp_path / "elsewhere/sft")
    assert "policy: sft  sft" in lineage(tmp_path / "run")


def test_shared_ancestors_are_unfolded_once(tmp_path):
    finish(tmp_path / "sft")
    finish(tmp_path / "reward", "reward", "reward", content="b" * 64, parents={"base": tmp_path / "sft"})
    for name in ("ppo", "rloo"):
        finish(tmp_path / name, "online", content=name, parents={"reward": tmp_path / "reward"})
    lines = lineage(tmp_path).splitlines()
    assert sum("base: sft" in line for line in lines) == 1
    assert lines[-1].endswith("reward: reward  reward  step 10  bbbbbbbb  (parents above)")
