// The functions of kernels/cuda/ptx.cuh on a host: the kernels include this file in its place.
//
// A block's threads are fibers that run in a random order from one wait to the next. Everything asynchronous
// is as late or as early as the hardware may be: a TMA load spoils its target at once and fills it at some
// later time, a product reads its operands when it is issued or not before somebody waits for it, a reduction
// reads its box as late as it may. A kernel that waits too little gets wrong numbers; one that waits too
// much, a deadlock.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define DEVICE inline
#undef __device__
#undef __global__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

namespace megatv {

using std::max;
using std::min;

// What cuTensorMapEncodeTiled writes here; as large as the real, opaque one.
struct alignas(64) TensorMap {
  char* base;
  int64_t sizes[3], strides[3];
  int box[3], bytes;
  bool swizzle;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

namespace host {

struct Product {  // one wgmma of one thread
  bool registers, transpose_a, transpose_b, accumulate;
  int n;
  float* d;
  const uint32_t* a_registers[4];
  uint64_t a, b;
};

int thread();
int threads();
int block(int axis);
uint8_t* shared(uint32_t address, int bytes);
void wait(const std::function<bool()>& done);
void sync(int id, int threads);
float exchange(float value, int lane);  // the value that `lane` of this warp gave
bool vote(bool value);
void barrier_init(uint32_t barrier, int arrivals);
void barrier_arrive(uint32_t barrier, int bytes);
bool barrier_done(uint32_t barrier, uint32_t parity);
void load(uint32_t to, const TensorMap& map, const int (&at)[3], uint32_t barrier);
void reduce(const TensorMap& map, uint32_t from, const int (&at)[3]);
void reduce_wait();
void issue(const Product& product);
void commit();
bool committed(int pending);
void wrote(uint32_t address, int bytes);
void fence_async();

template <class T>
T get(uint32_t address) {
  T value;
  std::memcpy(static_cast<void*>(&value), shared(address, sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void put(uint32_t address, T value) {
  std::memcpy(shared(address, sizeof(T)), &value, sizeof(T));
  wrote(address, sizeof(T));
}

}  // namespace host

inline int thread_index() { return host::thread(); }
inline int block_x() { return host::block(0); }
inline int block_y() { return host::block(1); }
inline uint32_t shared_base() { return 1024; }

inline void sync_group(int id, int threads) { host::sync(id, threads); }
inline void sync_threads() { host::sync(0, host::threads()); }
inline void sync_warp() { host::vote(false); }
inline bool any_in_warp(bool value) { return host::vote(value); }
inline float shuffle_xor(float value, int mask) { return host::exchange(value, thread_index() % 32 ^ mask); }
inline int warp_uniform(int value) { return value; }

inline void barrier_init(uint32_t barrier, int arrivals) { host::barrier_init(barrier, arrivals); }
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { host::barrier_arrive(barrier, 0); }
inline void barrier_expect(uint32_t barrier, int bytes) { host::barrier_arrive(barrier, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  host::wait([=] { return host::barrier_done(barrier, parity); });
}

inline void tma_load(uint32_t to, const TensorMap& map, int x, int y, int z, uint32_t barrier) {
  host::load(to, map, {x, y, z}, barrier);
}
inline void tma_reduce_add(const TensorMap& map, uint32_t from, int x, int y, int z) {
  host::reduce(map, from, {x, y, z});
}
inline void tma_commit() {}
inline void tma_wait_read() { host::reduce_wait(); }
inline void tma_wait() { host::reduce_wait(); }
inline void fence_async() { host::fence_async(); }

template <int kCount>
void registers_shrink() {}
template <int kCount>
void registers_grow() {}

inline void wgmma_fence() {}
inline void wgmma_commit() { host::commit(); }
template <int kPending, int... kSizes>
void wgmma_wait([[maybe_unused]] float (&... done)[kSizes]) {
  host::wait([] { return host::committed(kPending); });
}
template <class T, int N, bool kTransposeA, bool kTransposeB>
void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  host::issue({false, kTransposeA, kTransposeB, accumulate, N, d, {}, a, b});
}
template <class T, int N>  // the registers stay in use until the product is complete
void wgmma_registers(float (&d)[N / 2], const uint32_t& a0, const uint32_t& a1, const uint32_t& a2,
                     const uint32_t& a3, uint64_t b) {
  host::issue({true, false, true, true, N, d, {&a0, &a1, &a2, &a3}, 0, b});
}

inline int2 load_global_2(const int* address) { return *reinterpret_cast<const int2*>(address); }
inline int load_shared(uint32_t address) { return host::get<int>(address); }
inline float2 load_shared_2(uint32_t address) { return host::get<float2>(address); }
inline uint4 load_shared_4(uint32_t address) { return host::get<uint4>(address); }
inline void store_shared(uint32_t address, int value) { host::put(address, value); }
inline void store_shared_2(uint32_t address, float x, float y) { host::put(address, float2{x, y}); }
// Lane i stores its pair of matrix j in row i / 4, whose address lane 8 j + i / 4 gives.
inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  const int lane = thread_index() % 32;
  const uint32_t values[] = {m0, m1, m2, m3};
  for (int matrix = 0; matrix < 4; ++matrix) {  // addresses are below 2^24: exact as floats
    const auto row =
        static_cast<uint32_t>(host::exchange(static_cast<float>(address), 8 * matrix + lane / 4));
    host::put(row + lane % 4 * 4, values[matrix]);
  }
}

template <class Pair>
uint32_t bits(Pair pair) {
  uint32_t value;
  std::memcpy(&value, &pair, sizeof(value));
  return value;
}
template <class Pair>
Pair from_bits(uint32_t value) {
  Pair pair;
  std::memcpy(static_cast<void*>(&pair), &value, sizeof(value));
  return pair;
}
inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }

}  // namespace megatv
