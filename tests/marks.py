"""What of a table of tests runs every time, and what behind the marker `slow`."""

import pytest


def quick(names, *kept):
    """The names as parameters of a test, all slow but those kept: one for each way through the stage."""
    unknown = set(kept) - set(names)
    assert not unknown, unknown
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]
