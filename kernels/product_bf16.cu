// product_bf16: the product with bf16 weights and lanes rounded to bf16 as they come in, sums in f32.
//
// product_bf16_round<P> writes each row to the workspace, k innermost; product_bf16_multiply<E> is the product on
// tensor cores, whose order of additions is their own: within a tolerance of the CPU, not to the bit.
// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace.
#pragma once
#include "tensor.h"

namespace ewm {

// Rounded to nearest even, 0 where that is less than 2^-56; NaN stays NaN. In the upper half.
inline u32v upper_bf16(f32v x) {
  constexpr u32v smallest = (127 - 56) << 23;
  const u32v bits = as_u32(x), even = bits + 0x7fffu + (bits >> 16 & 1u), y = x == x ? even : bits | 0x400000u;
  return (y & 0x7fffffffu) >= smallest ? y & 0xffff0000u : 0;
}

struct ToBf16 {
  static constexpr uint32_t size = 2;
  static u32v bits(f32v x) { return upper_bf16(x) >> 16; }
};

template <class P> inline void product_bf16_round(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  round_rows<ToBf16, P>(c, o, f, block);
}

struct Halves {
  typedef float Sum;
  static constexpr uint32_t size = 2;
  static constexpr int operands = 0;
  struct Row {
    Row(const char*, uint32_t, uint32_t) {}
    f32v value(float sum, const View*, uint32_t) const { return sum; }
  };
};

template <class E>
inline void product_bf16_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  multiply_rows<Halves, E>(c, o, f, block);
}

}  // namespace ewm
