"""One HTML page of a run, with everything inside it: opens without a network, can be mailed, is the same each time."""

import json
import os
from pathlib import Path

import jinja2
from markupsafe import Markup

from alignax.report import lineage, plots, samples, table
from alignax.report.folder import Run, is_number, label, read_run
from alignax.report.readings import readings
from alignax.report.template import PAGE


def render(workdir: str | Path) -> Path:
    """Writes `<workdir>/report.html` and returns its path. Raises ReportError if there is nothing to show."""
    run = read_run(workdir)
    return write(run.path / "report.html", html(run))


def write(out: Path, page: str) -> Path:
    """Writes a page as a whole or not at all; returns its path."""
    partial = out.with_suffix(".html.tmp")
    # a tokenizer can make half a surrogate pair, which UTF-8 cannot hold
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, out)
    return out


def html(run: Run) -> str:
    """The page's text. Every text is escaped by the template; only the pictures enter as markup."""
    header, rows = table.cells(run)
    return (
        environment()
        .from_string(PAGE)
        .render(
            run=run,
            name=run.path.resolve().name,
            title=table.title(run),
            version=next((given for stage in run.stages if (given := (stage.manifest or {}).get("alignax"))), None),
            header=header,
            rows=list(zip(run.policies or [None] * len(rows), rows)),
            reward_model=table.reward_model_line(run),
            readings=readings(run),
            colours=plots.colours(_policies(run)),
            pictures=_pictures(run),
            curves=[(stage, curves) for stage in run.stages if (curves := _markup(plots.learning_curves(stage)))],
            samples=samples.choose(run),
            watched=[stage for stage in run.stages if stage.alarms or (stage.config or {}).get("alarms")],
            tree=lineage.tree(run),
            marks={"up": "▲", "down": "▼", "open": "○", "note": "·"},
            state=table.state,
            final_values=table.final_values,
            wall=_wall(run),
        )
    )


def environment() -> jinja2.Environment:
    """What the pages' templates are rendered in: every text is escaped, a name that is not there is an error."""
    out = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    out.filters |= {"number": _number, "label": label, "duration": table.duration, "pretty": _pretty}
    out.filters["listing"] = _listing
    return out


def _policies(run: Run) -> list[str]:
    return list(dict.fromkeys([*run.policies, *(stage.policy for stage in run.stages)]))


def _pictures(run: Run) -> list[tuple[str, str, Markup]]:
    """Title, caption and picture of each comparison that the folder has the numbers for."""
    found = [
        (
            "Reward against KL",
            "Each small point is an evaluation on the way, with its step beside it; the large marker is the final "
            "evaluation with its 95% interval. A dashed line that climbs on while its solid line flattens or "
            "falls is over-optimisation of the reward model.",
            plots.reward_against_kl(run),
        ),
        (
            "Calibration of the reward model",
            "Held-out pairs. On the diagonal, a preference predicted with probability p is observed with frequency p. "
            "Bars are 95% intervals; below, the number of pairs in each bin.",
            plots.calibration(run.reward_model),
        ),
        (
            "Gold reward by part",
            "Higher is better in each part. A policy may gain in one and pay in another.",
            plots.bars(run.policies, "gold_parts", "gold reward by part"),
        ),
        (
            "Gold reward by prompt family",
            "Mean over the prompts of each family.",
            plots.bars(run.policies, "families", "gold reward by prompt family"),
        ),
    ]
    return [(title, caption, Markup(picture)) for title, caption, picture in found if picture]


def _markup(pictures: list[str]) -> list[Markup]:
    return [Markup(picture) for picture in pictures]


def _wall(run: Run) -> float | None:
    """Seconds of the whole run: the summary's, else the sum over the stages that logged theirs."""
    total = run.summary.get("wall_seconds")
    if is_number(total):
        return float(total)
    known = [stage.wall_seconds for stage in run.stages if stage.wall_seconds is not None]
    return sum(known) if known else None


def _number(value: float | None, decimals: int = 2, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{decimals}f}"


def _listing(values: dict[str, float], form: str) -> str:
    return ", ".join(form.format(name, number) for name, number in values.items())


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
