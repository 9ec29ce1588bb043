"""What one process hears: SIGTERM, which ends a run at once, or after the step that it is in."""

import os
import signal
import threading

import pytest

from alignax import host


@pytest.fixture
def heard():
    before = signal.getsignal(signal.SIGTERM)
    with host.heeding_stops():
        yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before and not host.asked_to_stop()


def test_sigterm_ends_a_run_at_once_where_nothing_is_to_be_saved(heard):
    with pytest.raises(host.Stopped) as stopped:
        heard()
    assert stopped.value.code == host.RETRY == 75 and "goes on" in stopped.value.said


def test_sigterm_waits_for_the_step_and_a_second_one_does_not(heard):
    with pytest.raises(host.Stopped, match="75"), host.saving():
        assert not host.asked_to_stop()
        heard()
        assert host.asked_to_stop()
        with pytest.raises(host.Stopped):
            heard()


def test_one_that_comes_after_the_last_step_is_not_lost(heard):
    with pytest.raises(host.Stopped) as stopped, host.saving():
        assert not host.asked_to_stop()
        heard()  # while the last step is saved
    assert "saved" in stopped.value.said


def test_a_thread_has_no_signals_and_goes_without():
    done = []

    def run():
        with host.heeding_stops():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]
