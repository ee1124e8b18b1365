// product_rounded: the product with int8 weights and lanes rounded to integers, -127 to 127, as they come in.
//
// product_rounded_round<P> writes each row to the workspace, k innermost; product_rounded_multiply<E> is the product.
// See product_rounded.py for the formula.
// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace.
#pragma once
#include "tensor.h"

namespace ewm {

struct ToEighths {
  static constexpr uint32_t size = 1;
  // adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits
  static u32v bits(f32v x) { return as_u32(op_min(op_max(x, -127.0f), 127.0f) + 0x1.8p23f) & 255u; }
};

template <class P> inline void product_rounded_round(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  round_rows<ToEighths, P>(c, o, f, block);
}

struct Integers {
  typedef int32_t Sum;
  static constexpr uint32_t size = 1;
  static constexpr int operands = 0;
  struct Row {
    Row(const char*, uint32_t, uint32_t) {}
    f32v value(int32_t sum, const View*, uint32_t) const { return to_f32(sum); }
  };
};

template <class E>
inline void product_rounded_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  multiply_rows<Integers, E>(c, o, f, block);
}

}  // namespace ewm
