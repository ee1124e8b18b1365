// product_fp16: the product with half weights and lanes rounded to half as they come in, sums in f32.
//
// product_fp16_round<P> writes each row to the workspace, k innermost; product_fp16_multiply<E> is the product on
// tensor cores, whose order of additions is their own: within a tolerance of the CPU, not to the bit.
// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace.
#pragma once
#include "tensor.h"

namespace ewm {

struct ToHalves {
  static constexpr uint32_t size = 2;
  // To nearest even, saturating at 65504; NaN stays one. Numbers below 2^-14 are multiples of 2^-24, the last bit of
  // numbers next to 0.75.
  static u32v bits(f32v x) {
    const u32v word = as_u32(x), magnitude = word & 0x7fffffffu, sign = word >> 16 & 0x8000u;
    const u32v normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    const u32v small = as_u32(as_f32(magnitude) + 0.75f) - as_u32(0.75f), largest = 0x7bffu;
    const u32v half = magnitude < as_u32(0x1p-14f) ? small : magnitude > as_u32(65504.0f) ? largest : normal;
    return sign | (x == x ? half : 0x7fffu);
  }
};

template <class P> inline void product_fp16_round(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  round_rows<ToHalves, P>(c, o, f, block);
}

struct HalfProducts {
  typedef OfHalves Sum;
  static constexpr uint32_t size = 2;
  static constexpr int operands = 0;
  struct Row {
    Row(const char*, uint32_t, uint32_t) {}
    f32v value(OfHalves sum, const View*, uint32_t) const { return sum.value; }
  };
};

template <class E>
inline void product_fp16_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  multiply_rows<HalfProducts, E>(c, o, f, block);
}

}  // namespace ewm
