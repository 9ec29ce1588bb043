"""Tokenizers: loading, the two ids that everybody gets wrong, and hashes for the manifest."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any

from alignax.data.counts import DataError

Tokenizer = Any  # a transformers fast tokenizer
# keys of tokenizer_config.json, of an imported checkpoint alone
STOPS = "stop_ids"  # see `told_stops`
ROWS = "embedding_rows"  # see `leave_beyond`


def load_tokenizer(path_or_name: str) -> Tokenizer:
    """The `transformers` tokenizer of a folder (what `save_pretrained` wrote) or of a hub name: that of tokenizer.json.

    Beside a config.json, transformers 5 may build another one, of the class that it has for this kind of model, out of
    the same vocabulary: then the file is read as it is. Raises DataError if it is not there or cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here, because importing it takes seconds

    folder = Path(path_or_name).expanduser()
    if not folder.exists() and (folder.is_absolute() or path_or_name.startswith((".", "~"))):
        raise DataError(f"no tokenizer folder {path_or_name!r}: {_EXPECTED}")
    try:
        found = AutoTokenizer.from_pretrained(str(folder) if folder.exists() else path_or_name)
        if (folder / "tokenizer.json").is_file():
            exact = PreTrainedTokenizerFast.from_pretrained(str(folder))
            found = found if tokenizer_hash(found) == tokenizer_hash(exact) else exact
        for name in ("is_local", "local_files_only"):  # of this call, which would be saved with the tokenizer
            found.init_kwargs.pop(name, None)
        return found
    except Exception as error:  # of many kinds: a config.json beside it is read and checked too
        fault = shorten(str(error), 300) or type(error).__name__
        raise DataError(f"no tokenizer could be loaded from {path_or_name!r} ({fault}): {_EXPECTED}") from error


_EXPECTED = "expected a folder with tokenizer.json and tokenizer_config.json, or the name of a model on the hub"


def vocabulary(tokenizer: Tokenizer) -> int:
    """The ids that a model needs, 0 to the highest one: more than the tokenizer has tokens if some ids are not used.

    Without those that `leave_beyond` has left out.
    """
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    return min(size, tokenizer.init_kwargs.get(ROWS, size))


def leave_beyond(tokenizer: Tokenizer, rows: int) -> None:
    """Leaves out, of a model of `rows` embeddings, the control tokens beyond them, if nothing here writes any of them.

    Such is an image's place in a Gemma 3 that reads none. It is noted in the settings, which every later stage reads;
    texts that spell one are refused. Ends, padding and what the chat template names are written: then nothing is noted.
    """
    beyond = {token for token, index in tokenizer.get_vocab().items() if index >= rows}
    named = {getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    template = str(tokenizer.chat_template)
    if beyond and beyond <= {*control_tokens(tokenizer)} - named and not any(token in template for token in beyond):
        tokenizer.init_kwargs[ROWS] = rows


def left_beyond(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens that `leave_beyond` has left out."""
    size = vocabulary(tokenizer)
    return tuple(sorted(token for token, index in tokenizer.get_vocab().items() if index >= size))


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that fills padding: the pad token, else the end of sequence (GPT-2 has no pad token).

    Masks come from lengths, so the two may be equal. Raises DataError if the tokenizer has neither.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return eos_id(tokenizer)


def eos_id(tokenizer: Tokenizer) -> int:
    """The id that ends a completion. Raises DataError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token before saving it")
    return tokenizer.eos_token_id


def eos_ids(tokenizer: Tokenizer, extra: tuple[int, ...] = ()) -> frozenset[int]:
    """All ids that stop a sampler: the tokenizer's own and `extra` ones (some models have several)."""
    for token in extra:
        if not 0 <= token < (size := vocabulary(tokenizer)):
            raise DataError(f"extra end-of-sequence id {token} is not in the vocabulary of {size} tokens")
    return frozenset({eos_id(tokenizer), *extra})


def told_stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Further ids that end a reply, as an imported checkpoint's generation_config.json named them; () of any other."""
    return tuple(tokenizer.init_kwargs.get(STOPS, ()))


def control_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The strings that the tokenizer reads as control tokens (end of sequence, roles) when they stand in a text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens)))


def added_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The strings that were added to the vocabulary as tokens of their own, and are no control tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return tuple(sorted(added - set(control_tokens(tokenizer))))


def spelling(tokenizer: Tokenizer, tokens: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text spells one of these tokens, as the tokenizer looks for them: in the text as it stands and, for a
    token that it looks for in normalised text, in that (NFKC makes "<tool>" of full-width signs).

    Runs of white space that are tokens (Pythia's, Gemma's) are how such text is encoded, and spell nothing.
    """
    tokens, normalizer = {token for token in tokens if token.strip()}, tokenizer.backend_tokenizer.normalizer
    late = [t.content for t in tokenizer.added_tokens_decoder.values() if t.normalized and t.content in tokens]
    late = [normal for token in late if normalizer and (normal := normalizer.normalize_str(token)).strip()]
    plain = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None
    if plain is None or normalizer is None or not late:
        return lambda text: plain is not None and plain.search(text) is not None
    normal = re.compile("|".join(map(re.escape, late)))
    return lambda text: bool(plain.search(text) or normal.search(normalizer.normalize_str(text)))


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of everything that maps text to ids; the same before `save_pretrained` and after loading again."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # state of the last call, not of the vocabulary
        backend.pop(name, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    extra = {"stops": list(told_stops(tokenizer)), "beyond": list(left_beyond(tokenizer))}  # no text may hold them
    return _sha256({"backend": backend, "special": special} | {name: value for name, value in extra.items() if value})


def template_hash(tokenizer: Tokenizer, template: str) -> str:
    """sha256 of the template that turns prompt and completion into one text."""
    return _sha256({"template": template, "chat": tokenizer.chat_template if template == "chat" else None})


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
