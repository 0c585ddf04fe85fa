"""The one door to attention: packed training rows and cached sampling rows."""

from __future__ import annotations

from torch import Tensor

from .cached import cached_attention
from .record import AttentionRecord
from .reference import reference_attention
from .sdpa import sdpa_attention

__all__ = ["attention", "cached_attention"]

BACKENDS = {"reference": reference_attention, "sdpa": sdpa_attention}


def attention(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, *, backend: str = "auto") -> Tensor:
    """Softmax attention of one packed row under its record's intervals (TV2TV eq. 7-8, all keys global).

    q        [S, H, E]; k, v [S, K, E] with H a multiple of K (grouped queries). Scale is E ** -0.5.
    backend  `auto`, `sdpa` (document by document, any device) or `reference` (dense, any dtype).
    Returns [S, H, E]. Raises ValueError for shapes that do not fit the record or an unknown backend.
    """
    if q.shape[0] != record.rows or k.shape[0] != record.rows or v.shape != k.shape:
        raise ValueError(
            f"attention record is for {record.rows} rows, got q {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key/value heads")
    name = "sdpa" if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"attention backend '{backend}' is unknown: choose auto, {', '.join(BACKENDS)}")
    return BACKENDS[name](q, k, v, record)
