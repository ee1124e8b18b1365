// The command line of edgewm-tick.
#pragma once
#include <stdint.h>

#include "realtime.h"

struct Arguments {
  const char* model;
  const char* json;
  double rate_hz, deadline_ms;
  uint64_t ticks, warmup;
  uint32_t threads, hold_periods, ramp_periods;
  bool async, spin, golden, kernels, free;
};

// Three lines on stderr; the exit status of a call that cannot be served.
int complain(const char* what, const char* where, const char* fix);
// 0, or the exit status of a command line that is refused.
int parse(int argc, char** argv, Arguments& to, Realtime& realtime);
