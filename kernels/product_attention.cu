// product_attention<M, E, P, S, A, EXP, K>: a product whose results are the queries, keys and values of an attention
// over few tokens, and that attention, or some of its queries, in one launch: what stands between the two is never
// written to memory. Every number is computed as by the two apart (tensor.h, attention.cu), so the same bits.
//
// A block does one outer index of the attention for 32 lanes: a row is a lane at a token, a column a number of a query, a
// key or a value. It multiplies SIDE columns at a time, up to BAND rows; all results lie in shared memory, [column][row],
// and scores behind them. The call is the attention's; the product's stands before it, and has rounded its rows. Where the
// product would write, as K, says which of its columns the attention's operands are (edgewm/cuda/schedule.py:
// `can_attend`).
#pragma once
#include "attention.cu"
#include "tensor.h"

namespace ewm {

inline bool is_inside(const Operand& o, const Operand& whole) {
  return o.space == ARENA && o.offset - whole.offset < whole.bytes;
}

// The token and the column of a product, whose results are `whole` [tokens, columns], that operand `o` begins at.
struct Place {
  uint32_t token, column;
  Place(const Operand& o, const Operand& whole, const Index& index) {
    const uint32_t row = whole.stride[0], step = whole.stride[1];
    uint32_t at = static_cast<uint32_t>(o.offset - whole.offset) / bytes_of(o);
#pragma unroll
    for (int d = 0; d < static_cast<int>(MAX_RANK); d++) at += index.i[d] * o.stride[d];
    token = row > step ? at / row : at % step / row;
    column = (row > step ? at % row : at) / step;
  }
};

template <class M, class E, class P, class S, class A, f32v (*EXP)(f32v), class K>
inline void product_attention(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Call& made = *(&c - 1);
  const Operand* const all = o - c.first_operand;
  touch_operands(made, c, all);
  const Operand* const from = all + made.first_operand;
  const Operand& weights = weights_of(made, from, M::operands + E::operands + 1);
  const Operand *const beside = &weights + 1, *const epilogue = beside + M::operands;
  const Operand &whole = epilogue[E::operands - 1], *key = o + P::inputs, *value = key + 1;
  const int outer = static_cast<int>(c.rank) - 4;
  const uint32_t queries = c.dim[outer], tokens = c.dim[outer + 1], depth = c.dim[outer + 2];
  const uint32_t columns = 2 * depth + c.dim[outer + 3];
  const uint32_t lane_tiles = ceil_div(c.lanes, ROW), lane0 = block % lane_tiles * ROW, t = thread_index();
  const uint32_t height = tokens * ROW, step = height + 4;  // rows of the block; words from column to column
  const Index index = index_at(c, outer, block / lane_tiles);

  const Rows rows(made, weights);
  constexpr int along_n = 1;  // behind the tokens
  constexpr uint32_t upper = sizeof(float) - sizeof(K);  // here each is a float: of a bf16 this is the upper half
  const uint32_t bytes = row_bytes(made.dim[along_n + 1], M::size);
  int query = 0;  // which of the operands of P
#pragma unroll
  for (int i = 0; i < P::inputs; i++)
    if (is_inside(o[i], whole)) query = i;
  const Place asked(o[query], whole, index);
  const uint32_t key_column = Place(*key, whole, index).column - depth;
  const uint32_t value_column = Place(*value, whole, index).column - 2 * depth;
  auto column_at = [&](uint32_t own) {
    return own + (own < depth ? asked.column : own < 2 * depth ? key_column : value_column);
  };
  auto lane_at = [&](uint32_t row) {  // those past the end repeat the last
    return lane0 + row % ROW < c.lanes ? lane0 + row % ROW : c.lanes - 1;
  };

  typedef typename M::Sum Sum;
  const char* const workspace = begin_of(from[made.operands - 1], f);
  float* const numbers = reinterpret_cast<float*>(shared_memory());
  const uint32_t last_tile = (columns - 1) / SIDE * SIDE;  // it takes the place of the strips
  for (uint32_t first = 0; first < columns; first += SIDE) {
    const uint32_t own = t / 4, chunk = t % 4 * CHUNK, column = first + own < columns ? first + own : columns - 1;
    auto row_at = [&](uint32_t row) {
      return workspace + static_cast<int64_t>(row / ROW * c.lanes + lane_at(row)) * bytes + chunk;
    };
    const Brought brought = {{row_at(own), row_at(own + 64)},
                             begin_of(weights, f) + static_cast<int64_t>(column_at(column)) * bytes + chunk};
    float* const tile = numbers + first * step;
    char* const strips = reinterpret_cast<char*>(numbers + last_tile * step);
    multiply_strips(brought, height, bytes, strips, reinterpret_cast<Sum*>(tile));

    const uint32_t mine = t % BAND, count = SIDE * BAND / THREADS;
    if (mine >= height) continue;
    const uint32_t lane = lane_at(mine), row = mine / ROW * c.lanes + lane;
    const Index at = rows.index(made, weights, 0, row);
    const typename M::Row end(workspace + static_cast<int64_t>(rows.all()) * bytes, rows.all(), row);
    const Views<M::operands> own_views(beside, f, at, 0, along_n);
    Views<E::operands> e(epilogue, f, at, lane, along_n);
    e.v[E::operands - 1].step = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t place = t / BAND * count + i;
      if (first + place >= columns) break;
      float* const result = tile + place * step + mine;  // in the place of its sum
      e.v[E::operands - 1].at = reinterpret_cast<char*>(result) + upper;
      const uint32_t n = column_at(first + place);
      const f32v y = end.value(*reinterpret_cast<const Sum*>(result), own_views.v, n);
      if (upper) *result = 0.0f;
      E::store(e.v, n, 0, ONE_LANE, y);
    }
  }
  block_sync();

  const uint32_t l = t % ROW, own_lane = lane0 + l, lane = lane_at(l);
  float* const first_query = numbers + asked.token * ROW + l;
  for (uint32_t i = 0; i < queries; i++) {
    Views<P::inputs> p(o, f, index, lane, outer + 2, outer, i);
    float* const q = first_query + i * ROW;
    p.v[query] = {reinterpret_cast<char*>(q) + upper, step * 4, 0};
    for (uint32_t d = t / ROW; d < depth; d += WARPS) q[d * step] = P::value(p.v, d, 0, ONE_LANE);
  }
  block_sync();
  char *const k = reinterpret_cast<char*>(numbers + depth * step + l), *const v = k + depth * step * 4;
  const Seen seen = {{k, ROW * 4, 0}, {v, step * 4, 0}, step * 4, ROW * 4};
  auto q = [&](uint32_t i, uint32_t d) { return first_query[d * step + i * ROW]; };
  attend<QUERIES, 1, S, A, EXP, float, float>(c, value + 1, f, index, 0, queries, own_lane, q, seen, numbers + columns * step);
}

}  // namespace ewm
