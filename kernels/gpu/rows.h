// Rows of a product: a row is a lane at an outer index. Those that share their weights stand together, lanes innermost,
// and no row is padding: tiles of rows cut across outer indices.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

// The weights among a product's operands: `behind` of these stand after them.
inline const Operand& weights_of(const Call& c, const Operand* o, int behind) {
  return o[static_cast<int>(c.operands) - behind - 1];
}

struct Rows {
  int outer;                 // loops
  uint32_t batches, shared;  // indices that change the weights, and for each those that share them
  uint32_t each;             // rows that share weights
  Rows(const Call& c, const Operand& weights) : outer(static_cast<int>(c.rank) - 2), batches(1), shared(1) {
    for (int d = 0; d < outer; d++) (weights.stride[d] ? batches : shared) *= c.dim[d];
    each = shared * c.lanes;
  }
  uint32_t all() const { return batches * each; }
  // The outer index of row `row` of those that share the weights of `batch`.
  Index index(const Call& c, const Operand& weights, uint32_t batch, uint32_t row) const {
    Index index;
    uint32_t s = row / c.lanes;
#pragma unroll
    for (int d = MAX_RANK - 1; d >= 0; d--) {
      index.i[d] = 0;
      if (d < outer && weights.stride[d]) {
        index.i[d] = batch % c.dim[d];
        batch /= c.dim[d];
      } else if (d < outer) {
        index.i[d] = s % c.dim[d];
        s /= c.dim[d];
      }
    }
    return index;
  }
  // The first row at an outer index given by its place in row-major order.
  uint32_t first_row(const Call& c, const Operand& weights, uint32_t at) const {
    uint32_t batch = 0, s = 0, batch_step = 1, shared_step = 1;
    for (int d = outer - 1; d >= 0; d--) {
      const uint32_t i = at % c.dim[d];
      at /= c.dim[d];
      if (weights.stride[d]) {
        batch += i * batch_step;
        batch_step *= c.dim[d];
      } else {
        s += i * shared_step;
        shared_step *= c.dim[d];
      }
    }
    return batch * each + s * c.lanes;
  }
};

// Four numbers moved at once.
struct alignas(16) Four {
  uint32_t word[4];
};

}  // namespace ewm
