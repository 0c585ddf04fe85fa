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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
    """Live keys of every row of a packed row, and the extents of its documents.

    intervals       int32 [S, 3, 2]: (text, clean, own) half-open key intervals of each query row
    documents       int32 [D, 3, 2]: (text, clean, noisy) half-open row intervals of each document, on the
                    host, so that no backend has to ask the device for shapes
    text_rows, chunk_rows, chunks   T, P and M of the layout
    """

    intervals: Tensor
    documents: Tensor
    text_rows: int
    chunk_rows: int
    chunks: int

    @property
    def rows(self) -> int:
        """S, the length of the packed row."""
        return self.text_rows + 2 * self.chunks * self.chunk_rows

    def to(self, device: torch.device | str) -> AttentionRecord:
        """The same record with its intervals on `device`; the document extents stay on the host."""
        return AttentionRecord(
            self.intervals.to(device), self.documents, self.text_rows, self.chunk_rows, self.chunks
        )

    def live_pairs(self) -> int:
        """Number of visible (query, key) pairs, padding rows not counted."""
        total = 0
        for text, clean, noisy in self.documents.tolist():
            for lo, hi in (text, clean, noisy):
                spans = self.intervals[lo:hi].long()
                total += int((spans[..., 1] - spans[..., 0]).sum())
        return total


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


def _check_visibility(index: int, document: Document) -> None:
    for name, sees, limit in (
        ("text_sees_chunks", document.text_sees_chunks, len(document.chunk_sees_text)),
        ("chunk_sees_text", document.chunk_sees_text, len(document.text_sees_chunks)),
    ):
        values = np.asarray(sees)
        if len(values) and (values.min() < 0 or values.max() > limit or np.any(np.diff(values) < 0)):
            raise ValueError(f"document {index}: {name} must rise from >= 0 to <= {limit}, got {values}")
