// The two inner loops of all products: N_BLOCK results for each lane of a tile, every accumulator in a register.
//
// Lanes come from a panel (one row of TILE lanes for each step of k), weights from a packed block (N_BLOCK numbers for
// each step of k, broadcast). One accumulator for each result runs over k in ascending order: the contract of `matmul`.
#pragma once
#include "loops.h"

#if defined(EWM_NEON)
#include <arm_neon.h>
#endif

namespace ewm {

typedef f32v Block[N_BLOCK][VECTORS];
typedef i32v BlockI32[N_BLOCK][VECTORS];

// out[n][lane] = chain over k of fma(x[k][lane], w[k][n]), from 0. Rows of x lie `step` bytes apart.
__attribute__((noinline)) inline void multiply(const char* x, int64_t step, const float* w, int64_t depth, Block& out) {
  Block acc = {};
  for (int64_t k = 0; k < depth; k++) {
    f32v a[VECTORS];
    memcpy(a, x, sizeof(a));
#pragma unroll
    for (int n = 0; n < N_BLOCK; n++) {
      f32v b = splat(w[n]);
#pragma unroll
      for (int r = 0; r < VECTORS; r++) acc[n][r] = op_fma(a[r], b, acc[n][r]);
    }
    x += step;
    w += N_BLOCK;
  }
  memcpy(out, acc, sizeof(acc));
}

// Integer panels and weights: GROUP neighbours of k share one 32-bit word of a lane, the unit of the dot instruction.
#if defined(EWM_AVX2)
constexpr int GROUP = 2;  // pairs of int16: vpmaddubsw on bytes would saturate
#else
constexpr int GROUP = 4;  // int8; on AVX-512 those of lanes are unsigned, 128 above: a correction makes up for it
#endif
#if defined(EWM_AVX512)
constexpr int ZERO_POINT = 128;
constexpr int CORRECTION = N_BLOCK;  // int32 words ahead of each block of weights
#else
constexpr int ZERO_POINT = 0;
constexpr int CORRECTION = 0;
#endif

// acc + the GROUP products of the words' parts, x of activations and w of weights.
inline i32v dot(i32v acc, i32v x, i32v w) {
#if defined(EWM_AVX512)
  return (i32v)__builtin_ia32_vpdpbusd512(acc, x, w);
#elif defined(EWM_AVX2)
  typedef int16_t i16x16 __attribute__((vector_size(32)));
  typedef int32_t i32x8 __attribute__((vector_size(32)));
  auto half = [](i32v a, int i) {
    i16x16 part;
    memcpy(&part, reinterpret_cast<const char*>(&a) + i * sizeof(part), sizeof(part));
    return part;
  };
  i32x8 low = (i32x8)__builtin_ia32_pmaddwd256(half(x, 0), half(w, 0));
  i32x8 high = (i32x8)__builtin_ia32_pmaddwd256(half(x, 1), half(w, 1));
  return acc + __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(EWM_NEON)
  int32x4_t part[4];
  memcpy(part, &acc, sizeof(part));
  int8x16_t lanes[4], weights[4];
  memcpy(lanes, &x, sizeof(lanes));
  memcpy(weights, &w, sizeof(weights));
#pragma unroll
  for (int i = 0; i < 4; i++) part[i] = vdotq_s32(part[i], lanes[i], weights[i]);
  memcpy(&acc, part, sizeof(part));
  return acc;
#else
#pragma unroll
  for (int j = 24; j >= 0; j -= 8) acc += ((i32v)((u32v)x << j) >> 24) * ((i32v)((u32v)w << j) >> 24);
  return acc;
#endif
}
inline i32v dot(i32v acc, i32v x, int32_t w) { return dot(acc, x, splat(w)); }

// out[n][lane] = sum over k of q[k][lane] * w[k][n], exact; `depth` counts words of a lane.
__attribute__((noinline)) inline void multiply_i8(const char* x, const int32_t* w, int64_t depth, BlockI32& out) {
  BlockI32 acc;
#pragma unroll
  for (int n = 0; n < N_BLOCK; n++)
#pragma unroll
    for (int r = 0; r < VECTORS; r++) acc[n][r] = CORRECTION ? splat(w[n]) : i32v{};
  w += CORRECTION;
  for (int64_t k = 0; k < depth; k++) {
    i32v a[VECTORS];
    memcpy(a, x, sizeof(a));
#pragma unroll
    for (int n = 0; n < N_BLOCK; n++)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) acc[n][r] = dot(acc[n][r], a[r], w[n]);
    x += sizeof(a);
    w += N_BLOCK;
  }
  memcpy(out, acc, sizeof(acc));
}

}  // namespace ewm
