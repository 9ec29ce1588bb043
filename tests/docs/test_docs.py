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
from alignax.planning.chips import shape_of
from alignax.report.experiment import END
from alignax.stages.pipeline import planned
from alignax.stages.plans import made
from alignax.types import Pair, Side
from experiments import load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
OWN = ("quickstart", "objectives", "iterated", "tools", "rewards", "staleness", "questions")  # experiments with a page
EXPERIMENTS = ("experiments/LOG.md", *(f"experiments/{name}/README.md" for name in OWN))
PAGES = ("README.md", *GUIDES, "CONTRIBUTING.md", "CHANGELOG.md", *EXPERIMENTS)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def files() -> dict[str, str]:
    """The blocks of the guides that begin with `# name.py`: a reader's own files, in the folder of the command."""
    own = [block for text in GUIDES.values() for block in blocks("python", text) if re.match(r"# \w+\.py\n", block)]
    return {block.split("\n")[0].removeprefix("# "): block for block in own}


SHELL = [block for text in (README, *GUIDES.values()) for block in blocks("bash", text)]
COMMANDS = [line for block in SHELL for line in block.splitlines()]
CODE = [(page, code) for page, text in GUIDES.items() for code in blocks("python", text)]
CODE = [(page, code) for page, code in CODE if code not in files().values()]
STARTS = ("alignax run ", "alignax data ")
RUNS = sorted({line for command in COMMANDS for line in command.split(" && ") if line.startswith(STARTS)})
OTHERS = [line for line in COMMANDS if line.startswith("alignax ") and line not in RUNS]


