#include "sha256.h"

#include <string.h>

namespace ewm {
namespace {

// First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
const uint32_t K[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
                        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
                        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
                        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
                        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
                        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
                        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
                        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

// One round; the caller renames the eight words instead of moving them.
inline void round(uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f, uint32_t g, uint32_t& h,
                  uint32_t kw) {
  uint32_t t = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + kw;
  d += t;
  h = t + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

void block(uint32_t s[8], const uint8_t* p) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++, p += 4) w[i] = uint32_t(p[0]) << 24 | uint32_t(p[1]) << 16 | uint32_t(p[2]) << 8 | p[3];
  for (int i = 16; i < 64; i++) {
    uint32_t x = w[i - 15], y = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (turn(x, 7) ^ turn(x, 18) ^ x >> 3) + (turn(y, 17) ^ turn(y, 19) ^ y >> 10);
  }
  uint32_t a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
  for (int i = 0; i < 64; i += 8) {
    round(a, b, c, d, e, f, g, h, K[i] + w[i]);
    round(h, a, b, c, d, e, f, g, K[i + 1] + w[i + 1]);
    round(g, h, a, b, c, d, e, f, K[i + 2] + w[i + 2]);
    round(f, g, h, a, b, c, d, e, K[i + 3] + w[i + 3]);
    round(e, f, g, h, a, b, c, d, K[i + 4] + w[i + 4]);
    round(d, e, f, g, h, a, b, c, K[i + 5] + w[i + 5]);
    round(c, d, e, f, g, h, a, b, K[i + 6] + w[i + 6]);
    round(b, c, d, e, f, g, h, a, K[i + 7] + w[i + 7]);
  }
  const uint32_t add[8] = {a, b, c, d, e, f, g, h};
  for (int i = 0; i < 8; i++) s[i] += add[i];
}

}  // namespace

void sha256(const void* data, uint64_t bytes, uint8_t digest[32]) {
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const uint8_t* p = static_cast<const uint8_t*>(data);
  for (uint64_t left = bytes; left >= 64; left -= 64, p += 64) block(h, p);
  uint8_t tail[128] = {};
  uint64_t rest = bytes % 64, padded = rest < 56 ? 64 : 128;
  if (rest != 0) memcpy(tail, p, rest);
  tail[rest] = 0x80;
  for (int i = 0; i < 8; i++) tail[padded - 1 - i] = static_cast<uint8_t>(bytes * 8 >> 8 * i);
  block(h, tail);
  if (padded == 128) block(h, tail + 64);
  for (int i = 0; i < 32; i++) digest[i] = static_cast<uint8_t>(h[i / 4] >> (24 - 8 * (i % 4)));
}

}  // namespace ewm
