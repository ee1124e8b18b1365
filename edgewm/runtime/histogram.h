// Every sample counts: 64 linear buckets for each power of two, so a bound is within 1/64 of the truth. Beside them,
// where there is room, the samples in order: how much they are worth depends on how one follows another.
#pragma once
#include <stdint.h>
#include <stdio.h>

struct Histogram {
  static constexpr uint32_t SUB_BITS = 6, SUB = 1u << SUB_BITS, BUCKETS = (64 - SUB_BITS + 1) * SUB;
  uint64_t count, min, max;
  uint64_t in[BUCKETS];
  uint64_t* series;
  uint64_t room;
};

inline uint32_t bucket_of(uint64_t x) {
  if (x < Histogram::SUB) return static_cast<uint32_t>(x);
  uint32_t shift = 63 - static_cast<uint32_t>(__builtin_clzll(x)) - Histogram::SUB_BITS;
  return (shift + 1) * Histogram::SUB + static_cast<uint32_t>(x >> shift) - Histogram::SUB;
}
// Greatest value of a bucket.
inline uint64_t bucket_top(uint32_t b) {
  if (b < Histogram::SUB) return b;
  uint32_t shift = b / Histogram::SUB - 1;
  return (uint64_t(b % Histogram::SUB + Histogram::SUB + 1) << shift) - 1;
}
inline void add(Histogram& h, uint64_t x) {
  if (h.count < h.room) h.series[h.count] = x;
  if (h.count++ == 0) h.min = h.max = x;
  if (x < h.min) h.min = x;
  if (x > h.max) h.max = x;
  h.in[bucket_of(x)]++;
}
// Smallest bound that at least `q` of the samples stay within; the largest sample at most.
inline uint64_t quantile(const Histogram& h, double q) {
  uint64_t seen = 0;
  for (uint32_t b = 0; b < Histogram::BUCKETS; b++) {
    seen += h.in[b];
    if (h.count != 0 && double(seen) >= q * double(h.count)) return bucket_top(b) < h.max ? bucket_top(b) : h.max;
  }
  return h.max;
}
// {"count":, "min":, "max":, "buckets": [[greatest value, samples], ...], "series": [...]}; the first samples where
// there is no room for all, no series where there is none
inline void print_json(const Histogram& h, FILE* out) {
  fprintf(out, "{\"count\": %llu, \"min\": %llu, \"max\": %llu, \"buckets\": [", (unsigned long long)h.count,
          (unsigned long long)h.min, (unsigned long long)h.max);
  bool first = true;
  for (uint32_t b = 0; b < Histogram::BUCKETS; b++) {
    if (h.in[b] == 0) continue;
    fprintf(out, "%s[%llu, %llu]", first ? "" : ", ", (unsigned long long)bucket_top(b), (unsigned long long)h.in[b]);
    first = false;
  }
  fprintf(out, "]");
  const uint64_t kept = h.count < h.room ? h.count : h.room;
  for (uint64_t i = 0; i < kept; i++)
    fprintf(out, "%s%llu", i == 0 ? ", \"series\": [" : ", ", (unsigned long long)h.series[i]);
  fprintf(out, "%s}", kept != 0 ? "]" : "");
}
