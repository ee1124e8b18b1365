// product_fp16<P, E>: the product with half weights and lanes rounded to half as they come in, both as the f32 they are.
// See product_fp16.py for the formula, product.py for the packing of w and the size of the workspace.
#pragma once
#include "product.cc"

namespace ewm {

// To the nearest half, ties to even, as f32; saturates at 65504, NaN stays.
inline f32v round_fp16(f32v x) {
  const f32v held = op_max(splat(-65504.0f), op_min(splat(65504.0f), x));
#if defined(__F16C__) || defined(__aarch64__)
  typedef _Float16 halfv __attribute__((vector_size(32)));
  return __builtin_convertvector(__builtin_convertvector(held, halfv), f32v);
#else
  // Half keeps ten bits behind the first one, of which the last is worth 2^-24 at least: that of numbers next to 0.75.
  const u32v bits = (u32v)held, sign = bits & 0x80000000u;
  const u32v normal = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  const f32v small = op_abs(held) + splat(0.75f) - splat(0.75f);
  const f32v rounded = op_where(op_lt(op_abs(held), splat(0x1p-14f)), (f32v)((u32v)small | sign), (f32v)normal);
  return op_where(op_eq(x, x), rounded, x);
#endif
}

template <class P> struct RoundedFp16 {
  static inline f32v value(const View* v, int64_t k, int r, Tile t) { return round_fp16(P::value(v, k, r, t)); }
};

struct HalvesAsReal : Real {
  template <class P> static constexpr bool in_place = false;
  template <class P> static void fill(const View* v, int64_t depth, Tile t, char* panel, char*) {
    fill_panel<RoundedFp16<P>>(v, depth, t, panel);
  }
};

// dims [outer..., N, K]; operands: P's inputs (along K), packed weights f32, E's (along N), workspace: a panel for every
// index that shares the weights.
template <class P, class E>
__attribute__((flatten)) void product_fp16(const Call& c, const Operand* o, const Frame& f, Tile t) {
  multiply_blocks<HalvesAsReal, P, E>(c, o, f, t);
}

}  // namespace ewm
