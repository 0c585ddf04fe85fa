// What the backward pass does row by row, limited by memory: its statistics before, the rounding of dQ after.
#pragma once

#include "tiles.cuh"

namespace megatv::rowwise {

constexpr int kThreads = 256;
constexpr int kLanes = kHeadDim / 8;  // of a row, 16 bytes each

}  // namespace megatv::rowwise

extern "C" __device__ const int attention_statistics_shape[4] = {
    megatv::rowwise::kThreads, 0, megatv::rowwise::kThreads / megatv::rowwise::kLanes, 0};

// statistics fp32 [2, H, pitch] of the rows of [S, H, E]: lse in powers of two, and delta, the dot product of
// output and output gradient, which every dS subtracts (FlashAttention-2, section 3.1.2). Grid: all rows of
// all heads.
extern "C" __global__ void __launch_bounds__(megatv::rowwise::kThreads)
    attention_statistics(const megatv::Element* out, const megatv::Element* dout, const float* lse,
                         float* statistics, int rows, int heads, int pitch) {
  using namespace megatv;
  using namespace megatv::rowwise;
  const int64_t count = static_cast<int64_t>(rows) * heads;
  const int64_t at = block_x() * static_cast<int64_t>(kThreads / kLanes) + thread_index() / kLanes;
  const bool exists = at < count;
  const int64_t piece = (exists ? at : 0) * kLanes + thread_index() % kLanes;
  const uint4 x = reinterpret_cast<const uint4*>(out)[piece], y = reinterpret_cast<const uint4*>(dout)[piece];
  const uint32_t xs[] = {x.x, x.y, x.z, x.w}, ys[] = {y.x, y.y, y.z, y.w};
  float delta = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 a = unpack(xs[i]), b = unpack(ys[i]);
    delta += a.x * b.x + a.y * b.y;
  }
#pragma unroll
  for (int mask = kLanes / 2; mask; mask /= 2) delta += shuffle_xor(delta, mask);
  if (exists && thread_index() % kLanes == 0) {
    const int64_t to = at % heads * pitch + at / heads;
    statistics[to] = lse[at] * kLog2E;
    statistics[static_cast<int64_t>(heads) * pitch + to] = delta;
  }
}

extern "C" __device__ const int attention_round_shape[4] = {megatv::rowwise::kThreads, 0,
                                                            megatv::rowwise::kThreads * 8, 0};

// dq = scale * sums, eight elements a thread; count is a multiple of 8.
extern "C" __global__ void __launch_bounds__(megatv::rowwise::kThreads)
    attention_round(const float* sums, megatv::Element* dq, float scale, int64_t count) {
  using namespace megatv;
  const int64_t at = (block_x() * static_cast<int64_t>(rowwise::kThreads) + thread_index()) * 8;
  if (at >= count) return;
  const float4 a = reinterpret_cast<const float4*>(sums + at)[0],
               b = reinterpret_cast<const float4*>(sums + at)[1];
  *reinterpret_cast<uint4*>(dq + at) =
      make_uint4(pack(a.x * scale, a.y * scale), pack(a.z * scale, a.w * scale),
                 pack(b.x * scale, b.y * scale), pack(b.z * scale, b.w * scale));
}
