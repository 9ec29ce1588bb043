"""The page: self-contained, true to its inputs, safe against model text, and useful when half of the run is missing."""

import json
import re
from html.parser import HTMLParser

import pytest
from errors import refuses

from alignax.report.folder import ReportError, read_run
from alignax.report.page import render


def text_of(root) -> str:
    return render(root).read_text(encoding="utf-8")


def edit(path, change) -> None:
    """Rewrites a JSON file after `change` has altered the object in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


class Loads(HTMLParser):
    """Collects what a browser would fetch, the tags, and the ids."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and not (value or "").startswith("#"):
                self.fetched.append(value)
            if name == "id":
                self.ids.append(value)


def test_page_is_self_contained(make_run):
    root = make_run()
    path = render(root)
    page = path.read_text(encoding="utf-8")
    loads = Loads()
    loads.feed(page)
    assert path == root / "report.html" and path.stat().st_size < 2_000_000
    assert loads.fetched == ["data:,"]  # the empty icon, which keeps a browser from asking for one
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert "script" not in loads.tags and "link" in loads.tags
    assert not re.findall(r"url\((?!#)", page)
    assert len(set(loads.ids)) == len(loads.ids)  # pictures on one page do not borrow each other's clip paths
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(loads.ids)


def test_same_folder_same_page(make_run):
    root = make_run(metrics=False)
    assert text_of(root) == text_of(root)
    assert not list(root.glob("*.tmp"))


def test_page_has_every_part(make_run):
    page = text_of(make_run())
    for part in ("What came out", "Reward against KL", "Calibration of the reward model", "Gold reward by part",
                 "Gold reward by prompt family", "Samples, before and after", "Learning curves", "Family tree",
                 "4 min 43 s", "PPO against SFT: its best (+3.64)", "DPO against SFT: its worst (-2.07)",
                 "not selected by score"):  # fmt: skip
        assert part in page, part
    assert "What this page cannot show" not in page
    assert page.count('class="sample"') == 12


def test_numbers_come_from_the_input(make_run):
    root = make_run(metrics=False)
    before = text_of(root)
    assert "1.17 [1.06, 1.28]" in before and "0.731 [0.702, 0.758]" in before

    def change(value):
        value["policies"]["ppo"] |= {"gold_reward": 1.91, "gold_reward_ci95": [1.83, 1.97]}

    edit(root / "evaluate" / "eval.json", change)
    after = text_of(root)
    assert "1.91 [1.83, 1.97]" in after and "1.17 [1.06, 1.28]" not in after


def test_curves_come_from_the_metrics(make_run):
    root = make_run(["sft"])
    before = text_of(root)
    path = root / "sft" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))
    assert text_of(root) != before


def test_model_text_is_escaped(make_run):
    root = make_run(metrics=False)
    path = root / "evaluate" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prompt"] = "<script>alert('prompt')</script>"
    rows[0]["policies"]["ppo"]["completion"] = "<img src=http://evil.test/x onerror=alert(1)> & </div>"
    rows[0]["policies"]["dpo"]["completion"] = "half a pair: \ud83d"  # what byte-level tokens can decode to
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(root / "sft" / "manifest.json", lambda value: value.update(name='<b>&"$s$'))
    page = text_of(root)
    loads = Loads()
    loads.feed(page)
    assert "script" not in loads.tags and "img" not in loads.tags and loads.fetched == ["data:,"]
    assert "&lt;script&gt;alert(" in page and "&lt;img src=http://evil.test/x" in page and "half a pair: ?" in page
    assert "<b>&" not in page


