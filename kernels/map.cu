// map<E, steps>: an elementwise expression over every index. dims [outer..., I]; operands: E's, all along I.
// A block runs `steps` steps of the threads that lie along I, at one outer index. A thread computes all of its own before
// it stores any, so that their loads are on their way together; a step past the end is another look at the first.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

template <uint32_t steps> struct MapCut {
  uint32_t along, across;  // threads of a block, along I and across lanes
  uint32_t lane_tiles, tiles;
  explicit MapCut(const Call& c)
      : along(c.cut),
        across(THREADS / along),
        lane_tiles(ceil_div(c.lanes, across)),
        tiles(ceil_div(c.dim[c.rank - 1], along * steps)) {}
};

template <class E, uint32_t steps> inline void map(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t count = c.dim[outer];
  const MapCut<steps> cut(c);
  const uint32_t lane = block % cut.lane_tiles * cut.across + thread_index() % cut.across;
  const uint32_t first = block / cut.lane_tiles % cut.tiles * cut.along * steps + thread_index() / cut.across;
  if (lane >= c.lanes || first >= count) return;
  const Views<E::operands> e(o, f, index_at(c, outer, block / cut.lane_tiles / cut.tiles), lane, outer);
  typename E::Register y[steps];
#pragma unroll
  for (uint32_t s = 0; s < steps; s++) {
    const uint32_t i = first + s * cut.along;
    y[s] = E::value(e.v, i < count ? i : first, 0, ONE_LANE);
  }
#pragma unroll
  for (uint32_t s = 0; s < steps; s++) {
    const uint32_t i = first + s * cut.along;
    if (i < count) E::put(e.v, i, 0, ONE_LANE, y[s]);
  }
}

template <class E, uint32_t steps> struct Mapped {
  static inline void run(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
    map<E, steps>(c, o, f, block);
  }
  static inline uint32_t blocks(const Call& c) {
    const MapCut<steps> cut(c);
    return cut.lane_tiles * cut.tiles * product_of(c, static_cast<int>(c.rank) - 1);
  }
};

// Blocks of several calls, those of one after those of the other: the calls that end with `c`, none of which reads what
// another one writes.
template <class... Maps> inline void beside(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Call* call = &c - (sizeof...(Maps) - 1);
  const Operand* const all = o - c.first_operand;
  touch_operands(*call, c, all);
  auto ran = [&](auto which) {
    const uint32_t blocks = decltype(which)::blocks(*call);
    if (block < blocks) {
      decltype(which)::run(*call, all + call->first_operand, f, block);
      return true;
    }
    block -= blocks;
    call++;
    return false;
  };
  (ran(Maps{}) || ...);
}

}  // namespace ewm
