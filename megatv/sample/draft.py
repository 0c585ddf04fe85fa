"""One video in the making: its words, the latents and frames made so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megatv.config import Config
from megatv.sample.events import ChunkStarted, FramesDecoded
from megatv.sample.request import Request, Result
from megatv.sample.script import Script
from megatv.sample.timeline import Window, frames_of


class Draft:
    """script: its words; made: its chunks, float32 [C, h, w] each; frames: uint8 [F, H, W, 3] by window.

    recalled: the first chunks of a video that this one repeats.
    """

    def __init__(self, request: Request, script: Script, given: list[Tensor], config: Config) -> None:
        self.request, self.script, self.config = request, script, config
        self.made: list[Tensor] = []
        self.frames: list[np.ndarray] = []
        self.recalled: list[Tensor] = []
        self._known = given

    def open(self, window: Window, recoded: Tensor | None) -> None:
        """Start a window; `recoded` [C, h, w] is the last frame coded anew, where the window wants it."""
        self.window = window
        self.script.open(window)
        if window.first:
            self._known = [recoded] if recoded is not None else self.made[-window.kept :]

    def recall(self, other: Draft, chunks: int) -> None:
        """Repeat the first `chunks` chunks of another video, words and latents, instead of making them."""
        said = zip(other.script.said, other.script.transcript, strict=True)
        self.script.recalled = list(said)[:chunks]
        self.recalled = other.made[:chunks]

    def known(self, chunk: int) -> Tensor | None:
        """The latent of this chunk of the window if it is there: given, kept, recalled or the anchor."""
        if chunk < 0:
            return self.made[0]
        if chunk < len(self._known):
            return self._known[chunk]
        index = self.script.index(chunk)
        return self.recalled[index] if index < len(self.recalled) else None

    def add(self, chunk: int, latent: Tensor) -> None:
        """Note the finished chunk of the window."""
        if chunk >= self.window.kept:
            self.made.append(latent)

    def started(self, chunk: int) -> ChunkStarted | None:
        """The event that the words of this chunk of the window are settled; None if it is no new one."""
        index = self.script.index(chunk)
        if chunk < self.window.kept or index >= len(self.script.transcript):
            return None
        words = self.script.transcript[index]
        return ChunkStarted(index, words.start_seconds, words)

    def decoded(self, chunk: int, frames: np.ndarray) -> FramesDecoded:
        """Note the frames [n, H, W, 3] of this chunk of the window."""
        self.frames.append(frames)
        return FramesDecoded(self.script.index(chunk), self.window.starts()[chunk], frames)

    def fresh(self) -> Tensor:
        """Latents [n, C, h, w] of this window that are to be decoded; the first opens a group."""
        opening = self._known if self.window.recoded else []
        return torch.stack([*opening, *self.made[self.window.first :]])

    def result(self) -> Result:
        """Cut to what was asked for, or to where the model ended."""
        script = self.script
        chunks = len(script.transcript)
        frames = np.concatenate(self.frames)[: frames_of(chunks, self.config.video.groups)]
        return Result(
            latents=torch.stack(self.made)[:chunks].cpu().numpy(),
            frames=frames,
            transcript=tuple(script.transcript),
            plan=script.plan(),
            ended=script.ended,
            prompt_tokens=len(script.prompt),
            text_tokens=script.text_tokens(),
            video_tokens=chunks * self.config.tokens_per_chunk,
        )
