"""What of a table of tests runs every time, what behind the marker `slow`, and what a machine has to have."""

import pytest

from alignax.rewards.sandbox.run import SandboxError, run


def _has_sandbox() -> bool:
    """Whether a sandbox runs here; 25 ms."""
    try:
        return run("").passed
    except SandboxError:
        return False


needs_sandbox = pytest.mark.skipif(not _has_sandbox(), reason="no Landlock or seccomp on this machine")


def quick(names, *kept):
    """The names as parameters of a test, all slow but those kept: one for each way through the stage."""
    unknown = set(kept) - set(names)
    assert not unknown, unknown
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]
