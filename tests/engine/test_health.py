"""Stop signals: noted while the run goes on, and its own business no longer once it has ended."""

from __future__ import annotations

import os
import signal

import pytest

from megatv.health import StopSignal


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stop_signal_is_noted_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with StopSignal() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested and not heard
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)
