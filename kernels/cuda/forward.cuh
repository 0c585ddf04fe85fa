// Forward: one block of threads for 192 packed rows (query rows x query heads of one KV head) of a work item.
//
// One warpgroup copies tiles of 80 keys through a ring of buffers; three compute, 64 packed rows each. Each
// issues the scores of the next tile before the output of the last, so that the tensor cores work while it
// takes exponentials (FlashAttention-3, section 3.2), and rescales its output only when a row's maximum has
// grown by more than 2^8 since the last time (FlashAttention-4): sums stay exact, since both are kept
// relative to one reference.
#pragma once

#include "tiles.cuh"

namespace megatv::forward_pass {

constexpr int kConsumers = 3;
constexpr int kThreads = kGroupThreads * (1 + kConsumers);
constexpr int kRows = 64 * kConsumers;
constexpr int kKeys = 80;
constexpr int kStages = 4;
constexpr float kRescaleAbove = 8;  // in powers of two

// Shared memory.
constexpr int kRowsBlock = kRows * kRowBytes, kKeysBlock = kKeys * kRowBytes;
constexpr int kKeysTile = kBlocks * kKeysBlock;
constexpr int kK = kBlocks * kRowsBlock;
constexpr int kV = kK + kStages * kKeysTile;
constexpr int kItem = kV + kStages * kKeysTile;
constexpr int kBarriers = kItem + kItemBytes;
constexpr int kSharedBytes = kBarriers + 8 * (1 + 4 * kStages);

struct Barriers {
  uint32_t base;
  DEVICE uint32_t q_full() const { return base; }
  DEVICE uint32_t k_full(int stage) const { return base + 8 + 32 * stage; }
  DEVICE uint32_t k_empty(int stage) const { return base + 16 + 32 * stage; }
  DEVICE uint32_t v_full(int stage) const { return base + 24 + 32 * stage; }
  DEVICE uint32_t v_empty(int stage) const { return base + 32 + 32 * stage; }
};

// The softmax of the two rows of a thread's fragment, one key tile after the other.
struct Softmax {
  float scale_log2;
  float reference[2] = {kNegativeInfinity,
                        kNegativeInfinity};  // a maximum of the row's scores, maybe a stale one
  float sum[2] = {0, 0};                     // of this thread's columns
  float rescale[2] = {1, 1};                 // for what was summed before this tile

  // Scores become probabilities times 2^reference; true when some row of the warp must be rescaled.
  template <int kSize>
  DEVICE bool step(float (&s)[kSize]) {
    bool grown = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = kNegativeInfinity;
#pragma unroll
      for (int i = 2 * r; i < kSize; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      const bool grows =
          (top - reference[r]) * scale_log2 > kRescaleAbove;  // false for rows without a key yet
      rescale[r] = grows ? exp2_approx((reference[r] - top) * scale_log2) : 1;
      if (grows) reference[r] = top;
      grown |= grows;
      sum[r] *= rescale[r];
      const float offset = reference[r] == kNegativeInfinity ? 0 : reference[r] * scale_log2;
#pragma unroll
      for (int i = 2 * r; i < kSize; i += 4) {
        s[i] = exp2_approx(fmaf(s[i], scale_log2, -offset));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], scale_log2, -offset));
        sum[r] += s[i] + s[i + 1];
      }
    }
    return any_in_warp(grown);
  }

  // Natural logarithm of the row's sum of exponentials; `rescale` then turns sums of values into their mean.
  DEVICE float finish(int r) {
    sum[r] += shuffle_xor(sum[r], 1);
    sum[r] += shuffle_xor(sum[r], 2);
    rescale[r] = 1 / sum[r];
    return (reference[r] * scale_log2 + log2_approx(sum[r])) * kLn2;
  }

  template <int kSize>
  DEVICE void apply(float (&o)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) o[i] *= rescale[i / 2 % 2];
  }
};

DEVICE void produce(uint32_t smem, Barriers barriers, const TensorMap& q_map, const TensorMap& k_map,
                    const TensorMap& v_map, int group, int q_lo, int kv_head) {
  barrier_expect(barriers.q_full(), kBlocks * (kRows / group * group) * kRowBytes);
  load_tile(smem, kRowsBlock, q_map, kv_head * group, q_lo, barriers.q_full());
  KeyTiles<kKeys> tiles(smem + kItem);
  Ring<kStages> ring;
  for (; tiles.next(); ring.advance()) {
    barrier_wait(barriers.k_empty(ring.index), ring.phase ^ 1);
    barrier_expect(barriers.k_full(ring.index), kKeysTile);
    load_tile(smem + kK + ring.index * kKeysTile, kKeysBlock, k_map, kv_head, tiles.key,
              barriers.k_full(ring.index));
    barrier_wait(barriers.v_empty(ring.index), ring.phase ^ 1);
    barrier_expect(barriers.v_full(ring.index), kKeysTile);
    load_tile(smem + kV + ring.index * kKeysTile, kKeysBlock, v_map, kv_head, tiles.key,
              barriers.v_full(ring.index));
  }
}

