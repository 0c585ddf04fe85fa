"""Sequences that grow side by side: a KV cache, and RoPE positions from the code that training uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatv.data.sequence import Cursor
from megatv.model.mot import MoT
from megatv.sample.cache import KVCache
from megatv.sample.graphs import Graphs, Step
from megatv.sample.room import require_room

CAPTURED = 4
"""The most tokens a pass that are worth a graph: one that the model picked, and what it makes certain."""


class Context:
    """B sequences, every one with its own text length; chunks are written to all of them at once."""

    def __init__(
        self, model: MoT, cache: KVCache, cursors: list[Cursor], graphs: Graphs | None = None
    ) -> None:
        self.model, self.cache, self.cursors = model, cache, cursors
        self._graphs = graphs or Graphs()
        self.device = cache.lengths.device

    @classmethod
    def empty(cls, model: MoT, rows: int, slots: int, dtype: torch.dtype, frames: int = 0) -> Context:
        """`rows` sequences without a token, with room for `slots` each; keys and values in `dtype`.

        Raises ValueError when they do not fit into memory, with so many `frames` to be decoded beside them.
        """
        config, device = model.config, model.embed.position.device

        def cache(device: torch.device) -> KVCache:
            shares = model.layers.matrix_shares
            return KVCache.empty(config.model, rows, slots, device=device, dtype=dtype, shares=shares)

        require_room(cache(torch.device("meta")), device, config.video, frames)
        return cls(
            model, cache(device), [Cursor(config.sequence, config.tokens_per_chunk) for _ in range(rows)]
        )

    def rows(self, rows: slice) -> Context:
        """The first few of the sequences, shared with this context."""
        assert not rows.start and rows.step in (None, 1), "captured steps know rows by their number"
        return Context(self.model, self.cache.rows(rows), self.cursors[rows], self._graphs)

    def restart(self, row: int) -> None:
        """Forget all of one sequence."""
        self.cache.lengths[row] = 0
        self.cursors[row].position = 0

    def rewind(self, row: int, tokens: int) -> None:
        """Forget the last text tokens of one sequence."""
        self.cache.lengths[row] -= tokens
        self.cursors[row].position -= tokens

    def text(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Append ids[b] (possibly none) to sequence b, all in one pass.

        Returns the logits [B, V], at least fp32, after the last new token of each; those of rows without one
        mean nothing.
        """
        counts = [len(row) for row in ids]
        padded = np.zeros((len(ids), max(1, *counts)), np.int64)
        positions = np.zeros_like(padded)
        for b, row in enumerate(ids):
            padded[b, : counts[b]] = row
            positions[b, : counts[b]] = self.cursors[b].text(counts[b])
        step = functools.partial(self.model.text_step, cache=self.cache)
        run = self._graphs.run if padded.shape[1] <= CAPTURED else _plainly  # long texts come in all lengths
        logits = run(step, self._put(padded), self._put(positions))
        new = self._put(np.array(counts))
        self.cache.lengths += new
        logits = self.model.layers.gather_vocab(logits[torch.arange(len(ids), device=self.device), new - 1])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def chunk(self) -> tuple[Tensor, Tensor]:
        """int64 [B, P] each: positions of the next chunk's (clean, noisy) tokens."""
        clean, noisy = zip(*(cursor.chunk() for cursor in self.cursors), strict=True)
        return self._put(np.stack(clean)), self._put(np.stack(noisy))

    def velocity(self, x: Tensor, t: float, positions: Tensor) -> Tensor:
        """float32 [B, C, h, w]: velocity of the noisy chunks x at time t; leaves no trace."""
        times = torch.full((len(x),), t, device=self.device)
        step = functools.partial(self.model.chunk_step, cache=self.cache)
        # a copy: a captured step gives the same tensor every time, and solvers keep what they got
        return self._graphs.run(step, x, times, positions).to(torch.float32, copy=True)

    def write(self, x: Tensor, positions: Tensor) -> None:
        """The clean pass: append the finished chunks x [B, C, h, w] at t = 1 (TV2TV section 2.3, step 4)."""
        self.velocity(x, 1.0, positions)
        self.cache.lengths += positions.shape[1]

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, torch.int64)


def _plainly(step: Step, *inputs: Tensor) -> Tensor:
    return step(*inputs)
