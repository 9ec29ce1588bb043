"""What the scripts under experiments/ share: table cells, and the place of a table in a page."""

from pathlib import Path

from alignax.log import replace_file

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
