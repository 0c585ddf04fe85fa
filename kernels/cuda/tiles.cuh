// What the attention kernels share: tiles in shared memory, their products, masks and the walk over work
// items.
//
// A tile of R rows x kHeadDim columns lies in shared memory as kHeadDim / 64 blocks of R rows x 64 columns:
// 128 bytes a row, 128-byte swizzle, as TMA writes and wgmma reads it. Fragments are those of wgmma's
// accumulator: element i of a thread stands in row 16 (warp % 4) + lane / 4 + 8 (i / 2 % 2) and in column 8
// (i / 4) + 2 (lane % 4) + i % 2.
#pragma once

// Angle brackets: found through the include path, so that an emulator can put its own in front.
#include <ptx.cuh>

#ifndef MEGATV_ELEMENT
#error "compile with -DMEGATV_ELEMENT=__nv_bfloat16 (or __half) and -DMEGATV_HEAD_DIM=128 (or 64)"
#endif

namespace megatv {

using Element = MEGATV_ELEMENT;
constexpr int kHeadDim = MEGATV_HEAD_DIM;
static_assert(kHeadDim == 64 || kHeadDim == 128);

constexpr int kGroupThreads = 128;      // of a warpgroup
constexpr int kBlocks = kHeadDim / 64;  // of a tile
constexpr int kRowBytes = 128;          // of a row of a block
constexpr int kItemColumns = 11;        // of a work item: lo, hi and three ranges of three bounds
constexpr int kItemBytes = 64;
constexpr float kNegativeInfinity = -__builtin_huge_valf();
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLog2E = 1.4426950408889634f;

// ---- Threads ----

DEVICE int lane_index() { return thread_index() % 32; }
DEVICE int warp_in_group() { return thread_index() / 32 % 4; }
// The warpgroup, told to the compiler as the same for the whole warp.
DEVICE int group_index() { return warp_uniform(thread_index() / kGroupThreads); }
DEVICE int fragment_row() { return 16 * warp_in_group() + lane_index() / 4; }
DEVICE int fragment_column() { return lane_index() % 4 * 2; }

// ---- A ring of buffers, filled and emptied in turns ----

template <int kStages>
struct Ring {
  int index = 0;
  uint32_t phase = 0;
  DEVICE void advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// One arrival for each warp that computes: its products that read the buffer are complete.
DEVICE void release(uint32_t barrier) {
  if (lane_index() == 0) barrier_arrive(barrier);
}

// ---- Elements ----

DEVICE uint32_t pack(float x, float y) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) return bits(__floats2bfloat162_rn(x, y));
  else return bits(__floats2half2_rn(x, y));
}

template <int kSize>
DEVICE void pack(uint32_t (&packed)[kSize], const float (&values)[2 * kSize], float scale = 1) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) packed[i] = pack(values[2 * i] * scale, values[2 * i + 1] * scale);
}

DEVICE float2 unpack(uint32_t packed) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>)
    return __bfloat1622float2(from_bits<__nv_bfloat162>(packed));
  else return __half22float2(from_bits<__half2>(packed));
}

// ---- Copies ----

// A tile of `map`, whose box is one block: (column, head, row).
DEVICE void load_tile(uint32_t to, int block_bytes, const TensorMap& map, int head, int row,
                      uint32_t barrier) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    tma_load(to + block * block_bytes, map, 64 * block, head, row, barrier);
  }
}

// Where 16-byte chunk `chunk` of a row lies. From there, chunks 2 n further on in the pattern (bits 5 and 6
// of the address, both of a smaller chunk than 2) are at `place ^ 32 n`, rows 8 n further on at `place + 1024
// n`.
DEVICE uint32_t swizzled(uint32_t block, int row, int chunk) {
  return block + row * kRowBytes + ((chunk ^ (row % 8)) << 4);
}

// Put a warp's 16 rows of a packed fragment, 64 columns of it, into the rows from `row` on of a block.
DEVICE void store_fragment(uint32_t block, int row, const uint32_t* packed) {
  const uint32_t place = swizzled(block, row + lane_index() % 16, lane_index() / 16);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint32_t* m = packed + 4 * step;
    store_matrices(place ^ 32 * step, m[0], m[1], m[2], m[3]);
  }
}

// The query rows x heads of a packed tile and the rows of a key tile: where they stand in [S, heads, E].
struct PackedRows {
  int lo, hi, group, count, heads, kv_head;
  DEVICE bool exists(int row) const { return row < count && lo + row / group < hi; }
  DEVICE int64_t place(int row) const {
    return (lo + row / group) * static_cast<int64_t>(heads) + kv_head * group + row % group;
  }
};
struct KeyRows {
  int lo, hi, heads, kv_head;
  DEVICE bool exists(int row) const { return lo + row < hi; }
  DEVICE int64_t place(int row) const { return (lo + row) * static_cast<int64_t>(heads) + kv_head; }
};