@pytest.fixture
def own_path(monkeypatch):
    """`load_config` puts folders on sys.path; they leave with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return monkeypatch


@pytest.fixture
def folder(own_path, tmp_path):
    """The working folder of a reader, with the files of the guides."""
    for name, code in files().items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    own_path.chdir(tmp_path)
    own_path.syspath_prepend(tmp_path)
    own_path.syspath_prepend(ROOT)  # for `configs`
    importlib.invalidate_caches()
    yield tmp_path
    for name in files():
        sys.modules.pop(name.removesuffix(".py"), None)


def run_block(code: str, page: str) -> tuple[dict, list[str]]:
    """(the names that a block leaves, the lines that it prints)."""
    shown, names = io.StringIO(), {}
    with contextlib.redirect_stdout(shown):
        exec(compile(code, page, "exec"), names)
    return names, shown.getvalue().splitlines()


def test_readme_has_the_two_commands_each_on_one_line():
    assert "pip install -e . && alignax run --config=configs/quickstart.py" in COMMANDS
    assert "pip install -e '.[test]' && pytest" in COMMANDS


def test_five_line_example_prints_what_its_comments_say():
    code = blocks("python")[0]
    _, shown = run_block(code, "README.md")
    numbers = [[float(x) for x in re.findall(r"-?\d+\.\d*", line)] for line in shown]
    # log sigma(0) = -0.693147; its gradient by each reply token is -beta sigma(0) = -0.05
    assert numbers[0] == pytest.approx([0.6931472], abs=1e-6)
    assert numbers[1] == pytest.approx([0, -0.05, -0.05], abs=1e-6)
    said = re.findall(r"^print\(.*\)  # (.+?)(?:, which.*)?$", code, re.MULTILINE)
    assert said == shown
    body = code.partition("\n\n")[2].strip().splitlines()
    assert len(body) == 5, "the heading says five lines"


def test_ppo_is_17_lines():
    _, code = blocks("python")
    body = re.search(r"^def ppo.*?(?=^\S(?<!d))", code, re.DOTALL | re.MULTILINE).group()
    assert len([line for line in body.splitlines() if line]) == 17, "the heading says 17 lines"


@pytest.mark.slow  # notebook 01, which runs every time, begins with these lines
def test_ppo_in_17_lines_raises_its_reward_and_is_mapped_over():
    _, code = blocks("python")
    names, _ = run_block(code, "README.md")
    score, sweep = names["score"], names["sweep"]
    assert score.shape == (25,) and sweep.shape == (3, 25)
    # token 7 is one of 31 that a reply may hold; what the comment says, and that a larger rate learns more
    assert score[0] < 0.1 and score[-1] > 0.9 and max(score[:4]) < min(score[-4:])
    assert sweep[0, -1] < 0.2 < sweep[2, -1]
    assert jnp.allclose(sweep[2], score, atol=0.05)  # a lane is a run, up to rounding of 100 updates
    assert jnp.allclose(sweep[2, :4], score[:4], atol=1e-4)


@pytest.mark.parametrize("page, code", CODE, ids=[f"{page}-{i}" for i, (page, _) in enumerate(CODE)])
def test_code_of_a_guide_runs_and_prints_what_its_comments_say(page, code, folder):
    names, shown = run_block(code, page)
    said = re.findall(r"^print\((.*)\)(?:  # (.+))?$", code, re.MULTILINE)
    assert [line for line, (_, comment) in zip(shown, said, strict=True) if comment] == [c for _, c in said if c]
    if "get_config" in names:  # a config file
        config = plain(names["get_config"]())
        assert list(planned(config)) == config["steps"] and len(config["steps"]) == 10


@pytest.mark.parametrize("command", RUNS)
def test_run_commands_pass_every_check_before_a_run(command, folder):
    args, overrides = parser().parse_known_args(shlex.split(command)[1:])
    config = plain(load_config(str(ROOT / args.config), overrides))  # configs are found by their own path
    planned(config) if "steps" in config else made(config)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_parse(command):
    args, rest = parser().parse_known_args(shlex.split(command)[1:])
    known = ("lineage", "report", "sample", "chat", "serve", "losses", "import", "export", "plan")
    assert not rest and args.command in known
    if args.command == "plan":
        assert shape_of(args.topology) and load_config(str(ROOT / args.config), [])
        assert not args.model or (ROOT / args.model / "config.json").is_file()


def test_objective_outside_the_package_is_found_checked_and_differentiated(folder):
    hinge = resolve("my_losses:hinge", "alignax.losses", key="loss")
    args = bind(hinge, {"beta": 0.5}, key="loss_args")

    def value(shift):  # the chosen reply, two tokens, is raised by 2 * shift nats
        same = jnp.array([[0.0, -1.0, -2.0]])
        side = Side(logp=same, ref_logp=same, mask=jnp.array([[False, True, True]]))
        return hinge(Pair(chosen=side.replace(logp=same + shift), rejected=side), **args).value[0]

    # 1 - 0.5 * (2 * 0.5) = 0.5, falling by 0.5 * 2 per unit of shift
    assert jax.jit(jax.value_and_grad(value))(0.5) == pytest.approx((0.5, -1.0))
    assert value(1.5) == 0  # 1 - 0.5 * 3 < 0


def test_reward_of_the_guide_is_what_it_says(folder):
    brief = resolve("my_rewards:brief", "", key="reward")
    assert [brief({}, "word " * n, finished=True, words=4) for n in (3, 4, 6, 8, 9)] == [1, 1, 0.5, 0, 0]


@pytest.mark.parametrize("page", PAGES)
def test_paths_named_in_a_document_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    words = re.findall(r"[\w./*-]+", text)
    rooms = ("alignax/", "configs/", "experiments/", "notebooks/", "benchmarks/", "tests/", "docs/", ".ci/")
    named = {word.rstrip(".") for word in words if word.startswith(rooms)}
    made = {"experiments/quickstart/results/results.md", "experiments/quickstart/results/results.json"}
    missing = sorted(name for name in named - made if not list(ROOT.glob(name.rstrip("/"))))
    links = re.findall(r"\]\(([^)]+)\)", text)  # are relative to their page
    missing += sorted(link for link in links if not (ROOT / page).parent.joinpath(link).exists())
    assert not missing


def test_index_of_the_guides_names_each():
    named = re.findall(r"\]\((\w+\.md)\)", GUIDES["docs/README.md"])
    assert sorted(f"docs/{name}" for name in named) == sorted(set(GUIDES) - {"docs/README.md"})


@pytest.mark.parametrize("page", ["README.md", "docs/map.md"])
def test_map_of_the_house_names_every_room_and_no_other(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    map_ = re.search(r"^#+ Map of the house\n\n```\nalignax/\n(.*?)^```$", text, re.DOTALL | re.MULTILINE).group(1)
    inside = " ".join(re.findall(r"^  (\S.*?)   *", map_, re.MULTILINE)).split()
    outside = " ".join(re.findall(r"^(\S+/(?: \S+/)*)(?=  |$)", map_, re.MULTILINE)).split()
    package = ROOT / "alignax"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert sorted(inside) == sorted(files | rooms)
    assert {"configs/", "docs/", "tests/"} < set(outside) and not [x for x in outside if not (ROOT / x).is_dir()]


@pytest.mark.parametrize(
    "name, page", [("quickstart", "README.md"), ("objectives", "docs/objectives.md"), ("iterated", "docs/online.md")]
)
def test_results_in_a_document_are_those_of_results_json(name, page, own_path):
    run = load(name)
    place = (ROOT / page).read_text(encoding="utf-8").partition(run.BEGIN)[2].partition(END)[0].strip()
    path = ROOT / f"experiments/{name}/results/results.json"
    assert place == (run.markdown(run.json.loads(path.read_text())).strip() if path.is_file() else "Not run yet.")


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    pattern = re.search(r"grep -m1 '(.+?)' README.md", script.read_text(encoding="utf-8")).group(1)
    found = [line for line in README.splitlines() if re.search(pattern, line)]
    assert found == ["pip install -e '.[test]' && pytest"]
    assert 'eval "$tests"' in script.read_text(encoding="utf-8")


def test_setup_has_the_extras_of_the_guide():
    table = re.findall(r"^\| `(\w+)` \|", GUIDES["docs/install.md"], re.MULTILINE)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert table == re.findall(r'^        "(\w+)": \[', setup, re.MULTILINE)
