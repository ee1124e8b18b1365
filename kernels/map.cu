// map<E>: an elementwise expression over every index. dims [outer..., I]; operands: E's, all along I.
// A block runs MAP_STEPS steps of the threads that lie along I, at one outer index; see map.py.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

constexpr uint32_t MAP_STEPS = 4;

template <class E> inline void map(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t count = c.dim[outer];
  const Spread across = spread(c.lanes, count);
  const uint32_t lane_tiles = ceil_div(c.lanes, across.lanes), steps = ceil_div(count, across.others * MAP_STEPS);
  const uint32_t lane = block % lane_tiles * across.lanes + thread_index() % across.lanes;
  const uint32_t first = block / lane_tiles % steps * across.others * MAP_STEPS + thread_index() / across.lanes;
  if (lane >= c.lanes) return;
  const Views<E::operands> e(o, f, index_at(c, outer, block / lane_tiles / steps), lane, outer);
#pragma unroll
  for (uint32_t s = 0; s < MAP_STEPS; s++) {
    const uint32_t i = first + s * across.others;
    if (i < count) E::run(e.v, i, 0, ONE_LANE);
  }
}

}  // namespace ewm
