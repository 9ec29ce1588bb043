"""The command line: run | plan | data | lineage | report | sample | chat | serve | import | export | losses."""

import argparse
import ast
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from alignax.serving import arguments

EXAMPLES = """examples:
  alignax run --config=configs/quickstart.py
      SFT, preferences, reward model, PPO and DPO on the embedded world, with a report at the end
  alignax run --config=configs/world/dpo.py --config.init_from=runs/quickstart/sft --config.loss_args.beta=0.5
      one stage from a checkpoint, one value changed
  alignax data --config=configs/world/sft.py --rows=2 --html=data.html
      what the model will see: rows as tokens with their loss mask, lengths, what is dropped and why, duplicates
  alignax plan --config=configs/quickstart.py --topology=v5e:4x4
      memory, FLOPs and time of every program on TPUs that are not there (pip install 'alignax[plan]')
  alignax lineage runs/quickstart
      which checkpoint was made from which
  alignax report runs/quickstart
      writes the HTML report again
  alignax sample runs/quickstart/ppo "mara asks : the harbor cafe has tea . wants tea and cake ."
      completions of a checkpoint
  alignax sample runs/ppo --prompts-file=prompts.txt --n=4 --out=completions.jsonl
      of many prompts, into a file
  alignax chat runs/qwen --system="You are brief." --temperature=0.7
      a dialogue in the terminal
  alignax serve runs/qwen --port=8000
      OpenAI's completions and chat at http://127.0.0.1:8000/v1
  alignax import Qwen/Qwen2.5-0.5B runs/qwen
      a checkpoint of Hugging Face's format, as the policy (or reward model) that other stages start from
  alignax import OWNER/ADAPTER runs/adapted --base=runs/qwen
      an adapter of peft's format, on a checkpoint that is there
  alignax export runs/quickstart/ppo exported
      a folder that transformers loads
  alignax export runs/adapted adapter --adapter
      an adapter alone, as a folder that peft loads
  alignax losses
      every objective with its record, paper and settings; `alignax losses dpo` says all about one
"""


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(
        prog="alignax", description="Alignment of language models in JAX.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLES}
    run = commands.add_parser("run", help="run an experiment config: a stage or a pipeline", allow_abbrev=False, **raw)
    run.add_argument("--config", required=True, help="a Python file with get_config()", metavar="FILE")
    run.add_argument("--workdir", help="folder of the results (default: runs/<name of the config file>)")
    several = run.add_argument_group(
        "several processes", "found by themselves on a Cloud TPU, under Slurm and Open MPI"
    )
    several.add_argument("--coordinator", default="", help="HOST:PORT of the first process", metavar="HOST:PORT")
    several.add_argument("--process_count", type=int, default=0, help="how many there are", metavar="N")
    several.add_argument("--process_id", type=int, default=-1, help="which one this is, from 0", metavar="I")
    run.usage = "alignax run --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]"
    data = commands.add_parser("data", help="show what a config's model will see", allow_abbrev=False, **raw)
    data.add_argument("--config", required=True, help="a Python file with get_config()", metavar="FILE")
    data.add_argument("--workdir", help="where '@step' is looked for (default: as of run)")
    data.add_argument("--rows", type=int, default=5, help="how many to show of each stage (default 5)")
    data.add_argument("--tokenizer", default="", help="instead of the stage's own: folder, hub name or module:function")
    data.add_argument("--html", help="write a page as well", metavar="OUT.html")
    data.usage = "alignax data --config=FILE [--config.KEY=VALUE ...] [--rows=5] [--html=OUT.html] [--tokenizer=FOLDER]"
    ahead = commands.add_parser("plan", help="what a config takes on another machine", allow_abbrev=False, **raw)
    ahead.add_argument("--config", required=True, help="a Python file with get_config()", metavar="FILE")
    ahead.add_argument("--topology", required=True, help="v5p:4x4x4, v5e:16x16, v6e:16x16, h100:8, cpu:8, ...")
    ahead.add_argument("--model", default="", help="folder with the config.json of parents that are not there")
    ahead.add_argument("--json", default="", help="write the numbers as well", metavar="OUT.json")
    ahead.usage = (
        "alignax plan --config=FILE --topology=KIND:SHAPE [--model=FOLDER] [--json=OUT] [--config.KEY=VALUE ...]"
    )
    tree = commands.add_parser("lineage", help="print the family tree of a run's checkpoints", **raw)
    tree.add_argument("run", help="folder of a stage or a pipeline")
    report = commands.add_parser("report", help="write the HTML report of a run", **raw)
    report.add_argument("run", help="folder of a stage or a pipeline")
    arguments.add(commands, raw)
    bring = commands.add_parser("import", help="make a checkpoint from Hugging Face's format", **raw)
    bring.add_argument("source", help="folder with config.json and safetensors, or OWNER/NAME on the hub")
    bring.add_argument("out", help="folder of the new checkpoint")
    bring.add_argument("--revision", default="", help="branch, tag or commit on the hub")
    bring.add_argument("--tokenizer", default="", help="folder or hub name (default: the one beside the weights)")
    bring.add_argument("--base", default="", help="for an adapter of peft's: the finished checkpoint it stands on")
    bring.add_argument("--trust-base", action="store_true", help="the adapter's name for its base is not compared")
    give = commands.add_parser("export", help="write a checkpoint in Hugging Face's format", **raw)
    give.add_argument("checkpoint", help="folder of a finished policy or reward model")
    give.add_argument("out", help="new folder")
    give.add_argument("--dtype", default="", help="float32, bfloat16 or float16 (default: as imported, else float32)")
    give.add_argument("--family", default="", help="model_type (default: as imported, else the first that fits)")
    give.add_argument("--adapter", action="store_true", help="the adapter alone, in peft's format (default: merged)")
    give.add_argument("--base-name", default="", help="with --adapter: what to call its base (default: as imported)")
    give.add_argument("--untied", action="store_true", help="the output layer too, where it is the embedding")
    losses = commands.add_parser("losses", help="list the objectives, or explain one", **raw)
    losses.add_argument("name", nargs="?", default="", help="print the whole description of this one")
    return top


def load_config(path: str, overrides: list[str]):
    """The ConfigDict of a config file, with `--config.key=value` overrides of the types of what they replace."""
    from absl import flags
    from ml_collections import config_flags

    from alignax.config import ConfigError, is_args, suggest

    file = Path(path.split(":")[0])
    if not file.is_file():
        raise ConfigError(f"--config={path}: no such file; configs that come with alignax are in configs/")
    for item in overrides:
        if not item.startswith("--config."):
            raise ConfigError(f"{item!r}: expected --config.KEY=VALUE, --workdir=DIR, or --help")
    # a config may import its parent: from the folder that holds configs/, and from where the command is given
    sys.path[:0] = [str(Path.cwd()), *(str(p.parent.resolve()) for p in file.resolve().parents if p.name == "configs")]
    added = [item for item in overrides if is_args(item.removeprefix("--config.").split("=")[0].rpartition(".")[0])]
    if added:  # an argument that the file leaves at its default is no key of the file
        known = keys_of(load_config(path, []))
        added = [item for item in added if item.removeprefix("--config.").split("=")[0] not in known]
        overrides = [item for item in overrides if item not in added]
    values, argv = flags.FlagValues(), ["alignax", f"--config={path}", *overrides]
    # the flag reads its overrides from sys.argv unless told otherwise, and here the command may come from elsewhere
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=False, sys_argv=argv)
    try:
        values(argv)
        for item in added:
            key, _, text = item.removeprefix("--config.").partition("=")
            group = values.config
            *path_to, name = key.split(".")
            for part in path_to:
                group = group[part]
            group.unlock()
            group[name] = literal(text)
        return values.config
    except (flags.Error, TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        for item in overrides:
            key, known = item.removeprefix("--config.").split("=")[0], keys_of(load_config(path, []))
            if key.split("[")[0] not in known:
                beside = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
                raise ConfigError(f"--config.{key}: no such key{suggest(key, beside or known)}") from None
        raise ConfigError(f"--config={path} {' '.join(overrides)}: {error}") from error


def literal(text: str):
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def keys_of(config, prefix: str = "") -> list[str]:
    """Every dotted key of a ConfigDict."""
    out = []
    for name in config:
        value = config[name]
        out += [prefix + name] + (keys_of(value, f"{prefix}{name}.") if hasattr(value, "to_dict") else [])
    return out


def command_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs, then prints the end table and writes the report."""
    from alignax import host

    if line := host.start(coordinator=args.coordinator, process_count=args.process_count, process_id=args.process_id):
        print(line, file=sys.stderr)  # before anything else of JAX
    config = load_config(args.config, overrides)
    from rich.console import Console

    from alignax.report.page import render
    from alignax.report.table import table
    from alignax.stages import pipeline

    workdir = workdir_of(args)
    with host.heeding_stops():
        pipeline.run(config, workdir)
    if not host.is_first():
        return
    console = Console()
    if "steps" in config:
        console.print(table(workdir))
        console.print(f"numbers: {workdir / 'summary.json'}", soft_wrap=True)
    console.print(f"report:  {render(workdir)}", soft_wrap=True)


def workdir_of(args: argparse.Namespace) -> Path:
    """The folder of the results."""
    file, _, argument = args.config.partition(".py:")  # what a config file may take after a colon
    return Path(args.workdir or Path("runs") / "-".join(filter(None, (Path(file).stem, argument))))


def command_plan(args: argparse.Namespace, overrides: list[str]) -> int:
    """Plans every program of a config; 1 if something does not fit."""
    from alignax.planning.chips import topology

    there = topology(args.topology)
    config = load_config(args.config, overrides)
    from alignax.planning import plan

    return plan.command(args, config, there)


def command_data(args: argparse.Namespace, overrides: list[str]) -> int:
    """Shows the data of every stage of a config; 1 if those of one cannot be used."""
    config = load_config(args.config, overrides)
    from rich.console import Console

    from alignax.config import ConfigError
    from alignax.report.preview import render, terminal
    from alignax.stages.preview import preview

    if args.rows < 0:
        raise ConfigError(f"--rows={args.rows}: expected 0 or more")
    if args.html:
        Path(args.html).parent.mkdir(parents=True, exist_ok=True)  # before all the work
    sections = preview(config, rows=args.rows, tokenizer=args.tokenizer, workdir=workdir_of(args))
    Console().print(terminal(sections), soft_wrap=False)
    if args.html:
        print(f"page: {render(sections, args.html)}")
    return int(any("error" in section for section in sections))


def command_import(args: argparse.Namespace) -> None:
    """Imports a checkpoint, as the stage of that name does."""
    from alignax.stages import imported

    config = imported.get_config()
    config.path, config.revision, config.tokenizer = args.source, args.revision, args.tokenizer
    config.base, config.trust_base = args.base, args.trust_base
    imported.run(config, args.out)


def command_export(args: argparse.Namespace) -> None:
    """Exports a checkpoint, or an adapter alone."""
    from alignax.config import ConfigError
    from alignax.interop.export import export, export_adapter

    if args.adapter and args.untied:
        raise ConfigError("--untied: an adapter has no output layer of its own; leave out --adapter")
    if args.adapter:
        options = {"dtype": args.dtype or "float32", "family": args.family, "base_name": args.base_name}
        print(export_adapter(args.checkpoint, args.out, **options))
    elif args.base_name:
        raise ConfigError(f"--base-name={args.base_name}: a merged export has no base; add --adapter")
    else:
        print(export(args.checkpoint, args.out, dtype=args.dtype, family=args.family, untied=args.untied))


def command_losses(name: str) -> None:
    """Prints the description of one objective, or a table of all."""
    from alignax.catalogue import names, objective

    if name:
        print(objective(name).doc)
        return
    import rich.box
    import rich.table
    from rich.console import Console
    from rich.text import Text

    out = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("loss", "record", "settings", "paper", "use when"):
        out.add_column(column, no_wrap=column in ("loss", "record"))
    for one in map(objective, names()):
        settings = "\n".join(f"{key}={value!r}" for key, value in one.arguments.items())
        out.add_row(*map(Text, (one.name, one.record, settings, one.paper, one.use)))  # Text: brackets are no markup
    Console().print(out)


def raised_here(error: Exception) -> bool:
    """Whether a check of alignax raised the error, so that its message is for people; all others are bugs."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(__file__).parent)


def with_huge_pages() -> None:
    """Starts this program again with huge pages for the C library's heap, where that has to be asked for at the start.

    XLA on CPU takes its working memory anew in every step, and a quarter of a small model's step goes into page faults
    (benchmarks/steps.py). Numbers do not change. Any setting of GLIBC_TUNABLES by the user is left as it is.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, "-m", "alignax.main", *sys.argv[1:]])


def main(argv: list[str] | None = None) -> int:
    """Entry point. Errors that the user can mend are printed as one message; exit status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there, and need not be
    args, rest = parser().parse_known_args(argv)
    if argv is None and args.command == "run":
        with_huge_pages()
    if rest and args.command not in ("run", "data", "plan"):
        parser().error(f"unexpected arguments: {' '.join(rest)}")
    from alignax.config import ConfigError
    from alignax.data.counts import DataError
    from alignax.host import RETRY, Elsewhere, Stopped
    from alignax.manifest import CheckpointError
    from alignax.report.folder import ReportError
    from alignax.train.alarms import Alarmed
    from alignax.train.loop import NonFinite

    try:
        if args.command == "run":
            command_run(args, rest)
        elif args.command == "data":
            return command_data(args, rest)
        elif args.command == "plan":
            return command_plan(args, rest)
        elif args.command == "lineage":
            from alignax.lineage import lineage

            print(lineage(args.run))
        elif args.command == "report":
            from alignax.report.page import render

            print(render(args.run))
        elif args.command == "losses":
            command_losses(args.name)
        elif args.command == "import":
            command_import(args)
        elif args.command == "export":
            command_export(args)
        else:
            import_module(f"alignax.serving.{args.command}").command(args)
    except (ConfigError, DataError, CheckpointError, Elsewhere, ReportError, NonFinite, Alarmed, OSError) as error:
        print(f"alignax: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        if not raised_here(error):
            raise
        print(f"alignax: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(f"alignax: {stop.said}", file=sys.stderr)
        return RETRY
    except KeyboardInterrupt:
        print("alignax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
