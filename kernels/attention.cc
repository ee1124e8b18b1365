// attention<P, S, E, EXP, keys_shared, values_shared, K, W>: scores, their softmax and the weighted values, in one call;
// see attention.py for the formula and the size of the workspace.
//
// Keys (and likewise values) either belong to each lane (V mode: a lane is a candidate with a window of its own) or are
// shared by the lanes of the tile (B mode: lanes are queries, or candidates before one context). Either way they are
// read where they lie, as K and W: float, or bf16 that is widened on the way.
#pragma once
#include "product.cc"

namespace ewm {

// Register block where both factors are per lane: each load serves QUERIES or LANE_ROWS multiply-adds.
constexpr int QUERIES = 3;
constexpr int LANE_ROWS = N_BLOCK < 8 ? 1 : N_BLOCK / 4;

// Sixteen lanes of a T.
template <class T> inline f32v lanes_at(const char* at) {
  typename Narrow<T>::type x;
  memcpy(&x, at, sizeof(x));
  return widen<T>(x);
}

// sink(i, n, r, chain over k of fma(x[i][k][lane], y[n][k][lane])) for i < queries <= `block`, n < rows, r < vectors.
template <class T, int block, class Sink>
__attribute__((always_inline)) inline void multiply_lanes(const char* x, int64_t by_i, int64_t step, int64_t queries,
                                                          const char* y, int64_t by_n, int64_t by_k, int64_t rows,
                                                          int64_t depth, int vectors, Sink sink) {
  for (int64_t n0 = 0; n0 < rows; n0 += LANE_ROWS)
    for (int r = 0; r < vectors; r++) {
      const char *a_at[block], *b_at[LANE_ROWS];
      for (int i = 0; i < block; i++) a_at[i] = x + (i < queries ? i : queries - 1) * by_i + r * sizeof(f32v);
      for (int n = 0; n < LANE_ROWS; n++)
        b_at[n] = y + (n0 + n < rows ? n0 + n : rows - 1) * by_n + r * LANES * sizeof(T);
      f32v acc[block][LANE_ROWS] = {};
      for (int64_t k = 0; k < depth; k++) {
        f32v a[block], b[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < block; i++) memcpy(&a[i], a_at[i] + k * step, sizeof(f32v));
#pragma unroll
        for (int n = 0; n < LANE_ROWS; n++) b[n] = lanes_at<T>(b_at[n] + k * by_k);
#pragma unroll
        for (int i = 0; i < block; i++)
#pragma unroll
          for (int n = 0; n < LANE_ROWS; n++) acc[i][n] = op_fma(a[i], b[n], acc[i][n]);
      }
#pragma unroll
      for (int i = 0; i < block; i++)
#pragma unroll
        for (int n = 0; n < LANE_ROWS; n++)
          if (i < queries && n0 + n < rows) sink(i, n0 + n, r, acc[i][n]);
    }
}

// out[i][lane] = chain over k of fma(x[k][lane], y[i][k]) for i < n; numbers of y lie by_n and by_k bytes apart.
template <class T, int V, int n, bool neighbours>
__attribute__((noinline)) void multiply_rows(const char* x, int64_t step, const char* y, int64_t by_n, int64_t by_k,
                                             int64_t depth, f32v (*out)[VECTORS]) {
  constexpr int group = 3;  // bases, so that few registers address all rows
  const int64_t apart = neighbours ? static_cast<int64_t>(sizeof(T)) : by_n;
  const char* base[(n + group - 1) / group];
  for (int i = 0; i < n; i += group) base[i / group] = y + i * apart;
  f32v acc[n][V] = {};
  for (int64_t k = 0; k < depth; k++) {
    f32v a[V];
    memcpy(a, x, sizeof(a));
    x += step;
#pragma unroll
    for (int i = 0; i < n; i++) {
      T b;
      memcpy(&b, base[i / group] + (i % group) * apart, sizeof(b));
#pragma unroll
      for (int r = 0; r < V; r++) acc[i][r] = op_fma(a[r], splat(b), acc[i][r]);
    }
#pragma unroll
    for (int i = 0; i < n; i += group) base[i / group] += by_k;
  }
#pragma unroll
  for (int i = 0; i < n; i++) memcpy(out[i], acc[i], sizeof(acc[i]));
}

// The same for any count, in blocks of n and then smaller ones.
template <class T, int V, int n = N_BLOCK>
void multiply_shared(const char* x, int64_t step, const char* y, int64_t by_n, int64_t by_k, int64_t count,
                     int64_t depth, f32v (*out)[VECTORS]) {
  constexpr int smaller = n > 8 ? 8 : n > 4 ? 4 : n / 2;
  for (; count >= n; count -= n, y += n * by_n, out += n)
    if (by_n == sizeof(T)) {
      multiply_rows<T, V, n, true>(x, step, y, by_n, by_k, depth, out);
    } else {
      multiply_rows<T, V, n, false>(x, step, y, by_n, by_k, depth, out);
    }
  if constexpr (smaller > 0)
    if (count > 0) multiply_shared<T, V, smaller>(x, step, y, by_n, by_k, count, depth, out);
}

// sink(i, n, r, x[i] . y[n]) for n < rows, ascending, of up to QUERIES rows x that lie by_i apart, numbers `step` apart.
template <class T, bool shared, class Sink>
__attribute__((always_inline)) inline void multiply_queries(const char* x, int64_t by_i, int64_t step, int64_t queries,
                                                            const View& by_row, const View& by_depth, int64_t rows,
                                                            int64_t depth, int vectors, Sink sink) {
  if constexpr (!shared) {
    if (queries == 1) {
      multiply_lanes<T, 1>(x, by_i, step, 1, by_row.at, by_row.step, by_depth.step, rows, depth, vectors, sink);
    } else {
      multiply_lanes<T, QUERIES>(x, by_i, step, queries, by_row.at, by_row.step, by_depth.step, rows, depth, vectors, sink);
    }
    return;
  }
  for (int64_t i = 0; i < queries; i++)
    for (int64_t n0 = 0; n0 < rows; n0 += N_BLOCK) {
      const int64_t count = rows - n0 < N_BLOCK ? rows - n0 : N_BLOCK;
      const char *from = x + i * by_i, *rows_at = by_row.at + n0 * by_row.step;
      f32v y[N_BLOCK][VECTORS];
      if (VECTORS > 1 && vectors == 1) {
        multiply_shared<T, 1>(from, step, rows_at, by_row.step, by_depth.step, count, depth, y);
      } else {
        multiply_shared<T, VECTORS>(from, step, rows_at, by_row.step, by_depth.step, count, depth, y);
      }
      for (int64_t n = 0; n < count; n++)
        for (int r = 0; r < vectors; r++) sink(i, n0 + n, r, y[n][r]);
    }
}

// `scores` [keys][TILE] become exp(score - largest) / their sum.
template <f32v (*EXP)(f32v)>
__attribute__((noinline)) void soften(char* scores, int64_t keys, int vectors, const f32v* largest) {
  f32v sum[VECTORS] = {};
  auto each = [&](auto change) {
    for (int64_t j = 0; j < keys; j++)
      for (int r = 0; r < vectors; r++) {
        char* at = scores + (j * VECTORS + r) * static_cast<int64_t>(sizeof(f32v));
        f32v x;
        memcpy(&x, at, sizeof(x));
        x = change(x, r);
        memcpy(at, &x, sizeof(x));
      }
  };
  each([&](f32v x, int r) {
    x = EXP(x - largest[r]);
    sum[r] = sum[r] + x;
    return x;
  });
  for (int r = 0; r < vectors; r++) sum[r] = splat(1.0f) / sum[r];
  each([&](f32v x, int r) { return x * sum[r]; });
}

// dims [outer..., I, J, D, Dv]; operands: P's inputs (along D), keys (along J, D), values (along J, Dv), S's inputs
// (along J), E's (along Dv), workspace: scores [QUERIES][J][TILE], and q [QUERIES][D][TILE] unless P is direct.
template <class P, class S, class E, f32v (*EXP)(f32v), bool keys_shared, bool values_shared, class K = float,
          class W = float>
__attribute__((flatten)) void attention(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const Operand *key = o + P::inputs, *value = key + 1, *score = value + 1, *epilogue = score + S::inputs;
  const int rank = static_cast<int>(c.rank), outer = rank - 4;
  const int along_i = rank - 4, along_j = rank - 3, along_d = rank - 2, along_v = rank - 1;
  const uint32_t queries = c.dim[along_i];
  const int64_t keys = c.dim[along_j], depth = c.dim[along_d], width = c.dim[along_v];
  const int vectors = VECTORS > 1 && t.valid <= LANES ? 1 : VECTORS;
  constexpr int64_t row = TILE * sizeof(float);
  char* const scores = start(epilogue[E::operands], f, t);
  uint32_t index[MAX_RANK] = {};
  do {
    for (uint32_t i0 = 0; i0 < queries; i0 += QUERIES) {
      const uint32_t count = queries - i0 < QUERIES ? queries - i0 : QUERIES;
      auto at = [&](uint32_t i) { return index[along_i] = i0 + i, index; };
      const char* q = scores + QUERIES * keys * row;
      int64_t q_step = row, q_apart = depth * row;
      if constexpr (is_direct<P>(0)) {
        const View x = view(o[0], f, t, at(0), rank - 3, along_d);
        q = x.at, q_step = x.step, q_apart = int64_t(o[0].stride[along_i]) * SIZE[o[0].dtype];
      } else {
        for (uint32_t i = 0; i < count; i++) {
          Views<P::inputs> p(o, f, t, at(i), rank - 3, along_d);
          fill_panel<P>(p.v, depth, t, const_cast<char*>(q) + i * q_apart);
        }
      }
      f32v largest[QUERIES][VECTORS];
      View s[QUERIES][S::inputs ? S::inputs : 1], e[QUERIES][E::operands];
      for (uint32_t i = 0; i < count; i++) {
        for (int j = 0; j < S::inputs; j++) s[i][j] = view(score[j], f, t, at(i), rank - 3, along_j);
        for (int j = 0; j < E::operands; j++) e[i][j] = view(epilogue[j], f, t, at(i), rank - 3, along_v);
      }
      at(0);
      multiply_queries<K, keys_shared>(
          q, q_apart, q_step, count, view(*key, f, t, index, rank - 3, along_j),
          view(*key, f, t, index, rank - 3, along_d), keys, depth, vectors, [&](int64_t i, int64_t j, int r, f32v dot) {
            const f32v x = S::value(s[i], j, r, t, dot);
            largest[i][r] = j ? op_max(x, largest[i][r]) : x;
            memcpy(scores + (i * keys + j) * row + r * sizeof(x), &x, sizeof(x));
          });
      for (uint32_t i = 0; i < count; i++) soften<EXP>(scores + i * keys * row, keys, vectors, largest[i]);
      multiply_queries<W, values_shared>(
          scores, keys * row, row, count, view(*value, f, t, index, rank - 3, along_v),
          view(*value, f, t, index, rank - 3, along_j), width, keys, vectors,
          [&](int64_t i, int64_t d, int r, f32v y) { E::store(e[i], d, r, t, y); });
    }
    index[along_i] = 0;
  } while (advance(index, c.dim, outer));
}

}  // namespace ewm
