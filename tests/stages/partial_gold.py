"""A reward outside the package, by dotted path: gold, but None for replies of an odd number of letters."""

from alignax.worlds.gold import gold


def partial_gold(row: dict, completion: str, *, finished: bool) -> dict | None:
    return None if len(completion) % 2 else gold(row, completion, finished=finished)
