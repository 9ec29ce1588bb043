"""Encoded data on disk, by content: the same rows, tokenizer and options need not be tokenised twice.

A file is named by the hash of all that its arrays depend on, the source code of the encoders included, so nothing in it
can be out of date. It holds a hash of its own content, and one that does not agree is not used but written again.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import transformers

from alignax.data.arrays import fingerprint
from alignax.data.counts import Counts
from alignax.data.forms import Encoder
from alignax.data.rendering import PING, PONG, render
from alignax.data.tokenizer import Tokenizer, template_hash, tokenizer_hash

MIN_ROWS = 2000  # fewer are encoded faster than their tokenizer is hashed
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def encoded(
    encode: Encoder, rows: list[dict], tokenizer: Tokenizer, *, counts: Counts, **options: Any
) -> tuple[dict[str, Any], Counts]:
    """What `encode(rows, tokenizer, counts=counts, **options)` returns, from the disk where it is there.

    The folder is ALIGNAX_CACHE in the environment, "off" for none, by default ~/.cache/alignax; fewer rows than
    MIN_ROWS are encoded without it.
    """
    folder = os.environ.get("ALIGNAX_CACHE") or "~/.cache/alignax"
    if folder == "off" or len(rows) < MIN_ROWS:
        return encode(rows, tokenizer, counts=counts, **options)
    file = Path(folder).expanduser() / "encoded" / f"{key(encode, rows, tokenizer, counts, options)}.npz"
    found = load(file)
    if found is None:
        found = encode(rows, tokenizer, counts=counts, **options)
        save(file, *found)
    return found


def key(encode: Encoder, rows: list[dict], tokenizer: Tokenizer, counts: Counts, options: dict[str, Any]) -> str:
    """sha256 of everything that the arrays depend on."""
    if isinstance(encode, functools.partial):
        options = options | encode.keywords
        encode = encode.func
    digest = hashlib.sha256()
    whose = [f"{encode.__module__}.{encode.__qualname__}", tokenizer_hash(tokenizer)]
    whose += [template_hash(tokenizer, str(options.get("template"))), transformers.__version__, tokenizers.__version__]
    if options.get("template") == "chat":
        whose.append(today(tokenizer))
    for part in (whose, options, counts, counts.found, *rows):
        digest.update(json.dumps(part, default=str).encode())  # in their own order: a chat template may show it
        digest.update(b"\n")
    return hashlib.sha256(digest.digest() + _code(encode.__module__)).hexdigest()


def today(tokenizer: Tokenizer) -> str:
    """What the chat template writes around two words: of one that asks the clock, another text on another day."""
    try:
        return render(tokenizer, PING + PONG, {})
    except jinja2.TemplateError:  # the encoder will say so
        return ""


@functools.cache
def _code(module: str) -> bytes:
    """The source code that encodes: this folder, and the encoder's own file where it is elsewhere."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    encoder_file = getattr(sys.modules.get(module), "__file__", None)
    files += [Path(encoder_file)] if encoder_file and Path(encoder_file) not in files else []
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).digest()


def load(file: Path) -> tuple[dict[str, Any], Counts] | None:
    """The arrays and counts of a file; None if it is not there, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            flat = {name: stored[name] for name in stored.files}
        if flat.pop("fingerprint").tobytes().decode() != fingerprint(flat):
            return None
        entries, found = json.loads(flat.pop("counts").tobytes())
    except DAMAGE:
        return None
    counts = Counts()
    counts.clear()
    counts.update(entries)
    counts.found = found
    return _nested(flat), counts


def save(file: Path, arrays: dict[str, Any], counts: Counts) -> None:
    """Writes arrays and counts, whole or not at all. A disk that is full or may not be written to only costs time."""
    header = json.dumps([counts, counts.found]).encode()
    flat: dict[str, Any] = dict(_flat(arrays)) | {"counts": np.frombuffer(header, np.uint8)}
    mark = np.frombuffer(fingerprint(flat).encode(), np.uint8)
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            temporary = Path(stream.name)
            np.savez(stream, fingerprint=mark, **flat)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            if temporary:
                temporary.unlink(missing_ok=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> Any:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *above, name = path.split("/")
        functools.reduce(lambda node, step: node.setdefault(step, {}), above, tree)[name] = value
    return tree
