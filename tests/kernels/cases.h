// What the cases of every family share: the table that `cases.cc` looks in, and functors around a product as the code
// generator would write them.
#pragma once
#include "loops.h"

namespace ewm {

struct Row {
  const char* name;
  Kernel run;
};

struct Rows {  // of one file; each adds its own before main
  const Row* rows;
  int count;
  const Rows* next;
  inline static const Rows* first = nullptr;
  template <int n>
  explicit Rows(const Row (&all)[n]) : rows(all), count(n), next(first) { first = this; }
};

// ------------------------------------------------------------------------------------------------ prologues

struct Plain {
  static constexpr int inputs = 1;
  static inline f32v value(const View* v, int64_t k, int r, Tile) { return load_v<float>(v[0], k, r); }
};
struct Direct : Plain {
  static constexpr bool direct = true;
};
struct Gathered {
  static constexpr int inputs = 1;
  static inline f32v value(const View* v, int64_t k, int r, Tile t) { return load_g<float>(v[0], k, r, t); }
};
struct Norm {  // (x - mean) * rstd * gamma + beta
  static constexpr int inputs = 5;
  static inline f32v value(const View* v, int64_t k, int r, Tile) {
    f32v x = op_sub(load_v<float>(v[0], k, r), load_v<float>(v[1], k, r));
    x = op_mul(x, load_v<float>(v[2], k, r));
    return op_add(op_mul(x, load_b<float>(v[3], k, r)), load_b<float>(v[4], k, r));
  }
};

// ------------------------------------------------------------------------------------------------ epilogues

struct Keep {
  static constexpr int operands = 1;
  static inline void store(const View* v, int64_t n, int r, Tile, f32v y) { store_v<float>(v[0], n, r, y); }
};
struct BiasRelu {
  static constexpr int operands = 2;
  static inline void store(const View* v, int64_t n, int r, Tile, f32v y) {
    store_v<float>(v[1], n, r, op_max(op_add(y, load_b<float>(v[0], n, r)), splat(0.0f)));
  }
};
struct ResidualScattered {  // a residual per lane in, lanes far apart out
  static constexpr int operands = 2;
  static inline void store(const View* v, int64_t n, int r, Tile t, f32v y) {
    store_g<float>(v[1], n, r, t, op_add(y, load_v<float>(v[0], n, r)));
  }
};

}  // namespace ewm
