// Hopper's instructions that CUDA C++ has no words for, one function each (PTX ISA 9.0, target sm_90a).
//
// Shared memory is addressed by 32-bit numbers throughout, as these instructions want it. Kernels use nothing
// of the hardware but what is declared here, so a test can run them on a host behind another `ptx.cuh`.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "registers.h"

#define DEVICE __device__ __forceinline__

namespace megatv {

using TensorMap = CUtensorMap;

// ---- Where a thread stands ----

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

// The kernel's dynamic shared memory; 1024-byte aligned, as the 128-byte swizzle's pattern needs.
DEVICE uint32_t shared_base() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

// ---- Barriers and votes among threads ----

DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE bool any_in_warp(bool value) { return __any_sync(0xffffffff, value); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }

// Barrier `id` (1 to 15; 0 is sync_threads) among `threads` threads.
DEVICE void sync_group(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- mbarriers: they count arrivals and the bytes of asynchronous copies, and change phase when both are in
// ----

DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine; a sync_threads must follow for the other threads.
DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrive, and expect `bytes` of copies to complete in this phase.
DEVICE void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Wait until the phase of this parity is complete; the phase before the first counts as one of parity 1.
DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// ---- TMA: boxes of a three-dimensional tensor, elements outside of it read as zero and never written ----

DEVICE void tma_load(uint32_t to, const TensorMap& map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// Add a box to global memory, fp32 and in no order. Before it, each writer of the box needs fence_async.
DEVICE void tma_reduce_add(const TensorMap& map, uint32_t from, int x, int y, int z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          &map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
}

DEVICE void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Of this thread's reductions: the boxes may be written again / the sums are in global memory.
DEVICE void tma_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
DEVICE void tma_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Orders this thread's ordinary writes to shared memory before what wgmma and TMA read after the next
// barrier.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Registers move from the warpgroup that copies to those that compute ----

template <int kCount>
DEVICE void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
DEVICE void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- wgmma: D[64 x N] += A[64 x 16] B[16 x N] by the 128 threads of a warpgroup, asynchronously ----

// Registers and shared memory written before this are visible to the products issued after it.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kSize>
DEVICE void pin(float (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Wait until at most kPending committed groups run. `done` are the accumulators that are ready now: the
// compiler knows nothing of asynchrony and must not move their uses above this line.
template <int kPending, int... kSizes>
DEVICE void wgmma_wait(float (&... done)[kSizes]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (pin(done), ...);
}

// A and B in shared memory, given by matrix descriptors. Transposed means that M (or N) is contiguous, not K.
template <class T, int N, bool kTransposeA, bool kTransposeB>
DEVICE void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
#define WGMMA(TYPE, SHAPE, REGISTERS, A, B, P, TA, TB, D)                                                \
  asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " P                                   \
               ", 0;\n"                                                                                  \
               "wgmma.mma_async.sync.aligned.m64n" SHAPE "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A \
               ", " B ", accumulate, 1, 1, " TA ", " TB ";\n}"                                           \
               : D                                                                                       \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposeA), "n"(kTransposeB))
  static_assert(N == 64 || N == 80);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (N == 64) {
    if constexpr (kBf16) WGMMA("bf16", "64", NAMES_32, "%32", "%33", "%34", "%35", "%36", OUTPUTS_32(d));
    else WGMMA("f16", "64", NAMES_32, "%32", "%33", "%34", "%35", "%36", OUTPUTS_32(d));
  } else {
    if constexpr (kBf16) WGMMA("bf16", "80", NAMES_40, "%40", "%41", "%42", "%43", "%44", OUTPUTS_40(d));
    else WGMMA("f16", "80", NAMES_40, "%40", "%41", "%42", "%43", "%44", OUTPUTS_40(d));
  }
#undef WGMMA
}

// A in registers, B in shared memory with N contiguous; always adds to D.
template <class T, int N>
DEVICE void wgmma_registers(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                            uint64_t b) {
#define WGMMA(TYPE, SHAPE, REGISTERS, A, B, D)                                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" SHAPE "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A \
               ", " B ", 1, 1, 1, 1;"                                                                    \
               : D                                                                                       \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))
  static_assert(N == 64 || N == 128);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (N == 64) {
    if constexpr (kBf16) WGMMA("bf16", "64", NAMES_32, "{%32, %33, %34, %35}", "%36", OUTPUTS_32(d));
    else WGMMA("f16", "64", NAMES_32, "{%32, %33, %34, %35}", "%36", OUTPUTS_32(d));
  } else {
    if constexpr (kBf16) WGMMA("bf16", "128", NAMES_64, "{%64, %65, %66, %67}", "%68", OUTPUTS_64(d));
    else WGMMA("f16", "128", NAMES_64, "{%64, %65, %66, %67}", "%68", OUTPUTS_64(d));
  }
#undef WGMMA
}

// ---- Ordinary memory ----

// A pair from global memory that nobody writes meanwhile; stays where it stands in the program.
DEVICE int2 load_global_2(const int* address) {
  int2 value;
  asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(address));
  return value;
}

DEVICE int load_shared(uint32_t address) {
  int value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
DEVICE float2 load_shared_2(uint32_t address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address) : "memory");
  return value;
}
DEVICE uint4 load_shared_4(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
DEVICE void store_shared(uint32_t address, int value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DEVICE void store_shared_2(uint32_t address, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
}
// Four 8 x 8 matrices of a warp; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void store_matrices(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m0),
               "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// ---- Arithmetic ----

DEVICE int warp_uniform(int value) { return __shfl_sync(0xffffffff, value, 0); }

template <class Pair>
DEVICE uint32_t bits(Pair pair) {
  static_assert(sizeof(Pair) == 4);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <class Pair>
DEVICE Pair from_bits(uint32_t value) {
  static_assert(sizeof(Pair) == 4);
  return *reinterpret_cast<const Pair*>(&value);
}

DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace megatv
