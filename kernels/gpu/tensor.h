// Products on tensor cores: rows of bytes against columns of bytes, both with k innermost.
//
// A block multiplies BAND rows by SIDE columns, STRIP bytes of k at a time; three strips are in shared memory, two of them
// on their way. Rows of a strip are 16-byte chunks in an order that keeps the eight rows of one matrix out of each
// other's banks. Sums go through shared memory, so that a thread ends one row, its lanes' neighbours beside it.
#pragma once
#include "rows.h"

namespace ewm {

constexpr uint32_t CHUNK = 16;  // bytes of a copy

inline uint32_t chunk_at(uint32_t row, uint32_t chunk) { return row * STRIP + ((chunk ^ (row >> 1 & 3)) * CHUNK); }

// Bytes of a row: k numbers of `size` bytes, and zeros up to a whole strip.
inline uint32_t row_bytes(uint32_t depth, uint32_t size) { return ceil_div(depth * size, STRIP) * STRIP; }

// Two rows of warps of 32 x 32 sums each: [i][j] is the matrix of 16 rows from 16 i on, 8 columns from 8 j on.
template <class Sum> struct Sums {
  Sum sum[2][4][4];
};

// Adds to the sums of this warp its 32 rows by 32 columns of a strip, from `row0` of `x` and `column0` of `w` on.
template <class Sum>
inline void multiply_strip(const char* x, const char* w, uint32_t row0, uint32_t column0, Sums<Sum>& sums) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t a_row = lane % 16, a_chunk = lane / 16, b_row = lane % 8 + lane / 16 * 8, b_chunk = lane / 8 % 2;
#pragma unroll
  for (uint32_t half = 0; half < STRIP / 32; half++) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) load_matrices(a[i], x + chunk_at(row0 + 16 * i + a_row, 2 * half + a_chunk));
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) load_matrices(b[j], w + chunk_at(column0 + 16 * j + b_row, 2 * half + b_chunk));
#pragma unroll
    for (uint32_t i = 0; i < 2; i++)
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) multiply_matrices(sums.sum[i][j], a[i], b[j / 2] + j % 2 * 2);
  }
}

// shared[column][row], columns `step` words apart, = the sums of this warp: its 32 rows and columns from `row0` and
// `column0` on.
template <class Sum>
inline void spill_sums(const Sums<Sum>& sums, Sum* shared, uint32_t step, uint32_t row0, uint32_t column0) {
  const uint32_t lane = thread_index() % 32;
#pragma unroll
  for (uint32_t i = 0; i < 2; i++)
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
#pragma unroll
      for (uint32_t s = 0; s < 4; s++)
        shared[(column0 + lane % 4 * 2 + 8 * j + s % 2) * step + row0 + lane / 4 + 16 * i + s / 2 * 8] =
            sums.sum[i][j][s];
}

// Where a thread finds what it brings of each strip: a chunk of two of the block's rows, 64 apart, and of one column.
struct Brought {
  const char *x[2], *w;
};

// shared[column][row] = the products of `rows` rows (a multiple of 32, at most BAND) and SIDE columns of `bytes` bytes,
// columns rows + 4 words apart, so that a fragment's words are in different banks. `strips` is where strips lie.
template <class Sum>
inline void multiply_strips(const Brought& from, uint32_t rows, uint32_t bytes, char* strips, Sum* shared) {
  const uint32_t t = thread_index(), row0 = t / 32 % 4 * 32, column0 = t / 128 * 32, own = t / 4, chunk = t % 4;
  const uint32_t count = bytes / STRIP, strip_bytes = (rows + SIDE) * STRIP;
  auto bring = [&](uint32_t strip) {
    if (strip < count) {
      char* const to = strips + strip % STRIPS * strip_bytes;
      if (own < rows) async_copy(to + chunk_at(own, chunk), from.x[0] + strip * STRIP);
      if (own + 64 < rows) async_copy(to + chunk_at(own + 64, chunk), from.x[1] + strip * STRIP);
      async_copy(to + rows * STRIP + chunk_at(own, chunk), from.w + strip * STRIP);
    }
    async_commit();
  };
  Sums<Sum> sums = {};
  bring(0);
  bring(1);
  for (uint32_t strip = 0; strip < count; strip++) {
    async_wait<1>();
    block_sync();  // this strip is there for all, and all are done with the one whose place the next one takes
    bring(strip + 2);
    const char* const at = strips + strip % STRIPS * strip_bytes;
    if (row0 < rows) multiply_strip(at, at + rows * STRIP, row0, column0, sums);
  }
  block_sync();  // of copies only empty groups are left
  if (row0 < rows) spill_sums(sums, shared, rows + 4, row0, column0);
  block_sync();
}

