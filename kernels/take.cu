// take: rows of the source by index, out[j, rest] = source[index[j], rest]. A thread moves one number.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

// dims [J, rest...]; operands: source (its stride along J is that of the indexed axis), index i32 (along J), out.
// Elements are 4 bytes. Indices come from topk, hence lie within the axis.
inline void take(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int rank = static_cast<int>(c.rank);
  const uint32_t at = block * THREADS + thread_index();
  if (at >= product_of(c, rank)) return;
  Index index = index_at(c, rank, at);
  const char* const to = view(o[2], f, index, 0, 0).at;
  index.i[0] = static_cast<uint32_t>(load_v<int32_t>(view(o[1], f, index, 0, 0), 0, 0));
  *reinterpret_cast<uint32_t*>(const_cast<char*>(to)) =
      *reinterpret_cast<const uint32_t*>(view(o[0], f, index, 0, 0).at);
}

}  // namespace ewm
