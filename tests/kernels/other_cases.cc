#include "map.cc"
#include "reduce.cc"
#include "take.cc"
#include "topk.cc"

#include "cases.h"

namespace ewm {

struct Sum {
  static constexpr int operands = 2;
  static inline f32v first(const View* v, int64_t k, int r, Tile) { return op_add(splat(0.0f), load_v<float>(v[0], k, r)); }
  static inline f32v next(f32v acc, const View* v, int64_t k, int r, Tile) { return op_add(acc, load_v<float>(v[0], k, r)); }
  static inline void store(const View* v, int r, Tile, f32v acc) { store_v<float>(v[1], 0, r, acc); }
};
struct Largest {
  static constexpr int operands = 2;
  static inline f32v first(const View* v, int64_t k, int r, Tile) { return load_v<float>(v[0], k, r); }
  static inline f32v next(f32v acc, const View* v, int64_t k, int r, Tile) { return op_max(load_v<float>(v[0], k, r), acc); }
  static inline void store(const View* v, int r, Tile, f32v acc) { store_v<float>(v[1], 0, r, acc); }
};
struct Reload {  // gathers in, whole vectors out: what padded lanes get shows
  static constexpr int operands = 2;
  static inline void run(const View* v, int64_t i, int r, Tile t) { store_v<float>(v[1], i, r, load_g<float>(v[0], i, r, t)); }
};
struct Arithmetic {  // f32 a, b (B), u32 c, i8 d -> f32, u32, i8
  static constexpr int operands = 7;
  static inline void run(const View* v, int64_t i, int r, Tile) {
    const f32v a = load_v<float>(v[0], i, r), b = load_b<float>(v[1], i, r);
    const u32v c = load_v<uint32_t>(v[2], i, r);
    const i32v d = load_v<int8_t>(v[3], i, r);
    const f32v y = op_fma(op_rint(a), b, op_div(op_sqrt(op_abs(a)), op_max(op_floor(a), splat(1.0f))));
    store_v<float>(v[4], i, r, op_where(op_lt(a, b), op_neg(b), y));
    store_v<uint32_t>(v[5], i, r, op_xor(op_mulhi(c, splat(0xD2511F53u)), op_shr(op_mul(c, splat(0xCD9E8D57u)), splat(7u))));
    store_v<int8_t>(v[6], i, r, op_min(op_add(op_abs(d), to_i32(op_rint(b))), splat(100)));
  }
};

static const Row others[] = {
    {"reduce sum", &reduce<Sum>},
    {"reduce max", &reduce<Largest>},
    {"map reload", &map<Reload>},
    {"map arithmetic", &map<Arithmetic>},
    {"topk", &topk},
    {"take", &take},
};
static const Rows rows(others);

}  // namespace ewm
