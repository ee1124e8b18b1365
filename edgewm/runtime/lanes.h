// Sixteen lanes as one value: each lane is a scalar program, so no operation here crosses lanes and the width of the
// machine's registers cannot change a bit. Clang splits the 64-byte vectors where registers are narrower.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernel.h"

namespace ewm {

constexpr int LANES = 16;
typedef float f32v __attribute__((vector_size(64)));
typedef int32_t i32v __attribute__((vector_size(64)));
typedef uint32_t u32v __attribute__((vector_size(64)));
typedef uint64_t u64v __attribute__((vector_size(128)));
typedef double f64v __attribute__((vector_size(128)));
typedef int8_t i8v __attribute__((vector_size(16)));
typedef uint8_t u8v __attribute__((vector_size(16)));
typedef uint16_t u16v __attribute__((vector_size(32)));

// A bfloat16 in memory: the upper half of a float whose lower half is zero. `to_bf16` makes such a float of any.
struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof(word));
    bits = static_cast<uint16_t>(word >> 16);
  }
  operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &word, sizeof(x));
    return x;
  }
};

// i8, u8 live widened to i32v in registers, bf16 to f32v; a bool is an i32v of 0 and -1.
template <class T> struct Wide { typedef i32v type; };
template <> struct Wide<float> { typedef f32v type; };
template <> struct Wide<Bf16> { typedef f32v type; };
template <> struct Wide<uint32_t> { typedef u32v type; };

template <class T> struct Narrow;
template <> struct Narrow<float> { typedef f32v type; };
template <> struct Narrow<Bf16> { typedef u16v type; };
template <> struct Narrow<int32_t> { typedef i32v type; };
template <> struct Narrow<uint32_t> { typedef u32v type; };
template <> struct Narrow<int8_t> { typedef i8v type; };
template <> struct Narrow<uint8_t> { typedef u8v type; };

template <class T> inline typename Wide<T>::type widen(typename Narrow<T>::type x) {
  return __builtin_convertvector(x, typename Wide<T>::type);
}
template <> inline f32v widen<Bf16>(u16v x) { return (f32v)(__builtin_convertvector(x, u32v) << 16); }
template <class T> inline typename Narrow<T>::type narrow(typename Wide<T>::type x) {
  return __builtin_convertvector(x, typename Narrow<T>::type);
}
template <> inline u16v narrow<Bf16>(f32v x) { return __builtin_convertvector((u32v)x >> 16, u16v); }

// Sixteen copies. Not `{} + x`: that would turn -0 into 0, and cost an addition.
#define EWM_SPLAT(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
inline f32v splat(float x) { return f32v EWM_SPLAT(x); }
inline i32v splat(int32_t x) { return i32v EWM_SPLAT(x); }
inline u32v splat(uint32_t x) { return u32v EWM_SPLAT(x); }
#undef EWM_SPLAT
inline i32v splat(int8_t x) { return splat(static_cast<int32_t>(x)); }
inline i32v splat(uint8_t x) { return splat(static_cast<int32_t>(x)); }
inline f32v splat(Bf16 x) { return splat(static_cast<float>(x)); }

// Loads at step i of the innermost loop, vector r of the tile. V: lanes are neighbours in memory; B: one number for all
// lanes; G: lanes `lane` bytes apart, clamped to the real ones.
template <class T> inline typename Wide<T>::type load_v(const View& v, int64_t i, int r) {
  typename Narrow<T>::type x;
  memcpy(&x, v.at + i * v.step + r * LANES * sizeof(T), sizeof(x));
  return widen<T>(x);
}
template <class T> inline typename Wide<T>::type load_b(const View& v, int64_t i, int) {
  T x;
  memcpy(&x, v.at + i * v.step, sizeof(x));
  return splat(x);
}
template <class T> inline typename Wide<T>::type load_g(const View& v, int64_t i, int r, Tile t) {
  typename Wide<T>::type out{};
  for (int l = 0; l < LANES; l++) {
    int64_t lane = r * LANES + l;
    if (lane >= t.valid) lane = t.valid - 1;
    T x;
    memcpy(&x, v.at + i * v.step + lane * v.lane, sizeof(x));
    out[l] = x;
  }
  return out;
}
template <class T> inline void store_v(const View& v, int64_t i, int r, typename Wide<T>::type x) {
  const typename Narrow<T>::type y = narrow<T>(x);
  memcpy(v.at + i * v.step + r * LANES * sizeof(T), &y, sizeof(y));
}
template <class T> inline void store_g(const View& v, int64_t i, int r, Tile t, typename Wide<T>::type x) {
  for (int l = 0; l < LANES && r * LANES + l < static_cast<int>(t.valid); l++) {
    T y = static_cast<T>(x[l]);
    memcpy(v.at + i * v.step + (r * LANES + l) * v.lane, &y, sizeof(y));
  }
}

