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

// Up to how many lanes it pays to hold results in a vector's lanes instead: what one lane brings is broadcast then.
#if defined(EWM_AVX512)
constexpr int FEW = 8;
#else
constexpr int FEW = 4;
#endif

// N_BLOCK neighbouring words; the rest of the vector is zero.
template <class Word> inline Word load_block(const char* at) {
#if defined(EWM_AVX512)
  typedef int32_t word16 __attribute__((vector_size(64)));
  return (Word)__builtin_ia32_loaddqusi512_mask(reinterpret_cast<const int32_t*>(at), word16{}, (1 << N_BLOCK) - 1);
#else
  Word w{};
  memcpy(&w, at, N_BLOCK * 4);
  return w;
#endif
}

// sum[n][0] of the first `valid` lanes, at most FEW, for one packed block; the other lanes are zero.
template <class M, int V, int lanes = 1>
__attribute__((noinline)) void multiply_few(int64_t valid, const char* x, int64_t step, const char* w, int64_t words,
                                            typename M::Sum (*sum)[V]) {
  if constexpr (lanes < FEW)
    if (valid > lanes) return multiply_few<M, V, lanes + 1>(valid, x, step, w, words, sum);
  typedef typename M::Word Word;
  typename M::Sum results[lanes];
#pragma unroll
  for (int l = 0; l < lanes; l++) results[l] = M::block_bytes ? load_block<typename M::Sum>(w) : typename M::Sum{};
  w += M::block_bytes;
  for (int64_t k = 0; k < words; k++, x += step, w += N_BLOCK * 4) {
    decltype(Word{}[0] + 0) lane[lanes];
    memcpy(lane, x, sizeof(lane));
    const Word weights = load_block<Word>(w);
    __builtin_prefetch(w + (words * N_BLOCK * 4 + M::block_bytes));
#pragma unroll
    for (int l = 0; l < lanes; l++) results[l] = M::dot(results[l], splat(lane[l]), weights);
  }
  decltype(sum[0][0][0] + 0) each[lanes][LANES];
  memcpy(each, results, sizeof(each));
#pragma clang loop unroll(disable)
  for (int n = 0; n < N_BLOCK; n++) {
    sum[n][0] = typename M::Sum{};
#pragma clang loop unroll(disable)
    for (int l = 0; l < lanes; l++) sum[n][0][l] = each[l][n];
  }
}

// What a product call multiplies: packed weights, and a panel of lanes for each outer index that shares them.
template <class M, class P> struct Panels {
  static constexpr bool in_place = M::template in_place<P>;
  static constexpr int64_t row = TILE * sizeof(uint32_t);
  const Operand *weights, *own, *epilogue;
  const OuterLoops loops;
  const int along_n, along_k;
  const int64_t width, depth, words, panel_bytes;
  char* const panels;
  Panels(const Call& c, const Operand* o, const Frame& f, Tile t, int outputs)
      : weights(o + P::inputs), own(weights + 1), epilogue(own + M::operands), loops(c, *weights),
        along_n(loops.rank), along_k(loops.rank + 1), width(c.dim[along_n]), depth(c.dim[along_k]),
        words(ceil_div(depth, M::group)), panel_bytes(M::header_bytes + words * row),
        panels(in_place ? nullptr : start(epilogue[outputs], f, t)) {}
  // Not inlined: a prologue is shared by products with different epilogues.
  __attribute__((noinline)) void fill(const Operand* o, const Frame& f, Tile t, const Index& batch) const {
    Index shared;
    char* const real = panels + product_of(loops.shared, loops.rank) * panel_bytes;
    for (char* panel = panels;; panel += panel_bytes) {
      Views<P::inputs> p(o, f, t, (batch + shared).i, loops.rank, along_k);
      M::template fill<P>(p.v, depth, t, panel, real);
      if (!advance(shared.i, loops.shared, loops.rank)) break;
    }
  }
};

// The first V vectors of a tile.
template <int V, class M, class P, class E>
__attribute__((always_inline)) inline void multiply_vectors(const Call& c, const Operand* o, const Frame& f, Tile t) {
  const Panels<M, P> p(c, o, f, t, E::operands);
  constexpr bool in_place = Panels<M, P>::in_place;
  const OuterLoops& loops = p.loops;
  const int64_t width = p.width, words = p.words;

  Index batch, shared;
  do {
    if constexpr (!in_place) p.fill(o, f, t, batch);
    Leaving<V, M, E> last{{}, {}, {p.epilogue, f, t, batch.i, loops.shared, loops.rank, p.along_n},
                          {p.own, f, t, batch.i, loops.rank, p.along_n}, 0, 0};
    Walk<in_place ? 1 : 0> from(o, f, t, batch.i, loops.shared, loops.rank, p.along_k);
    const char* w = view(*p.weights, f, t, batch.i, loops.rank, p.along_k).at;
    int moved = -1;
    for (int64_t n0 = 0; n0 < width; n0 += N_BLOCK, w += M::block_bytes + words * N_BLOCK * 4) {
      const char* panel = p.panels;
      do {
        const char *x = panel + M::header_bytes, *wk = w + M::block_bytes;
        int64_t step = p.row;
        if constexpr (in_place) x = from.views.v[0].at, step = from.views.v[0].step;
        if (V == 1 && t.valid <= FEW) {
          leave(last, 0, t);
          multiply_few<M, V>(t.valid, x, step, w, words, last.sum);
        } else {
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
          memcpy(last.sum, sum, sizeof(sum));
        }
        if (last.vectors) last.to.step(moved);
        M::header(panel, last.scale);
        last.n0 = n0;
        last.vectors = (width - n0 < N_BLOCK ? width - n0 : N_BLOCK) * V;
        if constexpr (!OVERLAPS) leave(last, 0, t);
        panel += p.panel_bytes;
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
