// Backward: one block of threads for 128 keys of one KV head, against every tile of query rows that sees
// them, one query head of the group after the other (FlashAttention-2, algorithm 2, with the loops swapped
// for the gradients that stay in registers).
//
// Scores are computed transposed, 64 keys of a warpgroup by kQueries queries: so P^T and dS^T leave the
// tensor cores in the layout in which these take them back as the left factor of dV += P^T dO and dK += dS^T
// Q. dS^T also goes through shared memory to dQ = dS K, in pieces of 64 x 64 that are added to an fp32 buffer
// by TMA, in no fixed order: for head dim 128 each of the two warpgroups computes one, for 64 they take
// turns. kQueryGradient = false leaves dQ to backward_queries.cuh: bitwise the same gradients every time.
#pragma once

#include "tiles.cuh"

namespace megatv::backward_pass {

constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (1 + kConsumers);
constexpr int kKeys = 64 * kConsumers;
constexpr int kQueries = 64;
constexpr int kStages = 2;

// Shared memory.
constexpr int kKeysBlock = kKeys * kRowBytes, kQueriesBlock = kQueries * kRowBytes;
constexpr int kKeysTile = kBlocks * kKeysBlock, kQueriesTile = kBlocks * kQueriesBlock;
constexpr int kStatisticsBytes = 2 * 4 * kQueries;  // lse and delta of a query tile
constexpr int kScoresTile = kKeys * kRowBytes;      // dS^T
constexpr int kSumBlock = kQueries * kRowBytes;     // 64 rows x 32 columns of dQ in fp32
constexpr int kK = 0;
constexpr int kV = kK + kKeysTile;
constexpr int kQ = kV + kKeysTile;
constexpr int kDOut = kQ + kStages * kQueriesTile;
constexpr int kScores = kDOut + kStages * kQueriesTile;  // twice: a warpgroup may be one tile ahead
constexpr int kSums = kScores + 2 * kScoresTile;         // two blocks of each warpgroup
constexpr int kStatistics = kSums + kConsumers * 2 * kSumBlock;
constexpr int kItem = kStatistics + kStages * kStatisticsBytes;
constexpr int kBarriers = kItem + kItemBytes;
constexpr int kSharedBytes = kBarriers + 8 * (1 + 3 * kStages);

struct Barriers {
  uint32_t base;
  DEVICE uint32_t keys_full() const { return base; }
  DEVICE uint32_t q_full(int stage) const { return base + 8 + 24 * stage; }  // with the statistics
  DEVICE uint32_t dout_full(int stage) const { return base + 16 + 24 * stage; }
  DEVICE uint32_t empty(int stage) const { return base + 24 + 24 * stage; }
};

// The query tiles of a backward item, head by head and part by part: rows [query, query + kQueries) of the part
// [lo, hi), of which those from `full_lo` on see all keys of the item. The first tile may start up to three rows
// before its part: TMA reads the statistics from 16-byte boundaries only.
struct QueryTiles {
  uint32_t item;
  int group, head = 0, part = -1, query = 0, lo = 0, full_lo = 0, hi = 0;
  DEVICE QueryTiles(uint32_t item, int group) : item(item), group(group) {}
  DEVICE bool next() {
    query += kQueries;
    while (query >= hi) {
      if (++part == 3) {
        part = 0;
        if (++head == group) return false;
      }
      const uint32_t bounds = item + 8 + 12 * part;
      lo = load_shared(bounds), full_lo = load_shared(bounds + 4), hi = load_shared(bounds + 8);
      query = lo & ~3;
    }
    return true;
  }
  DEVICE bool masked() const { return query < full_lo || query + kQueries > hi; }
};

// Scores (keys in rows, queries in columns) of pairs that do not see each other become minus infinity.
DEVICE void mask_scores(float (&s)[kQueries / 2], const QueryTiles& tiles, const int* intervals, int key,
                        int key_hi) {
#pragma unroll
  for (int i = 0; i < kQueries / 2; i += 4) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = tiles.query + 2 * i + fragment_column() + c;
      bool sees[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) sees[r] = query >= tiles.lo && query < tiles.hi && key + 8 * r < key_hi;
      if (query < tiles.full_lo) {
        bool some[2] = {};
#pragma unroll
        for (int interval = 0; interval < 3; ++interval) {
          const Interval seen = load_interval(intervals + 6 * query + 2 * interval);
#pragma unroll
          for (int r = 0; r < 2; ++r) some[r] |= seen.holds(key + 8 * r);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) sees[r] &= some[r];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!sees[r]) s[i + 2 * r + c] = kNegativeInfinity;
      }
    }
  }
}