DEVICE void consume(uint32_t smem, Barriers barriers, const int* intervals, Element* out, float* lse,
                    int heads, int group, int kv_head, float scale_log2) {
  const int q_lo = load_shared(smem + kItem), q_hi = load_shared(smem + kItem + 4);
  const int group_row = 64 * (group_index() - 1);  // of the packed tile
  const uint32_t q_tile = smem + group_row * kRowBytes;
  int queries[2];  // rows beyond the item compute along, for nobody
#pragma unroll
  for (int r = 0; r < 2; ++r) queries[r] = min(q_lo + (group_row + fragment_row() + 8 * r) / group, q_hi - 1);

  KeyTiles<kKeys> tiles(smem + kItem);
  Ring<kStages> k_ring, v_ring;
  Softmax softmax{scale_log2};
  float o[kHeadDim / 2] = {}, s[kKeys / 2];
  uint32_t p[kKeys / 4];

  barrier_wait(barriers.q_full(), 0);
  tiles.next();  // every row sees itself, so there is a first tile
  barrier_wait(barriers.k_full(0), 0);
  wgmma_fence();
  product_of_rows<kKeys>(s, q_tile, kRowsBlock, smem + kK, kKeysBlock);
  wgmma_commit();
  const RowMask first(tiles.masked(), intervals, queries, tiles.interval);
  wgmma_wait<0>(s);
  release(barriers.k_empty(0));
  if (tiles.masked()) first.apply(s, tiles.key);
  softmax.step(s);
  pack(p, s);
  k_ring.advance();

  for (; tiles.next(); k_ring.advance(), v_ring.advance()) {
    barrier_wait(barriers.k_full(k_ring.index), k_ring.phase);
    wgmma_fence();
    product_of_rows<kKeys>(s, q_tile, kRowsBlock, smem + kK + k_ring.index * kKeysTile, kKeysBlock);
    wgmma_commit();
    const RowMask mask(tiles.masked(), intervals, queries, tiles.interval);
    barrier_wait(barriers.v_full(v_ring.index), v_ring.phase);
    wgmma_fence();
    product_with_fragment<kKeys>(o, p, smem + kV + v_ring.index * kKeysTile, kKeysBlock);
    wgmma_commit();

    wgmma_wait<1>(s);
    release(barriers.k_empty(k_ring.index));
    if (tiles.masked()) mask.apply(s, tiles.key);
    const bool grown = softmax.step(s);
    wgmma_wait<0>(o);
    release(barriers.v_empty(v_ring.index));
    if (grown) softmax.apply(o);
    pack(p, s);
  }
  barrier_wait(barriers.v_full(v_ring.index), v_ring.phase);
  wgmma_fence();
  product_with_fragment<kKeys>(o, p, smem + kV + v_ring.index * kKeysTile, kKeysBlock);
  wgmma_commit();

  const PackedRows rows{q_lo, q_hi, group, kRows / group * group, heads, kv_head};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float row_lse = softmax.finish(r);
    const int row = group_row + fragment_row() + 8 * r;
    if (lane_index() % 4 == 0 && rows.exists(row)) lse[rows.place(row)] = row_lse;
  }
  wgmma_wait<0>(o);
  softmax.apply(o);
  sync_group(group_index(), kGroupThreads);  // nobody reads these rows of Q any more
  store_rows(o, 1, smem, kRowsBlock, group_row, rows, out);
}

}  // namespace megatv::forward_pass

// For the host: threads and bytes of shared memory of a block, packed rows and keys of a tile.
extern "C" __device__ const int attention_forward_shape[4] = {
    megatv::forward_pass::kThreads, megatv::forward_pass::kSharedBytes, megatv::forward_pass::kRows,
    megatv::forward_pass::kKeys};

// Grid (KV heads, work items). q_map's box is (64 columns, group heads, 192 / group rows), k_map's and
// v_map's (64, 1, 80). out [S, H, E] and lse fp32 [S, H] are contiguous; scale_log2 = log2(e) / sqrt(E).
extern "C" __global__ void __launch_bounds__(megatv::forward_pass::kThreads, 1)
    attention_forward(const __grid_constant__ megatv::TensorMap q_map,
                      const __grid_constant__ megatv::TensorMap k_map,
                      const __grid_constant__ megatv::TensorMap v_map, const int* items, const int* intervals,
                      megatv::Element* out, float* lse, int heads, int group, float scale_log2) {
  using namespace megatv;
  using namespace megatv::forward_pass;
  const int* item = items + kItemColumns * block_y();
  const int q_lo = item[0];
  if (q_lo == item[1]) return;  // an unused entry

  const uint32_t smem = shared_base();
  const Barriers barriers{smem + kBarriers};
  store_item(smem + kItem, item);
  if (thread_index() == 0) {
    barrier_init(barriers.q_full(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(barriers.k_full(stage), 1);
      barrier_init(barriers.v_full(stage), 1);
      barrier_init(barriers.k_empty(stage), 4 * kConsumers);
      barrier_init(barriers.v_empty(stage), 4 * kConsumers);
    }
    barrier_init_fence();
  }
  sync_threads();
  if (group_index() == 0) {
    registers_shrink<32>();
    if (thread_index() == 0) produce(smem, barriers, q_map, k_map, v_map, group, q_lo, block_x());
  } else {
    registers_grow<160>();
    consume(smem, barriers, intervals, out, lse, heads, group, block_x(), scale_log2);
  }
}
