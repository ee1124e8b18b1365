// product_i8<P, E>: the product with int8 weights (one scale for each output) and lanes quantized as they come in.
// See product.py for the formula, the packing of w and the size of the workspace.
#pragma once
#include "integers.h"

namespace ewm {

constexpr float SMALLEST = 0x1p-100f;

// Of each lane: what a step is worth, and the middle of its range.
struct LaneRange {
  f32v step[VECTORS], middle[VECTORS];
};

// One outer index: x[k / GROUP][lane][GROUP] = q(k) + ZERO_POINT, where q = rint((P - middle) * (127 / half)), and step =
// half / 127. `real` holds P between the two passes where P computes anything.
template <class P> void quantize_panel(const View* v, int64_t depth, Tile t, char* real, char* x, LaneRange& scale) {
  constexpr bool direct = is_direct<P>(0);
  i32v high[VECTORS];  // as the order of their bits: NaN is above all in one of the two
  u32v low[VECTORS];
  for (int r = 0; r < VECTORS; r++) high[r] = i32v{}, low[r] = splat(0x80000000u);
  for (int64_t k = 0; k < depth; k++)
#pragma unroll
    for (int r = 0; r < VECTORS; r++) {
      f32v y = P::value(v, k, r, t);
      high[r] = op_max((i32v)y, high[r]);
      low[r] = op_max((u32v)y, low[r]);
      if constexpr (!direct) memcpy(real + (k * VECTORS + r) * sizeof(y), &y, sizeof(y));
    }
  f32v inverse[VECTORS], offset[VECTORS];
#pragma unroll
  for (int r = 0; r < VECTORS; r++) {
    const f32v above = (f32v)high[r] * splat(0.5f), below = (f32v)low[r] * splat(0.5f);
    const f32v half = op_max(splat(SMALLEST), above - below);
    scale.middle[r] = above + below;
    scale.step[r] = half / splat(127.0f);
    inverse[r] = splat(127.0f) / half;
    offset[r] = -(scale.middle[r] * inverse[r]);
  }
  pack_integers(depth, x, [&](int64_t k, int r) {
    f32v y;
    if constexpr (direct) {
      y = P::value(v, k, r, t);
    } else {
      memcpy(&y, real + (k * VECTORS + r) * sizeof(y), sizeof(y));
    }
    return (u32v)(op_min(op_fma(y, inverse[r], offset[r]), splat(127.0f)) + splat(ROUNDS));
  });
}

struct Eighths : Integers {
  typedef LaneRange Scale;
  static constexpr int operands = 2;
  static constexpr int64_t header_bytes = sizeof(Scale);
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char* real) {
    Scale scale;
    quantize_panel<P>(v, depth, t, real, panel + sizeof(scale), scale);
    memcpy(panel, &scale, sizeof(scale));
  }
  static void header(const char* panel, Scale& scale) { memcpy(&scale, panel, sizeof(scale)); }
  static f32v end(i32v sum, const Scale& scale, const View* own, int64_t n, int r) {
    const f32v product = to_f32(sum) * (scale.step[r] * load_b<float>(own[0], n, 0));
    return op_fma(scale.middle[r], load_b<float>(own[1], n, 0), product);
  }
};

// dims [outer..., N, K]; operands: P's inputs (along K), packed i8 weights, their scales and column sums f32 (along N),
// E's (along N), workspace. It holds, for every index that shares the weights, a LaneRange and a panel, then `real`.
template <class P, class E>
__attribute__((flatten)) void product_i8(const Call& c, const Operand* o, const Frame& f, Tile t) {
  multiply_blocks<Eighths, P, E>(c, o, f, t);
}

}  // namespace ewm
