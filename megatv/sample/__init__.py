"""The sampler: continue an interleaved sequence of words and video (TV2TV section 2.3)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatv.sample.events import ChunkStarted, Event, Finished, FramesDecoded, TextToken
    from megatv.sample.request import ChunkWords, Intervention, Request, Result
    from megatv.sample.sampler import Sampler
    from megatv.sample.stream import Stream

__all__ = [
    "ChunkStarted",
    "ChunkWords",
    "Event",
    "Finished",
    "FramesDecoded",
    "Intervention",
    "Request",
    "Result",
    "Sampler",
    "Stream",
    "TextToken",
]

_MODULES = {
    **dict.fromkeys(("ChunkStarted", "Event", "Finished", "FramesDecoded", "TextToken"), "events"),
    **dict.fromkeys(("ChunkWords", "Intervention", "Request", "Result"), "request"),
    "Sampler": "sampler",
    "Stream": "stream",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when first used (PEP 562): the command's `--help` needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
