"""Device code of the Triton backend: one forward kernel and the two passes of a deterministic backward.

A program takes one item of a work list (work.py) and one head, and goes through the item's three ranges
twice: first the tiles that are seen whole, without a mask; then the few at the cuts, masked row by row. Each
time the ranges are one loop, so that its pipeline fills once. Tiles come by descriptor (TMA on Hopper). They
may reach into other documents' rows, which weigh exactly zero (and must be finite: 0 * nan is nan).

The recurrences are those of FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2), with scores in units of
log2 (`scale_log2` is E ** -0.5 * log2 e), which turns every exp into one exp2.
"""

import triton
import triton.language as tl

from .cache import isolate_compilers

isolate_compilers()
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e30)  # where a maximum starts: finite, so that a row without keys so far makes no nan


@triton.jit
def _bounds(item):
    """The three ranges of a work item: (start, cut, end) of each."""
    a, b, c = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    d, e, f = tl.load(item + 5), tl.load(item + 6), tl.load(item + 7)
    g, h, i = tl.load(item + 8), tl.load(item + 9), tl.load(item + 10)
    return a, b, c, d, e, f, g, h, i


@triton.jit
def _pick(step, n0, n1, x0, x1, x2):
    """The value that belongs to the range of tile `step`: n0 tiles are of the first, n1 of the second."""
    return tl.where(step < n0, x0, tl.where(step < n0 + n1, x1, x2))


@triton.jit
def _seen(keys, rows, live, run, intervals):
    """bool [queries, keys]: which row sees which key in its interval number `run`."""
    lo = tl.load(intervals + rows * 6 + run * 2, mask=live, other=0)
    hi = tl.load(intervals + rows * 6 + run * 2 + 1, mask=live, other=0)
    return (keys[None] >= lo[:, None]) & (keys[None] < hi[:, None])