// Write a warpgroup's accumulator, whose first row is `first`, to global memory in 16-byte pieces. Goes
// through the rows of a tile in shared memory that belong to this warpgroup and that nobody reads any more.
template <class Rows>
DEVICE void store_rows(const float (&values)[kHeadDim / 2], float scale, uint32_t tile, int block_bytes,
                       int first, Rows rows, Element* to) {
  uint32_t packed[kHeadDim / 4];
  pack(packed, values, scale);
  const int warp_row = first + 16 * warp_in_group();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
    store_fragment(tile + block * block_bytes, warp_row, packed + 16 * block);
  sync_warp();
#pragma unroll 4
  for (int i = lane_index(); i < 16 * kHeadDim / 8; i += 32) {
    const int row = warp_row + i / (kHeadDim / 8), chunk = i % (kHeadDim / 8);
    if (!rows.exists(row)) continue;
    reinterpret_cast<uint4*>(to + rows.place(row) * kHeadDim)[chunk] =
        load_shared_4(swizzled(tile + chunk / 8 * block_bytes, row, chunk % 8));
  }
}

// ---- Products ----

// Matrix descriptor (PTX ISA, "wgmma matrix descriptor"): 128-byte swizzle, 1024 bytes from eight rows to the
// next eight; `leading` bytes from 64 contiguous elements to the next 64, where these run along M or N.
DEVICE uint64_t descriptor(uint32_t address, uint32_t leading) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{leading >> 4} << 16 |
         (address & 0x3ffff) >> 4;
}

// D[64 x N] = A[64 x kHeadDim] B[N x kHeadDim]^T of two tiles, given by the first of their rows.
template <int N>
DEVICE void product_of_rows(float (&d)[N / 2], uint32_t a, int a_block, uint32_t b, int b_block) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    const int block = step / 4, column = step % 4 * 32;
    wgmma_shared<Element, N, false, false>(d, descriptor(a + block * a_block + column, 16),
                                           descriptor(b + block * b_block + column, 16), step > 0);
  }
}

// D[64 x kHeadDim] += A[64 x kRows] B[kRows x kHeadDim], A a packed fragment and B a tile.
template <int kRows>
DEVICE void product_with_fragment(float (&d)[kHeadDim / 2], const uint32_t (&a)[kRows / 4], uint32_t b,
                                  int b_block) {
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    wgmma_registers<Element, kHeadDim>(d, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3],
                                       descriptor(b + step * 16 * kRowBytes, b_block));
  }
}

// D[64 x 64] = A[kRows x 64]^T B[kRows x 64], both one block.
template <int kRows>
DEVICE void product_of_columns(float (&d)[32], uint32_t a, uint32_t b) {
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    const int offset = step * 16 * kRowBytes;
    wgmma_shared<Element, 64, true, true>(d, descriptor(a + offset, 16), descriptor(b + offset, 16),
                                          step > 0);
  }
}

// ---- Work ----

// Copy the work item of this block to shared memory, where indexing at run time costs nothing.
DEVICE void store_item(uint32_t to, const int* item) {
  if (thread_index() < kItemColumns) store_shared(to + 4 * thread_index(), item[thread_index()]);
}

struct Interval {
  int lo, hi;
  DEVICE bool holds(int key) const {
    return static_cast<unsigned>(key - lo) < static_cast<unsigned>(hi - lo);
  }
};

// The key tiles of a forward item, interval by interval: keys [key, key + kKeys), those before `full_hi` seen
// by every row, none seen from `hi` on.
template <int kKeys>
struct KeyTiles {
  uint32_t item;
  int interval = -1, key = 0, full_hi = 0, hi = 0;
  DEVICE explicit KeyTiles(uint32_t item) : item(item) {}
  DEVICE bool next() {
    key += kKeys;
    while (key >= hi) {
      if (++interval == 3) return false;
      const uint32_t bounds = item + 8 + 12 * interval;
      key = load_shared(bounds), full_hi = load_shared(bounds + 4), hi = load_shared(bounds + 8);
    }
    return true;
  }
  DEVICE bool masked() const { return key + kKeys > full_hi; }
};

DEVICE Interval load_interval(const int* from) {
  const int2 pair = load_global_2(from);
  return {pair.x, pair.y};
}

// What a thread's two rows see of one interval; read only where a tile is masked.
struct RowMask {
  Interval rows[2];
  DEVICE RowMask(bool masked, const int* intervals, const int (&queries)[2], int interval) : rows{} {
    if (!masked) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) rows[r] = load_interval(intervals + 6 * queries[r] + 2 * interval);
  }
  // Scores of keys from `key` on: those that a row does not see become minus infinity.
  template <int kSize>
  DEVICE void apply(float (&scores)[kSize], int key) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (!rows[i / 2 % 2].holds(key + i / 4 * 8 + fragment_column() + i % 2)) scores[i] = kNegativeInfinity;
    }
  }
};

}  // namespace megatv
