"""What the documents say holds: code blocks run, commands parse, paths exist, results are those of results.json."""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from alignax.config import bind, plain, resolve
from alignax.main import load_config, parser
from alignax.report.experiment import END
from alignax.stages.pipeline import planned
from alignax.stages.plans import made
from alignax.types import Pair, Side

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/LOG.md", "experiments/quickstart/README.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
STARTS = ("alignax run ", "alignax data ")
RUNS = [line for command in COMMANDS for line in command.split(" && ") if line.startswith(STARTS)]
OTHERS = [line for line in COMMANDS if line.startswith("alignax ") and line not in RUNS]


@pytest.fixture
def own_path(monkeypatch):
    """`load_config` puts folders on sys.path; they leave with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return monkeypatch


def test_readme_has_the_two_commands_each_on_one_line():
    assert "pip install -e . && alignax run --config=configs/quickstart.py" in COMMANDS
    assert "pip install -e '.[test]' && pytest" in COMMANDS


def test_five_line_example_prints_what_its_comments_say():
    code = blocks("python")[0]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(code, "README.md", "exec"), {})
    numbers = [[float(x) for x in re.findall(r"-?\d+\.\d*", line)] for line in shown.getvalue().splitlines()]
    # log sigma(0) = -0.693147; its gradient by each reply token is -beta sigma(0) = -0.05
    assert numbers[0] == pytest.approx([0.6931472], abs=1e-6)
    assert numbers[1] == pytest.approx([0, -0.05, -0.05], abs=1e-6)
    said = re.findall(r"^print\(.*\)  # (.+?)(?:, which.*)?$", code, re.MULTILINE)
    assert said == shown.getvalue().splitlines()
    body = code.partition("\n\n")[2].strip().splitlines()
    assert len(body) == 5, "the heading says five lines"


@pytest.mark.parametrize("command", RUNS)
def test_run_commands_of_the_readme_pass_every_check_before_a_run(command, own_path, tmp_path):
    own_path.chdir(tmp_path)  # where my_losses.py lies; the configs are found by their own path
    (tmp_path / "my_losses.py").write_text(outside_loss(), encoding="utf-8")
    args, overrides = parser().parse_known_args(shlex.split(command)[1:])
    try:
        config = plain(load_config(str(ROOT / args.config), overrides))
        planned(config) if "steps" in config else made(config)
    finally:
        sys.modules.pop("my_losses", None)


def outside_loss() -> str:
    (code,) = (block for block in blocks("python") if block.startswith("# my_losses.py\n"))
    return code


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_of_the_readme_parse(command):
    args, rest = parser().parse_known_args(shlex.split(command)[1:])
    assert not rest and args.command in ("lineage", "report", "sample", "losses", "import", "export")


def test_objective_outside_the_package_is_found_checked_and_differentiated(own_path, tmp_path):
    (tmp_path / "my_losses.py").write_text(outside_loss(), encoding="utf-8")
    own_path.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    try:
        hinge = resolve("my_losses:hinge", "alignax.losses", key="loss")
        args = bind(hinge, {"beta": 0.5}, key="loss_args")

        def value(shift):  # the chosen reply, two tokens, is raised by 2 * shift nats
            same = jnp.array([[0.0, -1.0, -2.0]])
            side = Side(logp=same, ref_logp=same, mask=jnp.array([[False, True, True]]))
            return hinge(Pair(chosen=side.replace(logp=same + shift), rejected=side), **args).value[0]

        # 1 - 0.5 * (2 * 0.5) = 0.5, falling by 0.5 * 2 per unit of shift
        assert jax.jit(jax.value_and_grad(value))(0.5) == pytest.approx((0.5, -1.0))
        assert value(1.5) == 0  # 1 - 0.5 * 3 < 0
    finally:
        sys.modules.pop("my_losses", None)


@pytest.mark.parametrize("page", PAGES)
def test_paths_named_in_a_document_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    words = re.findall(r"[\w./*-]+", text)
    rooms = ("alignax/", "configs/", "experiments/", "notebooks/", "benchmarks/", "tests/", ".ci/")
    named = {word.rstrip(".") for word in words if word.startswith(rooms)} | set(re.findall(r"\]\(([^)]+)\)", text))
    made = {"experiments/quickstart/results/results.md", "experiments/quickstart/results/results.json"}
    missing = sorted(name for name in named - made if not list(ROOT.glob(name.rstrip("/"))))
    assert not missing


def test_map_of_the_house_names_every_room_and_no_other():
    map_ = re.search(r"^## Map of the house\n\n```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE).group(1)
    inside, outside = re.findall(r"^  (\S+)  ", map_, re.MULTILINE), re.findall(r"^(\S+)/  ", map_, re.MULTILINE)
    package = ROOT / "alignax"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert sorted(inside) == sorted(files | rooms)
    assert [name for name in outside if not (ROOT / name).is_dir()] == []


def test_results_in_the_readme_are_those_of_results_json():
    spec = importlib.util.spec_from_file_location("quickstart_run", ROOT / "experiments/quickstart/run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    place = README.partition(run.BEGIN)[2].partition(END)[0].strip()
    path = ROOT / "experiments/quickstart/results/results.json"
    assert place == (run.markdown(run.json.loads(path.read_text())).strip() if path.is_file() else "Not run yet.")


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    pattern = re.search(r"grep -m1 '(.+?)' README.md", script.read_text(encoding="utf-8")).group(1)
    found = [line for line in README.splitlines() if re.search(pattern, line)]
    assert found == ["pip install -e '.[test]' && pytest"]
    assert 'eval "$tests"' in script.read_text(encoding="utf-8")


def test_setup_has_the_extras_of_the_readme():
    table = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert table == re.findall(r'^        "(\w+)": \[', setup, re.MULTILINE)
