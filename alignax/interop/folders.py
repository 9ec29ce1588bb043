"""The folder of a checkpoint or an adapter: on disk or fetched from the hub, and whether it has changed."""

import hashlib
import json
from pathlib import Path

from alignax.config import ConfigError
from alignax.manifest import CheckpointError, read_manifest
from alignax.models.hf.headers import INDEX, SINGLE
from alignax.models.hf.peft_in import CONFIG

SMALL = ("*.json", "*.jinja", "*.model", "*.txt")  # what is fetched from the hub: these first
WEIGHTS = ("*.safetensors",)


def check_path(path: str) -> None:
    """Raises ConfigError for what is no folder here and can be no name on the hub."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1):
        raise ConfigError(
            f"config.path = {path!r}: no such folder; expected a checkpoint folder or OWNER/NAME on the hub"
        )


def fetch(path: str, revision: str = "", patterns: tuple[str, ...] = (*SMALL, *WEIGHTS)) -> Path:
    """The local folder of a checkpoint, fetched from the hub unless it is one. Raises ConfigError if it is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"config.path = {path!r}: not a folder here, and the hub did not give it: {first}") from error


def check_alone(folder: Path) -> None:
    """Raises ConfigError for an adapter, of which nobody said the base, and for one in a folder of whole weights."""
    if not (folder / CONFIG).is_file():
        return
    if any((folder / name).is_file() for name in (INDEX, SINGLE)):
        raise ConfigError(
            f"{folder} holds whole weights and {CONFIG}: transformers would put the adapter on them; move its files "
            "to a folder of their own, import the weights, and then the adapter with --base"
        )
    raise ConfigError(f"{folder} is an adapter: name the checkpoint that it stands on (--base=CHECKPOINT)")


def identity(folder: Path) -> str:
    """sha256 over the config and the names and sizes and times of the weight files: which folder was imported.

    Not over the weights themselves, which may be large: theirs is the manifest's own content hash.
    """
    files = sorted(folder.glob("*.safetensors"))
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    configs = [folder / name for name in ("config.json", CONFIG)]
    config = b"".join(file.read_bytes() for file in configs if file.is_file())
    return hashlib.sha256(config + json.dumps(stats).encode()).hexdigest()


def check_unchanged(folder: Path, workdir: Path) -> None:
    """Raises CheckpointError if a folder is not the one any more that was imported into `workdir`."""
    if folder.is_dir() and read_manifest(workdir)["data"]["fingerprint"] != identity(folder):
        raise CheckpointError(f"{folder} has changed since {workdir} was made of it: delete {workdir}, or name another")
