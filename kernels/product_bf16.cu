// product_bf16: the product with bf16 weights and lanes rounded to bf16 as they come in, sums in f32.
//
// product_bf16_round<P> writes each row to the workspace, k innermost; product_bf16_multiply<E, inputs> is the product on
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

// A block rounds 32 lanes at one outer index: eight threads a lane, 8 numbers of k at a time.
template <class P> inline void product_bf16_round(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand& weights = o[P::inputs];
  const Rows rows(c, weights);
  const uint32_t depth = c.dim[rows.outer + 1], bytes = row_bytes(depth, 2), t = thread_index();
  const uint32_t lane_tiles = ceil_div(c.lanes, 32), at = block / lane_tiles;
  const uint32_t lane = block % lane_tiles * 32 + t % 32;
  if (lane >= c.lanes) return;
  const Views<P::inputs> p(o, f, index_at(c, rows.outer, at), lane, rows.outer + 1);
  const uint32_t row = rows.first_row(c, weights, at) + lane;
  char* const to = begin_of(o[c.operands - 1], f) + static_cast<int64_t>(row) * bytes;
  constexpr uint32_t numbers = 8;
  for (uint32_t k0 = t / 32 * numbers; k0 * 2 < bytes; k0 += THREADS / 32 * numbers) {
    Four packed = {};
#pragma unroll
    for (uint32_t j = 0; j < numbers; j++)
      if (k0 + j < depth) packed.word[j / 2] |= upper_bf16(P::value(p.v, k0 + j, 0, ONE_LANE)) >> (j % 2 ? 0 : 16);
    *reinterpret_cast<Four*>(to + k0 * 2) = packed;
  }
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

template <class E, int inputs>
inline void product_bf16_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  multiply_rows<Halves, E, inputs>(c, o, f, block);
}

}  // namespace ewm
