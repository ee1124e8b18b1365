// attention<P, S, E, EXP, K, W>: scores, their softmax and the weighted values, in one call; every sum in the order of
// the CPU's attention.cc, so the same bits. See attention.py for the formula. Keys are read as K, values as W: float or
// bf16.
//
// A block does up to QUERIES queries of 32 lanes: lanes are candidates with keys of their own, or queries that share them
// (an operand's strides say which). Its eight warps split the keys, then the width. Queries and scores lie in shared
// memory, [query][d or j][32]; scores that would not fit, in a slot of the workspace.
// dims [outer..., I, J, D, Dv]; operands: P's inputs (along D), keys (along J, D), values (along J, Dv), S's inputs
// (along J), E's (along Dv), workspace.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

constexpr uint32_t KEYS = 4;  // that a thread sums up at once
constexpr uint32_t WARPS = THREADS / 32, ROW = 32;

// sink(n, sums[i][n...]): the chains over k of fma(x[i][k], y[n][k]), `each` of this warp's n < rows at a time; those of
// i >= count and n >= rows are no one's. x(i, a query there is, k).
template <class T, uint32_t most, uint32_t each, class X, class Sink>
inline void multiply_lanes(X x, uint32_t count, const char* y, int64_t by_n, int64_t by_k, uint32_t rows, uint32_t depth,
                           Sink sink) {
  for (uint32_t n0 = thread_index() / 32 * each; n0 < rows; n0 += WARPS * each) {
    const char* at[each];
#pragma unroll
    for (uint32_t n = 0; n < each; n++) at[n] = y + (n0 + n < rows ? n0 + n : rows - 1) * by_n;
    float sum[most][each] = {};
#pragma unroll 4
    for (uint32_t k = 0; k < depth; k++) {
      float a[most], b[each];
#pragma unroll
      for (uint32_t i = 0; i < most; i++) a[i] = x(i, i < count ? i : count - 1, k);
#pragma unroll
      for (uint32_t n = 0; n < each; n++) b[n] = *reinterpret_cast<const T*>(at[n] + k * by_k);
#pragma unroll
      for (uint32_t i = 0; i < most; i++)
#pragma unroll
        for (uint32_t n = 0; n < each; n++) sum[i][n] = fused(a[i], b[n], sum[i][n]);
    }
    sink(n0, sum);
  }
}

// What a block's threads find of the keys and values of their lane: View's step is from key to key, or along a value.
struct Seen {
  View key, value;
  int64_t along_key, to_value;  // from number to number of a key; from value to value
};

// The scores of one block's `count` queries, at most `most` of them, their softmax and the weighted values. q(i, d): a
// query's number, there for all threads. A thread's sums of scores are `each` keys'.
template <uint32_t most, uint32_t each, class S, class E, f32v (*EXP)(f32v), class K, class W, class Q>
inline void attend(const Call& c, const Operand* score, const Frame& f, const Index& index, uint32_t i0, uint32_t count,
                   uint32_t own_lane, Q q, const Seen& seen, float* scores) {
  const Operand* const epilogue = score + S::inputs;
  const int rank = static_cast<int>(c.rank), along_i = rank - 4, along_j = rank - 3, along_v = rank - 1;
  const uint32_t keys = c.dim[along_j], depth = c.dim[rank - 2], width = c.dim[along_v];
  const uint32_t lane = own_lane < c.lanes ? own_lane : c.lanes - 1, l = thread_index() % 32;
  const uint32_t warp = thread_index() / 32;
  multiply_lanes<K, most, each>([&](uint32_t, uint32_t i, uint32_t d) { return q(i, d); }, count, seen.key.at, seen.key.step,
                             seen.along_key, keys, depth, [&](uint32_t n0, const float (*sum)[each]) {
#pragma unroll
                               for (uint32_t i = 0; i < most; i++)
#pragma unroll
                                 for (uint32_t n = 0; n < each; n++)
                                   if (i < count && n0 + n < keys) scores[(i * keys + n0 + n) * ROW + l] = sum[i][n];
                             });
  for (uint32_t i = 0; i < count; i++) {  // each warp those of its own keys
    const Views<S::inputs> s(score, f, index, lane, along_j, along_i, i0 + i);
    for (uint32_t n0 = warp * each; n0 < keys; n0 += WARPS * each)
      for (uint32_t j = n0; j < n0 + each && j < keys; j++) {
        float& x = scores[(i * keys + j) * ROW + l];
        x = S::value(s.v, j, 0, ONE_LANE, x);
      }
  }
  block_sync();

  float largest[most], inverse[most];
#pragma unroll
  for (uint32_t i = 0; i < most; i++) {
    const float* const of = scores + (i < count ? i : count - 1) * keys * ROW + l;
    largest[i] = of[0];
#pragma unroll 8
    for (uint32_t j = 1; j < keys; j++) largest[i] = op_max(of[j * ROW], largest[i]);
  }
  block_sync();
#pragma unroll
  for (uint32_t i = 0; i < most; i++)
    for (uint32_t j = warp; i < count && j < keys; j += WARPS) {
      float& x = scores[(i * keys + j) * ROW + l];
      x = EXP(x - largest[i]);
    }
  block_sync();
#pragma unroll
  for (uint32_t i = 0; i < most; i++) {
    const float* const of = scores + (i < count ? i : count - 1) * keys * ROW + l;
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t j = 0; j < keys; j++) sum = sum + of[j * ROW];
    inverse[i] = quotient(1.0f, sum);
  }

  multiply_lanes<W, most, KEYS>([&](uint32_t own, uint32_t i, uint32_t j) { return scores[(i * keys + j) * ROW + l] * inverse[own]; },
                             count, seen.value.at, seen.value.step, seen.to_value, width, keys,
                             [&](uint32_t n0, const float (*sum)[KEYS]) {
                               if (own_lane >= c.lanes) return;
#pragma unroll
                               for (uint32_t i = 0; i < most; i++) {
                                 if (i >= count) break;
                                 const Views<E::operands> e(epilogue, f, index, lane, along_v, along_i, i0 + i);
#pragma unroll
                                 for (uint32_t n = 0; n < KEYS; n++)
                                   if (n0 + n < width) E::store(e.v, n0 + n, 0, ONE_LANE, sum[i][n]);
                               }
                             });
}

