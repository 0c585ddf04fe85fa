"""Split-KV attention against a cache on the GPU: a chunk or a token of new rows, many more cached keys.

One chunk has too few query rows to fill a GPU, so the keys of each row are cut into `splits` runs that are
attended side by side and then merged by their log-sum-exp (FlashDecoding, Dao et al. 2023; the online softmax
is FlashAttention-2, arXiv 2307.08691, algorithm 1). Query heads that share a key head are packed into one
tile's rows, so that every key is read once for all of them.

The grid depends on shapes alone and lengths are read on the device: no sync, and one CUDA graph serves every
length. A split without keys returns at once, with a log-sum-exp of -inf that the merge weighs with 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cache import isolate_compilers

isolate_compilers()
HEAD_DIMS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MERGE_ROWS = 16


@dataclass(frozen=True)
class Tile:
    """Query rows (heads of a group times queries) and keys of one step, and how the compiler schedules it."""

    rows: int
    keys: int
    warps: int
    stages: int


def choose_tile(packed_rows: int, dtype: torch.dtype) -> Tile:
    """The tile for `packed_rows` = queries x heads of a group (chosen by register counts, speed unmeasured).

    fp32 is there to compare with: its products run in full precision, where TF32 would hide that sampling
    equals training, on plain cores, which spill with any larger tile.
    """
    if dtype == torch.float32:
        return Tile(16, 32, 8, 2)
    rows = max(16, min(128, triton.next_power_of_2(packed_rows)))
    return Tile(rows, 64, 8 if rows == 128 else 4, 3)


def choose_splits(programs: int, slots: int, tile: Tile, processors: int) -> int:
    """How many runs to cut the keys into, so that `programs` x splits fill the GPU's `processors` once.

    Two small tiles fit a processor. A run is never shorter than four steps of a full cache: shorter ones cost
    more to merge than they save.
    """
    room = processors * (1 if tile.rows == 128 else 2)
    return max(1, min(room // programs, slots // (4 * tile.keys)))


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, causal: bool, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """The CUDA path of `cached_attention`, which checks the arguments and says what they are.

    splits  runs that the keys are cut into; chosen for the device when None
    Returns out [B, Q, H, E] in q's dtype and lse fp32 [B, Q, H], the natural logarithm of the softmax's sum.
    """
    (batch, queries, heads, head_dim), (slots, kv_heads) = q.shape, k_cache.shape[1:3]
    q, k_cache, v_cache = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k_cache, v_cache))
    group = heads // kv_heads
    tile = choose_tile(queries * group, q.dtype)
    programs = batch * kv_heads * triton.cdiv(queries * group, tile.rows)
    if splits is None:
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
        splits = choose_splits(programs, slots, tile, processors)
    out = q.new_empty(batch, queries, heads, head_dim)
    lse = q.new_empty(batch, queries, heads, dtype=torch.float32)
    # The caching allocator hands the same workspace out at every call, on every stream its own.
    parts, part_lse = out, lse
    if splits > 1:
        parts = q.new_empty(splits, *out.shape, dtype=torch.float32)
        part_lse = q.new_empty(splits, *lse.shape, dtype=torch.float32)
    _attend[(programs, splits)](
        q, k_cache, v_cache, lengths, parts, part_lse,
        *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3],
        batch, queries, slots, kv_heads, head_dim**-0.5 * 1.4426950408889634, splits,
        GROUP=group, HEAD_DIM=head_dim, ROWS=tile.rows, KEYS=tile.keys, CAUSAL=causal,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        rows = lse.numel()
        _merge[(triton.cdiv(rows, _MERGE_ROWS),)](
            parts, part_lse, out, lse, rows, splits, HEAD_DIM=head_dim, ROWS=_MERGE_ROWS, num_warps=4
        )
    return out, lse


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, lse_ptr,
    q_batch, q_query, q_head, k_batch, k_slot, k_head, v_batch, v_slot, v_head,
    batch, queries, slots, kv_heads, scale_log2, splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One tile of packed rows (row = query x GROUP + head of the group) against one run of its keys."""
    tiles = tl.cdiv(queries * GROUP, ROWS)
    tile = tl.program_id(0) % tiles  # tiles of one key head run side by side and share its keys in L2
    kv_head = tl.program_id(0) // tiles % kv_heads
    b = (tl.program_id(0) // (tiles * kv_heads)).to(tl.int64)
    split = tl.program_id(1)

    row = tile * ROWS + tl.arange(0, ROWS)
    query, head = row // GROUP, kv_head * GROUP + row % GROUP
    real = query < queries
    to = ((split * batch + b) * queries + query) * (kv_heads * GROUP) + head

    length = tl.load(lengths_ptr + b).to(tl.int32)
    first = length + queries  # keys that the tile's first row sees, and its last
    last = first
    if CAUSAL:
        first = length + tile * ROWS // GROUP + 1
        last = tl.minimum(length + (tile * ROWS + ROWS - 1) // GROUP + 1, last)
    first, last = tl.minimum(first, slots), tl.minimum(last, slots)
    run = tl.cdiv(tl.cdiv(last, KEYS), splits) * KEYS
    lo = split * run
    hi = tl.minimum(lo + run, last)
    if lo >= hi:
        tl.store(lse_ptr + to, tl.full([ROWS], float("-inf"), tl.float32), mask=real)
        return
    whole = lo + tl.maximum(tl.minimum(first, hi) - lo, 0) // KEYS * KEYS  # below, nothing needs a mask

    dim = tl.arange(0, HEAD_DIM)
    q_at = q_ptr + b * q_batch + query[:, None] * q_query + head[:, None] * q_head + dim
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    k_ptr += b * k_batch + kv_head * k_head
    v_ptr += b * v_batch + kv_head * v_head
    limit = tl.minimum(length + query + 1, slots) if CAUSAL else tl.full([ROWS], 0, tl.int32) + last
    # -1e30 and not -inf: a row that sees no key of this run keeps a sum of 0 without a NaN on the way
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for key in range(lo, whole, KEYS):
        acc, top, total = _step(
            acc,
            top,
            total,
            q,
            k_ptr,
            v_ptr,
            k_slot,
            v_slot,
            key,
            hi,
            limit,
            scale_log2,
            HEAD_DIM,
            KEYS,
            False,
        )
    for key in range(whole, hi, KEYS):
        acc, top, total = _step(
            acc, top, total, q, k_ptr, v_ptr, k_slot, v_slot, key, hi, limit, scale_log2, HEAD_DIM, KEYS, True
        )
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    lse = tl.where(seen, top * 0.6931471805599453 + tl.log(total), float("-inf"))
    tl.store(lse_ptr + to, lse, mask=real)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + to[:, None] * HEAD_DIM + dim, out, mask=real[:, None])


@triton.jit
def _step(
    acc, top, total, q, k_ptr, v_ptr, k_slot, v_slot, start, hi, limit, scale_log2,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys [start, start + KEYS), in base 2."""
    step, dim = tl.arange(0, KEYS), tl.arange(0, HEAD_DIM)
    key = start + step
    k_at = k_ptr + tl.cast(start, tl.int64) * k_slot + (step[None, :] * k_slot + dim[:, None])
    v_at = v_ptr + tl.cast(start, tl.int64) * v_slot + (step[:, None] * v_slot + dim[None, :])
    if MASKED:
        k = tl.load(k_at, mask=key[None, :] < hi, other=0.0)
        v = tl.load(v_at, mask=key[:, None] < hi, other=0.0)  # a weight of 0 does not undo a NaN
    else:
        k, v = tl.load(k_at), tl.load(v_at)
    k, v = k.to(q.dtype), v.to(q.dtype)  # a cache in fp8 is read as such and multiplied as q is
    scores = tl.dot(q, k, input_precision="ieee") * scale_log2
    if MASKED:
        visible = (key[None, :] < limit[:, None]) & (key[None, :] < hi)
        scores = tl.where(visible, scores, float("-inf"))
    above = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - above[:, None])
    shrink = tl.exp2(top - above)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, above, total * shrink + tl.sum(weights, 1)


@triton.jit
def _merge(
    parts_ptr, part_lse_ptr, out_ptr, lse_ptr, rows, splits, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr
):
    """Weigh the runs of every row by exp(lse of the run - lse of all)."""
    row, dim = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    real = row < rows
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(part_lse_ptr + (split * rows + row), mask=real, other=0.0))
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for split in range(splits):
        at = split * rows + row
        weight = tl.exp(tl.load(part_lse_ptr + at, mask=real, other=0.0) - top)
        # an empty run has written nothing: its memory must not be read into the sum
        written = (real & (weight > 0))[:, None]
        part = tl.load(parts_ptr + at[:, None] * HEAD_DIM + dim, mask=written, other=0.0)
        total += weight
        acc += part * weight[:, None]
    tl.store(lse_ptr + row, top + tl.log(total), mask=real)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * HEAD_DIM + dim, out, mask=real[:, None])
