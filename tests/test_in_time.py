"""A call is waited for so long and no longer, and what it returns or raises comes through."""

import threading
import time

import pytest

from megatv.in_time import in_time


def test_what_a_call_returns_or_raises_comes_through():
    assert in_time(10, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        in_time(10, lambda: 1 // 0)


def test_a_call_that_does_not_end_is_left():
    end, began = threading.Event(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"nothing within 0\.2 s"):
        in_time(0.2, lambda: end.wait(30))
    end.set()
    assert time.monotonic() - began < 10
