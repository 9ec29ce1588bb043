"""What one process hears: SIGTERM, which ends a run at once, or after the step that it is in."""

import os
import signal

import pytest

from alignax import host


@pytest.fixture
def heeded():
    before = signal.getsignal(signal.SIGTERM)
    host.heed_stops()
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_a_run_at_once_where_nothing_is_to_be_saved(heeded):
    with pytest.raises(host.Stopped) as stopped:
        heeded()
    assert stopped.value.code == host.RETRY == 75 and "goes on" in stopped.value.said
    assert not host.asked_to_stop(1)


def test_sigterm_waits_for_the_step_and_a_second_one_does_not(heeded):
    with host.saving():
        assert not host.asked_to_stop(1)
        heeded()
        assert host.asked_to_stop(2)
        with pytest.raises(host.Stopped):
            heeded()
    assert not host.asked_to_stop(3)  # it was for the stage that has ended
