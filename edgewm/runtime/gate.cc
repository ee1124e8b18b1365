#include "gate.h"

#include <string.h>

namespace ewm {

uint64_t first_non_finite(const void* data, uint64_t n) {
  const char* p = static_cast<const char*>(data);
  for (uint64_t i = 0; i < n; i++) {
    float x;
    memcpy(&x, p + 4 * i, 4);
    if (!finite(x)) return i;
  }
  return n;
}

uint64_t first_outside(const void* data, uint64_t n, float low, float high) {
  const char* p = static_cast<const char*>(data);
  for (uint64_t i = 0; i < n; i++) {
    float x;
    memcpy(&x, p + 4 * i, 4);
    if (!(x >= low && x <= high)) return i;
  }
  return n;
}

}  // namespace ewm
