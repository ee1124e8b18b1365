// map<E, steps>: an elementwise expression over every index. dims [outer..., I]; operands: E's, all along I.
// A block runs `steps` steps of the threads that lie along I, at one outer index: as many as registers allow at once.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

template <class E, uint32_t steps> inline void map(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t count = c.dim[outer];
  const Spread across = spread(c.lanes, count);
  const uint32_t lane_tiles = ceil_div(c.lanes, across.lanes), tiles = ceil_div(count, across.others * steps);
  const uint32_t lane = block % lane_tiles * across.lanes + thread_index() % across.lanes;
  const uint32_t first = block / lane_tiles % tiles * across.others * steps + thread_index() / across.lanes;
  if (lane >= c.lanes) return;
  const Views<E::operands> e(o, f, index_at(c, outer, block / lane_tiles / tiles), lane, outer);
#pragma unroll
  for (uint32_t s = 0; s < steps; s++) {
    const uint32_t i = first + s * across.others;
    if (i < count) E::run(e.v, i, 0, ONE_LANE);
  }
}

}  // namespace ewm
