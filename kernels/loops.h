// How every kernel family walks its outer loops and addresses its operands.
#pragma once
#include "lanes.h"

namespace ewm {

constexpr int VECTORS = EWM_TILE_VECTORS;  // sixteen-lane vectors of a tile
constexpr int TILE = LANES * VECTORS;
constexpr int N_BLOCK = EWM_N_BLOCK;  // results a microkernel holds in registers for each vector of lanes

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The next index of loops [0, rank) in row-major order; false, and all zero again, after the last.
inline bool advance(uint32_t* index, const uint32_t* dim, int rank) {
  for (int d = rank - 1; d >= 0; d--) {
    if (++index[d] < dim[d]) return true;
    index[d] = 0;
  }
  return false;
}

inline uint32_t product_of(const uint32_t* dim, int rank) {
  uint32_t n = 1;
  for (int d = 0; d < rank; d++) n *= dim[d];
  return n;
}

// Where operand `o` stands at outer index `index`, for a functor that runs along loop `along`.
inline View view(const Operand& o, const Frame& f, Tile t, const uint32_t* index, int outer, int along) {
  int64_t size = SIZE[o.dtype], elements = 0;
  for (int d = 0; d < outer; d++) elements += static_cast<int64_t>(index[d]) * o.stride[d];
  return {start(o, f, t) + elements * size, o.stride[along] * size, o.lane_stride * size};
}

// `n` operands from `o` on, all along one loop. The views are the caller's locals, so they live in registers.
template <int n> struct Views {
  View v[n ? n : 1];
  Views(const Operand* o, const Frame& f, Tile t, const uint32_t* index, int outer, int along) {
    for (int j = 0; j < n; j++) v[j] = view(o[j], f, t, index, outer, along);
  }
};

}  // namespace ewm
