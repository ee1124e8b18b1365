// product_i8<P, E>: the product with int8 weights (one scale for each output) and lanes quantized as they come in.
// See product.py for the formula, the packing of w and the size of the workspace.
#pragma once
#include "product.cc"

namespace ewm {

// One outer index: x[k / GROUP][lane][GROUP] = q(k) + ZERO_POINT and scale[lane] = amax / 127, where
// q = rint(P * (127 / amax)) held within 127. `real` holds P between the two passes where P computes anything.
//
// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
template <class P> void quantize_panel(const View* v, int64_t depth, Tile t, char* real, char* x, f32v* scale) {
  constexpr bool direct = is_direct<P>(0);
  constexpr uint32_t mask = (1u << (32 / GROUP)) - 1;
  f32v amax[VECTORS], inverse[VECTORS];
  for (int r = 0; r < VECTORS; r++) amax[r] = op_abs(P::value(v, 0, r, t));
  for (int64_t k = 0; k < depth; k++)
#pragma unroll
    for (int r = 0; r < VECTORS; r++) {
      f32v y = P::value(v, k, r, t);
      amax[r] = op_max(op_abs(y), amax[r]);
      if constexpr (!direct) memcpy(real + (k * VECTORS + r) * sizeof(y), &y, sizeof(y));
    }
#pragma unroll
  for (int r = 0; r < VECTORS; r++) {
    amax[r] = op_max(amax[r], splat(0x1p-100f));
    inverse[r] = splat(127.0f) / amax[r];
    scale[r] = amax[r] / splat(127.0f);
  }
  auto bits = [&](int64_t k, int r) {
    f32v y;
    if constexpr (direct) {
      y = P::value(v, k, r, t);
    } else {
      memcpy(&y, real + (k * VECTORS + r) * sizeof(y), sizeof(y));
    }
    y = op_min(op_max(y * inverse[r], splat(-127.0f)), splat(127.0f));
    return (u32v)(y + splat(0x1.8p23f + ZERO_POINT));
  };
  int64_t k = 0;
  for (; k + GROUP <= depth; k += GROUP)
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      u32v word = bits(k, r) & mask;
#pragma unroll
      for (int j = 1; j < GROUP; j++) word |= (bits(k + j, r) & mask) << (j * (32 / GROUP));
      memcpy(x, &word, sizeof(word));
    }
  if (k < depth)  // what is left of a word meets weights of 0
#pragma unroll
    for (int r = 0; r < VECTORS; r++, x += sizeof(u32v)) {
      u32v word = {};
      for (int j = 0; k + j < depth; j++) word |= (bits(k + j, r) & mask) << static_cast<uint32_t>(j * (32 / GROUP));
      memcpy(x, &word, sizeof(word));
    }
}

// dims [outer..., N, K]; operands: P's inputs (along K), packed i8 weights, their scales f32 (along N), E's (along N),
// workspace. The workspace holds, for every index that shares the weights, scales [VECTORS] and a panel, then `real`.
template <class P, class E>
__attribute__((flatten)) void product_i8(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const Operand &weights = o[P::inputs], &scales = o[P::inputs + 1];
  const Operand *epilogue = o + P::inputs + 2, &workspace = epilogue[E::operands];
  const OuterLoops loops(c, weights);
  const int along_n = loops.rank, along_k = loops.rank + 1;
  const int64_t width = c.dim[along_n], depth = c.dim[along_k], words = ceil_div(depth, GROUP);
  const int64_t panel_bytes = (words + 1) * TILE * sizeof(int32_t);
  char* const panels = start(workspace, f, t);
  char* const real = panels + product_of(loops.shared, loops.rank) * panel_bytes;
  Index batch, shared;
  do {
    char* panel = panels;
    do {
      Views<P::inputs> p(o, f, t, (batch + shared).i, loops.rank, along_k);
      f32v scale[VECTORS];
      quantize_panel<P>(p.v, depth, t, real, panel + sizeof(scale), scale);
      memcpy(panel, scale, sizeof(scale));
      panel += panel_bytes;
    } while (advance(shared.i, loops.shared, loops.rank));
    const char* w = view(weights, f, t, batch.i, loops.rank, along_k).at;
    const View ws = view(scales, f, t, batch.i, loops.rank, along_n);
    for (int64_t n0 = 0; n0 < width; n0 += N_BLOCK, w += (CORRECTION + words * N_BLOCK) * sizeof(int32_t)) {
      const int64_t count = width - n0 < N_BLOCK ? width - n0 : N_BLOCK;
      panel = panels;
      do {
        BlockI32 y;
        f32v scale[VECTORS];
        memcpy(scale, panel, sizeof(scale));
        multiply_i8(panel + sizeof(scale), reinterpret_cast<const int32_t*>(w), words, y);
        Views<E::operands> e(epilogue, f, t, (batch + shared).i, loops.rank, along_n);
        for (int64_t n = 0; n < count; n++) {
          const f32v s = load_b<float>(ws, n0 + n, 0);
#pragma unroll
          for (int r = 0; r < VECTORS; r++) E::store(e.v, n0 + n, r, t, to_f32(y[n][r]) * (scale[r] * s));
        }
        panel += panel_bytes;
      } while (advance(shared.i, loops.shared, loops.rank));
    }
  } while (advance(batch.i, loops.batch, loops.rank));
}

}  // namespace ewm
