// attention<P, S, E, EXP, keys_shared, values_shared>: one query's scores, their softmax and the weighted values, in
// one call; see attention.py for the formula and the size of the workspace.
//
// Keys (and likewise values) either belong to each lane (V mode: a lane is a candidate with a window of its own) or are
// shared by the lanes of the tile (B mode: lanes are queries, or candidates before one context). Shared ones are packed
// once and go through the microkernel of products.
#pragma once
#include "product.cc"

namespace ewm {

constexpr int LANE_BLOCK = 4;  // results at once where both factors are per lane: enough chains to hide fma's latency

// out[n][lane] = chain over k of fma(x[k][lane], y[n][k][lane]) for n < count; rows of y lie by_n and by_k bytes apart.
__attribute__((noinline)) inline void multiply_lanes(const char* x, int64_t step, const char* y, int64_t by_n,
                                                     int64_t by_k, int64_t count, int64_t depth, Block& out) {
  for (int64_t n0 = 0; n0 < count; n0 += LANE_BLOCK) {
    const char* at[LANE_BLOCK];
    for (int n = 0; n < LANE_BLOCK; n++) at[n] = y + (n0 + n < count ? n0 + n : count - 1) * by_n;
    f32v acc[LANE_BLOCK][VECTORS] = {};
    const char* row = x;
    for (int64_t k = 0; k < depth; k++, row += step)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) {
        f32v a, b;
        memcpy(&a, row + r * sizeof(a), sizeof(a));
#pragma unroll
        for (int n = 0; n < LANE_BLOCK; n++) {
          memcpy(&b, at[n] + k * by_k + r * sizeof(b), sizeof(b));
          acc[n][r] = op_fma(a, b, acc[n][r]);
        }
      }
    for (int64_t n = 0; n < LANE_BLOCK && n0 + n < count; n++) memcpy(out[n0 + n], acc[n], sizeof(acc[n]));
  }
}

// [ceil(width / N_BLOCK)][depth][N_BLOCK] from numbers by_n and by_k bytes apart; what pads the last block is 0.
__attribute__((noinline)) inline void pack(const char* w, int64_t by_n, int64_t by_k, int64_t width, int64_t depth,
                                           float* out) {
  for (int64_t n0 = 0; n0 < width; n0 += N_BLOCK)
    for (int64_t k = 0; k < depth; k++)
      for (int64_t n = n0; n < n0 + N_BLOCK; n++, out++) {
        *out = 0.0f;
        if (n < width) memcpy(out, w + n * by_n + k * by_k, sizeof(*out));
      }
}

// One factor of the two products: `rows` of `depth` numbers each, per lane or packed.
template <bool shared> struct Factor {
  View by_row, by_depth;
  const float* packed;
  int64_t depth;

  // out[n] for rows [n0, n0 + count)
  void multiply_rows(const char* x, int64_t step, int64_t n0, int64_t count, Block& out) const {
    if constexpr (shared) {
      multiply(x, step, packed + n0 * depth, depth, out);
    } else {
      multiply_lanes(x, step, by_row.at + n0 * by_row.step, by_row.step, by_depth.step, count, depth, out);
    }
  }
};

// dims [outer..., I, J, D, Dv]; operands: P's inputs (along D), keys (along J, D), values (along J, Dv), S's inputs
// (along J), E's (along Dv), workspace: q [D][TILE], scores [J][TILE], packed keys, packed values.
template <class P, class S, class E, f32v (*EXP)(f32v), bool keys_shared, bool values_shared>
__attribute__((flatten)) void attention(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const Operand *key = o + P::inputs, *value = key + 1, *score = value + 1, *epilogue = score + S::inputs;
  const int rank = static_cast<int>(c.rank), outer = rank - 3;
  const int along_i = rank - 4, along_j = rank - 3, along_d = rank - 2, along_v = rank - 1;
  const int64_t keys = c.dim[along_j], depth = c.dim[along_d], width = c.dim[along_v];
  char* const q = start(epilogue[E::operands], f, t);
  char* const scores = q + depth * TILE * sizeof(float);
  float* const packed_keys = reinterpret_cast<float*>(scores + keys * TILE * sizeof(float));
  float* const packed_values = packed_keys + (keys_shared ? ceil_div(keys, N_BLOCK) * N_BLOCK * depth : 0);
  constexpr int64_t row = TILE * sizeof(float);
  auto score_at = [&](int64_t j, int r) { return scores + j * row + r * sizeof(f32v); };
  uint32_t index[MAX_RANK] = {};
  do {
    Views<P::inputs> p(o, f, t, index, outer, along_d);
    fill_panel<P>(p.v, depth, t, q);
    const Factor<keys_shared> k = {view(*key, f, t, index, outer, along_j), view(*key, f, t, index, outer, along_d),
                                   packed_keys, depth};
    const Factor<values_shared> v = {view(*value, f, t, index, outer, along_v),
                                     view(*value, f, t, index, outer, along_j), packed_values, keys};
    if (keys_shared && (index[along_i] == 0 || key->stride[along_i] != 0))
      pack(k.by_row.at, k.by_row.step, k.by_depth.step, keys, depth, packed_keys);
    if (values_shared && (index[along_i] == 0 || value->stride[along_i] != 0))
      pack(v.by_row.at, v.by_row.step, v.by_depth.step, width, keys, packed_values);

    Block y;
    f32v largest[VECTORS], sum[VECTORS] = {};
    Views<S::inputs> s(score, f, t, index, outer, along_j);
    for (int64_t j0 = 0; j0 < keys; j0 += N_BLOCK) {
      const int64_t count = keys - j0 < N_BLOCK ? keys - j0 : N_BLOCK;
      k.multiply_rows(q, row, j0, count, y);
      for (int64_t j = j0; j < j0 + count; j++)
#pragma unroll
        for (int r = 0; r < VECTORS; r++) {
          f32v x = S::value(s.v, j, r, t, y[j - j0][r]);
          largest[r] = j ? op_max(x, largest[r]) : x;
          memcpy(score_at(j, r), &x, sizeof(x));
        }
    }
    for (int64_t j = 0; j < keys; j++)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) {
        f32v x;
        memcpy(&x, score_at(j, r), sizeof(x));
        x = EXP(x - largest[r]);
        sum[r] = sum[r] + x;
        memcpy(score_at(j, r), &x, sizeof(x));
      }
#pragma unroll
    for (int r = 0; r < VECTORS; r++) sum[r] = splat(1.0f) / sum[r];
    for (int64_t j = 0; j < keys; j++)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) {
        f32v x;
        memcpy(&x, score_at(j, r), sizeof(x));
        x = x * sum[r];
        memcpy(score_at(j, r), &x, sizeof(x));
      }

    Views<E::operands> e(epilogue, f, t, index, outer, along_v);
    for (int64_t d0 = 0; d0 < width; d0 += N_BLOCK) {
      const int64_t count = width - d0 < N_BLOCK ? width - d0 : N_BLOCK;
      v.multiply_rows(scores, row, d0, count, y);
      for (int64_t d = d0; d < d0 + count; d++)
#pragma unroll
        for (int r = 0; r < VECTORS; r++) E::store(e.v, d, r, t, y[d - d0][r]);
    }
  } while (advance(index, c.dim, outer));
}

}  // namespace ewm
