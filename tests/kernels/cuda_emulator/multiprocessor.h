// One Hopper multiprocessor on a host: it runs a block of threads, as `ptx.cuh` describes.
#pragma once

#include <ucontext.h>

#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <attention.cu>

namespace megatv::host {
namespace {

constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  std::function<bool()> waits_for;
  bool finished;
  std::vector<Product> products;  // this thread's part in the products of its warpgroup
  std::vector<size_t> groups;     // how many products were issued at each commit
};
struct Rendezvous {
  int arrived = 0;
  int64_t generation = 0;
};
struct Warp : Rendezvous {
  float values[2][32];
};
struct Barrier {
  int arrivals, pending, bytes;
  uint32_t phase;
};
struct Load {
  uint32_t to;
  TensorMap map;
  int at[3];
  uint32_t barrier;
};
struct Reduction {
  TensorMap map;
  uint32_t from;
  int at[3];
};

std::mt19937 random_bits;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::map<int, Rendezvous> groups;
std::vector<uint8_t> memory;
std::vector<int> writer;  // of each 16 bytes: 1 + the warp whose ordinary writes are not fenced
std::map<uint32_t, Barrier> barriers;
std::vector<Load> loads;
std::map<int, std::vector<Reduction>> reductions;
std::vector<size_t> completed;  // products of each warpgroup
ucontext_t scheduler;
int current, blocks[2];

std::string failure;
bool in_fiber;

// Ends the launch, from a fiber or from the scheduler.
void fail(const std::string& what) {
  failure = what + " (block " + std::to_string(blocks[0]) + ", " + std::to_string(blocks[1]) + "; thread " +
            std::to_string(current) + ")";
  if (!in_fiber) throw std::runtime_error(failure);
  swapcontext(&fibers[current].context, &scheduler);  // never to return
}

bool chance(int percent) { return static_cast<int>(random_bits() % 100) < percent; }

// 128-byte swizzle: address bits 4 to 6 are mixed with bits 7 to 9.
uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

void require_fenced(uint32_t address) {
  if (writer[address / 16]) fail("read behind an ordinary write without fence.proxy.async");
}

// Visit the elements of a box: their offset in it, and their place in global memory or null outside the
// tensor.
template <class Visit>
void for_each(const TensorMap& map, const int (&at)[3], Visit visit) {
  uint32_t offset = 0;
  for (int z = 0; z < map.box[2]; ++z) {
    for (int y = 0; y < map.box[1]; ++y) {
      for (int x = 0; x < map.box[0]; ++x, offset += map.bytes) {
        const int64_t i[3] = {at[0] + x, at[1] + y, at[2] + z};
        bool inside = true;
        char* place = map.base;
        for (int axis = 0; axis < 3; ++axis) {
          inside &= 0 <= i[axis] && i[axis] < map.sizes[axis];
          place += i[axis] * map.strides[axis];
        }
        visit(offset, inside ? place : nullptr);
      }
    }
  }
}

int box_bytes(const TensorMap& map) { return map.box[0] * map.box[1] * map.box[2] * map.bytes; }

void complete(size_t index) {
  const Load load = loads[index];
  loads.erase(loads.begin() + index);
  for_each(load.map, load.at, [&](uint32_t offset, const char* from) {
    const uint32_t to = load.to + offset;
    uint8_t* target = shared(load.map.swizzle ? swizzle(to) : to, load.map.bytes);
    from ? std::memcpy(target, from, load.map.bytes) : std::memset(target, 0, load.map.bytes);
  });
  Barrier& barrier = barriers.at(load.barrier);
  barrier.bytes -= box_bytes(load.map);
  if (!barrier.pending && !barrier.bytes) ++barrier.phase, barrier.pending = barrier.arrivals;
}

void complete(const Reduction& reduction) {
  for_each(reduction.map, reduction.at, [&](uint32_t offset, char* to) {
    const uint32_t from = swizzle(reduction.from + offset);
    require_fenced(from);
    if (to) *reinterpret_cast<float*>(to) += get<float>(from);
  });
}

inline float value(__nv_bfloat16 element) { return __bfloat162float(element); }
inline float value(__half element) { return __half2float(element); }

// Element (i, k) of a matrix in shared memory, i along M or N: PTX ISA's canonical layouts of the 128-byte
// swizzle, K-major ((8, m), (64)) : ((128 B, stride), 2 B) and MN-major ((64, m), (8, k)) : ((2 B, leading),
// (128 B, stride)).
float element(uint64_t descriptor, bool transposed, int i, int k) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor without the 128-byte swizzle");
  const uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                 stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint32_t offset = transposed ? i / 64 * leading + i % 64 * 2 + k / 8 * stride + k % 8 * 128
                                     : i / 8 * stride + i % 8 * 128 + k * 2;
  const uint32_t address = swizzle(start + offset);
  require_fenced(address);
  return value(get<Element>(address));
}

