// product<P, E>: out[n] = E(sum over k of P(k) * w[k][n]), the sum one chain of fma in ascending k from 0.
// See product.py for the formula, the packing of w and the size of the workspace.
#pragma once
#include "microkernel.h"

namespace ewm {

// Loops [0, rank - 2) of a product split in two by the weights' strides: those that change the weights (batch) and
// those that share them. Each half counts 1 in the other's loops, so an index of the whole is the sum of both.
struct OuterLoops {
  int rank;
  uint32_t batch[MAX_RANK], shared[MAX_RANK];
  OuterLoops(const Call& c, const Operand& weights) : rank(static_cast<int>(c.rank) - 2) {
    for (int d = 0; d < rank; d++) {
      bool moves = weights.stride[d] != 0;
      batch[d] = moves ? c.dim[d] : 1;
      shared[d] = moves ? 1 : c.dim[d];
    }
  }
};

struct Index {
  uint32_t i[MAX_RANK] = {};
  Index operator+(const Index& o) const {
    Index sum;
    for (uint32_t d = 0; d < MAX_RANK; d++) sum.i[d] = i[d] + o.i[d];
    return sum;
  }
};

template <class P> constexpr auto is_direct(int) -> decltype(P::direct) { return P::direct; }
template <class P> constexpr bool is_direct(...) { return false; }

// x[k][lane] = P(k) for one outer index.
template <class P> void fill_panel(const View* v, int64_t depth, Tile t, char* x) {
  for (int64_t k = 0; k < depth; k++, x += TILE * sizeof(float))
#pragma unroll
    for (int r = 0; r < VECTORS; r++) {
      f32v y = P::value(v, k, r, t);
      memcpy(x + r * sizeof(y), &y, sizeof(y));
    }
}

// dims [outer..., N, K]; operands: P's inputs (along K), packed weights, E's (along N), workspace unless P is direct.
template <class P, class E>
__attribute__((flatten)) void product(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const Operand &weights = o[P::inputs], *epilogue = o + P::inputs + 1, &workspace = epilogue[E::operands];
  const OuterLoops loops(c, weights);
  const int along_n = loops.rank, along_k = loops.rank + 1;
  const int64_t width = c.dim[along_n], depth = c.dim[along_k];
  Index batch, shared;
  do {
    const char* x = nullptr;
    if constexpr (!is_direct<P>(0)) {
      char* panel = start(workspace, f, t);
      x = panel;
      do {
        Views<P::inputs> p(o, f, t, (batch + shared).i, loops.rank, along_k);
        fill_panel<P>(p.v, depth, t, panel);
        panel += depth * TILE * sizeof(float);
      } while (advance(shared.i, loops.shared, loops.rank));
    }
    const float* w = reinterpret_cast<const float*>(view(weights, f, t, batch.i, loops.rank, along_k).at);
    for (int64_t n0 = 0; n0 < width; n0 += N_BLOCK, w += depth * N_BLOCK) {
      const int64_t count = width - n0 < N_BLOCK ? width - n0 : N_BLOCK;
      const char* panel = x;
      do {
        const Index index = batch + shared;
        Block y;
        if constexpr (is_direct<P>(0)) {
          View p = view(o[0], f, t, index.i, loops.rank, along_k);
          multiply(p.at, p.step, w, depth, y);
        } else {
          multiply(panel, TILE * sizeof(float), w, depth, y);
          panel += depth * TILE * sizeof(float);
        }
        Views<E::operands> e(epilogue, f, t, index.i, loops.rank, along_n);
        for (int64_t n = 0; n < count; n++)
#pragma unroll
          for (int r = 0; r < VECTORS; r++) E::store(e.v, n0 + n, r, t, y[n][r]);
      } while (advance(shared.i, loops.shared, loops.rank));
    }
  } while (advance(batch.i, loops.batch, loops.rank));
}

}  // namespace ewm
