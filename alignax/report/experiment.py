"""What the scripts under experiments/ share: their options, table cells, and where results are written."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

import alignax
from alignax.log import plain_json, replace_file
from alignax.manifest import config_hash

END = "<!-- /results -->"


def cell(value: dict | None, decimals: int) -> str:
    """'1.23 [1.10, 1.36]'; a dash where it was not measured."""
    if value is None:
        return "-"
    interval = f" [{', '.join(f'{end:.{decimals}f}' for end in value['ci95'])}]" if value["ci95"] else ""
    return f"{value['mean']:.{decimals}f}{interval}"


def write_into(path: Path, begin: str, text: str) -> None:
    """Puts a table between its mark and END. Raises ValueError if the page has not exactly one such place."""
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1:
        raise ValueError(f"{path}: {page.count(begin)} places marked {begin}, expected one, with {END} after it")
    before, _, rest = page.partition(begin)
    if END not in rest:
        raise ValueError(f"{path}: no {END} after {begin}")
    replace_file(path, f"{before}{begin}\n{text}{END}{rest.partition(END)[2]}")


def options(doc: str, root: Path, here: Path) -> argparse.ArgumentParser:
    """The command line of an experiment over seeds; `here` is its folder, `root` the repository."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=root / "runs", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=here / "results", help="folder of the results")
    parser.add_argument("--readme", type=Path, default=root / "README.md", help="where --write-readme writes")
    parser.add_argument("--write-readme", action="store_true", help="put the table into the README as well")
    return parser


def publish(args: argparse.Namespace, begin: str, found: dict, text: str) -> None:
    """Writes results.json and results.md, the README if asked, and prints the table."""
    args.out.mkdir(parents=True, exist_ok=True)
    replace_file(args.out / "results.json", json.dumps(found, indent=1) + "\n")
    replace_file(args.out / "results.md", text)
    if args.write_readme:
        write_into(args.readme, begin, text)
    Console().print(Markdown(text))


def run_seed(root: Path, config: str, seed: int, folder: Path) -> None:
    """Runs a pipeline of the repository `root` with a seed. It goes on where it was stopped, and does no step again
    that is finished with the same config."""
    command = ["run", f"--config={config}", f"--config.seed={seed}", f"--workdir={folder.resolve()}"]
    subprocess.run([sys.executable, "-m", "alignax.main", *command], cwd=root, check=True)


def made_with() -> dict[str, str | int | None]:
    """The versions and the cores that figures were made with."""
    versions = {"python": platform.python_version(), "jax": version("jax"), "alignax": alignax.__version__}
    return versions | {"cpu_count": os.cpu_count()}


def of_seeds(here: Path, config: str, effective: Mapping, runs: Mapping[int, dict], **found: Any) -> dict[str, Any]:
    """What goes into results.json of the experiment in a folder, whose config, its file and what it says, was run with
    several seeds. No path of this machine."""
    head = {
        "command": f"python experiments/{here.name}/run.py --seeds {' '.join(map(str, runs))}",
        "config": config,
        "config_hash": config_hash(plain_json(effective)),
        "seeds": list(runs),
    }
    return head | made_with() | found | {"per_seed": {str(seed): run for seed, run in runs.items()}}


def versions(found: dict) -> str:
    """'alignax 0.1.0, JAX 0.10.2, Python 3.11.7' of results, with the config's hash where they have one."""
    config = f", config {found['config_hash'][:12]}" if "config_hash" in found else ""
    return f"alignax {found['alignax']}, JAX {found['jax']}, Python {found['python']}{config}"
