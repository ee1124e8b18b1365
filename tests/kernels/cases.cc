// Runs kernel calls read from standard input and writes each call's arena to standard output: one program for each
// instruction set, run natively or under an emulator. Functors as the code generator would write them.
#include "attention.cc"
#include "map.cc"
#include "product_bf16.cc"
#include "product_fp16.cc"
#include "product_i8.cc"
#include "product_rounded.cc"
#include "reduce.cc"
#include "take.cc"
#include "topk.cc"

#include <stdio.h>
#include <stdlib.h>

namespace ewm {

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

// ------------------------------------------------------------------------------------------------ the rest

struct ScaleMask {
  static constexpr int inputs = 1;
  static inline f32v value(const View* v, int64_t j, int r, Tile, f32v dot) {
    return op_add(op_mul(dot, splat(0.3f)), load_b<float>(v[0], j, r));
  }
};
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

inline f32v exp_(f32v x) {
  const f32v held = op_min(op_max(x, splat(-87.0f)), splat(88.0f)), n = op_rint(op_mul(held, splat(LOG2_E)));
  const f32v r = op_fma(n, splat(-LN2_LOW), op_fma(n, splat(-LN2_HIGH), held));
  constexpr float c[] = {EXP_COEFFICIENTS};
  f32v y = op_fma(r, splat(c[0]), splat(c[1]));
#pragma unroll
  for (unsigned i = 2; i < sizeof(c) / sizeof(c[0]); i++) y = op_fma(y, r, splat(c[i]));
  const u32v power = op_shl((u32v)op_add(to_i32(n), splat(127)), splat(23u));
  return op_where(op_lt(x, splat(-87.0f)), splat(0.0f), op_mul(y, (f32v)power));
}

template <class P, bool keys_shared, bool values_shared>
constexpr Kernel attend = &attention<P, ScaleMask, Keep, exp_, keys_shared, values_shared>;

const struct {
  const char* name;
  Kernel run;
} table[] = {
    {"product plain", &product<Plain, BiasRelu>},
    {"product direct", &product<Direct, BiasRelu>},
    {"product gathered", &product<Gathered, ResidualScattered>},
    {"product norm", &product<Norm, BiasRelu>},
    {"product_bf16 plain", &product_bf16<Plain, BiasRelu>},
    {"product_bf16 gathered", &product_bf16<Gathered, ResidualScattered>},
    {"product_bf16 norm", &product_bf16<Norm, BiasRelu>},
    {"product_i8 plain", &product_i8<Plain, BiasRelu>},
    {"product_i8 direct", &product_i8<Direct, BiasRelu>},
    {"product_i8 gathered", &product_i8<Gathered, ResidualScattered>},
    {"product_i8 norm", &product_i8<Norm, BiasRelu>},
    {"product_fp16 plain", &product_fp16<Plain, BiasRelu>},
    {"product_fp16 gathered", &product_fp16<Gathered, ResidualScattered>},
    {"product_fp16 norm", &product_fp16<Norm, BiasRelu>},
    {"product_rounded plain", &product_rounded<Plain, BiasRelu>},
    {"product_rounded gathered", &product_rounded<Gathered, ResidualScattered>},
    {"product_rounded norm", &product_rounded<Norm, BiasRelu>},
    {"attention own keys, own values", attend<Plain, false, false>},
    {"attention own keys, own values, direct", attend<Direct, false, false>},
    {"attention own keys, shared values", attend<Plain, false, true>},
    {"attention own keys, shared values, direct", attend<Direct, false, true>},
    {"attention shared keys, own values", attend<Plain, true, false>},
    {"attention shared keys, own values, direct", attend<Direct, true, false>},
    {"attention shared keys, shared values", attend<Plain, true, true>},
    {"attention shared keys, shared values, direct", attend<Direct, true, true>},
    {"reduce sum", &reduce<Sum>},
    {"reduce max", &reduce<Largest>},
    {"map reload", &map<Reload>},
    {"map arithmetic", &map<Arithmetic>},
    {"topk", &topk},
    {"take", &take},
};

}  // namespace ewm

// Each case: name (64 bytes), Call, Operand[call.operands], bytes of the three spaces (u64), the spaces.
int main() {
  using namespace ewm;
  char name[64];
  while (fread(name, sizeof(name), 1, stdin) == 1) {
    Call call;
    Operand operands[MAX_OPERANDS];
    uint64_t bytes[3];
    if (fread(&call, sizeof(call), 1, stdin) != 1 || call.operands > MAX_OPERANDS ||
        fread(operands, sizeof(Operand), call.operands, stdin) != call.operands || fread(bytes, 8, 3, stdin) != 3)
      return 3;
    Frame frame;
    for (int s = 0; s < 3; s++) {
      frame.base[s] = static_cast<char*>(aligned_alloc(64, bytes[s] + 64));
      if (fread(frame.base[s], 1, bytes[s], stdin) != bytes[s]) return 3;
    }
    Kernel run = nullptr;
    for (const auto& row : table)
      if (!strcmp(row.name, name)) run = row.run;
    if (!run) return 4;
    for (uint32_t lane = 0; lane < call.lanes; lane += TILE) {
      const uint32_t left = call.lanes - lane;
      run(call, operands, frame, Tile{lane, TILE, left < TILE ? left : TILE});
    }
    fwrite(frame.base[0], 1, bytes[0], stdout);
    for (char* space : frame.base) free(space);
  }
  return 0;
}
