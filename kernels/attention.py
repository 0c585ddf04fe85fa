"""The one door to attention: packed training rows and cached sampling rows."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from . import operator
from .backends import BACKENDS, choose, load
from .cached import cached_attention
from .record import AttentionRecord

__all__ = ["BACKENDS", "attention", "cached_attention"]


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    record: AttentionRecord,
    *,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    deterministic: bool = False,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    record: AttentionRecord,
    *,
    backend: str = "auto",
    return_lse: Literal[True],
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    record: AttentionRecord,
    *,
    backend: str = "auto",
    return_lse: bool = False,
    deterministic: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of one packed row under its record's intervals (TV2TV eq. 7-8, all keys global).

    q        [S, H, E]; k, v [S, K, E] with H a multiple of K (grouped queries). Scale is E ** -0.5.
    backend  `auto` (the fastest that serves this device and dtype; the log says which) or a name of BACKENDS.
    deterministic   the same inputs give the same bits, gradients included; may be slower
    Returns out [S, H, E], with `return_lse` also the natural log of each row's sum of exponentials, fp32
    [S, H] (fp64 from fp64 inputs), through which no gradient flows. B > 1 means packing: one row holds all.
    Raises ValueError for inputs that do not fit the record or each other, and for a backend that is unknown
    or cannot serve here. Everything is checked on the host.
    """
    _check(q, k, v, record)
    name = choose(backend, q.device, q.dtype, q.shape[-1], deterministic)
    module = load(name)
    if hasattr(module, "attend"):
        out, lse = module.attend(q, k, v, record, return_lse=return_lse, deterministic=deterministic)
    else:
        host = record.host or record
        out, lse = operator.forward(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            record.intervals,
            host.intervals,
            record.documents,
            record.text_rows,
            record.chunk_rows,
            name,
            deterministic,
        )
    return (out, lse) if return_lse else out


def _check(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> None:
    if (
        q.dim() != 3
        or k.dim() != 3
        or q.shape[0] != record.rows
        or k.shape[0] != record.rows
        or v.shape != k.shape
    ):
        raise ValueError(
            f"attention record is for {record.rows} rows, got q {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}: expected q [S, H, E], k and v [S, K, E]"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key/value heads")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"queries have head dim {q.shape[2]}, keys {k.shape[2]}: they must be equal")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(
            f"q, k and v must share one floating-point dtype, got {q.dtype}, {k.dtype} and {v.dtype}"
        )
    devices = [x.device for x in (q, k, v, record.intervals)]
    if len(set(devices)) > 1:
        raise ValueError(
            "q, k, v and the record must lie on one device, got {}, {}, {} and {}: "
            "move them with .to(device)".format(*devices)
        )
