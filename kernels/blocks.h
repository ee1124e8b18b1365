// The loops that all products share: panels of lanes against packed blocks of weights, and what leaves a block.
//
// N_BLOCK results of each lane accumulate in registers while k runs in ascending order: the contract of `matmul`. Their
// epilogues are computed inside the next block's loop over k where registers allow it, one result a step: multiplying
// leaves most of a core's issue slots empty.
#pragma once
#include "microkernel.h"

namespace ewm {

// Whether a core has registers left for an epilogue beside N_BLOCK x VECTORS accumulators.
#if defined(EWM_AVX512)
constexpr bool OVERLAPS = true;
#else
constexpr bool OVERLAPS = false;
#endif

// Loops [0, rank - 2) of a product split in two by the weights' strides: those that change the weights (batch) and
// those that share them. Each half counts 1 in the other's loops, so an index of the whole is the sum of both.
struct OuterLoops {
  int rank;
  uint32_t batch[MAX_RANK], shared[MAX_RANK];
  __attribute__((noinline)) OuterLoops(const Call& c, const Operand& weights) : rank(static_cast<int>(c.rank) - 2) {
    for (int d = 0; d < rank; d++) {
      bool moves = weights.stride[d] != 0;
      batch[d] = moves ? c.dim[d] : 1;
      shared[d] = moves ? 1 : c.dim[d];
    }
  }
};

struct Index {
  uint32_t i[MAX_RANK] = {};
  __attribute__((noinline)) Index operator+(const Index& o) const {
    Index sum;
    for (uint32_t d = 0; d < MAX_RANK; d++) sum.i[d] = i[d] + o.i[d];
    return sum;
  }
};

template <class P> constexpr auto is_direct(int) -> decltype(P::direct) { return P::direct; }
template <class P> constexpr bool is_direct(...) { return false; }

// Sums of one block on their way out, from result n0 on. They leave one vector after the other, the last index fastest.
template <int V, class M, class E> struct Leaving {
  typename M::Sum sum[N_BLOCK][V];
  typename M::Scale scale;
  Walk<E::operands> to;
  Views<M::operands> own;
  int64_t n0, vectors;
  __attribute__((always_inline)) inline void leave(int64_t i, Tile t) const {
    const int64_t n = i / V;
    const int r = static_cast<int>(i % V);
    E::store(to.views.v, n0 + n, r, t, M::end(sum[n][r], scale, own.v, n0 + n, r));
  }
};
template <int V, class M, class E>
__attribute__((noinline)) void leave(const Leaving<V, M, E>& block, int64_t from, Tile t) {
  for (int64_t i = from; i < block.vectors; i++) block.leave(i, t);
}

// The first V vectors of a tile.
template <int V, class M, class P, class E>
__attribute__((always_inline)) inline void multiply_vectors(const Call& c, const Operand* o, const Frame& f, Tile t) {
  constexpr bool in_place = M::template in_place<P>;
  constexpr int64_t row = TILE * sizeof(uint32_t);
  const Operand &weights = o[P::inputs], *own = o + P::inputs + 1, *epilogue = own + M::operands;
  const OuterLoops loops(c, weights);
  const int along_n = loops.rank, along_k = loops.rank + 1;
  const int64_t width = c.dim[along_n], depth = c.dim[along_k], words = ceil_div(depth, M::group);
  const int64_t panel_bytes = M::header_bytes + words * row;
  const uint32_t each = product_of(loops.shared, loops.rank);
  char* const panels = in_place ? nullptr : start(epilogue[E::operands], f, t);

  Index batch, shared;
  do {
    if constexpr (!in_place)
      for (char* panel = panels;; panel += panel_bytes) {
        Views<P::inputs> p(o, f, t, (batch + shared).i, loops.rank, along_k);
        M::template fill<P>(p.v, depth, t, panel, panels + each * panel_bytes);
        if (!advance(shared.i, loops.shared, loops.rank)) break;
      }
    Leaving<V, M, E> last{{}, {}, {epilogue, f, t, batch.i, loops.shared, loops.rank, along_n},
                          {own, f, t, batch.i, loops.rank, along_n}, 0, 0};
    Walk<in_place ? 1 : 0> from(o, f, t, batch.i, loops.shared, loops.rank, along_k);
    const char* w = view(weights, f, t, batch.i, loops.rank, along_k).at;
    int moved = -1;
    for (int64_t n0 = 0; n0 < width; n0 += N_BLOCK, w += M::block_bytes + words * N_BLOCK * 4) {
      const char* panel = panels;
      do {
        const char *x = panel + M::header_bytes, *wk = w + M::block_bytes;
        int64_t step = row;
        if constexpr (in_place) x = from.views.v[0].at, step = from.views.v[0].step;
        const int64_t both = !OVERLAPS ? last.vectors : words < last.vectors ? words : last.vectors;
        if (both < last.vectors) leave(last, both, t);
        typename M::Sum sum[N_BLOCK][V];
#pragma unroll
        for (int n = 0; n < N_BLOCK; n++)
#pragma unroll
          for (int r = 0; r < V; r++) sum[n][r] = M::begin(w, n);
        int64_t k = 0;
        auto multiply = [&]() __attribute__((always_inline)) {
          typename M::Word a[V];
          memcpy(a, x, sizeof(a));
#pragma unroll
          for (int n = 0; n < N_BLOCK; n++) {
#pragma unroll
            for (int r = 0; r < V; r++) sum[n][r] = M::dot(sum[n][r], a[r], wk, n);
#if defined(EWM_AVX512)  // loads stay where they are needed: all at once they would drive sums out of registers
            asm("" : "+r"(wk), "+v"(sum[n][V - 1]));
#endif
          }
          __builtin_prefetch(wk + (words * N_BLOCK * 4 + M::block_bytes));  // the next block's weights
          x += step;
          wk += N_BLOCK * 4;
        };
        if constexpr (OVERLAPS)
          for (; k < both; k++) {
            multiply();
            last.leave(k, t);
          }
        for (; k < words; k++) multiply();
        if (last.vectors) last.to.step(moved);
        memcpy(last.sum, sum, sizeof(sum));
        M::header(panel, last.scale);
        last.n0 = n0;
        last.vectors = (width - n0 < N_BLOCK ? width - n0 : N_BLOCK) * V;
        if constexpr (!OVERLAPS) leave(last, 0, t);
        panel += panel_bytes;
        moved = next(shared.i, loops.shared, loops.rank);
        if constexpr (in_place) from.step(moved);
      } while (moved >= 0);
    }
    if constexpr (OVERLAPS) leave(last, 0, t);
  } while (advance(batch.i, loops.batch, loops.rank));
}

// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, M's (along N), E's (along N), workspace.
//
// M says how numbers are held: `group` neighbours of k in a 32-bit word of a lane; `block_bytes` ahead of each packed
// block; `operands` of its own; `in_place<P>` where lanes are read where they lie. fill<P> makes the panel of one outer
// index, `header_bytes` and then a word of TILE lanes for each step of k; begin, dot and end are one result's.
template <class M, class P, class E>
__attribute__((always_inline)) inline void multiply_blocks(const Call& c, const Operand* o, const Frame& f, Tile t) {
  if (VECTORS > 1 && t.valid <= LANES) return multiply_vectors<1, M, P, E>(c, o, f, t);
  multiply_vectors<VECTORS, M, P, E>(c, o, f, t);
}

}  // namespace ewm
