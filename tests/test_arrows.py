"""The arrows between the rooms: which module may import which, read from the source, function bodies included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "alignax"

# room -> what it may import of alignax, besides itself. A name stands for a module or for all of a package; a module
# with a row of its own is no part of its room.
FREE = {"config", "log"}  # checked keys and scalars on disk: they know no room
ALLOWED = {
    "config": set(),
    "log": set(),
    "types": set(),  # the records are the ground
    "ops": {"types"},
    "host": set(),  # what differs between processes
    "bound": {"config", "ops"},  # functions with their settings
    "losses": {"types", "ops"},  # a loss gets a record of arrays and never runs a model
    "rounds": {"config"},  # configs in, configs out
    "catalogue": {"config", "losses"},  # reads signatures and docstrings
    "models": {"types", "host"},
    "lora": {"types"},  # trees of parameters
    "replies": {"types"},  # a model comes as an argument
    "forward": {"types", "ops", "replies"},
    "sharding": {"types", "host"},  # path rules and names: no room's insides
    "manifest": FREE,  # JSON and hashes
    "lineage": {"manifest"},
    "checkpoint": {"manifest", "host", "log"},  # a tree of arrays, whatever it means
    "data": {"types"},
    "sampling": {"types", "ops", "data", "host"},  # what ends a reply, and how it is read
    "rewards": {"config", "bound", "types", "ops", "forward", "models"},
    # asks another process, in threads and with a time limit, as host rewards do
    "sampling.engine": {"types", "ops", "bound", "rewards.workers", "sampling"},
    # dialogues on the host around the programs of `sampling.turns`; in threads and with a time limit, as host rewards
    "envs": {"config", "types", "ops", "data", "sampling", "rewards"},
    "evals": {"types", "ops", "forward", "sampling"},
    # model and loss are arguments
    "train": {"types", "ops", "bound", "forward", "replies", "sampling", "sharding", "data", "checkpoint", "log"},
    "worlds": {"data.counts"},  # text and its gold reward; rows are counted like those of any source
    "report": {"log"},  # reads the files of a run folder, whoever wrote them
    "report.experiment": {"log", "manifest"},  # the hash of a config stands beside figures
    "stages": {
        *FREE, "host", "bound", "types", "ops", "losses", "models", "lora", "forward", "sampling", "rewards", "envs",
        "sharding", "manifest", "checkpoint", "data", "evals", "train", "worlds",
    },  # the only meeting place
    # folders of others; its export loads a checkpoint as stages do
    "interop": {*FREE, "host", "types", "models", "sharding", "manifest", "data", "stages.parents", "stages.lengths"},
    # the one stage that reads them
    "stages.imported": {*FREE, "host", "bound", "models", "manifest", "data", "stages", "interop"},
    # the stage that may write its weights for another program
    **dict.fromkeys(
        ("stages.outside", "stages.online"),
        {
            *FREE, "host", "bound", "types", "ops", "lora", "forward", "sampling", "sampling.engine", "rewards",
            "sharding", "data", "train", "stages", "stages.outside", "interop",
        },
    ),
    "planning": {*FREE, "host", "models", "sharding", "manifest", "data", "stages"},  # asks stages what they compile
    "serving": {"config", "ops", "data", "sampling", "stages.playground"},  # a finished policy, for people and programs
    "main": {
        *FREE, "host", "stages", "stages.imported", "interop", "report", "lineage", "catalogue", "manifest", "data",
        "train", "serving", "planning",
    },  # their errors
}  # fmt: skip


def imports(source):
    """Every module that a source names in an import, with the line; `from a import b` is both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides its room"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(module):
    """The row of the table that a module, named without `alignax`, is of."""
    rows = [name for name in ALLOWED if f"{module}.".startswith(f"{name}.")]
    return max(rows, key=len, default=module)


def violations(room, source):
    """The imports of a room's source that its row of the table does not allow, and flax outside of models."""
    allowed = ALLOWED[room] | {room}
    for line, module in imports(source):
        top, _, rest = module.partition(".")
        if top == "flax" and room != "models":
            yield f"line {line}: {module}, which only models/ imports"
        arrows = [name for name in allowed if f"{name}.".startswith(f"{room_of(rest)}.")]
        inside = rest == "__version__" or any(f"{rest}.".startswith(f"{name}.") for name in arrows)
        if top == "alignax" and rest and not inside:
            yield f"line {line}: {module} is no arrow of {room}"


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    assert list(violations(room_of(name_of(path)), path.read_text())) == []


def test_the_table_names_every_room_and_no_other():
    assert {room_of(name_of(path)) for path in FILES} == set(ALLOWED)


def test_the_arrows_have_no_circle():
    order = list(ALLOWED)
    assert all(order.index(name.split(".")[0]) < order.index(room) for room in order for name in ALLOWED[room])


@pytest.mark.parametrize(
    "room, source",
    [
        ("losses", "from alignax import forward"),
        ("losses", "from alignax.models.decoder import decoder"),
        ("train", "def f():\n    from alignax.losses.dpo import dpo"),
        ("train", "import alignax.stages.sft"),
        ("report", "from alignax.manifest import read_manifest"),
        ("worlds", "from alignax.data.encode import pad"),
        ("types", "from alignax.ops import masked"),
        ("ops", "from alignax.opsx import thing"),
        ("sampling", "import flax.linen as nn"),
        ("evals", "from alignax.stages import probe"),
        ("stages", "from alignax.interop.export import export"),
        ("stages", "from alignax.stages import imported"),
        ("interop", "from alignax.stages import common"),
    ],
)
def test_a_forbidden_import_is_found(room, source):
    assert len(list(violations(room, source))) == 1


def test_an_allowed_import_is_not_found():
    source = "import flax\nfrom alignax import types\nfrom alignax.models.config import ModelConfig\nimport alignax\n"
    assert list(violations("models", source)) == []
    assert list(violations("worlds", "from alignax.data.counts import Counts")) == []
