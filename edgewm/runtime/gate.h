// Finite and in range, on bit patterns: comparisons of floats are what ReLU launders and fast-math deletes.
#pragma once
#include <stdint.h>

namespace ewm {

// Index of the first element that is NaN or infinite; `n` where there is none. `data` need not be aligned.
uint64_t first_non_finite(const void* data, uint64_t n);
// Index of the first finite element outside [low, high]; `n` where there is none.
uint64_t first_outside(const void* data, uint64_t n, float low, float high);

inline bool finite(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return (bits & 0x7f800000u) != 0x7f800000u;
}

}  // namespace ewm