// The next product of a warpgroup, once all of its threads have issued it.
bool complete_product(int group) {
  const size_t index = completed[group];
  const Fiber* threads = &fibers[128 * group];
  for (int t = 0; t < 128; ++t) {
    if (threads[t].products.size() <= index) return false;
  }
  const Product& first = threads[0].products[index];
  float a[64][16], b[16][256];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < first.n; ++n) b[k][n] = element(first.b, first.transpose_b, n, k);
    for (int m = 0; m < 64 && !first.registers; ++m) a[m][k] = element(first.a, first.transpose_a, m, k);
  }
  for (int t = 0; t < 128; ++t) {
    const Product& product = threads[t].products[index];
    if (product.b != first.b || product.a != first.a || product.n != first.n)
      fail("a warpgroup's products differ");
    for (int r = 0; r < 4 && first.registers; ++r) {
      Element pair[2];
      std::memcpy(static_cast<void*>(pair), product.a_registers[r], sizeof(pair));
      for (int i = 0; i < 2; ++i)
        a[t / 32 * 16 + t % 32 / 4 + r % 2 * 8][t % 4 * 2 + r / 2 * 8 + i] = value(pair[i]);
    }
  }
  for (int t = 0; t < 128; ++t) {
    const Product& product = threads[t].products[index];
    for (int i = 0; i < first.n / 2; ++i) {
      const int m = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2;
      float sum = first.accumulate ? product.d[i] : 0;
      for (int k = 0; k < 16; ++k) sum += a[m][k] * b[k][n];
      product.d[i] = sum;
    }
  }
  ++completed[group];
  return true;
}

// Run the fibers in turns, each turn in a new order, until all have finished. Now and then a warp or a
// warpgroup is left out for many turns, so that the others get as far ahead of it as they can.
void run_block() {
  std::vector<int> order(fibers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::vector<int> stalled(warps.size());
  for (size_t finished = 0; finished < fibers.size();) {
    bool progress = false;
    for (int& turns : stalled) turns = max(turns - 1, 0);
    if (chance(5)) {
      const int size = chance(50) ? 1 : 4, first = random_bits() % (warps.size() / size) * size;
      std::fill_n(stalled.begin() + first, size, random_bits() % 100);
    }
    std::shuffle(order.begin(), order.end(), random_bits);
    for (int i : order) {
      Fiber& fiber = fibers[i];
      current = i;
      if (fiber.finished || stalled[i / 32] || (fiber.waits_for && !fiber.waits_for())) continue;
      fiber.waits_for = nullptr;
      progress = in_fiber = true;
      swapcontext(&scheduler, &fiber.context);
      in_fiber = false;
      if (!failure.empty()) throw std::runtime_error(failure);
      finished += fiber.finished;
    }
    while (!loads.empty() && (chance(30) || !progress)) {
      complete(random_bits() % loads.size());
      progress = true;
    }
    progress |= std::any_of(stalled.begin(), stalled.end(), [](int turns) { return turns; });
    if (!progress) fail("deadlock: " + std::to_string(fibers.size() - finished) + " threads wait for ever");
  }
  for (auto& [thread, left] : reductions) {
    if (!left.empty()) fail("a reduction nobody waited for");
  }
}

std::function<void()> entry;
void enter() {
  entry();
  fibers[current].finished = true;
  swapcontext(&fibers[current].context, &scheduler);
}

void launch(int threads, int x, int y, int shared_bytes) {
  blocks[0] = x, blocks[1] = y;
  fibers.resize(threads);
  warps.assign(threads / 32, {});
  groups.clear(), barriers.clear(), loads.clear(), reductions.clear(), failure.clear();
  completed.assign(threads / 128, 0);
  memory.assign(shared_base() + shared_bytes, 0xff);  // NaN
  writer.assign(memory.size() / 16 + 1, 0);
  for (Fiber& fiber : fibers) {
    fiber.finished = false, fiber.waits_for = nullptr;
    fiber.products.clear(), fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, enter, 0);
  }
  run_block();
  if (!loads.empty()) fail("a load nobody waited for");
}

}  // namespace

