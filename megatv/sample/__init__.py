"""The sampler: continue an interleaved sequence of words and video (TV2TV section 2.3)."""

from megatv.sample.request import ChunkWords, Intervention, Request, Result
from megatv.sample.sampler import Sampler

__all__ = ["ChunkWords", "Intervention", "Request", "Result", "Sampler"]
