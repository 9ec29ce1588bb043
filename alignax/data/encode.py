"""Text rows to arrays of fixed shape: templates, loss masks, padding, and a count for every row that is refused.

Text rows are dicts: {"prompt", "completion"}, {"prompt", "chosen", "rejected"} or {"prompt"}; other keys are allowed.
"""

import copy
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from alignax.data.counts import REASONS, Counts, DataError
from alignax.data.templates import Ids, completion_ids, forbidden_tokens, prompt_ids
from alignax.data.tokenizer import Tokenizer, pad_id

Row = dict[str, Any]
Kept = tuple[int, Ids, list[Ids]]  # row index, prompt ids, the ids of each reply


def encode_prompt(tokenizer: Tokenizer, prompt: str, template: str) -> Ids:
    """The ids that a completion follows: what the sampler is given.

    Raises DataError for an unknown template, an empty prompt, and control tokens in a chat.
    """
    fault = _text_fault((prompt,), forbidden_tokens(tokenizer, template))
    ids = [] if fault else prompt_ids(tokenizer, [prompt], template)[0]
    return _or_raise(fault or ids or "empty_prompt", prompt)


def encode_completion(tokenizer: Tokenizer, prompt: str, completion: str, template: str) -> Ids:
    """The ids after `encode_prompt`'s, up to and with the one end of sequence: the tokens to learn.

    Raises DataError if the completion is empty or holds an end of sequence, if it spells control tokens in a chat, and
    if the prompt's ids are no prefix of the row's.
    """
    if fault := _text_fault((prompt, completion), forbidden_tokens(tokenizer, template)):
        return _or_raise(fault, completion)
    prefixes = prompt_ids(tokenizer, [prompt], template)
    return _or_raise(completion_ids(tokenizer, [prompt], prefixes, [completion], template)[0], completion)


def demo_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Demonstrations as arrays: tokens, valid, mask [N T], padded on the right, and row [N], the index into `rows`.

    `mask` is the completion with its end of sequence. Rows of preference pairs are demonstrations of the chosen reply.
    T is the longest row rounded up to a multiple of 8, at most `max_length` tokens; `pad_to` fixes it. `counts` of the
    source go on here. Raises DataError if a field is missing in all rows, or if no row is left.
    """
    rows = list(rows)
    reply = "completion" if any("completion" in row for row in rows) or not _has(rows, "chosen") else "chosen"
    kept, counts = encode_fields(rows, ("prompt", reply), tokenizer, template, max_length, counts)
    counts.require_rows("demonstration")
    length = padded_length([len(prompt) + len(side) for _, prompt, (side,) in kept], max_length, pad_to)
    batch = side_arrays([(prompt, side) for _, prompt, (side,) in kept], length, pad_id(tokenizer))
    return batch | {"row": row_ids(kept)}, counts


def pair_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Preference pairs as arrays: chosen and rejected, each {tokens, valid, mask} [N T] of one T, and row [N].

    A pair is refused as a whole, if either side is. Where every row says them: margin [N], by how much the chosen reply
    is better, and tie [N], whether the annotator could not decide. Otherwise as `demo_rows`; raises DataError as well
    for a margin that is no finite number or a tie that is neither true nor false.
    """
    rows = list(rows)
    kept, counts = encode_fields(rows, ("prompt", "chosen", "rejected"), tokenizer, template, max_length, counts)
    counts.require_rows("preference pair")
    length = padded_length([len(prompt) + len(side) for _, prompt, sides in kept for side in sides], max_length, pad_to)
    fill = pad_id(tokenizer)
    chosen, rejected = (side_arrays([(prompt, sides[k]) for _, prompt, sides in kept], length, fill) for k in (0, 1))
    verdicts = _verdicts([rows[row] for row, _, _ in kept])
    return {"chosen": chosen, "rejected": rejected, "row": row_ids(kept)} | verdicts, counts


def _verdicts(rows: list[Row]) -> dict[str, np.ndarray]:
    """The margins and ties of pairs, where every row has them."""
    out = {}
    for name, dtype, known in (("margin", np.float32, (int, float)), ("tie", np.bool_, bool)):
        if all(row.get(name) is not None for row in rows):
            for row in rows:
                value = row[name]
                if not isinstance(value, known) or (dtype is np.float32 and not np.isfinite(value)):
                    expected = "a finite number" if dtype is np.float32 else "true or false"
                    raise DataError(
                        f"field {name!r} = {value!r} of the pair {row['prompt'][:80]!r}: expected {expected}"
                    )
            out[name] = np.array([row[name] for row in rows], dtype)
    return out


