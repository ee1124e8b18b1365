// A clock for edgewm-tick that nothing but the program moves: preloaded, it answers for the C library's and plants faults.
//
//   VIRTUAL_PLAN_NS   what a plan takes                VIRTUAL_PLAN_NOISE   its spread, as a share (uniform)
//   VIRTUAL_WAKE_NS   how late a sleeper wakes, at most twice that
//   VIRTUAL_FAULT     stall|drift|idle|bimodal|skip|jump|back, with VIRTUAL_AT (period or plan) and VIRTUAL_SIZE (ns, or
//                     a share in millionths)
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "edgewm.h"

static uint64_t now = 1000000000u, raw_behind, sleeps, plans, last_plan, state = 88172645463325252u;
static constexpr uint64_t READING_NS = 40;

static uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = getenv(name);
  return text != nullptr ? strtoull(text, nullptr, 10) : otherwise;
}
static bool fault(const char* name) {
  const char* text = getenv("VIRTUAL_FAULT");
  return text != nullptr && strcmp(text, name) == 0;
}
static double draw() {  // xorshift64 (Marsaglia 2003)
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return double(state >> 11) / double(1ull << 53);
}

extern "C" __attribute__((visibility("default"))) int clock_gettime(clockid_t clock, timespec* to) {
  now += READING_NS;
  uint64_t at = clock == CLOCK_MONOTONIC_RAW ? now - raw_behind : now;
  to->tv_sec = time_t(at / 1000000000u), to->tv_nsec = long(at % 1000000000u);
  return 0;
}

extern "C" __attribute__((visibility("default"))) int clock_nanosleep(clockid_t, int, const timespec* until, timespec*) {
  uint64_t at = uint64_t(until->tv_sec) * 1000000000u + uint64_t(until->tv_nsec);
  if (at > now) now = at;
  now += uint64_t(2 * draw() * double(setting("VIRTUAL_WAKE_NS", 50000)));
  const uint64_t size = setting("VIRTUAL_SIZE", 0), period = setting("VIRTUAL_AT", 0);
  sleeps++;
  if (fault("stall") && sleeps == period) now += size;
  if (fault("skip") && sleeps % period == 0) now += size;
  if (fault("jump") && sleeps == period) now += size, raw_behind += size;
  if (fault("back") && sleeps == period) now -= size, raw_behind -= size;
  return 0;
}

extern "C" __attribute__((visibility("default"))) int ewm_plan(ewm_loop* loop, uint64_t deadline_ns, ewm_plan_info* info, ewm_fault* f) {
  static auto real = reinterpret_cast<decltype(&ewm_plan)>(dlsym(RTLD_NEXT, "ewm_plan"));
  const double size = double(setting("VIRTUAL_SIZE", 0)), noise = double(setting("VIRTUAL_PLAN_NOISE", 50000)) / 1e6;
  const uint64_t began = now;
  int error = real(loop, deadline_ns, info, f);
  double took = double(setting("VIRTUAL_PLAN_NS", 100000)) * (1 + noise * (2 * draw() - 1));
  if (fault("drift")) took *= 1 + size / 1e6 * double(plans) / double(setting("VIRTUAL_AT", 1));
  if (fault("bimodal") && draw() < double(setting("VIRTUAL_AT", 0)) / 1e6) took *= 1 + size / 1e6;
  if (fault("idle") && began - last_plan > 500000000u) took += size;
  plans++;
  now += uint64_t(took);
  last_plan = now;
  if (info != nullptr) info->end_ns = now;
  return error;
}
