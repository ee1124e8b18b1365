// product: out[n] = E(sum over k of P(k) * w[k][n]), the sum one chain of fma in ascending k from 0, as on the CPU.
//
// product_fill<P> writes P for every row to the workspace, [K][rows, padded to 32], where P is more than a load.
// product_multiply<E, direct> multiplies tiles of 64 rows by 64 columns: a thread has 4 x 4 sums in registers.
// Weights are packed as [K][columns padded to 64]; edgewm/cuda/launches.py.
// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace unless P is direct.
#pragma once
#include "rows.h"

namespace ewm {

constexpr uint32_t SLICE = 16, QUAD = 4;  // of the k in shared memory, of a thread's sums
constexpr uint32_t SUMS_STEP = SIDE + QUAD;          // apart, so that no two columns begin in one bank
constexpr uint32_t FILL_STEPS = 4;

inline uint32_t row_step(const Rows& rows) { return ceil_div(rows.all(), 32) * 32; }

// A block fills 32 lanes at one outer index; each thread, FILL_STEPS numbers at a time.
template <class P> inline void product_fill(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand& weights = o[P::inputs];
  const Rows rows(c, weights);
  const uint32_t depth = c.dim[rows.outer + 1], lane_tiles = ceil_div(c.lanes, 32), at = block / lane_tiles;
  const uint32_t lane = block % lane_tiles * 32 + thread_index() % 32;
  if (lane >= c.lanes) return;
  const Views<P::inputs> p(o, f, index_at(c, rows.outer, at), lane, rows.outer + 1);
  float* const to = reinterpret_cast<float*>(begin_of(o[c.operands - 1], f)) + rows.first_row(c, weights, at) + lane;
  const int64_t step = row_step(rows);
  constexpr uint32_t warps = THREADS / 32;
  for (uint32_t k0 = thread_index() / 32; k0 < depth; k0 += warps * FILL_STEPS) {
    float x[FILL_STEPS];
#pragma unroll
    for (uint32_t s = 0; s < FILL_STEPS; s++) {
      const uint32_t k = k0 + s * warps;
      x[s] = P::value(p.v, k < depth ? k : k0, 0, ONE_LANE);
    }
#pragma unroll
    for (uint32_t s = 0; s < FILL_STEPS; s++)
      if (k0 + s * warps < depth) to[(k0 + s * warps) * step] = x[s];
  }
}

template <class E, bool direct>
inline void product_multiply(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand &weights = weights_of(c, o, E::operands + !direct), *epilogue = &weights + 1;
  const Rows rows(c, weights);
  const int along_n = rows.outer, along_k = rows.outer + 1;
  const uint32_t width = c.dim[along_n], depth = c.dim[along_k], t = thread_index();
  const uint32_t column_tiles = ceil_div(width, SIDE), row_tiles = ceil_div(rows.each, SIDE);
  const uint32_t n0 = block % column_tiles * SIDE, r0 = block / column_tiles % row_tiles * SIDE;
  const uint32_t batch = block / column_tiles / row_tiles;

  // What this thread brings: of k it has its part, of rows and columns one each.
  const uint32_t mine = t % SIDE, part = t / SIDE;
  const uint32_t row = r0 + mine < rows.each ? r0 + mine : rows.each - 1;
  const Index index = rows.index(c, weights, batch, row);
  const float* x;
  int64_t x_step;
  if constexpr (direct) {
    const View from = view(o[0], f, index, row % c.lanes, along_k);
    x = reinterpret_cast<const float*>(from.at), x_step = from.step / 4;
  } else {
    x = reinterpret_cast<const float*>(begin_of(o[c.operands - 1], f)) + batch * rows.each + row;
    x_step = row_step(rows);
  }
  const float* const w = reinterpret_cast<const float*>(view(weights, f, index, 0, along_k).at) + n0 + mine;
  const int64_t w_step = column_tiles * SIDE;

  float* const shared = reinterpret_cast<float*>(shared_memory());
  constexpr uint32_t parts = THREADS / SIDE, each = SLICE / parts, slice = SLICE * SIDE;
  float bring_x[each], bring_w[each];
  auto load = [&](uint32_t k0) {
#pragma unroll
    for (uint32_t u = 0; u < each; u++) {
      const uint32_t k = k0 + part + u * parts;
      bring_x[u] = k < depth ? x[k * x_step] : 0.0f;
      bring_w[u] = k < depth ? w[k * w_step] : 0.0f;
    }
  };
  auto put = [&](uint32_t half) {
#pragma unroll
    for (uint32_t u = 0; u < each; u++) {
      shared[half * 2 * slice + (part + u * parts) * SIDE + mine] = bring_x[u];
      shared[half * 2 * slice + slice + (part + u * parts) * SIDE + mine] = bring_w[u];
    }
  };

  const uint32_t own_row = t % (SIDE / QUAD) * QUAD, own_column = t / (SIDE / QUAD) * QUAD;
  float sum[QUAD][QUAD] = {};
  auto multiply = [&](const float* at) {
    const Four a = *reinterpret_cast<const Four*>(at + own_row);
    const Four b = *reinterpret_cast<const Four*>(at + slice + own_column);
#pragma unroll
    for (uint32_t n = 0; n < QUAD; n++)
#pragma unroll
      for (uint32_t r = 0; r < QUAD; r++) sum[n][r] = fused(bits_float(a.word[r]), bits_float(b.word[n]), sum[n][r]);
  };

  load(0);
  put(0);
  block_sync();
  uint32_t half = 0;
  for (uint32_t k0 = 0; k0 < depth; k0 += SLICE) {
    const bool more = k0 + SLICE < depth;
    if (more) load(k0 + SLICE);
    const float* const at = shared + half * 2 * slice;
    if (k0 + SLICE <= depth) {
#pragma unroll
      for (uint32_t k = 0; k < SLICE; k++) multiply(at + k * SIDE);
    } else {  // no product of padding: it would turn a sum of -0 into 0
      for (uint32_t k = 0; k < depth - k0; k++) multiply(at + k * SIDE);
    }
    half ^= 1;
    if (more) put(half);
    block_sync();
  }

#pragma unroll
  for (uint32_t n = 0; n < QUAD; n++) {
    Four out;
#pragma unroll
    for (uint32_t r = 0; r < QUAD; r++) out.word[r] = float_bits(sum[n][r]);
    *reinterpret_cast<Four*>(shared + (own_column + n) * SUMS_STEP + own_row) = out;
  }
  block_sync();
  if (r0 + mine >= rows.each) return;
  const Views<E::operands> e(epilogue, f, index, row % c.lanes, along_n);
#pragma unroll 4
  for (uint32_t i = 0; i < SIDE / parts; i++) {
    const uint32_t column = part * (SIDE / parts) + i;
    if (n0 + column < width) E::store(e.v, n0 + column, 0, ONE_LANE, shared[column * SUMS_STEP + mine]);
  }
}

}  // namespace ewm
