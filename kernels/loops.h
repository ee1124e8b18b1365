// How every kernel family walks its outer loops and addresses its operands. What is done once a tile or a block is not
// inlined: a bundle holds dozens of kernels.
#pragma once
#include "lanes.h"

namespace ewm {

constexpr int VECTORS = EWM_TILE_VECTORS;  // sixteen-lane vectors of a tile
constexpr int TILE = LANES * VECTORS;
constexpr int N_BLOCK = EWM_N_BLOCK;  // results a microkernel holds in registers for each vector of lanes

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The next index of loops [0, rank) in row-major order: the loop that moved on, those behind it being zero again. -1
// after the last index: all are zero.
__attribute__((noinline)) inline int next(uint32_t* index, const uint32_t* dim, int rank) {
  for (int d = rank - 1; d >= 0; d--) {
    if (++index[d] < dim[d]) return d;
    index[d] = 0;
  }
  return -1;
}
inline bool advance(uint32_t* index, const uint32_t* dim, int rank) { return next(index, dim, rank) >= 0; }

__attribute__((noinline)) inline uint32_t product_of(const uint32_t* dim, int rank) {
  uint32_t n = 1;
  for (int d = 0; d < rank; d++) n *= dim[d];
  return n;
}

// Where operand `o` stands at outer index `index`, for a functor that runs along loop `along`.
__attribute__((noinline)) inline View view(const Operand& o, const Frame& f, Tile t, const uint32_t* index, int outer,
                                           int along) {
  int64_t size = SIZE[o.dtype], elements = 0;
  for (int d = 0; d < outer; d++) elements += static_cast<int64_t>(index[d]) * o.stride[d];
  return {start(o, f, t) + elements * size, o.stride[along] * size, o.lane_stride * size};
}

__attribute__((noinline)) inline void locate(View* found, int n, const Operand* o, const Frame& f, Tile t,
                                             const uint32_t* index, int outer, int along) {
  for (int j = 0; j < n; j++) found[j] = view(o[j], f, t, index, outer, along);
}

// `n` operands from `o` on, all along one loop. The views are copies whose address nobody knows, so that no store
// through them makes the compiler read them again.
template <int n> struct Views {
  View v[n ? n : 1];
  Views() = default;
  Views(const Operand* o, const Frame& f, Tile t, const uint32_t* index, int outer, int along) {
    View found[n ? n : 1];
    locate(found, n, o, f, t, index, outer, along);
    for (int j = 0; j < n; j++) v[j] = found[j];
  }
};

// move[d + 1][j]: bytes from one index to the next of operand j, where loop d moves on; move[0]: back to the first.
__attribute__((noinline)) inline void find_moves(int64_t* move, int n, const Operand* o, const uint32_t* dim,
                                                 int outer) {
  for (int j = 0; j < n; j++) {
    int64_t back = 0;  // what the loops behind have gone
    for (int d = outer - 1; d >= 0; d--) {
      const int64_t stride = static_cast<int64_t>(o[j].stride[d]) * SIZE[o[j].dtype];
      move[(d + 1) * n + j] = stride - back;
      back += (dim[d] - 1) * stride;
    }
    move[j] = -back;
  }
}

// Views that go along with an index: `step` after each `next`.
//
// Nothing is computed from the index itself. It was written in parts, and reading it whole (as vectorized sums of
// products do) waits until all earlier stores are done, results still being computed among them.
template <int n> struct Walk {
  Views<n> views;
  int64_t move[(MAX_RANK + 1) * n + 1];
  Walk(const Operand* o, const Frame& f, Tile t, const uint32_t* index, const uint32_t* dim, int outer, int along)
      : views(o, f, t, index, outer, along) {
    find_moves(move, n, o, dim, outer);
  }
  void step(int moved) {
    for (int j = 0; j < n; j++) views.v[j].at += move[(moved + 1) * n + j];
  }
};

}  // namespace ewm
