"""The form in which the tests expect an error: its class, the key that it names, one word of what it expected."""

import contextlib

import pytest


@contextlib.contextmanager
def refuses(error, key, *words):
    """Expects `error`, whose message has `key` and after it the words, in this order; no regular expressions."""
    with pytest.raises(error) as caught:
        yield caught
    names(str(caught.value), key, *words)


def names(message, key, *words):
    """Asserts that the message has `key` and after it the words, in this order."""
    message, end = " ".join(message.split()), 0
    for word in (key, *words):
        at = message.find(word, end)
        assert at >= 0, f"no {word!r} after {message[:end]!r} in: {message}"
        end = at + len(word)
