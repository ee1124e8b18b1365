// What host and device agree on for a launch: the parameters of every kernel, by value, and how a run keeps to its time.
#pragma once
#include "format.h"

namespace ewm {

// Of a kernel: one phase of one call. It does nothing where *stop is not 0.
struct Launch {
  const Call* calls;
  const Operand* operands;
  char* base[3];  // by Space, on the device
  const uint32_t* stop;
  uint32_t call, phase;
};

// Memory that host and device both see, for a run whose rounds are all launched at once and that the device paces by
// its own clock. This runtime's host paces runs itself and reads none of it.
struct Pace {
  uint64_t budget_ns;  // from the run's start to its deadline; ~0: none
  uint32_t iterations, of;  // rounds of the anytime loop that were done, of how many
};

// On the device.
struct Progress {
  uint64_t began_ns, round_began_ns, longest_ns;
  uint32_t stop, barrier;
};

// Of `ewm_begin`, which starts a run, and of `ewm_round`, which stands before each round of an anytime loop and, with
// round == count, after the last.
struct Round {
  Pace* pace;
  Progress* progress;
  uint32_t round, count;
};

// Of `ewm_persistent`: rows [first, first + count) of section "launches" in turn, in a cooperative launch with the most
// shared memory that any of them wants. `launch.call` and `launch.phase` are not read.
struct Persistent {
  Launch launch;
  const GpuLaunch* rows;
  uint32_t first, count;
  uint32_t* barrier;  // a word that is 0 before the first such launch
};

// Of `ewm_stamp`, which notes the time.
struct Stamp {
  uint64_t* at_ns;
};

}  // namespace ewm
