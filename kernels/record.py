"""The attention record: who sees whom in a packed row, as intervals instead of a mask.

A packed row is ordered `[text | clean | noisy]` (T text rows, then M chunks of P clean rows, then M chunks
of P noisy rows). Every query row sees at most three contiguous runs of keys, in this order:

    0  text   the tokens of its own document before it (a token sees itself)
    1  clean  the clean chunks of its own document before it
    2  own    its own chunk, both ways: clean rows see the clean copy, noisy rows the noisy copy

so `int32 [S, 3, 2]` half-open intervals `[lo, hi)` define the whole mask (TV2TV section 2.2: text causal,
video block-causal, and no other token ever sees a noisy one). Padding rows see only themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from .work import Work, make_work

ALIGNMENT = 32
"""Parts of the device buffer start at multiples of 128 bytes (int32 units), fit for vector loads."""


@dataclass(frozen=True)
class Document:
    """The visibility of one document: all that the mask needs to know about it.

    text_sees_chunks  int [T_i]: token j sees the first n chunks (non-decreasing)
    chunk_sees_text   int [N_i]: chunk i sees the first n tokens (non-decreasing)
    """

    text_sees_chunks: np.ndarray
    chunk_sees_text: np.ndarray


@dataclass(frozen=True, eq=False)  # a record is itself: backends remember what they made of it
class AttentionRecord:
    """Live keys of every row of a packed row, and the extents of its documents; made by `build_record`.

    intervals       int32 [S, 3, 2]: (text, clean, own) half-open key intervals of each query row
    documents       int32 [D, 3, 2]: (text, clean, noisy) half-open row intervals of each document, on the
                    host, so that no backend has to ask the device for shapes
    text_rows, chunk_rows, chunks   T, P and M of the layout
    host            the record that this one was moved from, for what is made on the host
    """

    intervals: Tensor
    documents: Tensor
    text_rows: int
    chunk_rows: int
    chunks: int
    host: AttentionRecord | None = field(default=None, repr=False)
    _work: dict[tuple[int, int], Work] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.host is None:
            _check_intervals(self.intervals, self.rows)
        if self.intervals.device.type != "meta":
            _live[_address(self.intervals, self.documents)] = self

    @property
    def rows(self) -> int:
        """S, the length of the packed row."""
        return self.text_rows + 2 * self.chunks * self.chunk_rows

    def work(self, query_rows: int, key_rows: int) -> Work:
        """Work lists for tiles of `query_rows` x `key_rows`, beside the intervals; made once and kept.

        Raises ValueError for tiles of no rows.
        """
        key = query_rows, key_rows
        if key not in self._work:
            if self.host is None:
                self._work[key] = make_work(self, *key)
            else:
                made = self.host.work(*key)
                self._work[key] = replace(made, table=made.table.to(self.intervals.device))
        return self._work[key]

    def to(self, device: torch.device | str) -> AttentionRecord:
        """The same record on `device`: intervals and the work lists made so far, in one copy.

        The document extents stay on the host. Lists made after the move cost a copy of their own.
        """
        host = self.host or self
        for record in (self, host):
            if torch.device(device) == record.intervals.device:
                return record
        parts = [host.intervals, *(work.table for work in host._work.values())]
        sizes = [-(-part.numel() // ALIGNMENT) * ALIGNMENT for part in parts]
        buffer = torch.zeros(sum(sizes), dtype=torch.int32)
        for piece, part in zip(buffer.split(sizes), parts, strict=True):
            piece[: part.numel()] = part.flatten()
        pieces = [
            piece[: part.numel()].view(part.shape)
            for piece, part in zip(buffer.to(device).split(sizes), parts, strict=True)
        ]
        lists = zip(host._work.items(), pieces[1:], strict=True)
        work = {key: replace(made, table=table) for (key, made), table in lists}
        return replace(self, intervals=pieces[0], host=host, _work=work)

    def live_pairs(self) -> int:
        """Number of visible (query, key) pairs, padding rows not counted."""
        total = 0
        for text, clean, noisy in self.documents.tolist():
            for lo, hi in (text, clean, noisy):
                spans = self.intervals[lo:hi].long()
                total += int((spans[..., 1] - spans[..., 0]).sum())
        return total


_live: WeakValueDictionary[tuple[int, int], AttentionRecord] = WeakValueDictionary()


def _address(intervals: Tensor, documents: Tensor) -> tuple[int, int]:
    return intervals.data_ptr(), documents.data_ptr()


def record_of(
    intervals: Tensor, host_intervals: Tensor, documents: Tensor, text_rows: int, chunk_rows: int
) -> AttentionRecord:
    """The record that holds these tensors: operators are given tensors and numbers only.

    While the record lives it is the very same one, with all that backends made of it; after that it is made
    again (from the host's tensors, without asking the device).
    """
    record = _live.get(_address(intervals, documents))
    if record is None:
        chunks = (len(intervals) - text_rows) // (2 * chunk_rows)
        record = AttentionRecord(host_intervals, documents, text_rows, chunk_rows, chunks)
        if intervals.device != host_intervals.device:
            record = replace(record, intervals=intervals, host=record, _work={})
    return record


def build_record(
    documents: Sequence[Document], *, text_rows: int, chunk_rows: int, chunks: int
) -> AttentionRecord:
    """Lay `documents` one after the other into a packed row and derive every row's live keys.

    text_rows (T) and chunks (M) are capacities; what the documents leave free becomes padding.
    Raises ValueError when the documents do not fit or see beyond themselves.
    """
    clean_start, noisy_start = text_rows, text_rows + chunks * chunk_rows
    rows = noisy_start + chunks * chunk_rows
    intervals = np.zeros((rows, 3, 2), np.int32)
    row = np.arange(rows, dtype=np.int32)
    intervals[:, 2] = np.stack([row, row + 1], -1)  # padding: itself only; real rows are overwritten below
    extents = np.zeros((len(documents), 3, 2), np.int32)
    text_at = chunk_at = 0
    for index, document in enumerate(documents):
        n_text, n_chunks = len(document.text_sees_chunks), len(document.chunk_sees_text)
        if text_at + n_text > text_rows or chunk_at + n_chunks > chunks:
            raise ValueError(
                f"document {index} does not fit: it needs {n_text} text rows and {n_chunks} chunks, but "
                f"{text_rows - text_at} and {chunks - chunk_at} are left"
            )
        _check_visibility(index, document)
        clean_lo = clean_start + chunk_at * chunk_rows
        noisy_lo = noisy_start + chunk_at * chunk_rows
        extents[index] = [
            [text_at, text_at + n_text],
            [clean_lo, clean_lo + n_chunks * chunk_rows],
            [noisy_lo, noisy_lo + n_chunks * chunk_rows],
        ]
        token = np.arange(n_text, dtype=np.int32)
        text = intervals[text_at : text_at + n_text]
        text[:, 0] = np.stack([np.full_like(token, text_at), text_at + token + 1], -1)
        text[:, 1, 0] = clean_lo
        text[:, 1, 1] = clean_lo + np.asarray(document.text_sees_chunks) * chunk_rows
        text[:, 2] = 0
        chunk = np.arange(n_chunks, dtype=np.int32)
        for copy_lo in (clean_lo, noisy_lo):
            video = intervals[copy_lo : copy_lo + n_chunks * chunk_rows].reshape(n_chunks, chunk_rows, 3, 2)
            video[:, :, 0, 0] = text_at
            video[:, :, 0, 1] = text_at + np.asarray(document.chunk_sees_text)[:, None]
            video[:, :, 1, 0] = clean_lo
            video[:, :, 1, 1] = (clean_lo + chunk * chunk_rows)[:, None]
            video[:, :, 2, 0] = (copy_lo + chunk * chunk_rows)[:, None]
            video[:, :, 2, 1] = (copy_lo + (chunk + 1) * chunk_rows)[:, None]
        text_at += n_text
        chunk_at += n_chunks
    return AttentionRecord(
        torch.from_numpy(intervals), torch.from_numpy(extents), text_rows, chunk_rows, chunks
    )


def _check_intervals(intervals: Tensor, rows: int) -> None:
    """ValueError unless every row has a live key and its intervals are disjoint, in order and within rows."""
    if intervals.device.type != "cpu":
        raise ValueError("an attention record is made on the host: move it with .to(device) afterwards")
    if intervals.dtype != torch.int32 or tuple(intervals.shape) != (rows, 3, 2):
        raise ValueError(
            f"intervals must be int32 [{rows}, 3, 2], got {intervals.dtype} {list(intervals.shape)}"
        )
    lo, hi = np.ascontiguousarray(intervals.numpy().transpose(2, 1, 0))  # [3, S] each
    live = lo < hi
    end = hi * live
    for fault, row_is_bad in (
        ("lies beyond the keys or ends before it starts", (lo < 0) | (hi > rows) | (hi < lo)),
        ("starts before an earlier one ends", live[1:] & (lo[1:] < [end[0], np.maximum(end[0], end[1])])),
        ("shows no key at all", ~(live[:1] | live[1:2] | live[2:])),
    ):
        if row_is_bad.any():
            row = int(row_is_bad.any(0).argmax())
            raise ValueError(f"row {row}: an interval {fault}: {intervals[row].tolist()} of {rows} keys")


def _check_visibility(index: int, document: Document) -> None:
    for name, sees, limit in (
        ("text_sees_chunks", document.text_sees_chunks, len(document.chunk_sees_text)),
        ("chunk_sees_text", document.chunk_sees_text, len(document.text_sees_chunks)),
    ):
        values = np.asarray(sees)
        if len(values) and (values.min() < 0 or values.max() > limit or np.any(np.diff(values) < 0)):
            raise ValueError(f"document {index}: {name} must rise from >= 0 to <= {limit}, got {values}")
