"""What arrays of rows hold, in numbers and as text: lengths, duplicates, balance, and rows with their masks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alignax.data.boundary import text_of
from alignax.data.tokenizer import Tokenizer

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
BINS = 12
Sides = dict[str, dict[str, np.ndarray]]  # name -> tokens, valid, mask [N T]


def sides_of(batch: dict[str, Any]) -> Sides:
    """The sequences of a row by name: of each tokens, valid and mask, the last all false for prompts."""
    if "tokens" in batch:
        name = "demonstration" if "mask" in batch else "prompt"
        return {name: {"mask": np.zeros_like(batch["valid"])} | {k: batch[k] for k in batch if k != "row"}}
    if "replies" in batch:
        ranks = range(batch["replies"]["tokens"].shape[1])
        return {f"reply {k + 1}": {key: x[:, k] for key, x in batch["replies"].items()} for k in ranks}
    return {name: batch[name] for name in ("chosen", "rejected", "side", "mismatched", "reply") if name in batch}


def lengths(tokens_B: np.ndarray, limit: int) -> dict[str, Any]:
    """Quantiles of the lengths, in tokens and as a share of the limit, and a histogram (lower, upper, rows)."""
    values = np.percentile(tokens_B, QUANTILES)
    top = int(tokens_B.max())
    edges = np.unique(np.linspace(0, top, BINS + 1).round().astype(int))
    rows, _ = np.histogram(tokens_B, edges + 1)  # (lower, upper]
    return {
        "quantiles": [[percent, float(v), float(v / limit)] for percent, v in zip(QUANTILES, values)],
        "bins": [[int(a) + 1, int(b), int(n)] for a, b, n in zip(edges, edges[1:], rows)],
    }


def facts(batch: dict[str, Any], sides: Sides, attributes: Sequence[str] = ()) -> list[list[str]]:
    """Name and value of what is worth knowing before a run. `attributes`: names of the columns of ratings."""
    replied = {name: side["mask"].sum(1) for name, side in sides.items()}
    valid = np.concatenate([side["valid"].ravel() for side in sides.values()])
    out = [["cut short", "none: a row that is too long is dropped"], ["padding", _share(1 - valid.mean())]]
    if trained := sum(int(n.sum()) for n in replied.values()):
        out.append(["tokens in the mask", f"{trained} of {int(valid.sum())}, {_share(trained / valid.sum())}"])
    out += repeats(sides)
    if {"chosen", "rejected"} <= set(sides):
        longer = np.sign(replied["chosen"] - replied["rejected"])
        means = ", ".join(f"{name} {replied[name].mean():.1f}" for name in ("chosen", "rejected"))
        out.append(["chosen longer", f"{_share((longer > 0).mean())}, equally long {_share((longer == 0).mean())}"])
        out.append(["mean tokens of a reply", means])
    if "tie" in batch:
        out.append(["ties", _share(batch["tie"].mean())])
    if "desirable" in batch:
        out.append(["thumbs up", f"{_share(batch['desirable'].mean())} of {len(batch['desirable'])} replies"])
        out.append(["no mismatched reply fits", _share(1 - batch["mismatched"]["mask"].any(1).mean())])
    if "given" in batch:
        columns = zip(attributes, batch["target"].T, batch["given"].T, strict=True)
        out += [[f"rating of {name}", f"given in {_share(g.mean())}, mean {x[g].mean():.2f}"] for name, x, g in columns
                if g.any()]  # fmt: skip
    if "step_end" in batch:
        verdicts = batch["target"][batch["step_end"]]
        out.append(["steps", f"{batch['step_end'].sum(1).mean():.1f} a row, mean verdict {verdicts.mean():.2f}"])
    return out


def repeats(sides: Sides) -> list[list[str]]:
    """Rows whose tokens another row has as well, and prompts likewise; the mismatched replies are no part of a row."""
    compared = [side for name, side in sides.items() if name != "mismatched"]
    rows = list(zip(*([side["tokens"][i][side["valid"][i]].tobytes() for i in range(len(side["tokens"]))]
                      for side in compared)))  # fmt: skip
    prompts = prompts_of(sides)
    out = [["identical rows", f"{len(rows) - len(set(rows))} of {len(rows)}"]]
    return out + ([["prompts seen before", f"{len(prompts) - len(set(prompts))} of {len(prompts)}"]] if prompts else [])


def prompts_of(sides: Sides) -> list[bytes]:
    """The tokens before the first that is in the mask; [] where the rows have no prompt."""
    side = next(iter(sides.values()))
    start_B = np.where(side["mask"].any(1), side["mask"].argmax(1), side["mask"].shape[1])
    if (start_B <= 1).all():
        return []
    return [t[:n][v[:n]].tobytes() for t, v, n in zip(side["tokens"], side["valid"], start_B)]


def leaks(sides: Sides, made: dict[str, tuple]) -> list[list[str]]:
    """How many held-out prompts are trained on as well."""
    held = prompts_of(sides_of(made["heldout"][0])) if "heldout" in made else []
    trained = set(prompts_of(sides))
    return [["held-out prompts also trained on", f"{sum(p in trained for p in held)} of {len(held)}"]] if held else []


def show(tokenizer: Tokenizer, sides: Sides, row: int, i: int) -> dict:
    """A row as text: of each side the pieces [text, in the mask], and how many tokens."""
    out = []
    for name, side in sides.items():
        valid = side["valid"][i]
        ids, mask = side["tokens"][i][valid].tolist(), side["mask"][i][valid].tolist()
        if name.startswith("reply ") and not any(mask):
            continue  # fills up a shorter ranking
        out.append({"name": name, "pieces": list(pieces(tokenizer, ids, mask)), "tokens": [len(ids), sum(mask)]})
    return {"row": row, "sides": out}


def pieces(tokenizer: Tokenizer, ids: list[int], mask: list[bool], context: int = 4) -> Iterator[list]:
    """[text, in the mask] of each token; tokens that only together make a character stay together.

    A token is decoded behind a few others, since what it adds to a text may be more than its own text (a space).
    """
    text = lambda start, stop: text_of(tokenizer, ids[start:stop])  # noqa: E731
    begun = 0
    for i in range(len(ids)):
        window = max(0, begun - context)
        piece = text(window, i + 1)[len(text(window, begun)) :]
        together = i + 1 < len(ids) and mask[i + 1] == mask[begun] and i + 1 - begun < 4
        if piece.endswith("\ufffd") and together:
            continue
        yield [piece, mask[begun]]
        begun = i + 1


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"
