// product_rounded<P, E>: the product of int8 weights and lanes rounded to integers, -127 to 127, as they come in.
// See product_rounded.py for the formula, product.py for the packing of w and the size of the workspace.
#pragma once
#include "integers.h"

namespace ewm {

// x[k / GROUP][lane][GROUP] = the integer next to P(k), + ZERO_POINT, for one outer index.
template <class P> void fill_panel_rounded(const View* v, int64_t depth, Tile t, char* x) {
  pack_integers(depth, x, [&](int64_t k, int r) {
    const f32v y = op_min(op_max(P::value(v, k, r, t), splat(-127.0f)), splat(127.0f));
    return (u32v)(y + splat(ROUNDS));
  });
}

struct Rounded : Integers {
  struct Scale {};
  static constexpr int operands = 0;
  static constexpr int64_t header_bytes = 0;
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char*) {
    fill_panel_rounded<P>(v, depth, t, panel);
  }
  static void header(const char*, Scale&) {}
  static f32v end(i32v sum, const Scale&, const View*, int64_t, int) { return to_f32(sum); }
};

// dims [outer..., N, K]; operands: P's inputs (along K), packed i8 weights, E's (along N), workspace: a panel for every
// index that shares the weights.
template <class P, class E>
__attribute__((flatten)) void product_rounded(const Call& c, const Operand* o, const Frame& f, Tile t) {
  multiply_blocks<Rounded, P, E>(c, o, f, t);
}

}  // namespace ewm
