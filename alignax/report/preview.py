"""What `alignax data` shows of each stage's data: in the terminal, and as one page with everything inside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from alignax.report.page import environment, write
from alignax.report.template import STYLE

BAR = 30  # characters of the longest bar
LONGEST = 600  # characters of a stretch outside of the mask that the terminal shows
PARTS = ("part", "weight", "rows", "kept", "dropped", "epochs")  # what is known of each part of a mixture
LEGEND = "green: in the loss mask; grey: seen and not learnt; padding is not shown"


def terminal(sections: list[dict[str, Any]]) -> Group:
    """All sections for the terminal."""
    return Group(*(part for section in sections for part in _section(section)))


def render(sections: list[dict[str, Any]], out: str | Path) -> Path:
    """Writes the page of all sections; returns its path."""
    return write(Path(out), html(sections))


def html(sections: list[dict[str, Any]]) -> str:
    """The page's text. Every text is escaped by the template."""
    return environment().from_string(PAGE).render(sections=sections, PARTS=PARTS, visible=visible)


def visible(text: str) -> str:
    """A line break as a sign and a break, so that a token of it can be seen."""
    return text.replace("\n", "↵\n")


def _section(section: dict[str, Any]) -> Iterator[RenderableType]:
    yield Rule(Text(f"{section['name']} ({section['stage']}, template {section['template']!r})"), align="left")
    problem = section.get("error") or section.get("waiting")
    if problem:
        yield Text(problem, style="red" if "error" in section else "yellow")
    if section.get("parts"):
        yield _table(PARTS, section["parts"])
    if problem:
        return
    for split, counts in section["counts"].items():
        yield Text(f"{split}: {counts}")
    if section["dropped"]:
        yield _table(("dropped", "rows", "why", "fix"), [[*map(str, one)] for one in section["dropped"]])
    if section["noted"]:
        yield _table(("kept, but", "rows", "why", "what to do"), [[*map(str, one)] for one in section["noted"]])
    key, limit = section["limit"]
    for name, found in section["lengths"].items():
        yield Text(f"length of {name} in tokens, and as a share of {key} = {limit}", style="bold")
        cells = [[f"{percent}%", f"{value:.0f}", f"{100 * share:.0f}%"] for percent, value, share in found["quantiles"]]
        yield _table(("quantile", *(cell[0] for cell in cells)), [["tokens", *(cell[1] for cell in cells)],
                                                                 ["share", *(cell[2] for cell in cells)]])  # fmt: skip
        most = max(rows for _, _, rows in found["bins"])
        yield Padding(Text("\n".join(f"{low:>6}-{high:<6}{rows:>7} {'█' * round(BAR * rows / most)}"
                                     for low, high, rows in found["bins"])), (0, 0, 1, 0))  # fmt: skip
    yield _table(("all rows", ""), section["facts"] + [["a reply ends at", ", ".join(section["ends"])]])
    yield Text(LEGEND, style="dim")
    for row in section["rows"]:
        for side in row["sides"]:
            tokens, masked = side["tokens"]
            yield Text(f"row {row['row']}, {side['name']}: {tokens} tokens, {masked} in the mask", style="bold")
            yield Padding(_coloured(side["pieces"]), (0, 0, 1, 2))


def _coloured(pieces: list[list]) -> Text:
    """The tokens of a row: those in the mask green, each other one underlined, so that one sees where they meet."""
    out = Text()
    for at, (text, masked) in enumerate(_shortened(pieces)):
        out.append(visible(text), style=("green" if masked else "bright_black") + (" underline" if at % 2 else ""))
    return out


def _shortened(pieces: list[list]) -> Iterator[list]:
    """The pieces; a long stretch outside of the mask without its middle."""
    start = 0
    while start < len(pieces):
        masked = pieces[start][1]
        stop = next((i for i in range(start, len(pieces)) if pieces[i][1] != masked), len(pieces))
        run, half = pieces[start:stop], LONGEST // 8  # about four characters a token, half on either side
        if not masked and len(run) > 2 * half and sum(len(text) for text, _ in run) > LONGEST:
            run = [*run[:half], [f" ... {len(run) - 2 * half} tokens ... ", False], *run[-half:]]
        yield from run
        start = stop


