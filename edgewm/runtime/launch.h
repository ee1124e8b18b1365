// What host and device agree on for a launch: the parameters of every kernel, by value.
#pragma once
#include "format.h"

namespace ewm {

// Of a kernel: one phase of one call.
struct Launch {
  const Call* calls;
  const Operand* operands;
  char* base[3];  // by Space, on the device
  uint32_t call, phase;
};

// Of `ewm_persistent`: rows [first, first + count) of section "launches" in turn, in a cooperative launch with the most
// shared memory that any of them wants. `launch.call` and `launch.phase` are not read.
struct Persistent {
  Launch launch;
  const GpuLaunch* rows;
  uint32_t first, count;
  uint32_t* barrier;  // a word, 0 before the first such launch of a run
};

// Of `ewm_stamp`, which notes the time.
struct Stamp {
  uint64_t* at_ns;
};

}  // namespace ewm