// Where a call has too few tiles of BAND x SIDE for all processors, a block multiplies NARROW x NARROW instead, and its
// eight warps share k: each has strips of its own, which it brings and multiplies by itself, one on its way.
constexpr uint32_t WARPS_OF_BLOCK = THREADS / 32;
constexpr uint32_t NARROW_BYTES = 2 * NARROW * STRIP, NARROW_STEP = NARROW + 4;

// shared[warp][column][row] = the sums over each warp's strips.
template <class Sum>
inline void multiply_slices(const char* x, uint32_t rows_left, const char* w, uint32_t bytes) {
  const uint32_t lane = thread_index() % 32, warp = thread_index() / 32, strips = bytes / STRIP;
  char* const mine = shared_memory() + warp * NARROW_STRIPS * NARROW_BYTES;
  auto bring = [&](uint32_t turn) {
    const uint32_t strip = turn * WARPS_OF_BLOCK + warp;
    if (strip < strips) {
      char* const to = mine + turn % NARROW_STRIPS * NARROW_BYTES;
      const uint32_t chunk = lane % 4;
#pragma unroll
      for (uint32_t u = 0; u < NARROW / 8; u++) {
        const uint32_t row = u * 8 + lane / 4, from = row < rows_left ? row : rows_left - 1;
        const uint32_t at = strip * STRIP + chunk * CHUNK;
        async_copy(to + chunk_at(row, chunk), x + static_cast<int64_t>(from) * bytes + at);
        async_copy(to + NARROW * STRIP + chunk_at(row, chunk), w + static_cast<int64_t>(row) * bytes + at);
      }
    }
    async_commit();
  };
  Sums<Sum> sums = {};
  bring(0);
  for (uint32_t turn = 0; turn * WARPS_OF_BLOCK + warp < strips; turn++) {
    async_wait<0>();
    warp_sync();  // this strip is there for all lanes, and all are done with the one before
    bring(turn + 1);
    const char* const at = mine + turn % NARROW_STRIPS * NARROW_BYTES;
    multiply_strip(at, at + NARROW * STRIP, 0, 0, sums);
  }
  block_sync();
  spill_sums(sums, reinterpret_cast<Sum*>(shared_memory()) + warp * NARROW * NARROW_STEP, NARROW_STEP, 0, 0);
  block_sync();
}

// Writes the rows of one outer index for 32 lanes to the workspace, eight threads a lane, a chunk of k at a time. T says
// what becomes of a number: bits(x), in the low `size` bytes.
template <class T, class P> inline void round_rows(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand& weights = o[P::inputs];
  const Rows rows(c, weights);
  const uint32_t depth = c.dim[rows.outer + 1], bytes = row_bytes(depth, T::size), t = thread_index();
  const uint32_t lane_tiles = ceil_div(c.lanes, 32), at = block / lane_tiles;
  const uint32_t lane = block % lane_tiles * 32 + t % 32;
  if (lane >= c.lanes) return;
  const Views<P::inputs> p(o, f, index_at(c, rows.outer, at), lane, rows.outer + 1);
  const uint32_t row = rows.first_row(c, weights, at) + lane;
  char* const to = begin_of(o[c.operands - 1], f) + static_cast<int64_t>(row) * bytes;
  constexpr uint32_t numbers = CHUNK / T::size, each = 4 / T::size;  // of a chunk, of a word
  for (uint32_t k0 = t / 32 * numbers; k0 * T::size < bytes; k0 += THREADS / 32 * numbers) {
    Four packed = {};
#pragma unroll
    for (uint32_t j = 0; j < numbers; j++)
      if (k0 + j < depth)
        packed.word[j / each] |= T::bits(P::value(p.v, k0 + j, 0, ONE_LANE)) << j % each * (8 * T::size);
    *reinterpret_cast<Four*>(to + k0 * T::size) = packed;
  }
}

