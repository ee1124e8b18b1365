// topk: indices of the k smallest of a vector, ascending; ties by lower index, NaN last. One block.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

// Order of floats as order of integers: -0 equals 0, every NaN comes last.
inline uint32_t rank_key(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = float_bits(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Of one number of each thread, the sum of those up to its own; `sums` holds two for each thread.
inline uint32_t sum_up_to(uint32_t x, uint32_t* sums) {
  const uint32_t t = thread_index();
  uint32_t *from = sums, *to = sums + THREADS;
  from[t] = x;
  block_sync();
  for (uint32_t step = 1; step < THREADS; step *= 2) {
    to[t] = from[t] + (t >= step ? from[t - step] : 0);
    block_sync();
    uint32_t* const other = from;
    from = to, to = other;
  }
  return from[t];
}

// dims [S, k]; operands: cost f32 (along S), index out i32 (along k). The k-th smallest key is found a byte at a time.
inline void topk(const Call& c, const Operand* o, const Frame& f, uint32_t) {
  const uint32_t samples = c.dim[0], k = c.dim[1], t = thread_index();
  const View cost = view(o[0], f, Index{}, 0, 0), out = view(o[1], f, Index{}, 0, 1);
  auto key = [&](uint32_t i) { return rank_key(load_v<float>(cost, i, 0)); };
  uint32_t* const sums = reinterpret_cast<uint32_t*>(shared_memory());
  uint32_t* const counts = sums + 2 * THREADS;
  uint32_t* const found = counts + THREADS;  // a byte of the key, and the keys below it
  uint32_t last = 0, below = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    counts[t] = 0;
    block_sync();
    for (uint32_t i = t; i < samples; i += THREADS) {
      const uint32_t rank = key(i);
      if (shift == 24 || rank >> (shift + 8) == last >> (shift + 8)) count_shared(counts + (rank >> shift & 255));
    }
    block_sync();
    const uint32_t up_to = below + sum_up_to(counts[t], sums), before = up_to - counts[t];
    if (before < k && k <= up_to) found[0] = t, found[1] = before;
    block_sync();
    last |= found[0] << shift;
    below = found[1];
  }
  const uint32_t ties = k - below;
  uint32_t less_before = 0, equal_before = 0;
  for (uint32_t begin = 0; begin < samples; begin += THREADS) {
    const uint32_t i = begin + t, rank = i < samples ? key(i) : 0;
    const uint32_t less = i < samples && rank < last, equal = i < samples && rank == last;
    const uint32_t both = sum_up_to(less << 16 | equal, sums);
    const uint32_t smaller = less_before + (both >> 16) - less, same = equal_before + (both & 0xffff) - equal;
    if (less || (equal && same < ties))
      store_v<int32_t>(out, smaller + (same < ties ? same : ties), 0, static_cast<int32_t>(i));
    counts[t] = both;
    block_sync();
    less_before += counts[THREADS - 1] >> 16;
    equal_before += counts[THREADS - 1] & 0xffff;
  }
}

}  // namespace ewm
