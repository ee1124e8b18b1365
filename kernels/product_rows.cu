// product_rows<round, M, E>: a product of which a block has all columns of its rows, so that the same block can do what
// comes behind (`chain` of lanes_cuda.h): nobody waits for other blocks, neither before it nor behind. Every number is
// computed as by its two launches apart (tensor.h), sums of bf16 and fp16 in an order of their own.
//
// A block does 32 lanes at one outer index. It rounds them to the workspace (`round`, the product's phase 0), then
// multiplies SIDE columns at a time: two of its warps share a strip of k, so that SHARES strips are multiplied at once,
// and twice as many are on their way.
#pragma once
#include "tensor.h"

namespace ewm {

constexpr uint32_t SHARES = THREADS / 32 / 2;
constexpr uint32_t SHARE_BYTES = (TILE + SIDE) * STRIP, SHARE_STEP = TILE + 4;

// shared[share][column][row] = the sums over each share's strips; x and w are where this thread finds what it brings.
template <class Sum> inline void multiply_shares(const char* x, const char* w, uint32_t bytes) {
  const uint32_t t = thread_index(), own = t / 4, chunk = t % 4, count = bytes / STRIP;
  const uint32_t share = t / 32 % SHARES, column0 = t / 128 * 32;
  auto bring = [&](uint32_t turn) {
    char* const to = shared_memory() + turn % STRIPS * SHARES * SHARE_BYTES;
    const uint32_t first = turn * SHARES;
#pragma unroll
    for (uint32_t s = 0; s < SHARES; s++)
      if (first + s < count)
        async_copy(to + s * SHARE_BYTES + TILE * STRIP + chunk_at(own, chunk), w + (first + s) * STRIP);
#pragma unroll
    for (uint32_t s = own / TILE; s < SHARES; s += SIDE / TILE)
      if (first + s < count) async_copy(to + s * SHARE_BYTES + chunk_at(own % TILE, chunk), x + (first + s) * STRIP);
    async_commit();
  };
  Sums<Sum> sums = {};
  bring(0);
  bring(1);
  for (uint32_t turn = 0; turn * SHARES < count; turn++) {
    async_wait<1>();
    block_sync();  // these strips are there for all, and all are done with those whose place the next ones take
    bring(turn + 2);
    const char* const at = shared_memory() + (turn % STRIPS * SHARES + share) * SHARE_BYTES;
    if (turn * SHARES + share < count) multiply_strip(at, at + TILE * STRIP, 0, column0, sums);
  }
  block_sync();  // of copies only empty groups are left
  spill_sums(sums, reinterpret_cast<Sum*>(shared_memory()) + share * SIDE * SHARE_STEP, SHARE_STEP, 0, column0);
  block_sync();
}

template <class M, class E>
inline void multiply_columns(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand& weights = weights_of(c, o, M::operands + E::operands + 1);
  const int along_n = static_cast<int>(c.rank) - 2;
  const uint32_t width = c.dim[along_n], bytes = row_bytes(c.dim[along_n + 1], M::size), t = thread_index();
  const uint32_t lane_tiles = ceil_div(c.lanes, TILE), at = block / lane_tiles, lane0 = block % lane_tiles * TILE;
  auto lane_at = [&](uint32_t row) {  // those past the end repeat the last
    return lane0 + row < c.lanes ? lane0 + row : c.lanes - 1;
  };
  auto row_at = [&](uint32_t row) { return Rows(c, weights).first_row(c, weights, at) + lane_at(row); };
  const char* const x = begin_of(o[c.operands - 1], f) + static_cast<int64_t>(row_at(t / 4 % TILE)) * bytes;
  const char* const w = view(weights, f, index_at(c, along_n, at), 0, along_n).at;
  for (uint32_t n0 = 0; n0 < width; n0 += SIDE) {
    if (n0) block_sync();  // sums are read before strips take their place
    const uint32_t chunk = t % 4 * CHUNK;
    multiply_shares<typename M::Sum>(x + chunk, w + static_cast<int64_t>(n0 + t / 4) * bytes + chunk, bytes);

    const uint32_t mine = t % TILE, part = t / TILE, lane = lane_at(mine), all = Rows(c, weights).all();
    const Index index = index_at(c, along_n, at);
    const typename M::Row end(begin_of(o[c.operands - 1], f) + static_cast<int64_t>(all) * bytes, all, row_at(mine));
    const Views<E::operands> e(&weights + 1 + M::operands, f, index, lane, along_n);
    const Views<M::operands> beside(&weights + 1, f, index, 0, along_n);
    const auto* const shared = reinterpret_cast<const typename M::Sum*>(shared_memory()) + mine;
    constexpr uint32_t each = SIDE * TILE / THREADS;
#pragma unroll 4
    for (uint32_t i = 0; i < each; i++) {
      const uint32_t column = part * each + i, n = n0 + column;
      typename M::Sum sum = shared[column * SHARE_STEP];
#pragma unroll
      for (uint32_t s = 1; s < SHARES; s++) sum += shared[(s * SIDE + column) * SHARE_STEP];
      if (n < width && lane0 + mine < c.lanes) E::store(e.v, n, 0, ONE_LANE, end.value(sum, beside.v, n));
    }
  }
}

template <BlockOfCall round, class M, class E>
inline void product_rows(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  round(c, o, f, block);
  block_sync();  // copies read what other threads of this block have written
  multiply_columns<M, E>(c, o, f, block);
}

}  // namespace ewm