DEVICE void produce(uint32_t smem, Barriers barriers, const TensorMap& q_map, const TensorMap& k_map,
                    const TensorMap& v_map, const TensorMap& dout_map, const TensorMap& statistics_map,
                    int group, int k_lo, int kv_head) {
  barrier_expect(barriers.keys_full(), 2 * kKeysTile);
  load_tile(smem + kK, kKeysBlock, k_map, kv_head, k_lo, barriers.keys_full());
  load_tile(smem + kV, kKeysBlock, v_map, kv_head, k_lo, barriers.keys_full());
  QueryTiles tiles(smem + kItem, group);
  Ring<kStages> ring;
  for (; tiles.next(); ring.advance()) {
    const int stage = ring.index, head = kv_head * group + tiles.head;
    barrier_wait(barriers.empty(stage), ring.phase ^ 1);
    barrier_expect(barriers.q_full(stage), kQueriesTile + kStatisticsBytes);
    load_tile(smem + kQ + stage * kQueriesTile, kQueriesBlock, q_map, head, tiles.query,
              barriers.q_full(stage));
    tma_load(smem + kStatistics + stage * kStatisticsBytes, statistics_map, tiles.query, head, 0,
             barriers.q_full(stage));
    barrier_expect(barriers.dout_full(stage), kQueriesTile);
    load_tile(smem + kDOut + stage * kQueriesTile, kQueriesBlock, dout_map, head, tiles.query,
              barriers.dout_full(stage));
  }
}

// Add 64 x 64 of dQ to global memory, two boxes of 32 columns. They are staged in `sums`, this warpgroup's
// own.
DEVICE void add_query_gradient(const float (&dq)[32], uint32_t sums, const TensorMap& dq_map, int column,
                               int head, int query) {
  const bool leader = thread_index() % kGroupThreads == 0;
  if (leader) tma_wait_read();  // the last sums have left
  sync_group(group_index(), kGroupThreads);
  const uint32_t place = swizzled(sums, fragment_row(), fragment_column() / 4) + fragment_column() % 4 * 4;
#pragma unroll
  for (int i = 0; i < 32; i += 2) {  // eight columns are two chunks
    store_shared_2((place ^ i / 4 % 4 * 32) + i / 2 % 2 * 1024 + i / 16 * kSumBlock, dq[i], dq[i + 1]);
  }
  fence_async();
  sync_group(group_index(), kGroupThreads);
  if (leader) {
    tma_reduce_add(dq_map, sums, column, head, query);
    tma_reduce_add(dq_map, sums + kSumBlock, column + 32, head, query);
    tma_commit();
  }
}

template <bool kQueryGradient>
DEVICE void consume(uint32_t smem, Barriers barriers, const TensorMap& dq_map, const int* intervals,
                    Element* dk, Element* dv, int kv_heads, int group, int kv_head, float scale) {
  const int key_lo = load_shared(smem + kItem), key_hi = load_shared(smem + kItem + 4);
  const int part = group_index() - 1;  // this warpgroup's 64 keys and, for head dim 128, columns of dQ
  const uint32_t k_rows = smem + kK + 64 * part * kRowBytes, v_rows = smem + kV + 64 * part * kRowBytes;
  const int key = key_lo + 64 * part + fragment_row();
  const bool keys_end = key_lo + 64 * part + 16 * warp_in_group() + 16 > key_hi;  // in this warp's 16 keys
  const float scale_log2 = scale * kLog2E;

  float dk_sum[kHeadDim / 2] = {}, dv_sum[kHeadDim / 2] = {};
  barrier_wait(barriers.keys_full(), 0);
  QueryTiles tiles(smem + kItem, group);
  Ring<kStages> ring;
  for (int buffer = 0; tiles.next(); ring.advance(), buffer ^= 1) {
    const int stage = ring.index;
    const uint32_t q_tile = smem + kQ + stage * kQueriesTile, dout_tile = smem + kDOut + stage * kQueriesTile;
    const uint32_t statistics = smem + kStatistics + stage * kStatisticsBytes + 4 * fragment_column();
    float s[kQueries / 2], dp[kQueries / 2];
    uint32_t p[kQueries / 4], ds[kQueries / 4];

    barrier_wait(barriers.q_full(stage), ring.phase);
    wgmma_fence();
    product_of_rows<kQueries>(s, k_rows, kKeysBlock, q_tile, kQueriesBlock);
    wgmma_commit();
    barrier_wait(barriers.dout_full(stage), ring.phase);
    wgmma_fence();
    product_of_rows<kQueries>(dp, v_rows, kKeysBlock, dout_tile, kQueriesBlock);
    wgmma_commit();

    wgmma_wait<1>(s);
    if (tiles.masked() || keys_end) mask_scores(s, tiles, intervals, key, key_hi);
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 lse_log2 = load_shared_2(statistics + 8 * i);
      s[i] = exp2_approx(fmaf(s[i], scale_log2, -lse_log2.x));
      s[i + 1] = exp2_approx(fmaf(s[i + 1], scale_log2, -lse_log2.y));
      s[i + 2] = exp2_approx(fmaf(s[i + 2], scale_log2, -lse_log2.x));
      s[i + 3] = exp2_approx(fmaf(s[i + 3], scale_log2, -lse_log2.y));
    }
    pack(p, s);
    wgmma_fence();
    product_with_fragment<kQueries>(dv_sum, p, dout_tile, kQueriesBlock);
    wgmma_commit();

    wgmma_wait<1>(dp);
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 delta = load_shared_2(statistics + 4 * kQueries + 8 * i);
      s[i] *= dp[i] - delta.x;
      s[i + 1] *= dp[i + 1] - delta.y;
      s[i + 2] *= dp[i + 2] - delta.x;
      s[i + 3] *= dp[i + 3] - delta.y;
    }
    pack(ds, s);
    const uint32_t scores = smem + kScores + buffer * kScoresTile;
    if constexpr (kQueryGradient) {
      store_fragment(scores, 64 * part + 16 * warp_in_group(), ds);
      fence_async();
    }
    wgmma_fence();
    product_with_fragment<kQueries>(dk_sum, ds, q_tile, kQueriesBlock);
    wgmma_commit();
    if constexpr (kQueryGradient)
      sync_group(3, kConsumers * kGroupThreads);  // both halves of dS^T are written
    if (kQueryGradient && (kBlocks > 1 || part == buffer)) {
      const int block = kBlocks > 1 ? part : 0;
      float dq[32];
      wgmma_fence();
      product_of_columns<kKeys>(dq, scores, smem + kK + block * kKeysBlock);
      wgmma_commit();
      wgmma_wait<1>(dk_sum, dv_sum);
      release(barriers.empty(stage));
      wgmma_wait<0>(dq);
      add_query_gradient(dq, smem + kSums + part * 2 * kSumBlock, dq_map, 64 * block,
                         kv_head * group + tiles.head, tiles.query);
    } else {
      wgmma_wait<0>(dk_sum, dv_sum);
      release(barriers.empty(stage));
    }
  }
  if constexpr (kQueryGradient) {
    if (thread_index() % kGroupThreads == 0) tma_wait();
  }
  sync_group(3, kConsumers * kGroupThreads);  // nobody reads K and V any more
  const KeyRows rows{key_lo + 64 * part, key_hi, kv_heads, kv_head};
  store_rows(dk_sum, scale, k_rows, kKeysBlock, 0, rows, dk);
  store_rows(dv_sum, 1, v_rows, kKeysBlock, 0, rows, dv);
}

