// product_bf16<P, E>: the product with bf16 weights and lanes rounded to bf16 as they come in.
// See product_bf16.py for the formula, product.py for the packing of w and the size of the workspace.
#pragma once
#include "bf16.h"
#include "blocks.h"

namespace ewm {

// x[k / 2][lane] = P(k), P(k + 1) for one outer index; a last P without a neighbour gets 0.
template <class P> void fill_panel_bf16(const View* v, int64_t depth, Tile t, char* x) {
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2)
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      const u32v word = pair_bf16(P::value(v, k, r, t), P::value(v, k + 1, r, t));
      memcpy(x, &word, sizeof(word));
    }
  if (k < depth)
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      const u32v word = pair_bf16(P::value(v, k, r, t), f32v{});
      memcpy(x, &word, sizeof(word));
    }
}

struct Halves {
  typedef u32v Word;
  typedef f32v Sum;
  struct Scale {};
  static constexpr int group = 2, operands = 0;
  static constexpr int64_t header_bytes = 0, block_bytes = 0;
  template <class P> static constexpr bool in_place = false;
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char*) {
    fill_panel_bf16<P>(v, depth, t, panel);
  }
  static void header(const char*, Scale&) {}
  static f32v begin(const char*, int) { return f32v{}; }
  static f32v dot(f32v sum, u32v x, const char* w, int n) {
    uint32_t b;
    memcpy(&b, w + n * sizeof(b), sizeof(b));
    return dot_bf16(sum, x, splat(b));
  }
  static f32v dot(f32v sum, u32v x, u32v w) { return dot_bf16(sum, x, w); }
  static f32v end(f32v sum, const Scale&, const View*, int64_t, int) { return sum; }
};

// dims [outer..., N, K]; operands: P's inputs (along K), packed pairs of bf16 weights, E's (along N), workspace: a panel
// for every index that shares the weights.
template <class P, class E>
__attribute__((flatten)) void product_bf16(const Call& c, const Operand* o, const Frame& f, Tile t) {
  multiply_blocks<Halves, P, E>(c, o, f, t);
}

}  // namespace ewm
