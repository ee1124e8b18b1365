// map<E, steps>: an elementwise expression over every index. dims [outer..., I]; operands: E's, all along I.
// A block runs `steps` steps of the threads that lie along I, at one outer index: as many as registers allow at once.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

template <uint32_t steps> struct MapCut {
  Spread across;
  uint32_t lane_tiles, tiles;
  explicit MapCut(const Call& c)
      : across(spread(c.lanes, c.dim[c.rank - 1])),
        lane_tiles(ceil_div(c.lanes, across.lanes)),
        tiles(ceil_div(c.dim[c.rank - 1], across.others * steps)) {}
};

template <class E, uint32_t steps> inline void map(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t count = c.dim[outer];
  const MapCut<steps> cut(c);
  const Spread across = cut.across;
  const uint32_t lane = block % cut.lane_tiles * across.lanes + thread_index() % across.lanes;
  const uint32_t first = block / cut.lane_tiles % cut.tiles * across.others * steps + thread_index() / across.lanes;
  if (lane >= c.lanes) return;
  const Views<E::operands> e(o, f, index_at(c, outer, block / cut.lane_tiles / cut.tiles), lane, outer);
#pragma unroll
  for (uint32_t s = 0; s < steps; s++) {
    const uint32_t i = first + s * across.others;
    if (i < count) E::run(e.v, i, 0, ONE_LANE);
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
