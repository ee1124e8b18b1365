// The names of kernels/gpu/device.h on a CPU, where every CUDA thread is a fiber (fibers.cc): for tests.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ewm {

// Where the running fiber stands, set by the scheduler before it goes on.
struct Here {
  uint32_t thread, block, blocks;
  char* shared;
};
extern Here here;

// What a fiber asks of the scheduler. `site` tells calls apart: the address that the call returns to.
void wait_block(const void* site);
void wait_warp(const void* site);
void order_warp(const void* site);  // the same, and what lanes did before comes before what they do next
void wait_grid(const void* site);
void issue_copy(char* to, const char* from);
void commit_copies();
void wait_copies(uint32_t groups, const void* site);
char* exchange();  // of the warp, EXCHANGE_BYTES for each lane
uint64_t clock_ns();
uint32_t lane_of(uint32_t lane);  // itself, or its neighbour where that fault is planted
void count_shared(uint32_t* counter);
constexpr uint32_t EXCHANGE_BYTES = 64;

struct Registered {
  const char* name;
  uint32_t bytes;  // of its parameter
  void (*run)(const void* parameter);
  Registered* next;
  Registered(const char* name, uint32_t bytes, void (*run)(const void*));
};

#define EWM_KERNEL(name, Params)                                                            \
  static void name(const Params& l);                                                        \
  static ewm::Registered name##_registered(#name, sizeof(Params), [](const void* parameter) { \
    name(*static_cast<const Params*>(parameter));                                           \
  });                                                                                       \
  static void name(const Params& l)
#define EWM_WIDE_KERNEL EWM_KERNEL
#define EWM_THREAD EWM_KERNEL

inline uint32_t thread_index() { return here.thread; }
inline uint32_t block_index() { return here.block; }
inline uint32_t block_count() { return here.blocks; }
inline char* shared_memory() { return here.shared; }

constexpr uint32_t SECTOR = 32;
inline void touch(const void*) {}

#define EWM_SITE __builtin_return_address(0)
__attribute__((noinline, convergent)) inline void block_sync() { wait_block(EWM_SITE); }
__attribute__((noinline, convergent)) inline void warp_sync() { order_warp(EWM_SITE); }
__attribute__((noinline, convergent)) inline void grid_sync(uint32_t*) { wait_grid(EWM_SITE); }
inline void async_copy(char* to, const char* from) { issue_copy(to, from); }
inline void async_commit() { commit_copies(); }
template <int groups> __attribute__((noinline, convergent)) void async_wait() { wait_copies(groups, EWM_SITE); }

// A number of each lane, for all lanes of the warp.
template <class Use> inline void exchanged(const void* mine, uint32_t bytes, Use use) {
  char* const all = exchange();
  memcpy(all + here.thread % 32 * EXCHANGE_BYTES, mine, bytes);
  wait_warp(nullptr);
  use(static_cast<const char*>(all));
  wait_warp(nullptr);
}

inline uint32_t ballot(bool holds) {
  uint32_t bits = 0;
  exchanged(&holds, sizeof(holds), [&](const char* all) {
    for (uint32_t lane = 0; lane < 32; lane++) bits |= uint32_t(all[lane * EXCHANGE_BYTES]) << lane;
  });
  return bits;
}

inline void load_matrices(uint32_t* x, const char* row) {
  const uint32_t lane = here.thread % 32;
  exchanged(&row, sizeof(row), [&](const char* all) {
    for (uint32_t matrix = 0; matrix < 4; matrix++) {
      const uint32_t* from;
      memcpy(&from, all + lane_of(matrix * 8 + lane / 4) * EXCHANGE_BYTES, sizeof(from));
      x[matrix] = from[lane % 4];
    }
  });
}

// Fragments as in the PTX manual: lane = 4 group + place. a: rows group and group + 8, columns of 4 bytes place and
// place + 4; b: column group, the same rows; sum: rows group and group + 8, columns 2 place and 2 place + 1.
template <class Sum, class Dot> inline void multiply_fragments(Sum* sum, const uint32_t* a, const uint32_t* b, Dot dot) {
  const uint32_t group = here.thread % 32 / 4, place = here.thread % 4;
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  exchanged(mine, sizeof(mine), [&](const char* all) {
    auto word = [&](uint32_t lane, uint32_t i) {
      uint32_t w;
      memcpy(&w, all + lane * EXCHANGE_BYTES + i * 4, 4);
      return w;
    };
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t upper = i / 2, column = 2 * place + i % 2;
      for (uint32_t k = 0; k < 8; k++)
        sum[i] = dot(sum[i], word(4 * group + k % 4, upper + 2 * (k / 4)), word(4 * column + k % 4, 4 + k / 4));
    }
  });
}
inline void multiply_matrices(int32_t* sum, const uint32_t* a, const uint32_t* b) {
  multiply_fragments(sum, a, b, [](int32_t s, uint32_t x, uint32_t y) {
    for (int j = 0; j < 32; j += 8) s += int32_t(int8_t(x >> j)) * int32_t(int8_t(y >> j));
    return s;
  });
}
inline float bits_float(uint32_t x) { float y; memcpy(&y, &x, 4); return y; }
inline uint32_t float_bits(float x) { uint32_t y; memcpy(&y, &x, 4); return y; }
inline void multiply_matrices(float* sum, const uint32_t* a, const uint32_t* b) {
  multiply_fragments(sum, a, b, [](float s, uint32_t x, uint32_t y) {
    s += bits_float(x << 16) * bits_float(y << 16);
    return s + bits_float(x & 0xffff0000u) * bits_float(y & 0xffff0000u);
  });
}
struct OfHalves {
  float value;
  OfHalves& operator+=(OfHalves other) { return value += other.value, *this; }
};
inline float half_float(uint32_t x) { _Float16 y; memcpy(&y, &x, 2); return y; }
inline void multiply_matrices(OfHalves* sum, const uint32_t* a, const uint32_t* b) {
  multiply_fragments(sum, a, b, [](OfHalves s, uint32_t x, uint32_t y) {
    s.value += half_float(x) * half_float(y);
    return OfHalves{s.value + half_float(x >> 16) * half_float(y >> 16)};
  });
}

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float quotient(float a, float b) { return a / b; }
inline float square_root(float a) { return __builtin_sqrtf(a); }
inline float to_even(float a) { return __builtin_roundevenf(a); }
inline float floor_of(float a) { return __builtin_floorf(a); }
inline float lesser(float a, float b) { return a < b ? a : b; }
inline float greater(float a, float b) { return a > b ? a : b; }
inline int32_t ones(uint32_t x) { return __builtin_popcount(x); }

}  // namespace ewm