// The same where queries, keys and values are read from memory.
template <uint32_t most, class P, class S, class E, f32v (*EXP)(f32v), class K, class W>
inline void attend_in_memory(const Call& c, const Operand* o, const Frame& f, const Index& index, uint32_t i0,
                             uint32_t count, uint32_t own_lane, float* q, float* scores) {
  const Operand *key = o + P::inputs, *value = key + 1;
  const int rank = static_cast<int>(c.rank), along_i = rank - 4, along_j = rank - 3, along_d = rank - 2,
            along_v = rank - 1;
  const uint32_t depth = c.dim[along_d], l = thread_index() % 32;
  const uint32_t lane = own_lane < c.lanes ? own_lane : c.lanes - 1;
  for (uint32_t i = 0; i < count; i++) {
    const Views<P::inputs> p(o, f, index, lane, along_d, along_i, i0 + i);
    for (uint32_t d = thread_index() / 32; d < depth; d += WARPS) q[(i * depth + d) * ROW + l] = P::value(p.v, d, 0, ONE_LANE);
  }
  block_sync();
  const Seen seen = {view(*key, f, index, lane, along_j), view(*value, f, index, lane, along_v),
                     int64_t(key->stride[along_d] * sizeof(K)), int64_t(value->stride[along_j] * sizeof(W))};
  attend<most, KEYS, S, E, EXP, K, W>(
      c, value + 1, f, index, i0, count, own_lane, [&](uint32_t i, uint32_t d) { return q[(i * depth + d) * ROW + l]; }, seen,
      scores);
}

template <class P, class S, class E, f32v (*EXP)(f32v), class K, class W>
inline void attention(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 4;
  const uint32_t queries = c.dim[outer], keys = c.dim[outer + 1], depth = c.dim[outer + 2];
  const bool spills = c.cut == 0;  // scores to the workspace, one slot a block, so no more blocks than SLOTS
  const uint32_t at_once = spills ? 1 : c.cut;
  const uint32_t lane_tiles = ceil_div(c.lanes, ROW), query_tiles = ceil_div(queries, at_once);
  const uint32_t tiles = lane_tiles * query_tiles * product_of(c, outer);
  float* const q = reinterpret_cast<float*>(shared_memory());
  float* const scores = spills ? reinterpret_cast<float*>(begin_of(o[c.operands - 1], f)) + block * keys * ROW
                               : q + at_once * depth * ROW;
  // A slot is written again behind a barrier: queries come first.
  for (uint32_t tile = block; tile < tiles; tile += spills ? SLOTS : tiles) {
    const uint32_t i0 = tile / lane_tiles % query_tiles * at_once;
    const uint32_t count = queries - i0 < at_once ? queries - i0 : at_once;
    const uint32_t lane = tile % lane_tiles * ROW + thread_index() % 32;
    const Index index = index_at(c, outer, tile / lane_tiles / query_tiles);
    if (count == 1) {
      attend_in_memory<1, P, S, E, EXP, K, W>(c, o, f, index, i0, count, lane, q, scores);
    } else {
      attend_in_memory<QUERIES, P, S, E, EXP, K, W>(c, o, f, index, i0, count, lane, q, scores);
    }
  }
}

}  // namespace ewm
