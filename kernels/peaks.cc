// What this machine can do at best, for one thread: chains of the very instructions the products are made of, with as
// many accumulators as their microkernel holds, and a stream of reads. Each returns how many operations (bytes) it did.
#include "bf16.h"
#include "microkernel.h"

namespace ewm {
constexpr int CHAINS = N_BLOCK * VECTORS;
volatile int32_t zero;  // of a value that the compiler does not know

template <class T> inline void keep(const T& value) { asm volatile("" : : "m"(value)); }
}  // namespace ewm

extern "C" {

__attribute__((visibility("default"))) int64_t ewm_peak_fp32(int64_t rounds) {
  using namespace ewm;
  f32v acc[CHAINS], factor = splat(0.5f + static_cast<float>(zero));
#pragma unroll
  for (int i = 0; i < CHAINS; i++) acc[i] = splat(1.0f + static_cast<float>(i));
  for (int64_t n = 0; n < rounds; n++)
#pragma unroll
    for (int i = 0; i < CHAINS; i++) acc[i] = op_fma(acc[i], factor, factor);
  keep(acc);
  return rounds * CHAINS * LANES * 2;
}

__attribute__((visibility("default"))) int64_t ewm_peak_bf16(int64_t rounds) {
  using namespace ewm;
  f32v acc[CHAINS];
  const u32v x = splat(0x3f003f00u) + static_cast<uint32_t>(zero);
  const uint32_t w = 0x3f003f00u + static_cast<uint32_t>(zero);  // two halves
#pragma unroll
  for (int i = 0; i < CHAINS; i++) acc[i] = splat(1.0f + static_cast<float>(i));
  for (int64_t n = 0; n < rounds; n++)
#pragma unroll
    for (int i = 0; i < CHAINS; i++) acc[i] = dot_bf16(acc[i], x, splat(w));
  keep(acc);
  return rounds * CHAINS * LANES * 2 * 2;
}

// The lanes' words are the accumulators themselves, so that nothing can be taken out of the loop.
__attribute__((visibility("default"))) int64_t ewm_peak_int8(int64_t rounds) {
  using namespace ewm;
  i32v acc[CHAINS];
  const int32_t w = 0x01010101 + zero;
#pragma unroll
  for (int i = 0; i < CHAINS; i++) acc[i] = splat(i);
  for (int64_t n = 0; n < rounds; n++)
#pragma unroll
    for (int i = 0; i < CHAINS; i++) acc[i] = dot(acc[i], acc[i], w);
  keep(acc);
  return rounds * CHAINS * LANES * GROUP * 2;
}

__attribute__((visibility("default"))) int64_t ewm_peak_read(const char* buffer, int64_t bytes) {
  using namespace ewm;
  constexpr int64_t row = 8 * sizeof(u32v);
  u32v acc[8] = {};
  for (int64_t at = 0; at + row <= bytes; at += row)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      u32v x;
      memcpy(&x, buffer + at + i * sizeof(x), sizeof(x));
      acc[i] ^= x;
    }
  keep(acc);
  return bytes / row * row;
}

// The same buffer over and over: where it fits, a cache's reads.
__attribute__((visibility("default"))) int64_t ewm_peak_reread(const char* buffer, int64_t bytes, int64_t rounds) {
  int64_t done = 0;
  for (int64_t n = 0; n < rounds; n++) done += ewm_peak_read(buffer, bytes);
  return done;
}
}
