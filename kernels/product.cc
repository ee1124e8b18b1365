// product<P, E>: out[n] = E(sum over k of P(k) * w[k][n]), the sum one chain of fma in ascending k from 0.
// See product.py for the formula, the packing of w and the size of the workspace.
#pragma once
#include "blocks.h"

namespace ewm {

// x[k][lane] = P(k) for one outer index.
template <class P> void fill_panel(const View* v, int64_t depth, Tile t, char* x) {
  for (int64_t k = 0; k < depth; k++, x += TILE * sizeof(float))
#pragma unroll
    for (int r = 0; r < VECTORS; r++) {
      f32v y = P::value(v, k, r, t);
      memcpy(x + r * sizeof(y), &y, sizeof(y));
    }
}

struct Real {
  typedef f32v Word;
  typedef f32v Sum;
  struct Scale {};
  static constexpr int group = 1, operands = 0;
  static constexpr int64_t header_bytes = 0, block_bytes = 0;
  template <class P> static constexpr bool in_place = is_direct<P>(0);
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char*) {
    fill_panel<P>(v, depth, t, panel);
  }
  static void header(const char*, Scale&) {}
  static f32v begin(const char*, int) { return f32v{}; }
  static f32v dot(f32v sum, f32v x, const char* w, int n) {
    float b;
    memcpy(&b, w + n * sizeof(b), sizeof(b));
    return op_fma(x, splat(b), sum);
  }
  static f32v dot(f32v sum, f32v x, f32v w) { return op_fma(x, w, sum); }
  static f32v end(f32v sum, const Scale&, const View*, int64_t, int) { return sum; }
};

// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace unless P is direct.
template <class P, class E>
__attribute__((flatten)) void product(const Call& c, const Operand* o, const Frame& f, Tile t) {
  multiply_blocks<Real, P, E>(c, o, f, t);
}

}  // namespace ewm
