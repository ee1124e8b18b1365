// A run as a few dozen equal parts, so that what changes over hours is seen where single samples are not kept: how late,
// how slow, how much memory, how many faults of a page. And whether the clock itself can be trusted.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

struct Span {
  uint64_t end_ns;                // since the first release
  uint64_t ticks, misses, late_max;  // of this part alone
  uint64_t plans, plan_ns;        // since the start, as are
  uint64_t minor, major, peak_kb;  // faults of a page, and the most memory held so far
};

constexpr uint32_t MOST_SPANS = 60;

struct Spans {
  Span all[MOST_SPANS];
  uint32_t count;
  uint64_t ticks_each;
  Span now;
};

inline void divide(Spans& s, uint64_t ticks) {
  s = Spans{};
  s.ticks_each = (ticks + MOST_SPANS - 1) / MOST_SPANS;
}
inline void add(Spans& s, uint64_t late, bool missed) {
  s.now.ticks++;
  s.now.misses += missed;
  if (late > s.now.late_max) s.now.late_max = late;
}
// One system call a part.
inline void close(Spans& s, uint64_t end_ns, uint64_t plans, uint64_t plan_ns) {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  s.now.end_ns = end_ns, s.now.plans = plans, s.now.plan_ns = plan_ns;
  s.now.minor = uint64_t(used.ru_minflt), s.now.major = uint64_t(used.ru_majflt), s.now.peak_kb = uint64_t(used.ru_maxrss);
  if (s.count < MOST_SPANS) s.all[s.count++] = s.now;
  s.now = Span{};
}
inline void print_json(const Spans& s, FILE* out) {
  typedef unsigned long long ull;
  fprintf(out, "[");
  for (uint32_t i = 0; i < s.count; i++) {
    const Span& p = s.all[i];
    fprintf(out,
            "%s{\"end_ns\": %llu, \"ticks\": %llu, \"misses\": %llu, \"late_max_ns\": %llu, \"plans\": %llu, "
            "\"plan_ns\": %llu, \"minor_faults\": %llu, \"major_faults\": %llu, \"peak_kb\": %llu}",
            i == 0 ? "" : ",\n  ", (ull)p.end_ns, (ull)p.ticks, (ull)p.misses, (ull)p.late_max, (ull)p.plans,
            (ull)p.plan_ns, (ull)p.minor, (ull)p.major, (ull)p.peak_kb);
  }
  fprintf(out, "]");
}

// The clock that paces, against the one that nothing sets or slews: a step between two looks is a clock that jumped.
struct Watch {
  uint64_t paced, raw;  // at the last look
  uint64_t looks, steps, largest_ns;
};

constexpr uint64_t CLOCK_STEP_NS = 500000;  // less may be what passes between two readings

inline uint64_t read_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}
// How much more one clock moved than the other.
inline uint64_t apart(uint64_t paced_ns, uint64_t raw_ns) {
  int64_t by = static_cast<int64_t>(paced_ns - raw_ns);
  return static_cast<uint64_t>(by < 0 ? -by : by);
}

// `paced` was just read. A difference counts only where a second pair of readings shows it too.
inline void look(Watch& w, uint64_t paced) {
  uint64_t raw = read_ns(CLOCK_MONOTONIC_RAW);
  if (w.looks++ != 0 && apart(paced - w.paced, raw - w.raw) > CLOCK_STEP_NS) {
    uint64_t after = 0;
    for (int again = 0; again < 3; again++) {
      paced = read_ns(CLOCK_MONOTONIC), raw = read_ns(CLOCK_MONOTONIC_RAW), after = read_ns(CLOCK_MONOTONIC);
      if (apart(after, paced) < CLOCK_STEP_NS / 10) break;
    }
    uint64_t step = apart(paced - w.paced, raw - w.raw);
    if (step > CLOCK_STEP_NS) {
      w.steps++;
      if (step > w.largest_ns) w.largest_ns = step;
    }
  }
  w.paced = paced, w.raw = raw;
}