// M: `Sum`, bytes of a number, `own` operands between weights and epilogue, and a row's end: Row(workspace, rows, row,
// bytes) and end(sum, own operands, n).
template <class M, class E>
inline void multiply_rows(const Call& c, const Operand* o, const Frame& f, uint32_t block) {
  const Operand &weights = weights_of(c, o, M::operands + E::operands + 1), *own = &weights + 1;
  const Operand* const epilogue = own + M::operands;
  const Rows rows(c, weights);
  const int along_n = rows.outer;
  const uint32_t width = c.dim[along_n], bytes = row_bytes(c.dim[along_n + 1], M::size), t = thread_index();
  const bool narrow = c.cut;
  const uint32_t tile_rows = narrow ? NARROW : BAND, tile_columns = narrow ? NARROW : SIDE;
  const uint32_t column_tiles = ceil_div(width, tile_columns), row_tiles = ceil_div(rows.each, tile_rows);
  const uint32_t n0 = block % column_tiles * tile_columns, r0 = block / column_tiles % row_tiles * tile_rows;
  const uint32_t batch = block / column_tiles / row_tiles, left = rows.each - r0;  // those past the end repeat the last
  const char* const workspace = begin_of(o[c.operands - 1], f);
  const char* const x = workspace + static_cast<int64_t>(batch * rows.each + r0) * bytes;
  const char* const w = view(weights, f, rows.index(c, weights, batch, 0), 0, along_n).at +
                        static_cast<int64_t>(n0) * bytes;
  if (narrow) {
    multiply_slices<typename M::Sum>(x, left, w, bytes);
  } else {
    const uint32_t own = t / 4, chunk = t % 4 * CHUNK;
    const Brought from = {{x + static_cast<int64_t>(own < left ? own : left - 1) * bytes + chunk,
                           x + static_cast<int64_t>(own + 64 < left ? own + 64 : left - 1) * bytes + chunk},
                          w + static_cast<int64_t>(own) * bytes + chunk};
    multiply_strips(from, BAND, bytes, shared_memory(), reinterpret_cast<typename M::Sum*>(shared_memory()));
  }

  const uint32_t mine = t % tile_rows, row = r0 + mine, part = t / tile_rows;
  if (row >= rows.each) return;
  const Index index = rows.index(c, weights, batch, row);
  const typename M::Row end(workspace + static_cast<int64_t>(rows.all()) * bytes, rows.all(), batch * rows.each + row);
  const Views<E::operands> e(epilogue, f, index, row % c.lanes, along_n);
  const Views<M::operands> beside(own, f, index, 0, along_n);
  const auto* const shared = reinterpret_cast<const typename M::Sum*>(shared_memory());
  const uint32_t count = tile_columns * tile_rows / THREADS;
#pragma unroll 4
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t column = part * count + i, n = n0 + column;
    typename M::Sum sum = shared[narrow ? column * NARROW_STEP + mine : column * (BAND + 4) + mine];
    if (narrow) {
#pragma unroll
      for (uint32_t k = 1; k < WARPS_OF_BLOCK; k++) sum += shared[(k * NARROW + column) * NARROW_STEP + mine];
    }
    if (n < width) E::store(e.v, n, 0, ONE_LANE, end.value(sum, beside.v, n));
  }
}

}  // namespace ewm
