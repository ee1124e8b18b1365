// Kernels of one thread that keep a run to its time; launch.h says when each is launched.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

inline void begin_run(const Round& l) {
  *l.progress = Progress{clock_ns(), 0, 0, 0, 0};
  l.pace->iterations = l.pace->of = 0;
}

// Before round `round` of `count`, or after the last: whether the longest one so far would still fit.
inline void next_round(const Round& l) {
  Progress& p = *l.progress;
  if (p.stop) return;
  l.pace->of = l.count;
  l.pace->iterations = l.round;
  const uint64_t budget_ns = l.pace->budget_ns;
  if (budget_ns == ~0ull || l.round == l.count) return;
  const uint64_t now = clock_ns();
  if (l.round > 0 && now - p.round_began_ns > p.longest_ns) p.longest_ns = now - p.round_began_ns;
  p.round_began_ns = now;
  p.stop = now - p.began_ns + p.longest_ns >= budget_ns;
}

}  // namespace ewm

EWM_THREAD(ewm_begin, ewm::Round) { ewm::begin_run(l); }
EWM_THREAD(ewm_round, ewm::Round) { ewm::next_round(l); }
EWM_THREAD(ewm_stamp, ewm::Stamp) { *l.at_ns = ewm::clock_ns(); }
