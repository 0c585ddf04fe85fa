"""The sampler: continue an interleaved sequence of words and video (TV2TV section 2.3)."""

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