int thread() { return current; }
int threads() { return fibers.size(); }
int block(int axis) { return blocks[axis]; }

uint8_t* shared(uint32_t address, int bytes) {
  if (address < shared_base() || address + bytes > memory.size()) fail("outside of the shared memory");
  if (address % bytes) fail("a misaligned access to shared memory");
  return &memory[address];
}

void wait(const std::function<bool()>& done) {
  fibers[current].waits_for = done;
  swapcontext(&fibers[current].context, &scheduler);
}

static void meet(Rendezvous& place, int threads) {
  const int64_t generation = place.generation;
  if (++place.arrived == threads) place.arrived = 0, ++place.generation;
  wait([&place, generation] { return place.generation != generation; });
}

void sync(int id, int threads) {
  if (id < 0 || id > 15) fail("there is no such barrier");
  meet(groups[id], threads);
}

float exchange(float value, int lane) {
  Warp& warp = warps[current / 32];
  float* values = warp.values[warp.generation % 2];
  values[current % 32] = value;
  meet(warp, 32);
  return values[lane];
}

bool vote(bool value) {
  Warp& warp = warps[current / 32];
  const float* values = warp.values[warp.generation % 2];
  exchange(value, 0);
  return std::any_of(values, values + 32, [](float v) { return v != 0; });
}

void barrier_init(uint32_t barrier, int arrivals) {
  shared(barrier, 8);
  barriers[barrier] = {arrivals, arrivals, 0, 0};
}

void barrier_arrive(uint32_t address, int bytes) {
  if (!barriers.count(address)) fail("an arrival at no barrier");
  Barrier& barrier = barriers[address];
  barrier.bytes += bytes;
  if (--barrier.pending < 0) fail("too many arrivals");
  if (!barrier.pending && !barrier.bytes) ++barrier.phase, barrier.pending = barrier.arrivals;
}

bool barrier_done(uint32_t barrier, uint32_t parity) { return (barriers.at(barrier).phase & 1) != parity; }

// The manuals ask it of the tensor's address and pitches only, yet a box that starts between 16-byte pieces of
// global memory ends an H100's kernel with "an illegal instruction was encountered".
static void require_aligned_start(const TensorMap& map, const int (&at)[3]) {
  if (at[0] * map.bytes % 16) fail("a TMA box starts between 16-byte pieces of global memory");
}

void load(uint32_t to, const TensorMap& map, const int (&at)[3], uint32_t barrier) {
  if (to % (map.swizzle ? 1024 : 128)) fail("a TMA load to a misaligned address");
  require_aligned_start(map, at);
  const int bytes = box_bytes(map);
  for (int i = 0; i < bytes; i += 16) {
    std::memset(shared(to + i, 16), 0xff, 16);
    writer[(to + i) / 16] = 0;
  }
  loads.push_back({to, map, {at[0], at[1], at[2]}, barrier});
}

void reduce(const TensorMap& map, uint32_t from, const int (&at)[3]) {
  if (!map.swizzle || from % 1024) fail("a TMA reduction from a misaligned address");
  require_aligned_start(map, at);
  const Reduction reduction{map, from, {at[0], at[1], at[2]}};
  chance(50) ? complete(reduction) : reductions[current].push_back(reduction);
}

void reduce_wait() {
  for (const Reduction& reduction : reductions[current]) complete(reduction);
  reductions[current].clear();
}

void issue(const Product& product) { fibers[current].products.push_back(product); }

void commit() {
  fibers[current].groups.push_back(fibers[current].products.size());
  if (chance(50)) {
    while (complete_product(current / 128)) continue;
  }
}

bool committed(int pending) {
  const auto& groups = fibers[current].groups;
  if (groups.size() <= static_cast<size_t>(pending)) return true;
  const size_t needed = groups[groups.size() - 1 - pending];
  const int group = current / 128;
  while (completed[group] < needed && complete_product(group)) continue;
  return completed[group] >= needed;
}

void wrote(uint32_t address, int bytes) {
  for (int i = 0; i < bytes; i += 4) writer[(address + i) / 16] = 1 + current / 32;
}

void fence_async() { std::replace(writer.begin(), writer.end(), 1 + current / 32, 0); }

}  // namespace megatv::host
