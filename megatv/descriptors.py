"""File descriptors of a server: one for each connection and each file that it has open."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from contextlib import suppress
from typing import Any

NONE_LEFT = (
    "no file descriptor is left: newcomers wait until a connection ends; `ulimit -n` sets how many there are"
)
EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def allow_all() -> None:
    """Raise this process's limit (often 1,024) to the highest that the system grants without asking."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names no highest, and refuses this
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say_exhaustion_once(loop: asyncio.AbstractEventLoop) -> None:
    """Log NONE_LEFT at most once; asyncio would log a traceback for each of many attempts to `accept`."""
    said = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if getattr(context.get("exception"), "errno", None) not in EXHAUSTED:
            loop.default_exception_handler(context)
        elif not said:
            said = True
            logging.getLogger("uvicorn.error").error(NONE_LEFT)

    loop.set_exception_handler(handle)
