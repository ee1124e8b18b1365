// product_i8<P, E>: the product with int8 weights (one scale for each output) and lanes quantized as they come in.
// See product.py for the formula, the packing of w and the size of the workspace.
#pragma once
#include "product.cc"

namespace ewm {

constexpr float SMALLEST = 0x1p-100f;

// Of each lane: what a step is worth, and the middle of its range.
struct LaneRange {
  f32v step[VECTORS], middle[VECTORS];
};

// One outer index: x[k / GROUP][lane][GROUP] = q(k) + ZERO_POINT, where q = rint((P - middle) * (127 / half)), and step =
// half / 127. `real` holds P between the two passes where P computes anything.
//
// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
template <class P> void quantize_panel(const View* v, int64_t depth, Tile t, char* real, char* x, LaneRange& scale) {
  constexpr bool direct = is_direct<P>(0);
  constexpr uint32_t mask = (1u << (32 / GROUP)) - 1;
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
  auto bits = [&](int64_t k, int r) {
    f32v y;
    if constexpr (direct) {
      y = P::value(v, k, r, t);
    } else {
      memcpy(&y, real + (k * VECTORS + r) * sizeof(y), sizeof(y));
    }
    return (u32v)(op_min(op_fma(y, inverse[r], offset[r]), splat(127.0f)) + splat(0x1.8p23f + ZERO_POINT));
  };
  // The words of GROUP neighbours from k on; what is left of a last one meets weights of 0.
  auto pack = [&](int64_t k, int64_t count) {
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      u32v word = {};
#pragma unroll
      for (int j = 0; j < GROUP; j++)
        if (j < count) word |= (bits(k + j, r) & mask) << static_cast<uint32_t>(j * (32 / GROUP));
      memcpy(x, &word, sizeof(word));
    }
  };
  int64_t k = 0;
  for (; k + GROUP <= depth; k += GROUP) pack(k, GROUP);
  if (k < depth) pack(k, depth - k);
}

struct Eighths {
  typedef i32v Word;
  typedef i32v Sum;
  typedef LaneRange Scale;
  static constexpr int group = GROUP, operands = 2;
  static constexpr int64_t header_bytes = sizeof(Scale), block_bytes = CORRECTION * sizeof(int32_t);
  template <class P> static constexpr bool in_place = false;
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char* real) {
    Scale scale;
    quantize_panel<P>(v, depth, t, real, panel + sizeof(scale), scale);
    memcpy(panel, &scale, sizeof(scale));
  }
  static void header(const char* panel, Scale& scale) { memcpy(&scale, panel, sizeof(scale)); }
  static int32_t word(const char* w, int n) {
    int32_t b;
    memcpy(&b, w + n * sizeof(b), sizeof(b));
    return b;
  }
  static i32v begin(const char* w, int n) { return CORRECTION ? splat(word(w, n)) : i32v{}; }
  static i32v dot(i32v sum, i32v x, const char* w, int n) { return ewm::dot(sum, x, word(w, n)); }
  static i32v dot(i32v sum, i32v x, i32v w) { return ewm::dot(sum, x, w); }
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
