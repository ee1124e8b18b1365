// SHA-256 (FIPS 180-4).
#pragma once
#include <stdint.h>

namespace ewm {

void sha256(const void* data, uint64_t bytes, uint8_t digest[32]);

}  // namespace ewm
