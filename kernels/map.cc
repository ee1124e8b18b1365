// map<E>: an elementwise expression over every index. dims [outer..., I]; operands: E's, all along I.
#pragma once
#include "loops.h"

namespace ewm {

template <class E> __attribute__((flatten)) void map(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const int outer = static_cast<int>(c.rank) - 1;
  const int64_t count = c.dim[outer];
  uint32_t index[MAX_RANK] = {};
  do {
    Views<E::operands> e(o, f, t, index, outer, outer);
    for (int64_t i = 0; i < count; i++)
#pragma unroll
      for (int r = 0; r < VECTORS; r++) E::run(e.v, i, r, t);
  } while (advance(index, c.dim, outer));
}

}  // namespace ewm
