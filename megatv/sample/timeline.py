"""Which chunk is made in which window, and when it starts.

A video longer than the trained length is made in sliding windows (TV2TV section 2.3): the second half of a
full window becomes the start of the next. Windows move by whole 49-frame groups, because the first latent of
a group codes one frame and the others four; the paper's 98 frames keep their second group.

A model trained on one group has no whole second half. Its next window starts from the last frame instead,
coded anew as the one-frame latent that opens a group; so each later window adds 48 frames.

A later window may be anchored: after the meta-prompt stands the video's very first chunk, its one clean frame
with the words before it, and only then come the window's own. AAPT's windows, too, always attend to the first
frame; attention sinks keep sliding windows of language models stable (Xiao et al. 2023, arXiv 2309.17453).
Training has seen no such sequence. It takes the slots of one chunk and of its words, and as many RoPE
positions, beyond the trained length; the text budget of the window stays whole.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from megatv.config import FPS, GROUP_FRAMES, GROUP_LATENTS
from megatv.data.sequence import chunk_start_seconds

MAX_SECONDS = 3600.0
"""Longest video that is planned. What fits into memory is less (`megatv.sample.room`)."""


@dataclass(frozen=True)
class Window:
    """One sequence of at most the trained length.

    start_seconds   of its chunk 0 in the video     end    its chunks, kept and new ones
    kept            chunks that it starts from      first  index in the video of its first new chunk
    recoded         the one kept chunk is the last frame of the window before, coded anew
    anchored        the video's first chunk stands before its own chunks, under the number -1
    """

    start_seconds: float
    kept: int
    end: int
    first: int
    recoded: bool = False
    anchored: bool = False

    @property
    def chunks(self) -> range:
        """Numbers of all its chunks, the anchor's included."""
        return range(-1 if self.anchored else 0, self.end)

    def starts(self) -> list[float]:
        """Start in seconds of each of its own chunks, kept ones included."""
        return [self.start_seconds + chunk_start_seconds(i) for i in range(self.end)]


def plan_windows(chunks: int, groups: int, anchored: bool = False) -> list[Window]:
    """The windows that make a video of `chunks` chunks with a model trained on `groups` groups.

    anchored: all windows but the first, which has the first chunk as its own, are.
    """
    size = groups * GROUP_LATENTS
    if groups > 1:
        kept, step = groups // 2 * GROUP_LATENTS, (groups - groups // 2) * GROUP_FRAMES
    else:
        kept, step = 1, GROUP_FRAMES - 1
    windows = [Window(0.0, 0, min(chunks, size), 0)]
    made = windows[0].end
    while made < chunks:
        new = min(chunks - made, size - kept)
        start = windows[-1].start_seconds + step / FPS
        windows.append(Window(start, kept, kept + new, made, groups == 1, anchored))
        made += new
    return windows


def chunk_starts(windows: list[Window]) -> list[float]:
    """Start in seconds of every chunk of the video, each once."""
    return [start for window in windows for start in window.starts()[window.kept :]]


def chunks_within(seconds: float, groups: int) -> int:
    """Number of chunks that start before `seconds`: the shortest video that lasts at least that long."""
    most = math.ceil(min(seconds, MAX_SECONDS) * FPS) + 1  # a chunk shows a frame or more
    return max(1, bisect.bisect_left(chunk_starts(plan_windows(most, groups)), seconds))


def frames_of(chunks: int, groups: int) -> int:
    """Number of frames that the first `chunks` chunks of a video show."""
    return round(chunk_starts(plan_windows(chunks + 1, groups))[chunks] * FPS)
