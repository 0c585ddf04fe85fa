"""Calls that nothing ends, such as one of the system's name resolver, waited for so long and no longer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


def in_time(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call()` returns, or raises. It runs in a thread of its own.

    Raises TimeoutError after `seconds`. Then the thread goes on by itself, its outcome is thrown away, and
    the process ends without waiting for it.
    """
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        found, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"nothing within {seconds:g} s") from None
    if error is not None:
        raise error
    return found