@triton.jit
def forward_kernel(
    q, k_tiles, v_tiles, work, intervals, out, lse, scale_log2,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out [S, H, E] and lse [S, H] (natural log) of one query tile and one head; grid W * H, heads fastest.

    k_tiles, v_tiles  descriptors of k and v as [S, K * E], in boxes of [KEYS, E]
    """
    item = work + tl.program_id(0) // HEADS * 11
    head = tl.program_id(0) % HEADS
    q_lo, q_hi = tl.load(item), tl.load(item + 1)
    if q_lo == q_hi:
        return
    lo0, cut0, hi0, lo1, cut1, hi1, lo2, cut2, hi2 = _bounds(item)
    column = head // (HEADS // KV_HEADS) * DIM
    rows = q_lo + tl.arange(0, QUERIES)
    live = rows < q_hi
    tile = (rows.to(tl.int64) * HEADS + head)[:, None] * DIM + tl.arange(0, DIM)
    q_tile = tl.load(q + tile, mask=live[:, None], other=0.0)
    acc = tl.zeros((QUERIES, DIM), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), LOWEST, tl.float32)

    n0, n1, n2 = (cut0 - lo0) // KEYS, (cut1 - lo1) // KEYS, (cut2 - lo2) // KEYS
    for MASKED in tl.static_range(2):
        if MASKED:
            lo0, lo1, lo2 = lo0 + n0 * KEYS, lo1 + n1 * KEYS, lo2 + n2 * KEYS
            n0, n1, n2 = tl.cdiv(hi0 - lo0, KEYS), tl.cdiv(hi1 - lo1, KEYS), tl.cdiv(hi2 - lo2, KEYS)
        for step in tl.range(n0 + n1 + n2):
            at = step * KEYS + _pick(step, n0, n1, lo0, lo1 - n0 * KEYS, lo2 - (n0 + n1) * KEYS)
            scores = tl.dot(q_tile, k_tiles.load([at, column]).T, input_precision="ieee")
            if MASKED:
                seen = _seen(at + tl.arange(0, KEYS), rows, live, _pick(step, n0, n1, 0, 1, 2), intervals)
                scores = tl.where(seen, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            top = new_top
            total = total * shrink + tl.sum(weights, 1)
            v_tile = v_tiles.load([at, column])
            acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")

    total = tl.where(live, total, 1.0)
    tl.store(out + tile, (acc / total[:, None]).to(out.dtype.element_ty), mask=live[:, None])
    tl.store(lse + rows.to(tl.int64) * HEADS + head, (top + tl.log2(total)) * LN2, mask=live)


@triton.jit
def query_gradient_kernel(
    q, k_tiles, v_tiles, work, intervals, out, dout, lse, dq, stats, total_rows, scale, scale_log2,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dq [S, H, E] of one query tile and one head, and what the other pass needs to know of its rows.

    Grid, work and descriptors are those of forward_kernel.
    stats  fp32 [2, H, S]: -lse / scale, and -delta, delta being the sum over E of dout * out
    """
    item = work + tl.program_id(0) // HEADS * 11
    head = tl.program_id(0) % HEADS
    q_lo, q_hi = tl.load(item), tl.load(item + 1)
    if q_lo == q_hi:
        return
    lo0, cut0, hi0, lo1, cut1, hi1, lo2, cut2, hi2 = _bounds(item)
    column = head // (HEADS // KV_HEADS) * DIM
    rows = q_lo + tl.arange(0, QUERIES)
    live = rows < q_hi
    tile = (rows.to(tl.int64) * HEADS + head)[:, None] * DIM + tl.arange(0, DIM)
    dout_tile = tl.load(dout + tile, mask=live[:, None], other=0.0)
    out_tile = tl.load(out + tile, mask=live[:, None], other=0.0)
    delta = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    top = tl.load(lse + rows.to(tl.int64) * HEADS + head, mask=live, other=0.0)
    tl.store(stats + head * total_rows + rows, -top / scale, mask=live)
    tl.store(stats + (HEADS + head) * total_rows + rows, -delta, mask=live)
    top /= LN2
    q_tile = tl.load(q + tile, mask=live[:, None], other=0.0)
    acc = tl.zeros((QUERIES, DIM), tl.float32)

    n0, n1, n2 = (cut0 - lo0) // KEYS, (cut1 - lo1) // KEYS, (cut2 - lo2) // KEYS
    for MASKED in tl.static_range(2):
        if MASKED:
            lo0, lo1, lo2 = lo0 + n0 * KEYS, lo1 + n1 * KEYS, lo2 + n2 * KEYS
            n0, n1, n2 = tl.cdiv(hi0 - lo0, KEYS), tl.cdiv(hi1 - lo1, KEYS), tl.cdiv(hi2 - lo2, KEYS)
        for step in tl.range(n0 + n1 + n2):
            at = step * KEYS + _pick(step, n0, n1, lo0, lo1 - n0 * KEYS, lo2 - (n0 + n1) * KEYS)
            k_tile = k_tiles.load([at, column])
            scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
            weights = tl.exp2(scores * scale_log2 - top[:, None])
            if MASKED:
                seen = _seen(at + tl.arange(0, KEYS), rows, live, _pick(step, n0, n1, 0, 1, 2), intervals)
                weights = tl.where(seen, weights, 0.0)
            v_tile = v_tiles.load([at, column])
            slopes = weights * (tl.dot(dout_tile, v_tile.T, input_precision="ieee") - delta[:, None])
            acc = tl.dot(slopes.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    tl.store(dq + tile, (acc * scale).to(dq.dtype.element_ty), mask=live[:, None])


@triton.jit
def key_gradient_kernel(
    k, v, q_tiles, dout_tiles, work, intervals, stats, dk, dv, total_rows, scale, scale_log2,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dk and dv [S, K, E] of one key tile and one KV head, summed over its query heads in their order.

    Grid V * K, heads fastest. Score tiles are [keys, queries], so that they multiply from registers; sums
    start at -lse and -delta (`stats` of query_gradient_kernel), so that no register keeps them for later.
    q_tiles, dout_tiles  descriptors of q and dout as [S, H * E], in boxes of [QUERIES, E]
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    item = work + tl.program_id(0) // KV_HEADS * 11
    kv_head = tl.program_id(0) % KV_HEADS
    k_lo, k_hi = tl.load(item), tl.load(item + 1)
    if k_lo == k_hi:
        return
    lo0, cut0, hi0, lo1, cut1, hi1, lo2, cut2, hi2 = _bounds(item)
    keys = k_lo + tl.arange(0, KEYS)
    live = keys < k_hi
    tile = (keys.to(tl.int64) * KV_HEADS + kv_head)[:, None] * DIM + tl.arange(0, DIM)
    k_tile = tl.load(k + tile, mask=live[:, None], other=0.0)
    v_tile = tl.load(v + tile, mask=live[:, None], other=0.0)
    dk_acc = tl.zeros((KEYS, DIM), tl.float32)
    dv_acc = tl.zeros((KEYS, DIM), tl.float32)

    # Whole tiles end where their range ends; what is left over stands at its beginning, with the cut.
    n0, n1, n2 = (hi0 - cut0) // QUERIES, (hi1 - cut1) // QUERIES, (hi2 - cut2) // QUERIES
    hi0, hi1, hi2 = hi0 - n0 * QUERIES, hi1 - n1 * QUERIES, hi2 - n2 * QUERIES
    at0, at1, at2 = hi0, hi1, hi2
    for MASKED in tl.static_range(2):
        if MASKED:
            n0, n1, n2 = tl.cdiv(hi0 - lo0, QUERIES), tl.cdiv(hi1 - lo1, QUERIES), tl.cdiv(hi2 - lo2, QUERIES)
            at0, at1, at2 = lo0, lo1, lo2
        steps = n0 + n1 + n2
        for count in tl.range(GROUP * steps):
            head = kv_head * GROUP + count // steps
            step = count % steps
            at = step * QUERIES + _pick(step, n0, n1, at0, at1 - n0 * QUERIES, at2 - (n0 + n1) * QUERIES)
            rows = at + tl.arange(0, QUERIES)
            if MASKED:
                here = rows < _pick(step, n0, n1, hi0, hi1, hi2)  # later ones are done, or of another range
                lo, hi = tl.zeros((QUERIES,), tl.int32), tl.zeros((QUERIES,), tl.int32)
                for run in tl.static_range(3):  # one text or one chunk: a row has one run at most in it
                    run_lo = tl.load(intervals + rows * 6 + run * 2, mask=here, other=0)
                    run_hi = tl.load(intervals + rows * 6 + run * 2 + 1, mask=here, other=0)
                    meets = (run_lo < k_hi) & (run_hi > k_lo)
                    lo, hi = tl.where(meets, run_lo, lo), tl.where(meets, run_hi, hi)
                seen = (keys[:, None] >= lo[None]) & (keys[:, None] < hi[None])
                offset = tl.load(stats + head * total_rows + rows, mask=here, other=0.0)
                delta = tl.load(stats + (HEADS + head) * total_rows + rows, mask=here, other=0.0)
                offset = tl.where(seen, offset[None], float("-inf"))
            else:
                offset = tl.load(stats + head * total_rows + rows)
                delta = tl.load(stats + (HEADS + head) * total_rows + rows)
                offset = tl.broadcast_to(offset[None], (KEYS, QUERIES))
            q_tile, dout_tile = q_tiles.load([at, head * DIM]), dout_tiles.load([at, head * DIM])
            weights = tl.exp2(tl.dot(k_tile, q_tile.T, offset, input_precision="ieee") * scale_log2)
            dv_acc = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_acc, input_precision="ieee")
            delta = tl.broadcast_to(delta[None], (KEYS, QUERIES))
            slopes = weights * tl.dot(v_tile, dout_tile.T, delta, input_precision="ieee")
            dk_acc = tl.dot(slopes.to(q_tile.dtype), q_tile, dk_acc, input_precision="ieee")

    tl.store(dk + tile, (dk_acc * scale).to(dk.dtype.element_ty), mask=live[:, None])
    tl.store(dv + tile, dv_acc.to(dv.dtype.element_ty), mask=live[:, None])
