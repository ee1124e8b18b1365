// A lane of `edgewm/runtime/lanes.h` as one thread of a GPU: the same names, so the same functors compile as CUDA.
//
// A functor's View stands at its own lane, so how lanes lie in memory (V, B or G) makes no difference here. Nothing is
// contracted (--fmad=false), division and square root are IEEE's: a thread computes what a lane of a CPU computes.
// How calls are cut into blocks is said by constants that stand before this file: edgewm/cuda/launches.py.
#pragma once
#include <device.h>

#include "kernel.h"
#include "launch.h"

namespace ewm {

typedef float f32v;
typedef int32_t i32v;
typedef uint32_t u32v;

// A bfloat16 in memory: the upper half of a float whose lower half is zero. `to_bf16` makes such a float of any.
struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float x) : bits(static_cast<uint16_t>(float_bits(x) >> 16)) {}
  operator float() const { return bits_float(static_cast<u32v>(bits) << 16); }
};

// i8, u8 live widened to i32v in registers, bf16 to f32v; a bool is an i32v of 0 and -1.
template <class T> struct Wide { typedef i32v type; };
template <> struct Wide<float> { typedef f32v type; };
template <> struct Wide<Bf16> { typedef f32v type; };
template <> struct Wide<uint32_t> { typedef u32v type; };

inline f32v splat(float x) { return x; }
inline i32v splat(int32_t x) { return x; }
inline u32v splat(uint32_t x) { return x; }
inline i32v splat(int8_t x) { return x; }
inline i32v splat(uint8_t x) { return x; }

// At step i of the innermost loop.
template <class T> inline typename Wide<T>::type load_v(const View& v, int64_t i, int) {
  return static_cast<typename Wide<T>::type>(*reinterpret_cast<const T*>(v.at + i * v.step));
}
template <class T> inline typename Wide<T>::type load_b(const View& v, int64_t i, int) { return load_v<T>(v, i, 0); }
template <class T> inline typename Wide<T>::type load_g(const View& v, int64_t i, int, Tile) {
  return load_v<T>(v, i, 0);
}
template <class T> inline void store_v(const View& v, int64_t i, int, typename Wide<T>::type x) {
  *reinterpret_cast<T*>(v.at + i * v.step) = static_cast<T>(x);
}
template <class T> inline void store_g(const View& v, int64_t i, int, Tile, typename Wide<T>::type x) {
  store_v<T>(v, i, 0, x);
}

inline f32v as_f32(f32v a) { return a; }
inline f32v as_f32(u32v a) { return bits_float(a); }
inline f32v as_f32(i32v a) { return bits_float(static_cast<u32v>(a)); }
inline u32v as_u32(f32v a) { return float_bits(a); }
inline u32v as_u32(u32v a) { return a; }
inline u32v as_u32(i32v a) { return static_cast<u32v>(a); }
inline i32v as_i32(f32v a) { return static_cast<i32v>(float_bits(a)); }
inline i32v as_i32(u32v a) { return static_cast<i32v>(a); }
inline i32v as_i32(i32v a) { return a; }

inline f32v op_neg(f32v a) { return -a; }
inline f32v op_abs(f32v a) { return bits_float(float_bits(a) & 0x7fffffffu); }
inline i32v op_abs(i32v a) { return a < 0 ? static_cast<i32v>(0u - static_cast<u32v>(a)) : a; }
inline f32v op_sqrt(f32v a) { return square_root(a); }
inline f32v op_rint(f32v a) { return to_even(a); }
inline f32v op_floor(f32v a) { return floor_of(a); }
template <class V> inline V op_add(V a, V b) { return a + b; }
template <class V> inline V op_sub(V a, V b) { return a - b; }
template <class V> inline V op_mul(V a, V b) { return a * b; }
inline i32v op_add(i32v a, i32v b) { return static_cast<i32v>(static_cast<u32v>(a) + static_cast<u32v>(b)); }
inline i32v op_sub(i32v a, i32v b) { return static_cast<i32v>(static_cast<u32v>(a) - static_cast<u32v>(b)); }
inline i32v op_mul(i32v a, i32v b) { return static_cast<i32v>(static_cast<u32v>(a) * static_cast<u32v>(b)); }
inline f32v op_div(f32v a, f32v b) { return quotient(a, b); }
template <class V> inline V op_max(V a, V b) { return a > b ? a : b; }
template <class V> inline V op_min(V a, V b) { return a < b ? a : b; }
inline f32v op_max(f32v a, f32v b) { return greater(a, b); }
inline f32v op_min(f32v a, f32v b) { return lesser(a, b); }
template <class V> inline i32v op_lt(V a, V b) { return a < b ? -1 : 0; }
template <class V> inline i32v op_le(V a, V b) { return a <= b ? -1 : 0; }
template <class V> inline i32v op_eq(V a, V b) { return a == b ? -1 : 0; }
template <class V> inline V op_and(V a, V b) { return a & b; }
template <class V> inline V op_or(V a, V b) { return a | b; }
template <class V> inline V op_xor(V a, V b) { return a ^ b; }
inline u32v op_shl(u32v a, u32v b) { return a << b; }
inline u32v op_shr(u32v a, u32v b) { return a >> b; }
template <class V> inline V op_where(i32v c, V a, V b) { return c ? a : b; }
inline f32v op_fma(f32v a, f32v b, f32v c) { return fused(a, b, c); }
inline u32v op_mulhi(u32v a, u32v b) { return static_cast<u32v>((static_cast<uint64_t>(a) * b) >> 32); }
inline f32v to_f32(f32v a) { return a; }
inline f32v to_f32(i32v a) { return static_cast<f32v>(a); }
inline f32v to_f32(u32v a) { return static_cast<f32v>(a); }
inline i32v to_i32(f32v a) { return static_cast<i32v>(a); }
inline i32v to_i32(i32v a) { return a; }
inline i32v to_i32(u32v a) { return static_cast<i32v>(a); }
inline u32v to_u32(i32v a) { return static_cast<u32v>(a); }
inline u32v to_u32(f32v a) { return static_cast<u32v>(a); }
inline f32v to_bf16(f32v a) {  // to nearest even; NaN stays NaN
  const u32v bits = as_u32(a), even = bits + 0x7fffu + (bits >> 16 & 1u);
  return as_f32((a == a ? even : bits | 0x400000u) & 0xffff0000u);
}

