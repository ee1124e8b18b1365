// reduce<F>: one value for each lane and outer index, folded over k = 0, 1, 2... in one accumulator.
// dims [outer..., K]; operands: F's, along K; the output's stride there is 0. A thread folds one value.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

template <class F> inline void reduce(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t depth = c.dim[outer], count = product_of(c, outer);
  const Spread across = spread(c.lanes, count);
  const uint32_t lane_tiles = ceil_div(c.lanes, across.lanes);
  const uint32_t lane = block % lane_tiles * across.lanes + thread_index() % across.lanes;
  const uint32_t at = block / lane_tiles * across.others + thread_index() / across.lanes;
  if (lane >= c.lanes || at >= count) return;
  const Views<F::operands> e(o, f, index_at(c, outer, at), lane, outer);
  auto acc = F::first(e.v, 0, 0, ONE_LANE);
#pragma unroll 8
  for (uint32_t k = 1; k < depth; k++) acc = F::next(acc, e.v, k, 0, ONE_LANE);  // unrolled: eight loads on their way
  F::store(e.v, 0, ONE_LANE, acc);
}

}  // namespace ewm
