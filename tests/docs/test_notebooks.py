"""Every notebook runs from top to bottom, and holds no outputs in the repository."""

import math
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# What a reader must see, as code that runs in a last cell of its own.
CLAIMS = {
    "01_alignment_is_a_function.ipynb": f"""
assert abs(float(at_start) - {math.log(2)}) < 1e-6
assert jnp.allclose(push_BT, jnp.array([[0.0, -0.05, -0.05, -0.05]]), atol=1e-6)  # -beta sigmoid(0) per reply token
assert abs(history[0]["objective/kl"]) < 1e-5 and abs(history[0]["val/ratio_first"] - 1) < 1e-5
assert score[-1] > max(score[:5]) + 1 and kl[-1] > 1  # the reward rose, and was paid for in KL
"""
}


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return request.param, nbformat.read(FOLDER / request.param, as_version=4)


def test_notebook_has_claims(notebook):
    assert notebook[0] in CLAIMS


def test_notebook_is_stripped(notebook):
    cells = [cell for cell in notebook[1].cells if cell.cell_type == "code"]
    assert cells and not [cell.source for cell in cells if cell.outputs or cell.execution_count]


def test_notebook_runs_and_shows_what_it_says(notebook):
    name, nb = notebook
    nb.cells.append(nbformat.v4.new_code_cell(CLAIMS[name]))
    client = nbclient.NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    client.execute()  # raises CellExecutionError with the cell and its traceback
    shown = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2  # both plots