// ------------------------------------------------------------------------------------------------ where operands lie

static_assert(TILE == 32, "a tile of lanes is a warp");
constexpr Tile ONE_LANE = {0, 1, 1};  // what functors are handed

inline uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
inline uint32_t bytes_of(const Operand& o) { return o.dtype < I8 ? 4 : o.dtype == BF16 ? 2 : 1; }

inline char* begin_of(const Operand& o, const Frame& f) {
  return (o.space == ARENA ? f.base[ARENA] : o.space == SCRATCH ? f.base[SCRATCH] : f.base[WEIGHTS]) + o.offset;
}

// An index of a call's loops; 0 in those that a kernel runs along itself.
struct Index {
  uint32_t i[MAX_RANK];
};

// The index of loops [0, rank) that comes at place `at` of their row-major order.
inline Index index_at(const Call& c, int rank, uint32_t at) {
  Index index;
#pragma unroll
  for (int d = MAX_RANK - 1; d >= 0; d--) {
    index.i[d] = 0;
    if (d < rank) {
      index.i[d] = at % c.dim[d];
      at /= c.dim[d];
    }
  }
  return index;
}

inline uint32_t product_of(const Call& c, int rank) {
  uint32_t n = 1;
  for (int d = 0; d < rank; d++) n *= c.dim[d];
  return n;
}

// Operand `o` of one lane at an outer index, for a functor that runs along loop `along`; `steps` further along loop
// `moved`.
inline View view(const Operand& o, const Frame& f, const Index& index, uint32_t lane, int along, int moved = 0,
                 uint32_t steps = 0) {
  int64_t elements = static_cast<int64_t>(lane) * o.lane_stride + static_cast<int64_t>(steps) * o.stride[moved];
#pragma unroll
  for (int d = 0; d < static_cast<int>(MAX_RANK); d++) elements += static_cast<int64_t>(index.i[d]) * o.stride[d];
  const int64_t size = bytes_of(o);
  return {begin_of(o, f) + elements * size, o.stride[along] * size, 0};
}

// `n` operands from `o` on, all along one loop.
template <int n> struct Views {
  View v[n ? n : 1];
  Views(const Operand* o, const Frame& f, const Index& index, uint32_t lane, int along, int moved = 0,
        uint32_t steps = 0) {
#pragma unroll
    for (int j = 0; j < n; j++) v[j] = view(o[j], f, index, lane, along, moved, steps);
  }
};

// What runs one block of a call.
using BlockOfCall = void(const Call&, const Operand*, const Frame&, uint32_t);

// The operands of calls, from those of `first` to those of `last`, on their way to where they are near, all at once: what
// is read of them one by one is then read from there.
inline void touch_operands(const Call& first, const Call& last, const Operand* all) {
  const char* const begin = reinterpret_cast<const char*>(all + first.first_operand);
  const uint32_t bytes = (last.first_operand + last.operands - first.first_operand) * sizeof(Operand);
  for (uint32_t at = thread_index() * SECTOR; at < bytes; at += THREADS * SECTOR) touch(begin + at);
}

// Blocks of several calls, one behind the other: those that end with call `c`, of which each reads what its own block has
// written (edgewm/cuda/schedule.py).
template <BlockOfCall... runs>
inline void chain(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Call* const first = &c - (sizeof...(runs) - 1);
  const Call* call = first;
  const Operand* const all = o - c.first_operand;
  touch_operands(*first, c, all);
  ((call > first ? block_sync() : void(), runs(*call, all + call->first_operand, f, block), call++), ...);
}

// The body of a call's kernel: `run` is one family's function of a block.
template <BlockOfCall run> inline void launched(const Launch& l) {
  const Call& c = l.calls[l.call];
  touch_operands(c, c, l.operands);
  run(c, l.operands + c.first_operand, Frame{{l.base[0], l.base[1], l.base[2]}}, block_index());
}

}  // namespace ewm
