"""The command line: help with examples, overrides that reach the config, errors without a traceback."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from errors import refuses

import alignax.losses
import alignax.stages.pipeline
from alignax import main as cli
from alignax.catalogue import describe, paper
from alignax.config import ConfigError
from alignax.losses.dpo import dpo
from alignax.main import load_config, main
from alignax.train.loop import NonFinite
from alignax.types import Demo, Loss, Pair

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.py")


COMMANDS = ("run", "data", "lineage", "report", "sample", "chat", "serve", "losses")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    for name in command or COMMANDS:
        assert re.search(rf"^  alignax {name}\b", out, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run"],
        ["data"],
        ["sample"],
        ["chat"],
        ["serve", "runs/x", "--port=http"],
        ["lineage"],
        ["report", "runs/x", "--deep"],
        ["losses", "a", "b"],
    ],  # fmt: skip
)
def test_a_command_that_is_not_one_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: alignax" in capsys.readouterr().err


def test_an_argument_of_a_part_of_a_mixture_may_be_given():
    file = Path(__file__).parents[1] / "configs/hh/mixture.py"
    c = cli.load_config(str(file), ["--config.data.parts.gsm8k.heldout_percent=5.0"])
    assert c.data.parts.gsm8k.heldout_percent == 5.0


def test_overrides_reach_the_config_with_their_types():
    overrides = ["--config.dpo.loss_args.beta=0.5", "--config.sft.total_steps=7", "--config.ppo.loss=my.module:loss"]
    config = load_config(QUICKSTART, overrides)
    assert (config.dpo.loss_args.beta, config.sft.total_steps, config.ppo.loss) == (0.5, 7, "my.module:loss")
    assert load_config(QUICKSTART, []).dpo.loss_args.beta != 0.5  # the file is read anew each time


def test_an_argument_that_the_file_leaves_at_its_default_can_be_given():
    overrides = [
        "--config.ppo.scoring_args.clip=2.5",
        "--config.ppo.kl_controller_args.target=3",
        "--config.sft.seed=4",
    ]
    config = load_config(QUICKSTART, overrides)
    assert (config.ppo.scoring_args.clip, config.ppo.kl_controller_args.target, config.sft.seed) == (2.5, 3, 4)


def test_a_reference_follows_its_override():
    """The seed of every step, and the preferences that lie beside the policy."""
    config = load_config(QUICKSTART, ["--config.seed=3"])
    assert {config[name].seed for name in config.steps} == {3}
    config = load_config(str(CONFIGS / "world/dpo.py"), ["--config.init_from=elsewhere/sft"])
    assert config.data.path == "elsewhere/sft/../collect"


@pytest.mark.parametrize(
    "overrides, key, word",
    [
        (["--config.dpo.batch_sise=4"], "--config.dpo.batch_sise", "'dpo.batch_size'"),
        (["--config.dop.batch_size=4"], "--config.dop.batch_size", "'dpo.batch_size'"),
        (["--config.sft.total_steps=many"], "--config.sft.total_steps=many", "int"),
        (["--workdirr=x"], "'--workdirr=x'", "--workdir=DIR"),
        (["stray"], "'stray'", "--config.KEY=VALUE"),
    ],
)
def test_an_override_that_cannot_be_names_itself(overrides, key, word):
    with refuses(ConfigError, key, word):
        load_config(QUICKSTART, overrides)


def test_a_file_without_get_config_is_named(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections loads into the module of before
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with refuses(ConfigError, str(path), "get_config"):
        load_config(str(path), [])


def test_a_config_may_import_its_parent_from_anywhere(tmp_path):
    """The folder above configs/ is on the path, whatever the folder in which the command is given."""
    (tmp_path / "configs").mkdir()
    child = tmp_path / "configs/child.py"
    change = "    c = sft.get_config()\n    c.total_steps = 3\n    return c\n"
    child.write_text(f"from configs.world import sft\n\n\ndef get_config():\n{change}")
    code = f"from alignax.main import load_config; print(load_config({str(child)!r}, []).total_steps)"
    env = {"PYTHONPATH": str(CONFIGS.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.strip() == "3", done.stderr


def test_the_folder_of_a_run_is_named_after_its_config(monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alignax.stages.pipeline, "run", lambda config, workdir: seen.append(workdir))
    monkeypatch.setattr("alignax.report.page.render", lambda workdir: workdir)
    monkeypatch.setattr("alignax.report.table.table", lambda workdir: "")
    assert main(["run", f"--config={QUICKSTART}"]) == 0
    assert main(["run", f"--config={QUICKSTART}", "--workdir=elsewhere"]) == 0
    assert seen == [Path("runs/quickstart"), Path("elsewhere")]


@pytest.mark.parametrize(
    "error, status",
    [(NonFinite("step 3: loss is nan"), 1), (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)],
)
def test_what_the_user_can_mend_is_one_message_on_stderr(error, status, monkeypatch, capsys):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(cli, "command_run", fail)
    assert main(["run", "--config=x"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("alignax: ") and "Traceback" not in err


def test_a_check_of_alignax_is_a_message_and_a_bug_is_a_traceback(monkeypatch, capsys):
    from alignax.ops.checks import require

    monkeypatch.setattr(cli, "command_run", lambda *arguments: require(False, "beta = -1: expected > 0"))
    assert main(["run", "--config=x"]) == 1
    assert capsys.readouterr().err == "alignax: beta = -1: expected > 0\n"

    def bug(*arguments):
        raise ValueError("shapes (3,) and (4,) do not match")

    monkeypatch.setattr(cli, "command_run", bug)
    with pytest.raises(ValueError, match="do not match"):
        main(["run", "--config=x"])


def test_the_command_is_quick_to_answer():
    """--help and usage errors do not wait for jax or transformers."""
    code = "import sys, alignax.main as m; m.parser(); print({'jax', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_losses_lists_every_objective_with_its_record_settings_paper_and_use(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    files = sorted(path.stem for path in Path(alignax.losses.__path__[0]).glob("*.py") if path.stem != "__init__")
    assert [name for name in files if not re.search(rf"^ {name} ", out, re.MULTILINE)] == []
    (row,) = (line for line in out.splitlines() if line.startswith(" dpo "))
    assert re.split(r"\s{2,}", row.strip())[:4] == ["dpo", "Pair", "beta=0.1", "Rafailov et al. 2023"]
    assert "label_smoothing=0.0" in out and "estimator='k2'" in out and "you have replies to imitate." in out


def test_losses_of_a_name_prints_its_docstring(capsys):
    assert main(["losses", "dpo"]) == 0
    assert capsys.readouterr().out == inspect.getdoc(dpo) + "\n"
    assert main(["losses", "ddpo"]) == 1
    assert "there is no loss 'ddpo'; did you mean 'dpo'?" in capsys.readouterr().err


def test_the_catalogue_reads_signature_and_docstring():
    def mine(pair: Pair, *, beta: float = 0.3) -> Loss:
        """L = beta h, as Doe & Roe 2021 (2101.00001) say.

        Not as Poe et al. 2020.
        Use when nothing else will do.
        """

    doc = inspect.getdoc(mine)
    assert describe(mine) == ("mine", "Pair", "Doe & Roe 2021 2101.00001", {"beta": 0.3}, "nothing else will do.", doc)

    def bare(demo: Demo) -> Loss:
        """L = 0. Use when in the middle is not the last line.

        Another line.
        """

    assert describe(bare)[:5] == ("bare", "Demo", "", {}, "")


@pytest.mark.parametrize(
    "text, want",
    [
        (
            "(Rafailov et al. 2023, equation 7). e > 0 is another's (Chowdhury et al., 2403.00409).",
            "Rafailov et al. 2023",
        ),
        ("Touvron et al. 2023 (Llama 2, 2307.09288), equation 2", "Touvron et al. 2023 2307.09288"),
        ("Azar et al. (2023), 2310.12036", "Azar et al. 2023 2310.12036"),
        ("Pal et al.\n    2024, Smaug, 2402.13228", "Pal et al. 2024 2402.13228"),
        ("Mitchell 2023; Doe et al. 2024, 2401.00001", "Mitchell 2023"),
        ("arXiv 2511.20347", "2511.20347"),
        ("no source at all", ""),
    ],
)
def test_the_paper_is_the_first_citation(text, want):
    assert paper(text) == want
