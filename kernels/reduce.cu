// reduce<F>: one value for each lane and outer index, folded over k = 0, 1, 2... in one accumulator.
// dims [outer..., K]; operands: F's, along K; the output's stride there is 0.
//
// A block folds 32 lanes at one outer index. Its eight warps evaluate the terms of FOLD / terms steps; then the first
// one folds them in order, which is all that has to be done one by one.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

constexpr uint32_t AT_ONCE = 4;  // steps of a thread whose loads are on their way together

template <class F> inline void reduce(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const int outer = static_cast<int>(c.rank) - 1;
  const uint32_t depth = c.dim[outer], t = thread_index(), l = t % 32, warp = t / 32;
  const uint32_t lane_tiles = ceil_div(c.lanes, 32), own = block % lane_tiles * 32 + l;
  const Views<F::operands> e(o, f, index_at(c, outer, block / lane_tiles), own < c.lanes ? own : c.lanes - 1, outer);
  typedef typename F::Register Register;
  Register* const shared = reinterpret_cast<Register*>(shared_memory()) + l;
  constexpr uint32_t chunk = FOLD / F::terms, warps = THREADS / 32;
  Register acc{};
  for (uint32_t k0 = 0; k0 < depth; k0 += chunk) {
    const uint32_t count = depth - k0 < chunk ? depth - k0 : chunk;
    if (k0) block_sync();
    for (uint32_t first = warp; first < count; first += warps * AT_ONCE) {
      typename F::Terms p[AT_ONCE];
#pragma unroll
      for (uint32_t s = 0; s < AT_ONCE; s++) {
        const uint32_t k = first + s * warps;
        p[s] = F::at(e.v, k0 + (k < count ? k : first), 0, ONE_LANE);
      }
#pragma unroll
      for (uint32_t s = 0; s < AT_ONCE; s++) {
        const uint32_t k = first + s * warps;
#pragma unroll
        for (uint32_t i = 0; i < F::terms; i++)
          if (k < count) shared[(k * F::terms + i) * 32] = p[s].x[i];
      }
    }
    block_sync();
    if (warp > 0) continue;
    auto terms = [&](uint32_t k) {
      typename F::Terms p;
#pragma unroll
      for (uint32_t i = 0; i < F::terms; i++) p.x[i] = shared[(k * F::terms + i) * 32];
      return p;
    };
    acc = k0 ? F::step(acc, terms(0)) : F::begin(terms(0));
#pragma unroll 8
    for (uint32_t k = 1; k < count; k++) acc = F::step(acc, terms(k));
  }
  if (warp == 0 && own < c.lanes) F::store(e.v, 0, ONE_LANE, acc);
}

}  // namespace ewm
