// reduce<F>: one value for each lane and outer index, folded over k = 0, 1, 2... in one accumulator.
// dims [outer..., K]; operands: F's, along K; the output's stride there is 0.
#pragma once
#include "loops.h"

namespace ewm {

template <class F> __attribute__((flatten)) void reduce(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const int outer = static_cast<int>(c.rank) - 1;
  const int64_t depth = c.dim[outer];
  uint32_t index[MAX_RANK] = {};
  do {
    Views<F::operands> e(o, f, t, index, outer, outer);
    decltype(F::first(e.v, 0, 0, t)) acc[VECTORS];
#pragma unroll
    for (int r = 0; r < VECTORS; r++) acc[r] = F::first(e.v, 0, r, t);
    for (int64_t k = 1; k < depth; k++)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) acc[r] = F::next(acc[r], e.v, k, r, t);
#pragma unroll
    for (int r = 0; r < VECTORS; r++) F::store(e.v, r, t, acc[r]);
  } while (advance(index, c.dim, outer));
}

}  // namespace ewm
