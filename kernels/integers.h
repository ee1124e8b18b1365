// Lanes as integers of eight bits and their products: what product_i8 and product_rounded share.
#pragma once
#include "blocks.h"

namespace ewm {

// Added to a number of small magnitude: rounds to the nearest integer, ties to even, and leaves it, ZERO_POINT higher, in
// the low bits.
constexpr float ROUNDS = 0x1.8p23f + ZERO_POINT;

// x[k / GROUP][lane][GROUP] = the low bits of each(k, vector). What is left of a last word meets weights of 0.
template <class F> __attribute__((always_inline)) inline void pack_integers(int64_t depth, char* x, F each) {
  constexpr uint32_t mask = (1u << (32 / GROUP)) - 1;
  auto pack = [&](int64_t k, int64_t count) __attribute__((always_inline)) {
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      u32v word = {};
#pragma unroll
      for (int j = 0; j < GROUP; j++)
        if (j < count) word |= (each(k + j, r) & mask) << static_cast<uint32_t>(j * (32 / GROUP));
      memcpy(x, &word, sizeof(word));
    }
  };
  int64_t k = 0;
  for (; k + GROUP <= depth; k += GROUP) pack(k, GROUP);
  if (k < depth) pack(k, depth - k);
}

struct Integers {
  typedef i32v Word;
  typedef i32v Sum;
  static constexpr int group = GROUP;
  static constexpr int64_t block_bytes = CORRECTION * sizeof(int32_t);
  template <class P> static constexpr bool in_place = false;
  static int32_t word(const char* w, int n) {
    int32_t b;
    memcpy(&b, w + n * sizeof(b), sizeof(b));
    return b;
  }
  static i32v begin(const char* w, int n) { return CORRECTION ? splat(word(w, n)) : i32v{}; }
  static i32v dot(i32v sum, i32v x, const char* w, int n) { return ewm::dot(sum, x, word(w, n)); }
  static i32v dot(i32v sum, i32v x, i32v w) { return ewm::dot(sum, x, w); }
};

}  // namespace ewm
