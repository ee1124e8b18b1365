// product_i8: the product with int8 weights (one scale for each output) and lanes quantized as they come in.
//
// product_i8_quantize<P> writes to the workspace, for each row, its bytes with k innermost; behind all rows what a step is
// worth, and the middle of the range. product_i8_multiply<E> is the product. See product.py for the formula.
// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, their scales and column sums f32 (along N), E's
// (along N), workspace.
#pragma once
#include "tensor.h"

namespace ewm {

constexpr float SMALLEST_STEP = 0x1p-100f;

// A block quantizes 32 lanes at one outer index: eight threads a lane, 16 numbers of k at a time. A thread looks at its
// numbers twice; where GOOD_BYTES hold all, it keeps them in shared memory, behind what threads agree by.
template <class P> inline void product_i8_quantize(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand& weights = o[P::inputs];
  const Rows rows(c, weights);
  const uint32_t depth = c.dim[rows.outer + 1], bytes = row_bytes(depth, 1), t = thread_index();
  const uint32_t lane_tiles = ceil_div(c.lanes, 32), at = block / lane_tiles, group = t / 32;
  const uint32_t own = block % lane_tiles * 32 + t % 32, lane = own < c.lanes ? own : c.lanes - 1;
  constexpr uint32_t groups = THREADS / 32, numbers = 16;
  const Views<P::inputs> p(o, f, index_at(c, rows.outer, at), lane, rows.outer + 1);

  uint32_t* const shared = reinterpret_cast<uint32_t*>(shared_memory());
  float* const own_numbers = reinterpret_cast<float*>(shared + 2 * THREADS) + t % 32;
  const bool kept = depth * 32 * sizeof(float) <= GOOD_BYTES;
  i32v high = 0;  // as the order of their bits: NaN is above all in one of the two
  u32v low = 0x80000000u;
  for (uint32_t k0 = group * numbers; k0 < depth; k0 += groups * numbers) {
#pragma unroll 1  // four at once: sixteen prologues do not fit the registers
    for (uint32_t k = k0; k < k0 + numbers && k < depth; k += 4) {
      f32v y[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) y[j] = P::value(p.v, k + j < depth ? k + j : k, 0, ONE_LANE);
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        high = op_max(as_i32(y[j]), high);
        low = op_max(as_u32(y[j]), low);
        if (kept && k + j < depth) own_numbers[(k + j) * 32] = y[j];
      }
    }
  }
  shared[t] = as_u32(high);
  shared[THREADS + t] = low;
  block_sync();
#pragma unroll
  for (uint32_t g = 0; g < groups; g++) {
    high = op_max(as_i32(shared[g * 32 + t % 32]), high);
    low = op_max(shared[THREADS + g * 32 + t % 32], low);
  }
  if (own >= c.lanes) return;
  const f32v above = as_f32(high) * 0.5f, below = as_f32(low) * 0.5f;
  const f32v half = op_max(SMALLEST_STEP, above - below), middle = above + below;
  const f32v inverse = quotient(127.0f, half), offset = -(middle * inverse);
  const uint32_t row = rows.first_row(c, weights, at) + lane;
  char* const workspace = begin_of(o[c.operands - 1], f);
  if (group == 0) {
    float* const ends = reinterpret_cast<float*>(workspace + static_cast<int64_t>(rows.all()) * bytes);
    ends[row] = quotient(half, 127.0f);
    ends[rows.all() + row] = middle;
  }
  char* const to = workspace + static_cast<int64_t>(row) * bytes;
  for (uint32_t k0 = group * numbers; k0 < bytes; k0 += groups * numbers) {
    Four packed = {};
#pragma unroll
    for (uint32_t j = 0; j < numbers; j++)
      if (k0 + j < depth) {
        const f32v y = kept ? own_numbers[(k0 + j) * 32] : P::value(p.v, k0 + j, 0, ONE_LANE);
        // adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits
        const u32v q = as_u32(op_min(op_fma(y, inverse, offset), 127.0f) + 0x1.8p23f);
        packed.word[j / 4] |= (q & 255u) << (j % 4 * 8);
      }
    *reinterpret_cast<Four*>(to + k0) = packed;
  }
}

struct Eighths {
  typedef int32_t Sum;
  static constexpr uint32_t size = 1;
  static constexpr int operands = 2;
  struct Row {
    f32v step, middle;
    Row(const char* ends, uint32_t rows, uint32_t row)
        : step(reinterpret_cast<const float*>(ends)[row]), middle(reinterpret_cast<const float*>(ends)[rows + row]) {}
    f32v value(int32_t sum, const View* own, uint32_t n) const {
      const f32v product = to_f32(sum) * (step * load_b<float>(own[0], n, 0));
      return op_fma(middle, load_b<float>(own[1], n, 0), product);
    }
  };
};

template <class E>
inline void product_i8_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  multiply_rows<Eighths, E>(c, o, f, block);
}

}  // namespace ewm