// The op table's elementwise rows (edgewm/ops.py), one function each, same name with a leading `op_`.
inline f32v op_neg(f32v a) { return -a; }
inline f32v op_abs(f32v a) { return (f32v)((u32v)a & 0x7fffffffu); }
inline i32v op_abs(i32v a) { return a < 0 ? -a : a; }
inline f32v op_sqrt(f32v a) { return __builtin_elementwise_sqrt(a); }
#if defined(__SSE4_1__) || defined(__aarch64__)
inline f32v op_rint(f32v a) { return __builtin_elementwise_roundeven(a); }
inline f32v op_floor(f32v a) { return __builtin_elementwise_floor(a); }
#else  // no instruction for it: adding 2^23 leaves no room for a fraction
inline f32v op_rint(f32v a) {
  const u32v sign = (u32v)a & 0x80000000u;
  const f32v room = (f32v)((u32v)splat(0x1p23f) | sign), whole = (f32v)((u32v)(a + room - room) | sign);
  return op_abs(a) < 0x1p23f ? whole : a;
}
inline f32v op_floor(f32v a) {
  const f32v whole = op_rint(a);
  return whole > a ? whole - 1.0f : whole;
}
#endif
template <class V> inline V op_add(V a, V b) { return a + b; }
template <class V> inline V op_sub(V a, V b) { return a - b; }
template <class V> inline V op_mul(V a, V b) { return a * b; }
inline i32v op_add(i32v a, i32v b) { return (i32v)((u32v)a + (u32v)b); }
inline i32v op_sub(i32v a, i32v b) { return (i32v)((u32v)a - (u32v)b); }
inline i32v op_mul(i32v a, i32v b) { return (i32v)((u32v)a * (u32v)b); }
inline f32v op_div(f32v a, f32v b) { return a / b; }
template <class V> inline V op_max(V a, V b) { return a > b ? a : b; }
template <class V> inline V op_min(V a, V b) { return a < b ? a : b; }
template <class V> inline i32v op_lt(V a, V b) { return a < b; }
template <class V> inline i32v op_le(V a, V b) { return a <= b; }
template <class V> inline i32v op_eq(V a, V b) { return a == b; }
template <class V> inline V op_and(V a, V b) { return a & b; }
template <class V> inline V op_or(V a, V b) { return a | b; }
template <class V> inline V op_xor(V a, V b) { return a ^ b; }
inline u32v op_shl(u32v a, u32v b) { return a << b; }
inline u32v op_shr(u32v a, u32v b) { return a >> b; }
template <class V> inline V op_where(i32v c, V a, V b) { return c ? a : b; }
#if defined(__FMA__) || defined(__aarch64__)
inline f32v op_fma(f32v a, f32v b, f32v c) { return __builtin_elementwise_fma(a, b, c); }
#else  // in double: the product exact, the sum rounded to odd; rounding to float is right (Boldo & Melquiond, 2008)
inline f32v op_fma(f32v a, f32v b, f32v c) {
  const f64v p = __builtin_convertvector(a, f64v) * __builtin_convertvector(b, f64v);
  const f64v q = __builtin_convertvector(c, f64v);
  const f64v sum = p + q, part = sum - p, error = (p - (sum - part)) + (q - part);
  const u64v bits = (u64v)sum, inexact = (u64v)(error < 0.0) | (u64v)(error > 0.0), even = (bits & 1) - 1;
  const u64v toward = 1 - (((bits ^ (u64v)error) >> 63) << 1);  // one unit further from 0 or nearer to it
  return __builtin_convertvector((f64v)(bits + (toward & inexact & even)), f32v);
}
#endif
inline u32v op_mulhi(u32v a, u32v b) {
  u64v wide = __builtin_convertvector(a, u64v) * __builtin_convertvector(b, u64v);
  return __builtin_convertvector(wide >> 32, u32v);
}
// Casts between register types; a float out of an integer's range is undefined in C and never made by our formulas.
inline f32v to_f32(f32v a) { return a; }
inline f32v to_f32(i32v a) { return __builtin_convertvector(a, f32v); }
inline f32v to_f32(u32v a) { return __builtin_convertvector(a, f32v); }
inline i32v to_i32(f32v a) { return __builtin_convertvector(a, i32v); }
inline i32v to_i32(i32v a) { return a; }
inline i32v to_i32(u32v a) { return (i32v)a; }
inline u32v to_u32(i32v a) { return (u32v)a; }
inline u32v to_u32(f32v a) { return __builtin_convertvector(a, u32v); }
// To nearest even; NaN stays NaN. In integers, so that denormals are numbers like others on every machine.
inline f32v to_bf16(f32v a) {
  const u32v bits = (u32v)a, even = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (f32v)(op_where(op_eq(a, a), even, bits | 0x400000u) & 0xffff0000u);
}

}  // namespace ewm
