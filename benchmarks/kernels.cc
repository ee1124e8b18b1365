// The kernel families with functors like those a build generates for LeWM, and a clock around one of them.
#include "attention.cc"
#include "map.cc"
#include "product_bf16.cc"
#include "product_i8.cc"
#include "reduce.cc"

namespace ewm {

struct Plain {
  static constexpr int inputs = 1;
  static constexpr bool direct = true;
  static inline f32v value(const View* v, int64_t k, int r, Tile) { return load_v<float>(v[0], k, r); }
};
struct Modulated {  // (x - mean) * rstd * scale + shift, all per lane: layer norm under AdaLN
  static constexpr int inputs = 5;
  static inline f32v value(const View* v, int64_t k, int r, Tile) {
    const f32v x = op_mul(op_sub(load_v<float>(v[0], k, r), load_v<float>(v[1], k, r)), load_v<float>(v[2], k, r));
    return op_add(op_mul(x, load_v<float>(v[3], k, r)), load_v<float>(v[4], k, r));
  }
};
struct Bias {
  static constexpr int operands = 2;
  static inline void store(const View* v, int64_t n, int r, Tile, f32v y) {
    store_v<float>(v[1], n, r, op_add(y, load_b<float>(v[0], n, r)));
  }
};
struct BiasGelu {
  static constexpr int operands = 2;
  static inline void store(const View* v, int64_t n, int r, Tile, f32v y) {
    store_v<float>(v[1], n, r, op_gelu(op_add(y, load_b<float>(v[0], n, r))));
  }
};
struct Keep {
  static constexpr int operands = 1;
  static inline void store(const View* v, int64_t n, int r, Tile, f32v y) { store_v<float>(v[0], n, r, y); }
};
struct Scale {
  static constexpr int inputs = 0;
  static inline f32v value(const View*, int64_t, int, Tile, f32v dot) { return op_mul(dot, splat(0.125f)); }
};
struct Sum {
  static constexpr int operands = 2;
  static inline f32v first(const View* v, int64_t k, int r, Tile) { return op_add(splat(0.0f), load_v<float>(v[0], k, r)); }
  static inline f32v next(f32v acc, const View* v, int64_t k, int r, Tile) { return op_add(acc, load_v<float>(v[0], k, r)); }
  static inline void store(const View* v, int r, Tile, f32v acc) { store_v<float>(v[1], 0, r, acc); }
};
struct Gelu {
  static constexpr int operands = 2;
  static inline void run(const View* v, int64_t i, int r, Tile) { store_v<float>(v[1], i, r, op_gelu(load_v<float>(v[0], i, r))); }
};

const Kernel table[] = {
    &product<Plain, Bias>,       &product<Modulated, Bias>,       &product<Plain, BiasGelu>,
    &product_i8<Plain, Bias>,    &product_i8<Modulated, Bias>,    &product_i8<Plain, BiasGelu>,
    &attention<Plain, Scale, Keep, op_exp, false, false>,         &attention<Plain, Scale, Keep, op_exp, true, true>,
    &reduce<Sum>,                &map<Gelu>,
    &product_bf16<Plain, Bias>,  &product_bf16<Modulated, Bias>,  &product_bf16<Plain, BiasGelu>,
};

}  // namespace ewm

extern "C" __attribute__((visibility("default"))) void ewm_run(int kernel, const void* call, const void* operands, char* scratch,
                                                               char* weights, int rounds) {
  using namespace ewm;
  const Frame frame = {{scratch, scratch, weights}};
  for (int i = 0; i < rounds; i++)
    table[kernel](*static_cast<const Call*>(call), static_cast<const Operand*>(operands), frame, Tile{0, TILE, TILE});
}
