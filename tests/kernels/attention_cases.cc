#include "attention.cc"

#include "cases.h"

namespace ewm {

struct ScaleMask {
  static constexpr int inputs = 1;
  static inline f32v value(const View* v, int64_t j, int r, Tile, f32v dot) {
    return op_add(op_mul(dot, splat(0.3f)), load_b<float>(v[0], j, r));
  }
};

inline f32v exp_(f32v x) {
  const f32v held = op_min(op_max(x, splat(-87.0f)), splat(88.0f)), n = op_rint(op_mul(held, splat(LOG2_E)));
  const f32v r = op_fma(n, splat(-LN2_LOW), op_fma(n, splat(-LN2_HIGH), held));
  constexpr float c[] = {EXP_COEFFICIENTS};
  f32v y = op_fma(r, splat(c[0]), splat(c[1]));
#pragma unroll
  for (unsigned i = 2; i < sizeof(c) / sizeof(c[0]); i++) y = op_fma(y, r, splat(c[i]));
  const u32v power = op_shl((u32v)op_add(to_i32(n), splat(127)), splat(23u));
  return op_where(op_lt(x, splat(-87.0f)), splat(0.0f), op_mul(y, (f32v)power));
}

template <class P, bool keys_shared, bool values_shared>
constexpr Kernel attend = &attention<P, ScaleMask, Keep, exp_, keys_shared, values_shared>;

static const Row of_attention[] = {
    {"attention own keys, own values", attend<Plain, false, false>},
    {"attention own keys, own values, direct", attend<Direct, false, false>},
    {"attention own keys, shared values", attend<Plain, false, true>},
    {"attention own keys, shared values, direct", attend<Direct, false, true>},
    {"attention shared keys, own values", attend<Plain, true, false>},
    {"attention shared keys, own values, direct", attend<Direct, true, false>},
    {"attention shared keys, shared values", attend<Plain, true, true>},
    {"attention shared keys, shared values, direct", attend<Direct, true, true>},
};
static const Rows rows(of_attention);

}  // namespace ewm
