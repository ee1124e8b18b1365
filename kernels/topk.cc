// topk: indices of the k smallest of a vector, ascending; ties by lower index, NaN last. Serial: lanes do not enter.
#pragma once
#include "loops.h"

namespace ewm {

// Order of floats as order of integers: -0 equals 0, every NaN comes last.
inline uint32_t rank_key(float x) {
  if (x != x) return 0xffffffffu;
  x += 0.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// dims [S, k]; operands: cost f32 (along S), index out i32 (along k). The k-th smallest key is found bit by bit.
inline void topk(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const int64_t samples = c.dim[0], k = c.dim[1];
  const char* cost = start(o[0], f, t);
  char* out = start(o[1], f, t);
  const int64_t cost_step = static_cast<int64_t>(o[0].stride[0]) * 4;
  const int64_t out_step = static_cast<int64_t>(o[1].stride[1]) * 4;
  auto key = [&](int64_t i) {
    float x;
    memcpy(&x, cost + i * cost_step, sizeof(x));
    return rank_key(x);
  };
  uint32_t last = 0;  // the greatest key with at most k - 1 keys below it, that is the k-th smallest
  int64_t below = 0;
  for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
    int64_t less = 0;
    for (int64_t i = 0; i < samples; i++) less += key(i) < (last | bit);
    if (less < k) {
      last |= bit;
      below = less;
    }
  }
  int64_t ties = k - below;
  for (int64_t i = 0; i < samples; i++) {
    const uint32_t rank = key(i);
    if (rank > last || (rank == last && ties-- <= 0)) continue;
    const int32_t index = static_cast<int32_t>(i);
    memcpy(out, &index, sizeof(index));
    out += out_step;
  }
}

}  // namespace ewm
