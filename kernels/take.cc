// take: rows of the source by index, out[j, rest] = source[index[j], rest]. Serial: lanes do not enter.
#pragma once
#include "loops.h"

namespace ewm {

// dims [J, rest...]; operands: source (its stride along J is that of the indexed axis), index i32 (along J), out.
// Elements are 4 bytes. Indices come from topk, hence lie within the axis.
inline void take(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const int rank = static_cast<int>(c.rank);
  const char *source = start(o[0], f, t), *indices = start(o[1], f, t);
  char* out = start(o[2], f, t);
  uint32_t i[MAX_RANK] = {};
  do {
    int32_t row;
    memcpy(&row, indices + static_cast<int64_t>(i[0]) * o[1].stride[0] * 4, sizeof(row));
    int64_t from = static_cast<int64_t>(row) * o[0].stride[0], to = static_cast<int64_t>(i[0]) * o[2].stride[0];
    for (int d = 1; d < rank; d++) {
      from += static_cast<int64_t>(i[d]) * o[0].stride[d];
      to += static_cast<int64_t>(i[d]) * o[2].stride[d];
    }
    memcpy(out + to * 4, source + from * 4, 4);
  } while (advance(i, c.dim, rank));
}

}  // namespace ewm