def _table(header: tuple[str, ...], rows: list[list[str]]) -> rich.table.Table:
    out = rich.table.Table(*header, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        out.add_row(*map(Text, row))  # Text: brackets are no markup here
    return out


PAGE = (
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>alignax data</title>
<style>"""
    + STYLE
    + """
.bar { height: .8em; background: var(--soft); min-width: 1px; }
.on { color: var(--up); font-weight: 600; } .off { color: var(--soft); }
.tokens span:nth-child(even) { background: var(--line); }
.tokens { max-height: none; font: .85rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
</style>
</head>
<body>
<h1>What the model will see</h1>
<p class="soft"><span class="on">Green</span>: in the loss mask; <span class="off">grey</span>: seen and not learnt.
Shades alternate from token to token; padding is not shown.</p>
{% for section in sections %}
<h2>{{ section.name }} <span class="soft">{{ section.stage }}, template {{ section.template }}</span></h2>
{% if section.error is defined %}<p class="down">{{ section.error }}</p>
{% elif section.waiting is defined %}<p class="soft">{{ section.waiting }}</p>
{% endif %}
{% if section.parts is defined and section.parts %}
<div class="wide"><table><thead><tr>{% for name in PARTS %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for part in section.parts %}
<tr>{% for value in part %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if section.counts is defined %}
{% for split, counts in section.counts.items() %}<p>{{ split }}: {{ counts }}</p>{% endfor %}
{% if section.dropped %}
<div class="wide"><table><thead><tr><th>dropped</th><th>rows</th><th>why</th><th>fix</th></tr></thead><tbody>
{% for reason, rows, why, fix in section.dropped %}
<tr><td>{{ reason }}</td><td>{{ rows }}</td><td>{{ why }}</td><td>{{ fix }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if section.noted %}
<div class="wide"><table><thead><tr><th>kept, but</th><th>rows</th><th>why</th><th>what to do</th></tr></thead><tbody>
{% for note, rows, why, what in section.noted %}
<tr><td>{{ note }}</td><td>{{ rows }}</td><td>{{ why }}</td><td>{{ what }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% for name, found in section.lengths.items() %}
<h3>Length of {{ name }} in tokens, and as a share of {{ section.limit[0] }} = {{ section.limit[1] }}</h3>
<div class="wide"><table class="numbers"><thead><tr><th>quantile</th>
{% for percent, value, share in found.quantiles %}<th>{{ percent }}%</th>{% endfor %}</tr></thead><tbody>
<tr><td>tokens</td>{% for percent, value, share in found.quantiles %}<td>{{ value | number(0) }}</td>{% endfor %}</tr>
<tr><td>share</td>{% for percent, value, share in found.quantiles %}<td>{{ (100 * share) | number(0) }}%</td>
{% endfor %}</tr></tbody></table></div>
<table style="width: 100%; max-width: 620px">
{% set most = found.bins | map(attribute=2) | max %}
{% for low, high, rows in found.bins %}
<tr><td class="soft">{{ low }}-{{ high }}</td><td class="soft">{{ rows }}</td>
<td style="width: 70%"><div class="bar" style="width: {{ (100 * rows / most) | round(1) }}%"></div></td></tr>
{% endfor %}
</table>
{% endfor %}
<h3>All rows</h3>
<table>
{% for name, value in section.facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
<tr><td>a reply ends at</td><td>{{ section.ends | join(", ") }}</td></tr>
</table>
<h3>Some rows</h3>
{% for row in section.rows %}
<div class="sample">
{% for side in row.sides %}
<div class="tag">row {{ row.row }}, {{ side.name }}: {{ side.tokens[0] }} tokens, {{ side.tokens[1] }} in the mask</div>
<div class="text tokens" dir="auto">{% for text, masked in side.pieces -%}
<span class="{{ 'on' if masked else 'off' }}">{{ visible(text) }}</span>
{%- endfor %}</div>
{% endfor %}
</div>
{% endfor %}
{% endif %}
{% endfor %}
</body>
</html>
"""
)