def test_extremes_are_shown_not_only_the_flattering(make_run):
    root = make_run(metrics=False)
    path = root / "evaluate" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[29]["policies"]["ppo"] |= {"gold": -50.0, "completion": "the very worst reply"}
    rows[28]["policies"]["ppo"] |= {"gold": 50.0, "completion": "the very best reply"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = text_of(root)
    assert "the very worst reply" in page and "the very best reply" in page


@pytest.mark.parametrize("stage", ["sft", "reward", "online", "offline"])
def test_a_single_stage_folder(make_run, stage):
    page = text_of(make_run([stage]) / stage)
    assert "this is a single stage" in page and "Learning curves" in page and "Last values" in page
    assert "win rate" not in page and page.count("<svg") >= 3


def test_a_stage_shows_its_own_samples(make_run):
    root = make_run(["online"], metrics=False) / "online"
    row = {"row": 3, "prompt": "how to open the jar ?", "completion": "with <care>", "score": 1.25, "finished": True}
    (root / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = text_of(root)
    assert "how to open the jar ?" in page and "with &lt;care&gt;" in page and "score +1.25" in page
    assert "before and after" not in page


def test_a_stage_that_still_runs(make_run):
    root = make_run(["offline"])
    (root / "offline" / "manifest.json").unlink()
    root = (root / "offline").rename(root.parent / "my_first_dpo")  # neither the name nor a manifest tells the kind
    with (root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 0.')  # killed while it wrote
    page = text_of(root)
    assert read_run(root).stages[0].kind == "offline"
    assert "unfinished" in page and "implicit reward margin" in page


def test_without_evaluation(make_run):
    page = text_of(make_run(["sft", "online"]))
    assert "evaluate/eval.json is not there" in page and "Learning curves" in page
    assert "Reward against KL" in page  # the evaluations on the way are enough for this picture


def test_without_metrics(make_run):
    page = text_of(make_run(metrics=False))
    assert "online: no metrics.jsonl" in page and "Learning curves" not in page
    assert "Reward against KL" in page and "1.17 [1.06, 1.28]" in page


def test_without_reward_model_and_samples(make_run):
    root = make_run(metrics=False)
    edit(root / "evaluate" / "eval.json", lambda value: value.pop("reward_model"))
    (root / "evaluate" / "samples.jsonl").unlink()
    page = text_of(root)
    assert "no reward model was evaluated" in page and "no samples side by side" in page
    assert "Calibration of" not in page and "1.17 [1.06, 1.28]" in page


def test_broken_files_are_named(make_run):
    root = make_run(metrics=False)
    (root / "evaluate" / "eval.json").write_text('{"policies": ')
    (root / "reward" / "manifest.json").write_text("[]")
    (root / "sft" / "metrics.jsonl").write_text('not json\n{"step": 1, "loss": 2.0}\n')
    page = text_of(root)
    assert "evaluate/eval.json is not valid JSON" in page
    assert "reward/manifest.json holds no JSON object" in page
    assert "sft/metrics.jsonl was left out" in page and "line 1" in page


def test_nan_is_shown_and_not_read_as_success(make_run):
    root = make_run(metrics=False)
    edit(root / "evaluate" / "eval.json", lambda value: value["policies"]["ppo"].update(
        gold_reward="NaN", gold_reward_ci95=["NaN", "NaN"]))  # fmt: skip
    page = text_of(root)
    assert "nan [nan, nan]" in page and "PPO&#39;s gold reward is above SFT" not in page


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_nothing_to_show_is_an_error_that_says_what_was_expected(tmp_path, kind):
    root = tmp_path / "nothing"
    if kind == "empty":
        (root / "notes").mkdir(parents=True)
    elif kind == "a file":
        root.write_text("")
    with refuses(ReportError, "nothing", "expected"):
        render(root)
    assert not (tmp_path / "nothing" / "report.html").exists()


def test_family_tree(make_run):
    root = make_run(metrics=False)
    page = text_of(root)
    assert "reward_model from reward" in page and "rewardhash01" in page and "changed since" not in page
    edit(root / "sft" / "manifest.json", lambda value: value.update(content_hash="anotherhash"))
    assert text_of(root).count("changed since") == 5  # collect, reward, online, offline and evaluate came from it


def test_family_tree_with_a_parent_elsewhere_and_a_circle(make_run):
    root = make_run(["sft", "collect"], metrics=False)
    edit(root / "sft" / "manifest.json", lambda value: value.update(
        parents={"policy": {"path": "../collect", "content_hash": "x"},
                 "base": {"path": "/far/away/base", "content_hash": "feedface"}}))  # fmt: skip
    page = text_of(root)
    tree = page[page.index("Family tree") : page.index("<h2>Configs")]
    assert "base from base" in tree and "(in another folder)" in tree
    assert tree.count("<strong>") == 2
