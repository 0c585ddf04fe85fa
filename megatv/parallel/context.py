"""Context parallelism in the manner of Ulysses: siblings share the rows of one packed row.

Every sibling holds a share of the text rows and of the chunks (both copies of each), computes on them what
works row by row, and reads its own targets: no activation is held twice. Attention needs all rows, but its
heads do not need each other. So one all-to-all before it turns a share of the rows with all heads into all
rows with a share of the heads, and one after it turns the result back (Jacobs et al. 2023, DeepSpeed
Ulysses). Shares may differ by a chunk, so no row is padded.

    rows to heads   [s, H, E] -> [S, H / cp, E]   s rows of this sibling, S of the packed row
    heads to rows   its inverse, which is its gradient as well
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from megatv_kernels import AttentionRecord
from torch import Tensor

from megatv.config import ParallelConfig
from megatv.types import Batch


class Context:
    """This process's share of every packed row. `Context()` has all of it.

    size, rank, group   of the siblings: cp, this process's place among them, their process group
    """

    def __init__(
        self, parallel: ParallelConfig | None = None, rank: int = 0, group: dist.ProcessGroup | None = None
    ) -> None:
        parallel = parallel or ParallelConfig()
        self.size, self.rank, self.group = parallel.cp, rank, group
        # what sequence parallelism splits further must stay divisible
        self._unit = parallel.tp if parallel.sequence_parallel else 1
        self._shares: dict[Any, Shares] = {}

    def share(self, batch: Batch) -> Batch:
        """This sibling's rows of a packed row, on the host or the device; the record stays the whole's."""
        if self.size == 1:
            return batch
        shares = self._of(batch.record, batch.positions.device)
        cut: dict[str, Any] = {
            f.name: getattr(batch, f.name)[shares.text if f.name.startswith("text_") else shares.chunks]
            for f in fields(Batch)
            if f.name not in ("positions", "record", "ids")
        }
        return replace(batch, positions=batch.positions[shares.mine], **cut)

    def text_rows(self, record: AttentionRecord) -> int:
        """How many text rows this sibling has."""
        if self.size == 1:
            return record.text_rows
        text = self._of(record, torch.device("cpu")).text
        return text.stop - text.start

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord
    ) -> Tensor:
        """`attention(q, k, v, record)` of the whole row, from and to this sibling's rows.

        q [s, H, E], k and v [s, K, E] -> [s, H, E]. Where cp does not divide K, keys and values are repeated
        so that every sibling has those of its query heads.
        """
        if self.size == 1:
            return attention(q, k, v, record)
        repeats = self.size // gcd(self.size, k.shape[1])
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        shares = self._of(record, q.device)
        # one message: what a sibling needs of q, k and v lies together
        heads = [x.unflatten(1, (self.size, -1)) for x in (q, k, v)]
        joined = Exchange.apply(torch.cat(heads, 2).flatten(1, 2), shares.to_heads, shares.to_rows)
        out = attention(*joined.split([x.shape[2] for x in heads], 1), record)
        return Exchange.apply(out, shares.to_rows, shares.to_heads)

    def _of(self, record: AttentionRecord, device: torch.device) -> Shares:
        key = (record.text_rows, record.chunks, record.chunk_rows, device)
        if key not in self._shares:
            self._shares[key] = Shares(*key, context=self, unit=self._unit)
        return self._shares[key]


class Exchange(torch.autograd.Function):
    """An all-to-all, `way`, whose gradient is its inverse, `back`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, way: Callable[..., Tensor], back: Callable[..., Tensor]) -> Tensor:
        """`way(x)`."""
        ctx.back = back
        return way(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """`back` of the gradient."""
        return ctx.back(gradients[0]), None, None


class Shares:
    """Who holds which rows of a packed row: text rows in multiples of `unit`, and whole chunks.

    text, chunks   this sibling's slices         mine    int64 [s]: its rows in packed order
    counts         rows of every sibling         order   int64 [S]: all siblings' rows, one after the other
    """

    def __init__(
        self,
        text_rows: int,
        chunks: int,
        chunk_rows: int,
        device: torch.device,
        *,
        context: Context,
        unit: int,
    ) -> None:
        self._context = context
        units, size = text_rows // unit, context.size
        noisy = chunks * chunk_rows
        clean_rows = torch.arange(text_rows, text_rows + noisy, device=device).view(chunks, chunk_rows)
        everyone = []
        for i in range(size):
            text = slice(units * i // size * unit, units * (i + 1) // size * unit)
            own = slice(chunks * i // size, chunks * (i + 1) // size)
            clean = clean_rows[own].flatten()
            everyone.append(
                torch.cat([torch.arange(text.start, text.stop, device=device), clean, clean + noisy])
            )
            if i == context.rank:
                self.text, self.chunks = text, own
        self.mine = everyone[context.rank]
        self.counts = [len(rows) for rows in everyone]
        self.order = torch.cat(everyone)
        self._inverse = self.order.argsort()

    def to_heads(self, x: Tensor) -> Tensor:
        """[s, H, E] -> [S, H / cp, E]: sibling i receives the i-th share of the heads of everyone's rows."""
        size = self._context.size
        out = x.new_empty(len(self.order), x.shape[1] // size, x.shape[2])
        sent = x.unflatten(1, (size, -1)).transpose(0, 1).flatten(0, 1)
        dist.all_to_all_single(out, sent, self.counts, [len(x)] * size, group=self._context.group)
        return out[self._inverse]

    def to_rows(self, x: Tensor) -> Tensor:
        """[S, H / cp, E] -> [s, H, E], the inverse: sibling i receives all heads of its rows."""
        size, rows = self._context.size, len(self.mine)
        out = x.new_empty(size * rows, *x.shape[1:])
        dist.all_to_all_single(out, x[self.order], [rows] * size, self.counts, group=self._context.group)
        return out.unflatten(0, (size, rows)).transpose(0, 1).flatten(1, 2)
