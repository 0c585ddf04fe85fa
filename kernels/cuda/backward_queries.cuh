// dQ by itself: one block of threads for 128 packed rows of a work item, which sums over its key tiles in
// their order, in registers. With attention_backward_keys it makes the deterministic backward: two products
// more in all than the other one (S and dP twice), no fp32 buffer, no atomics.
#pragma once

#include "tiles.cuh"

namespace megatv::backward_queries_pass {

constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (1 + kConsumers);
constexpr int kRows = 64 * kConsumers;
constexpr int kKeys = 80;
constexpr int kStages = 3;

// Shared memory.
constexpr int kRowsBlock = kRows * kRowBytes, kKeysBlock = kKeys * kRowBytes;
constexpr int kKeysTile = kBlocks * kKeysBlock;
constexpr int kQ = 0;
constexpr int kDOut = kQ + kBlocks * kRowsBlock;
constexpr int kK = kDOut + kBlocks * kRowsBlock;
constexpr int kV = kK + kStages * kKeysTile;
constexpr int kItem = kV + kStages * kKeysTile;
constexpr int kBarriers = kItem + kItemBytes;
constexpr int kSharedBytes = kBarriers + 8 * (1 + 2 * kStages);

struct Barriers {
  uint32_t base;
  DEVICE uint32_t rows_full() const { return base; }
  DEVICE uint32_t full(int stage) const { return base + 8 + 16 * stage; }
  DEVICE uint32_t empty(int stage) const { return base + 16 + 16 * stage; }
};

DEVICE void produce(uint32_t smem, Barriers barriers, const TensorMap& q_map, const TensorMap& k_map,
                    const TensorMap& v_map, const TensorMap& dout_map, int group, int q_lo, int kv_head) {
  barrier_expect(barriers.rows_full(), 2 * kBlocks * (kRows / group * group) * kRowBytes);
  load_tile(smem + kQ, kRowsBlock, q_map, kv_head * group, q_lo, barriers.rows_full());
  load_tile(smem + kDOut, kRowsBlock, dout_map, kv_head * group, q_lo, barriers.rows_full());
  KeyTiles<kKeys> tiles(smem + kItem);
  Ring<kStages> ring;
  for (; tiles.next(); ring.advance()) {
    const int stage = ring.index;
    barrier_wait(barriers.empty(stage), ring.phase ^ 1);
    barrier_expect(barriers.full(stage), 2 * kKeysTile);
    load_tile(smem + kK + stage * kKeysTile, kKeysBlock, k_map, kv_head, tiles.key, barriers.full(stage));
    load_tile(smem + kV + stage * kKeysTile, kKeysBlock, v_map, kv_head, tiles.key, barriers.full(stage));
  }
}

DEVICE void consume(uint32_t smem, Barriers barriers, const float* statistics, int pitch,
                    const int* intervals, Element* dq, int heads, int group, int kv_head, float scale) {
  const int q_lo = load_shared(smem + kItem), q_hi = load_shared(smem + kItem + 4);
  const int group_row = 64 * (group_index() - 1);  // of the packed tile
  const uint32_t q_tile = smem + kQ + group_row * kRowBytes, dout_tile = smem + kDOut + group_row * kRowBytes;
  const float scale_log2 = scale * kLog2E;
  int queries[2];  // rows beyond the item compute along, for nobody
  float lse_log2[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = group_row + fragment_row() + 8 * r;
    queries[r] = min(q_lo + row / group, q_hi - 1);
    const int64_t at = (kv_head * group + row % group) * static_cast<int64_t>(pitch) + queries[r];
    lse_log2[r] = statistics[at];
    delta[r] = statistics[static_cast<int64_t>(heads) * pitch + at];
  }

  float dq_sum[kHeadDim / 2] = {};
  barrier_wait(barriers.rows_full(), 0);
  KeyTiles<kKeys> tiles(smem + kItem);
  Ring<kStages> ring;
  for (; tiles.next(); ring.advance()) {
    const uint32_t k_tile = smem + kK + ring.index * kKeysTile, v_tile = smem + kV + ring.index * kKeysTile;
    float s[kKeys / 2], dp[kKeys / 2];
    uint32_t ds[kKeys / 4];
    barrier_wait(barriers.full(ring.index), ring.phase);
    wgmma_fence();
    product_of_rows<kKeys>(s, q_tile, kRowsBlock, k_tile, kKeysBlock);
    wgmma_commit();
    product_of_rows<kKeys>(dp, dout_tile, kRowsBlock, v_tile, kKeysBlock);
    wgmma_commit();
    const RowMask mask(tiles.masked(), intervals, queries, tiles.interval);
    wgmma_wait<1>(s);
    if (tiles.masked()) mask.apply(s, tiles.key);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) s[i] = exp2_approx(fmaf(s[i], scale_log2, -lse_log2[i / 2 % 2]));
    wgmma_wait<0>(dp);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) s[i] *= dp[i] - delta[i / 2 % 2];
    pack(ds, s);
    wgmma_fence();
    product_with_fragment<kKeys>(dq_sum, ds, k_tile, kKeysBlock);
    wgmma_commit();
    wgmma_wait<0>(dq_sum);
    release(barriers.empty(ring.index));
  }

  sync_group(group_index(), kGroupThreads);  // nobody reads these rows of Q any more
  const PackedRows rows{q_lo, q_hi, group, kRows / group * group, heads, kv_head};
  store_rows(dq_sum, scale, smem + kQ, kRowsBlock, group_row, rows, dq);
}

}  // namespace megatv::backward_queries_pass

extern "C" __device__ const int attention_backward_queries_shape[4] = {
    megatv::backward_queries_pass::kThreads, megatv::backward_queries_pass::kSharedBytes,
    megatv::backward_queries_pass::kRows, megatv::backward_queries_pass::kKeys};

// Grid (KV heads, work items). Boxes: q_map, dout_map (64 columns, group heads, 128 / group rows); k_map,
// v_map (64, 1, 80). statistics fp32 [2, H, pitch], dq [S, H, E] contiguous; scale = 1 / sqrt(E).
extern "C" __global__ void __launch_bounds__(megatv::backward_queries_pass::kThreads, 1)
    attention_backward_queries(const __grid_constant__ megatv::TensorMap q_map,
                               const __grid_constant__ megatv::TensorMap k_map,
                               const __grid_constant__ megatv::TensorMap v_map,
                               const __grid_constant__ megatv::TensorMap dout_map, const float* statistics,
                               int pitch, const int* items, const int* intervals, megatv::Element* dq,
                               int heads, int group, float scale) {
  using namespace megatv;
  using namespace megatv::backward_queries_pass;
  const int* item = items + kItemColumns * block_y();
  const int q_lo = item[0];
  if (q_lo == item[1]) return;  // an unused entry

  const uint32_t smem = shared_base();
  const Barriers barriers{smem + kBarriers};
  store_item(smem + kItem, item);
  if (thread_index() == 0) {
    barrier_init(barriers.rows_full(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(barriers.full(stage), 1);
      barrier_init(barriers.empty(stage), 4 * kConsumers);
    }
    barrier_init_fence();
  }
  sync_threads();
  if (group_index() == 0) {
    registers_shrink<24>();
    if (thread_index() == 0) produce(smem, barriers, q_map, k_map, v_map, dout_map, group, q_lo, block_x());
  } else {
    registers_grow<240>();
    consume(smem, barriers, statistics, pitch, intervals, dq, heads, group, block_x(), scale);
  }
}
