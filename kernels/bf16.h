// bf16 in lanes: two neighbours of k share a 32-bit word of a lane, the earlier one in its lower half.
// See product_bf16.py for the formula and for why no denormal ever meets `dot_bf16`.
#pragma once
#include "loops.h"

namespace ewm {

constexpr uint32_t UPPER = 0xffff0000u;

// acc + the products of the words' halves, the upper ones first, each by a fused multiply-add.
inline f32v dot_bf16(f32v acc, u32v x, u32v w) {
#if defined(EWM_AVX512BF16)
  typedef __bf16 bf16v __attribute__((vector_size(64)));
  return __builtin_ia32_dpbf16ps_512(acc, (bf16v)x, (bf16v)w);
#else
  acc = op_fma((f32v)(x & UPPER), (f32v)(w & UPPER), acc);
  return op_fma((f32v)(x << 16), (f32v)(w << 16), acc);
#endif
}

// Both rounded to nearest even, 0 where that is less than 2^-56; NaN stays NaN.
#if defined(EWM_AVX512BF16)
inline u32v pair_bf16(f32v low, f32v high) {
  typedef uint16_t u16v __attribute__((vector_size(64)));
  constexpr uint16_t doubled = (127 - 56) << 8;  // of 2^-56: without its sign a number is not below that
  u16v x = (u16v)__builtin_ia32_cvtne2ps2bf16_512(high, low);
  x &= (u16v)(x + x >= doubled);
  return (u32v)__builtin_shufflevector(x, x, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10,
                                       26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
inline u32v upper_bf16(f32v x) {  // in the upper half; the lower half is of no meaning
  constexpr int32_t smallest = (127 - 56) << 23;
  const u32v bits = (u32v)x, even = bits + 0x7fffu + ((bits >> 16) & 1u);
  const u32v y = op_where(op_eq(x, x), even, bits | 0x400000u);
  return y & (u32v)((i32v)(y & 0x7fffffffu) >= smallest);
}
inline u32v pair_bf16(f32v low, f32v high) { return upper_bf16(low) >> 16 | (upper_bf16(high) & UPPER); }
#endif

}  // namespace ewm
