"""Every notebook runs from top to bottom, and holds no outputs in the repository."""

import math
import re
import shlex
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from alignax.config import plain
from alignax.main import load_config, parser
from alignax.stages.plans import made

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# What a reader must see, as code that runs in a last cell of its own.
CLAIMS = {
    "01_alignment_is_a_function.ipynb": f"""
assert score_I[0] < 0.1 < 0.9 < score_I[-1] and score_CI[0, -1] > 0.9 > 0.2 > score_CI[3, -1]  # the KL costs reward
assert abs(float(at_start) - {math.log(2)}) < 1e-6
assert jnp.allclose(push_BT, jnp.array([[0.0, -0.05, -0.05, -0.05]]), atol=1e-6)  # -beta sigmoid(0) per reply token
assert abs(history[0]["objective/kl"]) < 1e-5 and abs(history[0]["val/ratio_first"] - 1) < 1e-5
assert score[-1] > max(score[:5]) + 1 and kl[-1] > 1  # the reward rose, and was paid for in KL
""",
    "02_write_your_own_objective.ipynb": f"""
assert abs(float(push(ref_logp_2BT, 0.0)[0]) - {math.log(2)}) < 1e-6  # at policy = reference, q = 0: DPO
assert abs(float(by_margin(gce, q=1.0)(jnp.zeros(1))[0][0]) - 0.5) < 1e-6  # q = 1: the probability of error
far_N = jnp.array([-25.0])  # a hopeless pair: DPO pulls with all of beta = 0.5, the bounded loss has let go
assert by_margin(dpo)(far_N)[1][0] < -0.499 and -1e-5 < by_margin(gce, q=1.0)(far_N)[1][0] < 0
assert given_Q.min() > 0.72 and given_Q[0] > given_Q[-1] + 0.02  # all learn wrong labels, DPO most
assert accuracy_NQ[-1, 3] > accuracy_NQ[-1, 0] + 0.02  # which costs it held-out accuracy
assert (np.diff(drift_NQ[-1]) > 0.3).all()  # the larger q, the more drift
assert abs(alone - accuracy_NQ[-1, best]) < 0.02 and abs(drift / drift_NQ[-1, best] - 1) < 0.05  # a lane is a run
assert best > 0
""",
}
PLOTS = {"01_alignment_is_a_function.ipynb": 3, "02_write_your_own_objective.ipynb": 2}


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return request.param, nbformat.read(FOLDER / request.param, as_version=4)


def test_notebook_has_claims(notebook):
    assert notebook[0] in CLAIMS


def test_notebook_begins_with_the_17_lines_of_the_readme():
    cells = nbformat.read(FOLDER / NOTEBOOKS[0], as_version=4).cells
    _, first, *_ = [cell.source for cell in cells if cell.cell_type == "code"]
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert first.replace("  # noqa: E731", "") in readme and "def ppo(" in first


def test_notebook_is_stripped(notebook):
    cells = [cell for cell in notebook[1].cells if cell.cell_type == "code"]
    assert cells and not [cell.source for cell in cells if cell.outputs or cell.execution_count]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_shows_what_it_says(name):
    nb = nbformat.read(FOLDER / name, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell(CLAIMS[name]))
    client = nbclient.NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    client.execute()  # raises CellExecutionError with the cell and its traceback
    shown = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == PLOTS[name]


def test_commands_of_a_notebook_pass_every_check_before_a_run(notebook, monkeypatch, tmp_path):
    """A cell that begins with `# name.py` is that file."""
    files = [c.source for c in notebook[1].cells if c.cell_type == "code" and re.match(r"# \w+\.py\n", c.source)]
    texts = "\n".join(c.source for c in notebook[1].cells if c.cell_type == "markdown")
    commands = re.findall(r"^alignax run (.+)$", texts, re.MULTILINE)
    assert bool(files) == bool(commands)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for source in files:
        (tmp_path / source.split("\n")[0].removeprefix("# ")).write_text(source, encoding="utf-8")
    try:
        for command in commands:
            args, overrides = parser().parse_known_args(["run", *shlex.split(command)])
            made(plain(load_config(str(FOLDER.parent / args.config), overrides)))
    finally:
        for source in files:
            sys.modules.pop(source.split("\n")[0].removeprefix("# ").removesuffix(".py"), None)
