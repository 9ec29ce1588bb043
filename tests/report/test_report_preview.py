"""The preview of data: a page with everything in it, text that cannot become markup, a terminal that keeps brackets."""

import copy
import io
import re

from rich.console import Console

from alignax.report.preview import LONGEST, html, render, terminal

SECTION = {
    "name": "sft", "stage": "sft", "template": "chat", "limit": ["max_length", 16],
    "counts": {"train": "3 rows, kept 2, dropped 1 too_long"},
    "dropped": [["too_long", 1, "prompt and reply are longer than max_length", "raise max_length"]],
    "noted": [["added_token", 2, "read as that token", "nothing, if it is meant"]],
    "lengths": {"demonstration": {"quantiles": [[0, 4.0, 0.25], [100, 8.0, 0.5]], "bins": [[1, 4, 1], [5, 8, 2]]}},
    "facts": [["padding", "12.5%"]], "ends": ["<eos> (id 2)"],
    "rows": [{"row": 7, "sides": [{"name": "demonstration", "tokens": [3, 2], "pieces": [
        ["<script>alert(1)</script>\n", False], [" [bold]yes[/bold]", True], ["<eos>", True]]}]}],
}  # fmt: skip


def printed(*sections, colour=False):
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=colour)
    console.print(terminal(list(sections)))
    return console.export_text(styles=colour)


def test_the_page_has_everything_inside_and_escapes_text(tmp_path):
    path = render([SECTION, {"name": "dpo", "stage": "offline", "template": "chat", "waiting": "not <yet>"}],
                  tmp_path / "data.html")  # fmt: skip
    page = path.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "not &lt;yet&gt;" in page
    assert not re.search(r"https?:|@import|url\(", page) and not list(tmp_path.glob("*.tmp"))
    assert '<span class="on"> [bold]yes[/bold]</span><span class="on">&lt;eos&gt;</span>' in page
    assert '<span class="off">&lt;script&gt;alert(1)&lt;/script&gt;↵\n</span>' in page
    for text in ("raise max_length", "12.5%", "width: 50.0%", "width: 100.0%", "row 7", "&lt;eos&gt; (id 2)"):
        assert text in page, text


def test_the_terminal_says_the_same():
    text = printed(SECTION)
    for part in ("3 rows, kept 2", "raise max_length", "12.5%", "row 7", "[bold]yes[/bold]<eos>", "↵", "<eos> (id 2)"):
        assert part in text, part
    coloured = printed(SECTION, colour=True)
    assert re.search(r"\x1b\[(4;)?32m \[bold\]yes", coloured)  # green: in the mask
    assert re.search(r"\x1b\[(4;)?90m<script>", coloured)  # grey: not


def test_a_long_prompt_loses_its_middle_in_the_terminal_only():
    long = copy.deepcopy(SECTION)
    long["rows"][0]["sides"][0]["pieces"] = [[f" w{i}", False] for i in range(LONGEST)] + [[" end", True]]
    text = " ".join(printed(long).split())
    assert f"... {LONGEST - 2 * (LONGEST // 8)} tokens ..." in text and "w300" not in text and "end" in text
    assert " w300<" in html([long])


def test_what_cannot_be_shown_says_why():
    text = printed({"name": "sft", "stage": "sft", "template": "chat", "error": "no rows [at all]"})
    assert "no rows [at all]" in text and "quantile" not in text
