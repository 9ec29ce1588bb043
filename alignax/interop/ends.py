"""The ids at which a checkpoint ends a text: of its generation_config.json, else of its config.json."""

import json
from pathlib import Path
from typing import Any

from alignax.data.tokenizer import STOPS, vocabulary
from alignax.log import console


def set_stops(tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Notes the ids that end a text, beside the tokenizer's own, in its settings, which every later stage reads.

    Those of generation_config.json, and where it names none of config.json. Says which of them count for nothing.
    """
    config_ends, size = ends_of(config.get("eos_token_id"), "config.json"), vocabulary(tokenizer)
    ends = generation_ends(folder, config_ends) or config_ends
    if lost := sorted(set(config_ends) - set(ends)):
        console.print(f"eos_token_id: {lost} of config.json are not in generation_config.json, which counts")
    if lost := sorted(end for end in ends if not 0 <= end < size):
        console.print(f"[yellow]eos_token_id: {lost} are no tokens of the tokenizer, nothing ends there[/]")
    if stops := [end for end in ends if 0 <= end < size and end != tokenizer.eos_token_id]:
        tokenizer.init_kwargs[STOPS] = stops


def generation_ends(folder: Path, config_ends: list[int]) -> list[int]:
    """The ids at which `generate` of transformers stops: of generation_config.json, else `config_ends`.

    Raises ValueError for a damaged file and for what are no ids.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return config_ends
    try:
        return ends_of(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"), str(file))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again, or delete it") from error


def ends_of(value: Any, file: str) -> list[int]:
    """A key of one token id, several, or none, as a list. Raises ValueError for anything else."""
    ends = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"{file}: eos_token_id = {value!r}: expected the id of a token, or a list of them")
    return ends
