"""Finished checkpoints that are put together: they have to be alike in all that gives their parameters a meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignax.manifest import CheckpointError, changes, read_manifest
from alignax.models.config import ModelConfig


def check_alike(folders: Mapping[str, Path], *, key: str) -> list[dict[str, Any]]:
    """The manifests of the folders, by role.

    Raises CheckpointError, naming the first folder, the one that does not fit it and what differs: what they are, their
    architecture, tokenizer, template or attributes. An imported checkpoint has no template, and fits any.
    """
    found = {role: read_manifest(folder) for role, folder in folders.items()}
    (first, *others), manifests = folders, list(found.values())
    for role in others:
        wrong = differences(found[first], found[role])
        if wrong:
            raise CheckpointError(
                f"config.{key}: {folders[first]} and {folders[role]} cannot be put together:\n  "
                + "\n  ".join(wrong)
                + "\nName checkpoints of one architecture, tokenizer and template."
            )
    return manifests


def differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What two manifests differ in, a line for each."""
    facts = [_facts(one) for one in (first, other)]
    if None in (first["template_hash"], other["template_hash"]):
        facts = [{name: x for name, x in one.items() if name != "template_hash"} for one in facts]
    return [f"{name}: {was} and {now}" for name, was, now in changes(facts[0], facts[1])]


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = manifest["architecture"] or {"vocab_size": 1}
    architecture = ModelConfig(**known).architecture()  # with fields that came later
    attributes = (manifest["data"] or {}).get("attributes", [])
    hashes = {name: manifest[name] for name in ("tokenizer_hash", "template_hash")}
    return {"makes": manifest["makes"], "architecture": architecture, "attributes": attributes} | hashes