template <bool kQueryGradient>
DEVICE void run(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                const TensorMap& dout_map, const TensorMap& statistics_map, const TensorMap& dq_map,
                const int* items, const int* intervals, Element* dk, Element* dv, int kv_heads, int group,
                float scale) {
  const int* item = items + kItemColumns * block_y();
  const int k_lo = item[0];
  if (k_lo == item[1]) return;  // an unused entry

  const uint32_t smem = shared_base();
  const Barriers barriers{smem + kBarriers};
  store_item(smem + kItem, item);
  if (thread_index() == 0) {
    barrier_init(barriers.keys_full(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(barriers.q_full(stage), 1);
      barrier_init(barriers.dout_full(stage), 1);
      barrier_init(barriers.empty(stage), 4 * kConsumers);
    }
    barrier_init_fence();
  }
  sync_threads();
  if (group_index() == 0) {
    registers_shrink<24>();
    if (thread_index() == 0) {
      produce(smem, barriers, q_map, k_map, v_map, dout_map, statistics_map, group, k_lo, block_x());
    }
  } else {
    registers_grow<240>();
    consume<kQueryGradient>(smem, barriers, dq_map, intervals, dk, dv, kv_heads, group, block_x(), scale);
  }
}

}  // namespace megatv::backward_pass

// Grid (KV heads, work items). Boxes: q_map, dout_map (64 columns, 1 head, kQueries rows); k_map, v_map (64,
// 1, 128); statistics_map (kQueries rows, 1 head, 2) of fp32 [2, H, S]; dq_map (32, 1, 64) of fp32 [S, H, E],
// zero before. dk, dv [S, K, E] are contiguous; scale = 1 / sqrt(E). The sums of dQ still lack that factor.
#define ATTENTION_BACKWARD(NAME, QUERY_GRADIENT)                                                             \
  extern "C" __device__ const int NAME##_shape[4] = {                                                        \
      megatv::backward_pass::kThreads, megatv::backward_pass::kSharedBytes, megatv::backward_pass::kQueries, \
      megatv::backward_pass::kKeys};                                                                         \
  extern "C" __global__ void __launch_bounds__(megatv::backward_pass::kThreads, 1) NAME(                     \
      const __grid_constant__ megatv::TensorMap q_map, const __grid_constant__ megatv::TensorMap k_map,      \
      const __grid_constant__ megatv::TensorMap v_map, const __grid_constant__ megatv::TensorMap dout_map,   \
      const __grid_constant__ megatv::TensorMap statistics_map,                                              \
      const __grid_constant__ megatv::TensorMap dq_map, const int* items, const int* intervals,              \
      megatv::Element* dk, megatv::Element* dv, int kv_heads, int group, float scale) {                      \
    megatv::backward_pass::run<QUERY_GRADIENT>(q_map, k_map, v_map, dout_map, statistics_map, dq_map, items, \
                                               intervals, dk, dv, kv_heads, group, scale);                   \
  }

ATTENTION_BACKWARD(attention_backward, true)
ATTENTION_BACKWARD(attention_backward_keys, false)  // ignores dq_map
#undef ATTENTION_BACKWARD