def prompt_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_prompt_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Prompts for the sampler as arrays: tokens, valid [N T], padded on the LEFT, and row [N]; see `demo_rows`."""
    kept, counts = encode_fields(list(rows), ("prompt",), tokenizer, template, max_prompt_length, counts)
    counts.require_rows("prompt")
    prompts = [prompt for _, prompt, _ in kept]
    length = padded_length([len(prompt) for prompt in prompts], max_prompt_length, pad_to)
    tokens_BT, valid_BT = pad(prompts, length, pad_id(tokenizer), left=True)
    return {"tokens": tokens_BT, "valid": valid_BT, "row": row_ids(kept)}, counts


def pad(
    sequences: Sequence[Ids], length: int, fill: int, *, left: bool = False
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """(tokens, valid) of shape [B length]. `valid` comes from lengths, so `fill` may be any id, the eos included."""
    lengths_B1 = np.array([len(ids) for ids in sequences], np.int32).reshape(-1, 1)
    position_1T = np.arange(length)[None]
    valid_BT = position_1T >= length - lengths_B1 if left else position_1T < lengths_B1
    tokens_BT = np.full(valid_BT.shape, fill, np.int32)
    tokens_BT[valid_BT] = np.concatenate([np.asarray(ids, np.int32) for ids in sequences])
    return tokens_BT, valid_BT


def padded_length(lengths: Sequence[int], max_length: int, pad_to: int | None = None) -> int:
    """The longest of `lengths` rounded up to a multiple of 8, at most `max_length`; or `pad_to`, if nothing is cut."""
    longest = max(lengths)
    if pad_to is None:
        return min(max_length, -(-longest // 8) * 8)
    if pad_to < longest:
        raise DataError(f"pad_to = {pad_to} would cut a row of {longest} tokens: raise it or leave it out")
    return pad_to


def fingerprint(arrays: Any) -> str:
    """sha256 over names, types, shapes and values of a tree of arrays: the identity of a data set in the manifest."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        leaf = np.ascontiguousarray(leaf)
        leaf = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.name} {leaf.shape};".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def side_arrays(sequences: list[tuple[Ids, Ids]], length: int, fill: int) -> dict[str, np.ndarray]:
    """tokens, valid, mask [N length] of pairs (prompt ids, reply ids), padded on the right; mask is the reply."""
    tokens_BT, valid_BT = pad([prompt + reply for prompt, reply in sequences], length, fill)
    prompt_B1 = np.array([[len(prompt)] for prompt, _ in sequences])
    mask_BT = valid_BT & (np.arange(length)[None] >= prompt_B1)
    return {"tokens": tokens_BT, "valid": valid_BT, "mask": mask_BT}


def row_ids(kept: list[Kept]) -> Int[np.ndarray, " B"]:
    """The indices of the rows that are kept."""
    return np.array([row for row, _, _ in kept], np.int32)


def encode_fields(
    rows: list[Row], fields: tuple[str, ...], tokenizer: Tokenizer, template: str, limit: int, counts: Counts | None
) -> tuple[list[Kept], Counts]:
    """`encode_texts` of the named fields of the rows: the prompt, then its replies."""
    check_fields(rows, dict.fromkeys(fields, "text"))
    return encode_texts([tuple(map(row.get, fields)) for row in rows], tokenizer, template, limit, counts)


def encode_texts(
    texts: list[tuple], tokenizer: Tokenizer, template: str, limit: int, counts: Counts | None
) -> tuple[list[Kept], Counts]:
    """[(row index, prompt ids, [reply ids, ...])] of the good rows, and the counts with the others.

    `texts` holds per row its prompt and its replies, as many as there are. A row is refused as a whole.
    """
    forbidden = forbidden_tokens(tokenizer, template)
    counts = Counts(len(texts)) if counts is None else copy.copy(counts)
    if counts["kept"] != len(texts):
        raise DataError(
            f"the source's counts say {counts['kept']} rows, but there are {len(texts)}: pass all, or no counts"
        )
    faults = [_text_fault(row, forbidden) for row in texts]
    good = [row for row, fault in enumerate(faults) if fault is None]
    prompts = dict(zip(good, prompt_ids(tokenizer, [texts[row][0] for row in good], template), strict=True))
    owners = [row for row in good for _ in texts[row][1:]]
    told, before = [texts[row][0] for row in owners], [prompts[row] for row in owners]
    replies = iter(
        completion_ids(tokenizer, told, before, [reply for row in good for reply in texts[row][1:]], template)
    )
    kept = []
    for row, prompt in prompts.items():
        sides = list(itertools.islice(replies, len(texts[row]) - 1))
        if (fault := _token_fault(prompt, sides, limit)) is None:
            kept.append((row, prompt, sides))
        else:
            faults[row] = fault
    for fault in filter(None, faults):
        counts.drop(fault)
    return kept, counts


def _text_fault(texts: tuple, forbidden: tuple[str, ...]) -> str | None:
    """Why the texts of a row, a prompt and its replies, cannot be encoded: a key of REASONS, or None."""
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        return "missing_field"
    if not all(text.strip() for text in known[1:]):
        return "empty_reply"
    return "special_token" if any(token in text for text in known for token in forbidden) else None


def _token_fault(prompt: Ids, sides: list[Ids | str], limit: int) -> str | None:
    """Why the tokens of a row cannot be used: a key of REASONS, or None."""
    if not prompt:
        return "empty_prompt"
    if len(prompt) >= limit and (sides or len(prompt) > limit):
        return "prompt_fills_context" if sides else "prompt_too_long"
    for side in sides:
        if isinstance(side, str):
            return side
    if len(set(map(tuple, sides))) < len(sides):
        return "identical_replies"
    return "too_long" if any(len(prompt) + len(side) > limit for side in sides) else None


def check_fields(rows: list[Row], form: dict[str, str]) -> None:
    """Raises DataError, saying what was found and the form that is expected, if a field is missing in all rows."""
    if not rows:
        raise DataError(f"no rows: expected rows with the fields {', '.join(form)}")
    for field in form:
        if not _has(rows, field):
            found = sorted({name for row in rows for name in row})
            expected = "{" + ", ".join(f'"{name}": {what}' for name, what in form.items()) + "}"
            raise DataError(f"no row has the field {field!r}: found {', '.join(found) or 'none'}; expected {expected}")


def _has(rows: list[Row], field: str) -> bool:
    return any(row.get(field) is not None for row in rows)


def _or_raise(ids: Ids | str, text: str) -> Ids:
    if isinstance(ids, str):
        meaning, fix = REASONS[ids]
        raise DataError(f"{ids}: {meaning}, in {text[:80]!r}; {fix}")
    return ids
