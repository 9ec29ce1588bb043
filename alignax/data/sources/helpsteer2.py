"""HelpSteer2: replies rated by people on five attributes."""

import re
from functools import partial
from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer2(
    *, path: str = "nvidia/HelpSteer2", split: str = "train", template: str = "chat", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion", "ratings", "score"} of Wang et al. 2024, "HelpSteer2" (2406.08673).

    Columns: prompt; response; and helpfulness, correctness, coherence, complexity, verbosity, each from 0 to 4. Two
    responses to each prompt. "score", by which pairs and rankings are made, is the helpfulness, as the authors advise.
    A prompt of several turns, which the file marks by "<extra_id_1>", is made a list of messages; one text gets a line
    break at its end under template "plain". Held out is the set's
    own validation split. The layout is that of the set's card; the files themselves were not at hand.
    """
    columns = ("prompt", "response", *ATTRIBUTES)
    return published(
        "helpsteer2",
        partial(rated, template=template),
        key=lambda row: row.get("prompt"),
        columns=columns,
        judged=ATTRIBUTES,
        path=path,
        split=split,
        **reading,
    )


def rated(row: Row, template: str) -> Made:
    """A reply with its ratings."""
    if not texts(row, "prompt", "response"):
        return "missing_field"
    ratings = {name: row.get(name) for name in ATTRIBUTES}
    reply = {"completion": row["response"], "ratings": ratings, "score": row.get("helpfulness")}
    return {"prompt": asked(prompt(row["prompt"]), template)} | reply


def prompt(text: str) -> str | list[dict[str, str]]:
    """The text, or its turns as messages, of which the first is the user's."""
    first, *rest = TURN.split(text)
    if not rest:
        return text
    turns = [{"role": role.lower(), "content": content} for role, content in zip(rest[::2], rest[1::2])]
    return [{"role": "user", "content": first}, *turns]
