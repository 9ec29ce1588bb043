"""The README's test command in an environment as its install line makes it: without PyTorch, which CI adds."""

import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN = "import sys, pytest; sys.modules['torch'] = None; sys.exit(pytest.main(['-n0', '--collect-only', '-q']))"


@pytest.mark.slow
def test_files_that_need_it_are_skipped_and_the_others_found():
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/losses/test_loss_battery.py" in done.stdout and "tests/parity/test_torch_losses.py" not in done.stdout
